from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edgepd
import edgepd_profiles
from edgepd.errors import StoreError
from edgepd_profiles import interactions, registry
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data" / "profile.db") as opened:
        opened.write(lambda conn: conn.execute("CREATE TABLE notes (n INTEGER, text TEXT)").close()).result()
        yield opened


def insert(n: int, text: str = "") -> Callable[[sqlite3.Connection], int]:
    def job(conn: sqlite3.Connection) -> int:
        conn.execute("INSERT INTO notes VALUES (?, ?)", (n, text))
        return n

    return job


def count(store: Store) -> int:
    with store.read() as conn:
        return int(conn.execute("SELECT count(*) FROM notes").fetchone()[0])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_write_returns_what_the_job_returned_and_is_seen_by_readers(store: Store) -> None:
    assert store.write(insert(7, "x")).result() == 7
    with store.read() as conn:
        assert conn.execute("SELECT * FROM notes").fetchall() == [(7, "x")]


def test_the_connection_is_set_up_for_durable_private_storage(store: Store) -> None:
    def settings(conn: sqlite3.Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "secure_delete", "foreign_keys", "busy_timeout", "temp_store")
        return [conn.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert store.write(settings).result() == ["wal", 2, 1, 1, 5000, 2]


def test_all_files_are_private_even_with_a_wide_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with Store.open(tmp_path / "data" / "profile.db") as store:
            store.write(lambda conn: registry.ensure_base(conn, "a" * 64)).result()
            files = sorted((tmp_path / "data").iterdir())
            assert [(f.name, mode(f)) for f in files] == [
                ("profile.db", 0o600),
                ("profile.db-shm", 0o600),
                ("profile.db-wal", 0o600),
            ]
            assert mode(tmp_path / "data") == 0o700
    finally:
        os.umask(old)


def test_a_file_that_others_could_read_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "profile.db"
    Store.open(path).close()
    path.chmod(0o644)
    Store.open(path).close()
    assert mode(path) == 0o600


def test_a_job_that_raises_leaves_nothing_behind(store: Store) -> None:
    def job(conn: sqlite3.Connection) -> None:
        conn.execute("INSERT INTO notes VALUES (1, 'x')")
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        store.write(job).result()
    assert count(store) == 0
    store.write(insert(2)).result()
    assert count(store) == 1


def test_a_job_may_not_end_its_transaction(store: Store) -> None:
    with pytest.raises(RuntimeError, match="ended its own transaction"):
        store.write(lambda conn: conn.commit()).result()
    assert store.write(insert(1)).result() == 1


def test_a_bug_in_a_job_is_not_dressed_up_as_a_storage_problem(store: Store) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table: nope"):
        store.write(lambda conn: conn.execute("DELETE FROM nope")).result()
    with pytest.raises(sqlite3.OperationalError, match="no such table: nope"), store.read() as conn:
        conn.execute("SELECT * FROM nope")


def test_readers_cannot_write(store: Store) -> None:
    with pytest.raises(StoreError, match=r"read-only; .*\(SQLITE_READONLY\)"), store.read() as conn:
        conn.execute("INSERT INTO notes VALUES (1, '')")
    assert count(store) == 0


def test_a_reader_sees_one_snapshot(store: Store) -> None:
    store.write(insert(1)).result()
    with store.read() as conn:
        assert conn.execute("SELECT count(*) FROM notes").fetchone() == (1,)
        store.write(insert(2)).result()
        assert conn.execute("SELECT count(*) FROM notes").fetchone() == (1,)
    assert count(store) == 2


def test_many_readers_beside_one_writer(store: Store) -> None:
    """Each job adds two rows at once, so that a reader that sees an odd number has seen half a transaction."""
    seen: list[list[int]] = [[] for _ in range(6)]
    stop = threading.Event()
    failures: list[Exception] = []

    def twice(conn: sqlite3.Connection) -> None:
        insert(1)(conn)
        insert(1)(conn)

    def look(counts: list[int]) -> None:
        try:
            while not stop.is_set():
                counts.append(count(store))
        except (StoreError, sqlite3.Error) as error:
            failures.append(error)

    threads = [threading.Thread(target=look, args=(counts,)) for counts in seen]
    for thread in threads:
        thread.start()
    for _ in range(50):
        store.write(twice).result()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    for counts in seen:
        assert counts == sorted(counts)
        assert all(c % 2 == 0 for c in counts)
    assert count(store) == 100


def test_jobs_run_one_after_another_in_order(store: Store) -> None:
    futures = [store.write(insert(n)) for n in range(100)]
    assert [future.result() for future in futures] == list(range(100))
    with store.read() as conn:
        assert [n for (n,) in conn.execute("SELECT n FROM notes ORDER BY rowid")] == list(range(100))


def test_a_full_disk_is_told_and_survived(store: Store) -> None:
    store.write(insert(1)).result()
    store.write(lambda conn: conn.execute("PRAGMA max_page_count = 1").close()).result()  # no page more than now
    with pytest.raises(StoreError, match=r"profile\.db: the disk is full.*free some space.*\(SQLITE_FULL\)"):
        store.write(insert(2, "x" * 100_000)).result()
    assert count(store) == 1
    store.write(lambda conn: conn.execute("PRAGMA max_page_count = 100000").close()).result()
    store.write(insert(3, "x" * 100_000)).result()
    assert count(store) == 2


def test_contradictory_locks_are_met_by_opening_the_file_again(tmp_path: Path) -> None:
    """Seen once on a slow machine: SQLITE_PROTOCOL for ten seconds in each of two writes one after the other."""

    class Stuck(sqlite3.Connection):
        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            error = sqlite3.OperationalError("locking protocol")
            error.sqlite_errorcode = sqlite3.SQLITE_PROTOCOL
            error.sqlite_errorname = "SQLITE_PROTOCOL"
            raise error

    with Store.open(tmp_path / "p.db") as store:
        store.write(lambda conn: conn.execute("CREATE TABLE t (a)")).result()
        store._writer.close()
        store._writer = sqlite3.connect(tmp_path / "p.db", factory=Stuck, check_same_thread=False)
        store.write(lambda conn: conn.execute("INSERT INTO t VALUES (1)")).result()
        with store.read() as conn:
            assert conn.execute("SELECT * FROM t").fetchall() == [(1,)]


def test_close_finishes_what_was_queued_and_can_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "profile.db"
    store = Store.open(path)
    store.write(lambda conn: conn.execute("CREATE TABLE notes (n INTEGER, text TEXT)").close())
    futures = [store.write(insert(n)) for n in range(50)]
    store.close()
    store.close()
    assert all(future.done() for future in futures)
    assert [f.name for f in tmp_path.iterdir()] == ["profile.db"]  # the WAL is empty and gone
    with pytest.raises(StoreError, match="the profile is closed"):
        store.write(insert(1))
    with pytest.raises(StoreError, match="the profile is closed"), store.read():
        pass
    with Store.open(path) as again:
        assert count(again) == 50


# What the child processes below have in common: an exchange is logged by two writes, as the daemon does.
CHILD = """
import resource, sys, time
from pathlib import Path
from edgepd.errors import StoreError
from edgepd_profiles import interactions
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.store import Store

store = Store.open(Path(sys.argv[1]))

def log(text):
    name = interactions.new_id()
    new = Interaction(name, "c", time.time(), "cli", "m", 1, [{"role": "user", "content": "asked " + text}])
    numbers = {"prompt_tokens": 1, "completion_tokens": 1, "ttft_ms": 1.0, "duration_ms": 1.0}
    store.write(lambda conn: interactions.begin(conn, new)).result()
    store.write(lambda conn: interactions.finish(conn, name, "answered " + text, "done", "stop", **numbers)).result()
    print(name, flush=True)
"""
KILLED = """
store.write(interactions.mark_interrupted).result()
while True:
    log("word")
"""
LIMITED = """
log("before")
size = max(Path(sys.argv[1] + suffix).stat().st_size for suffix in ("", "-wal"))
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        log("x" * 200_000)
    except StoreError as error:
        print(error, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log("after")
store.close()
"""


def child(script: str, path: Path) -> subprocess.Popen[str]:
    roots = [Path(edgepd.__file__).parents[1], Path(edgepd_profiles.__file__).parents[1]]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + script, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, roots))},
    )


def check(store: Store) -> None:
    """The file is whole, and the search index has exactly what has ended."""
    with store.read() as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert conn.execute("PRAGMA foreign_key_check").fetchall() == []
    store.write(
        lambda conn: conn.execute(
            "INSERT INTO interaction_search (interaction_search, rank) VALUES ('integrity-check', 1)"
        ).close()
    ).result()


def test_kill_9_at_random_points_loses_no_acknowledged_exchange(tmp_path: Path) -> None:
    """Six programs one after another are killed, each after some of the 1,000 exchanges, at any point of a write."""
    path = tmp_path / "profile.db"
    rng = random.Random()
    told: list[str] = []
    for rest in range(5, -1, -1):
        wanted = rng.randint(50, 250) if rest else max(1000 - len(told), 50)
        with child(KILLED, path) as killed:
            assert killed.stdout is not None
            told += [killed.stdout.readline().strip() for _ in range(wanted)]
            time.sleep(rng.uniform(0, 0.005))
            killed.send_signal(signal.SIGKILL)
            told += [line.strip() for line in killed.stdout if line.endswith("\n")]
        assert killed.returncode == -signal.SIGKILL
    assert len(told) >= 1000
    with Store.open(path) as store:
        store.write(interactions.mark_interrupted).result()
        with store.read() as conn:
            rows = dict(conn.execute("SELECT id, state FROM interactions ORDER BY seq").fetchall())
        assert [name for name in rows if name in set(told)] == told
        assert {rows[name] for name in told} == {"done"}
        assert len(rows) - len(told) <= 6  # of each program one may be stored but not yet told
        check(store)


def test_a_disk_that_refuses_a_write_is_told_and_survived(tmp_path: Path) -> None:
    """The system refuses to let any file grow, which SQLite reports as SQLITE_IOERR_WRITE, as it does EIO."""
    path = tmp_path / "profile.db"
    with child(LIMITED, path) as limited:
        assert limited.stdout is not None
        before, first, second, after = limited.stdout.read().splitlines()
    assert limited.returncode == 0
    for said in (first, second):
        assert said.startswith(f"{path}: the disk reported an error; check its free space")
        assert said.endswith("(SQLITE_IOERR_WRITE)")
    with Store.open(path) as store:
        check(store)
        with store.read() as conn:
            rows = conn.execute("SELECT id, state FROM interactions ORDER BY seq").fetchall()
            assert rows == [(before, "done"), (after, "done")]


def test_an_exchange_whose_end_finds_the_disk_full_can_be_ended_later(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"prompt_tokens": 1, "completion_tokens": 1, "ttft_ms": None, "duration_ms": None}
    new = Interaction("i_1", "c", 1.0, "cli", "m", 1, [{"role": "user", "content": "Tell me a story."}])

    def finish(conn: sqlite3.Connection) -> None:
        interactions.finish(conn, "i_1", "once upon a time " * 10_000, "done", "stop", **numbers)

    with Store.open(tmp_path / "profile.db") as store:
        store.write(lambda conn: interactions.begin(conn, new)).result()
        store.write(lambda conn: conn.execute("PRAGMA max_page_count = 1").close()).result()  # no page more than now
        with pytest.raises(StoreError, match="the disk is full, so this was not stored; free some space"):
            store.write(finish).result()
        with store.read() as conn:
            assert interactions.get(conn, "i_1").state == "streaming"
        check_is_whole = store.write(lambda conn: conn.execute("PRAGMA quick_check").fetchall()).result()
        assert check_is_whole == [("ok",)]
        store.write(lambda conn: conn.execute("PRAGMA max_page_count = 100000").close()).result()
        store.write(finish).result()
        check(store)


def test_a_file_that_is_no_database_is_refused_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "profile.db"
    path.write_text("My diary, which is not a database at all.\n" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not an SQLite database; move it away"):
        Store.open(path)
    assert path.read_bytes() == before


def test_a_damaged_file_is_found_after_an_unclean_exit(tmp_path: Path) -> None:
    path = tmp_path / "profile.db"
    with Store.open(path) as store:
        store.write(lambda conn: conn.execute("CREATE TABLE notes (n INTEGER, text TEXT)").close()).result()
        for n in range(100):
            store.write(insert(n, "x" * 1000))
    content = bytearray(path.read_bytes())
    content[-20 * 4096 : -10 * 4096] = b"\xff" * (10 * 4096)
    path.write_bytes(content)
    (tmp_path / "profile.db-wal").write_bytes(b"left behind")
    with pytest.raises(StoreError, match="the database is corrupt; stop edgepd, keep a copy"):
        Store.open(path)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"file/profile\.db: cannot be created: (File exists|Not a directory)"):
        Store.open(tmp_path / "file" / "profile.db")


def test_odd_characters_in_the_path(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a?b#c%20 d" / "profile.db") as store:
        store.write(lambda conn: registry.ensure_base(conn, "a" * 64)).result()
        with store.read() as conn:
            assert registry.active(conn, "a" * 64).id == 1


def test_deleted_text_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "profile.db"
    with Store.open(path) as store:
        store.write(lambda conn: conn.execute("CREATE TABLE notes (n INTEGER, text TEXT)").close())
        store.write(insert(1, "canary-4711")).result()
    assert b"canary-4711" in path.read_bytes()
    with Store.open(path) as store:
        store.write(lambda conn: conn.execute("DELETE FROM notes").close()).result()
    assert b"canary-4711" not in path.read_bytes()


def test_the_wal_does_not_grow_without_bound_by_large_transactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepd_profiles.store.LARGE_WAL", 200_000)
    sizes = []
    with Store.open(tmp_path / "p.db") as store:
        store.write(lambda conn: conn.execute("CREATE TABLE notes (n INTEGER, text TEXT)").close()).result()
        for n in range(30):
            store.write(insert(n, "x" * 100_000)).result()
            store.write(insert(n)).result()  # the checkpoint comes after the answer, so before the end of the next job
            sizes.append((tmp_path / "p.db-wal").stat().st_size)
    assert max(sizes) < 900_000, sizes  # 30 texts would be 3 MB
