from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

import edgepd
import edgepd_profiles
from edgepd.errors import StoreError
from edgepd_profiles import feedback, health, interactions, migrations, registry
from edgepd_profiles.store import Store

# The schema as step m001 first made it, with one row. Never edit: it is what the oldest profiles look like.
OLDEST = """
CREATE TABLE _sqlite_migrations (id INTEGER PRIMARY KEY, migration_set TEXT, name TEXT, applied_at TEXT);
CREATE UNIQUE INDEX idx__sqlite_migrations_migration_set_name ON _sqlite_migrations (migration_set, name);
INSERT INTO _sqlite_migrations VALUES (1, 'edgepd_profiles', 'm001_interactions', '2026-01-01 00:00:00+00:00');
CREATE TABLE interactions (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    conversation TEXT NOT NULL,
    created_at REAL NOT NULL,
    app TEXT NOT NULL,
    model TEXT NOT NULL,
    generation INTEGER NOT NULL,
    messages TEXT NOT NULL,
    response TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('streaming', 'done', 'cancelled', 'failed', 'interrupted')),
    finish_reason TEXT,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    ttft_ms REAL,
    duration_ms REAL
) STRICT;
CREATE INDEX interactions_streaming ON interactions (seq) WHERE state = 'streaming';
INSERT INTO interactions VALUES (1, 'i_old', 'c1', 1.0, 'cli', 'smollm2', 1, '[{"content":"Hi","role":"user"}]',
    'Hello.', 'done', 'stop', 3, 2, 10.0, 20.0);
"""


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


KILLED = """
import sys
from pathlib import Path
from edgepd_profiles.store import Store
store = Store.open(Path(sys.argv[1]))
store.write(lambda conn: conn.execute("CREATE TABLE notes (n INTEGER, text TEXT)").close()).result()
n = 0
while True:
    store.write(lambda conn: conn.execute("INSERT INTO notes VALUES (?, ?)", (n, "x" * 500)).close()).result()
    print(n, flush=True)
    n += 1
"""


def test_kill_9_loses_no_acknowledged_row(tmp_path: Path) -> None:
    roots = [Path(edgepd.__file__).parents[1], Path(edgepd_profiles.__file__).parents[1]]
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "profile.db")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, roots))},
    )
    with child:
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(150)]
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout if line.endswith("\n")]
    assert child.returncode == -signal.SIGKILL
    assert acknowledged == list(range(len(acknowledged)))
    with Store.open(tmp_path / "profile.db") as store:
        assert count(store) - len(acknowledged) in (0, 1)  # one may be stored but not yet told
        with store.read() as conn:
            assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_the_oldest_profile_is_migrated_and_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "profile.db"
    old = sqlite3.connect(path)
    old.executescript(OLDEST)
    old.close()
    with Store.open(path) as store:
        with store.read() as conn:
            assert interactions.latest(conn).response == "Hello."
        store.write(lambda conn: feedback.set_thumb(conn, "i_old", 1)).result()
        store.write(lambda conn: registry.ensure_base(conn, "a" * 64)).result()


# A profile as step m004 left it: the base and one adapter on it, which serves. Never edit.
BEFORE_HEALTH = (
    OLDEST
    + """
CREATE TABLE feedback (
    interaction TEXT NOT NULL REFERENCES interactions (id) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    value INTEGER,
    text TEXT,
    source TEXT NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (interaction, kind)
) STRICT;
CREATE TABLE generations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    parent INTEGER REFERENCES generations (id),
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    base_sha256 TEXT NOT NULL,
    file_sha256 TEXT,
    adapter_file TEXT,
    model_file TEXT,
    created_at REAL NOT NULL,
    activated_at REAL,
    example_ids TEXT NOT NULL,
    data_hash TEXT NOT NULL,
    config TEXT NOT NULL,
    scores TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;
CREATE INDEX generations_of_base ON generations (base_sha256, id);
CREATE UNIQUE INDEX one_base ON generations (base_sha256) WHERE kind = 'base';
CREATE UNIQUE INDEX one_active ON generations (base_sha256) WHERE state = 'active';
CREATE TABLE activations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    base_sha256 TEXT NOT NULL,
    generation INTEGER NOT NULL REFERENCES generations (id),
    previous INTEGER REFERENCES generations (id),
    at REAL NOT NULL
) STRICT;
CREATE INDEX activations_of_generation ON activations (generation, id);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    started_at REAL NOT NULL,
    ended_at REAL,
    parent_generation INTEGER REFERENCES generations (id),
    generation INTEGER REFERENCES generations (id),
    reason TEXT NOT NULL,
    numbers TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_running ON runs (state) WHERE state = 'running';
ALTER TABLE interactions ADD COLUMN kind TEXT NOT NULL DEFAULT 'chat';
INSERT INTO generations VALUES (1, NULL, 'base', 'retired', 'aa', NULL, NULL, NULL, 1.0, 2.0, '[]', '', '{}', '{}', '');
INSERT INTO generations VALUES (2, 1, 'live', 'active', 'aa', 'ff', 'adapter.gguf', NULL, 3.0, 4.0, '["i_old"]', 'dd',
    '{"rank":8}', '{"held_out":2.5}', 'better');
INSERT INTO activations VALUES (1, 'aa', 1, NULL, 2.0), (2, 'aa', 2, 1, 4.0);
INSERT INTO _sqlite_migrations VALUES
    (2, 'edgepd_profiles', 'm002_feedback', '2026-01-01 00:00:00+00:00'),
    (3, 'edgepd_profiles', 'm003_registry', '2026-01-01 00:00:00+00:00'),
    (4, 'edgepd_profiles', 'm004_kind', '2026-01-01 00:00:00+00:00');
"""
)


def test_a_profile_without_boots_and_pins_is_migrated_and_keeps_its_generations(tmp_path: Path) -> None:
    path = tmp_path / "profile.db"
    old = sqlite3.connect(path)
    old.executescript(BEFORE_HEALTH)
    old.close()
    with Store.open(path) as store:
        with store.read() as conn:
            base, live = registry.listing(conn, "aa")
        assert (base.confirmed_at, base.pending) == (1.0, False)
        assert live == registry.Generation(
            2, 1, "live", "active", "aa", "ff", "adapter.gguf", None, 3.0, 4.0, ["i_old"], "dd",
            {"rank": 8}, {"held_out": 2.5}, "better", pinned=False, confirmed_at=None, healthy=0, strikes=0,
        )  # fmt: skip
        assert live.pending

        def die_twice(conn: sqlite3.Connection) -> health.Fallback | None:
            health.loading(conn, health.booted(conn, "aa", 2))
            health.at_boot(conn, "aa")
            health.loading(conn, health.booted(conn, "aa", 2))
            return health.at_boot(conn, "aa")

        fallback = store.write(die_twice).result()
        assert fallback is not None
        assert (fallback.from_id, fallback.to_id) == (2, 1)
    Store.open(tmp_path / "new.db").close()
    assert schema(path) == schema(tmp_path / "new.db")


def schema(path: Path) -> list[tuple[str, str]]:
    conn = sqlite3.connect(path)
    rows = conn.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").fetchall()
    conn.close()
    return [(name, "".join(sql.replace('"', "").split())) for name, sql in rows]


def test_a_migrated_profile_has_the_schema_of_a_new_one(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "old.db")
    old.executescript(OLDEST)
    old.close()
    Store.open(tmp_path / "old.db").close()
    Store.open(tmp_path / "new.db").close()
    assert schema(tmp_path / "old.db") == schema(tmp_path / "new.db")


def test_opening_again_applies_nothing_twice(tmp_path: Path) -> None:
    for _ in range(2):
        with Store.open(tmp_path / "profile.db") as store, store.read() as conn:
            names = [name for (name,) in conn.execute("SELECT name FROM _sqlite_migrations ORDER BY id")]
            assert names == ["m001_interactions", "m002_feedback", "m003_registry", "m004_kind", "m005_health"]


def test_a_migration_that_fails_leaves_the_profile_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.db"
    Store.open(path).close()
    before = schema(path)

    def m099_half(db: Database) -> None:
        db.execute("CREATE TABLE half (n INTEGER)")
        raise KeyError("power cut")

    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, m099_half))
    with pytest.raises(KeyError, match="power cut"):
        Store.open(path)
    assert schema(path) == before


def test_a_profile_of_a_newer_edgepd_is_refused_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "profile.db"
    with Store.open(path) as store:
        store.write(
            lambda conn: conn.execute(
                "INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('edgepd_profiles', 'm099_later')"
            ).close()
        ).result()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer edgepd .schema step m099_later.*upgrade edgepd"):
        Store.open(path)
    assert path.read_bytes() == before


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
