"""Backups: complete while writing goes on, private, checked, and brought back without a moment without a profile."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import threading
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from edgepd.errors import ConflictError, NotFoundError, RequestError, StoreError
from edgepd_profiles import backup, interactions
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.profile_file import reading
from edgepd_profiles.store import Store

NOON = 1_767_355_200.0  # 2026-01-02 12:00:00 UTC
NAME = "profile-20260102-120000.db"


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return tmp_path / "data" / "profile.db"


@pytest.fixture
def store(profile: Path) -> Iterator[Store]:
    with Store.open(profile) as opened:
        yield opened


@pytest.fixture
def directory(profile: Path) -> Path:
    return backup.directory_of(profile)


def add(store: Store, name: str, response: str = "Blue.") -> None:
    made = Interaction(
        id=name,
        conversation="c1",
        created_at=1.0,
        app="cli",
        model="tiny",
        generation=1,
        messages=[{"role": "user", "content": "Name a colour."}],
        response=response,
        state="done",
    )
    store.write(lambda conn: interactions.begin(conn, made)).result()


def ids(path: Path) -> list[str]:
    with reading(path) as conn:
        return [name for (name,) in conn.execute("SELECT id FROM interactions ORDER BY seq")]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_backup_is_one_private_file(store: Store, directory: Path) -> None:
    add(store, "a")
    path = backup.make(store, directory, 2, NOON)
    assert path == directory / NAME
    assert ids(path) == ["a"]
    assert (mode(path), mode(directory)) == (0o600, 0o700)
    assert sorted(each.name for each in directory.iterdir()) == [".lock", NAME]
    assert path.read_bytes()[18:20] == b"\x01\x01"  # not in WAL mode, so that it stays a single file when it is read
    assert backup.listing(directory) == [backup.Backup(path, NOON, path.stat().st_size)]


def test_writing_goes_on_and_what_comes_later_is_not_in_it(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "STEP_PAGES", 4)
    for n in range(40):
        add(store, f"before{n}", "water " * 200)
    steps = []

    def write_meanwhile() -> None:
        steps.append(f"during{len(steps)}")
        add(store, steps[-1])

    path = backup.make(store, directory, 2, NOON, pause=write_meanwhile)
    assert len(steps) > 5
    assert ids(path) == [f"before{n}" for n in range(40)]
    with store.read() as conn:
        assert conn.execute("SELECT count(*) FROM interactions").fetchone()[0] == 40 + len(steps)


def test_only_the_newest_are_kept(store: Store, directory: Path) -> None:
    made = [backup.make(store, directory, 2, NOON + day * 86400) for day in range(4)]
    (directory / "profile-mine.db").write_bytes(b"somebody else's")
    assert [each.path for each in backup.listing(directory)] == [made[3], made[2]]
    assert [each.at for each in backup.listing(directory)] == [NOON + 3 * 86400, NOON + 2 * 86400]
    # A clock that was set back makes a backup that looks old; it is the one just made and stays.
    late = backup.make(store, directory, 1, NOON)
    assert [each.path for each in backup.listing(directory)] == [late]
    assert (directory / "profile-mine.db").exists()


def test_giving_up_leaves_nothing_behind(store: Store, directory: Path) -> None:
    kept = backup.make(store, directory, 2, NOON)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup.make(store, directory, 2, NOON + 60, pause=stop)
    assert sorted(each.name for each in directory.iterdir()) == [".lock", kept.name]
    add(store, "still writable")


def test_what_a_killed_backup_left_is_replaced(store: Store, directory: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / backup.TEMPORARY).write_bytes(b"half of a file")
    (directory / f"{backup.TEMPORARY}-journal").write_bytes(b"and its journal")
    add(store, "a")
    assert ids(backup.make(store, directory, 2, NOON)) == ["a"]
    assert sorted(each.name for each in directory.iterdir()) == [".lock", NAME]


def test_one_backup_at_a_time(store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "PATIENCE_S", 0.0)
    refused = []

    def again() -> None:
        with pytest.raises(ConflictError, match="another backup is being made; wait for it") as raised:
            backup.make(store, directory, 2, NOON + 1)
        refused.append(raised)

    backup.make(store, directory, 2, NOON, pause=again)
    assert len(refused) >= 1
    assert [each.path.name for each in backup.listing(directory)] == [NAME]


def test_backup_needs_room(store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**30, 2**30 - 2**20, 2**20))
    with pytest.raises(StoreError, match=r"has 1 MiB free, but a copy of the profile needs 65 MiB; make room first"):
        backup.make(store, directory, 2, NOON)
    assert [each.name for each in directory.iterdir()] == [".lock"]


def test_damaged_copy_is_not_kept(store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, "a", "water " * 2000)
    copy = backup._copy

    def damage(source: sqlite3.Connection, target: Path, pause: object) -> None:
        copy(source, target, lambda: None)
        with target.open("r+b") as file:
            file.seek(4096 * 2)
            file.write(os.urandom(4096))

    monkeypatch.setattr(backup, "_copy", damage)
    with pytest.raises(StoreError, match="a copy of the profile is damaged, so it is no backup: "):
        backup.make(store, directory, 2, NOON)
    assert backup.listing(directory) == []


def test_remove_all_ends_a_backup_that_is_being_made(store: Store, directory: Path) -> None:
    """Its snapshot is from before the deletion, so it must never get a name."""
    old = backup.make(store, directory, 3, NOON)
    gone: list[Path] = []
    with pytest.raises(ConflictError, match="something was forgotten while the backup was made"):
        backup.make(store, directory, 3, NOON + 60, pause=lambda: gone.extend(backup.remove_all(directory)))
    assert gone == [old]
    assert [each.name for each in directory.iterdir()] == [".lock"]
    assert backup.make(store, directory, 3, NOON + 120).exists()


def test_backup_after_something_was_forgotten_waits_for_the_one_that_gives_up(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "STEP_PAGES", 1)
    begun, forgotten = threading.Event(), threading.Event()
    steps = []

    def slowly() -> None:
        steps.append(None)
        begun.set()
        forgotten.wait(10)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(backup.make, store, directory, 2, NOON, pause=slowly)
        assert begun.wait(10)
        backup.remove_all(directory)
        threading.Timer(0.05, forgotten.set).start()
        second = backup.make(store, directory, 2, NOON + 60)
        with pytest.raises(ConflictError, match="something was forgotten"):
            first.result()
    assert len(steps) == 1  # it did not go on to the end
    assert [each.path for each in backup.listing(directory)] == [second]


def test_remove_all_takes_what_was_kept_aside_too(store: Store, profile: Path, directory: Path) -> None:
    assert backup.remove_all(directory) == []  # not even the folder is there
    first = backup.make(store, directory, 2, NOON)
    store.close()
    aside = backup.restore(first, profile, now=NOON)
    beside = directory / "replaced-20260102-120000.db-wal"
    beside.write_bytes(b"kept with it")
    (directory / backup.RESTORED).write_bytes(b"left by a kill")
    (directory / "note.txt").write_text("mine")
    assert backup.remove_all(directory) == [first, aside, beside]
    assert sorted(each.name for each in directory.iterdir()) == [".lock", "note.txt"]


def test_restore(store: Store, profile: Path, directory: Path) -> None:
    add(store, "a")
    made = backup.make(store, directory, 2, NOON)
    add(store, "b")
    store.close()
    aside = backup.restore(made, profile, now=NOON + 60)
    assert aside == directory / "replaced-20260102-120100.db"
    assert (ids(profile), ids(aside), ids(made)) == (["a"], ["a", "b"], ["a"])
    assert (mode(profile), mode(aside)) == (0o600, 0o600)
    with Store.open(profile) as again:
        add(again, "c")
    assert ids(profile) == ["a", "c"]
    assert ids(made) == ["a"]


def test_restore_after_a_crash_moves_the_wal_aside(store: Store, profile: Path, directory: Path) -> None:
    """A WAL that stayed would be read into the restored file, and what is only in it must not be lost."""
    add(store, "a")
    made = backup.make(store, directory, 2, NOON)
    add(store, "b")
    crashed = profile.parent.parent / "crashed"
    crashed.mkdir()
    for name in ("profile.db", "profile.db-wal"):  # as kill -9 leaves them
        shutil.copy(profile.parent / name, crashed / name)
    damaged = crashed / "profile.db"
    (crashed / "profile.db-shm").write_bytes(b"stale")
    aside = backup.restore(made, damaged, now=NOON)
    assert aside is not None
    assert sorted(each.name for each in crashed.iterdir()) == ["backups", "profile.db"]
    assert ids(damaged) == ["a"]
    assert aside.with_name(aside.name + "-wal").stat().st_size > 0
    assert ids(aside) == ["a", "b"]


def test_restore_where_nothing_was(store: Store, directory: Path, tmp_path: Path) -> None:
    add(store, "a")
    made = backup.make(store, directory, 2, NOON)
    new = tmp_path / "elsewhere" / "profile.db"
    new.parent.mkdir()
    (new.parent / "profile.db-wal").write_bytes(b"of a file that is gone")
    assert backup.restore(made, new) is None
    assert ids(new) == ["a"]
    assert not (new.parent / "profile.db-wal").exists()


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE recipes (name TEXT)")


def newer(path: Path) -> None:
    with Store.open(path) as opened:
        step = "INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('edgepd_profiles', 'm999_later')"
        opened.write(lambda conn: conn.execute(step).close()).result()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (
            lambda path: path.write_bytes(b"this is no database, however long it goes on" * 100),
            "not an SQLite database",
        ),
        (lambda path: path.write_bytes(b""), "this SQLite file is not a profile of edgepd; take another one"),
        (foreign, "this SQLite file is not a profile of edgepd; take another one"),
        (newer, r"written by a newer edgepd \(schema step m999_later\); upgrade edgepd"),
    ],
)
def test_restore_refuses_what_is_no_backup(
    store: Store, profile: Path, tmp_path: Path, make: object, problem: str
) -> None:
    add(store, "a")
    store.close()
    bad = tmp_path / "bad.db"
    make(bad)  # type: ignore[operator]
    before = profile.read_bytes()
    with pytest.raises(StoreError, match=problem):
        backup.restore(bad, profile)
    assert profile.read_bytes() == before
    assert [each.name for each in profile.parent.iterdir()] == ["profile.db"]


def test_restore_of_the_profile_itself_or_of_nothing(store: Store, profile: Path) -> None:
    store.close()
    with pytest.raises(RequestError, match="is the profile itself; name one of its backups"):
        backup.restore(profile, profile)
    with pytest.raises(NotFoundError, match="nothing.db is not a file; `edgepd backups` lists the backups"):
        backup.restore(profile.with_name("nothing.db"), profile)


def test_failed_restore_changes_nothing(
    store: Store, profile: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "a")
    made = backup.make(store, directory, 2, NOON)
    add(store, "b")
    store.close()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 0))
    with pytest.raises(StoreError, match="make room first"):
        backup.restore(made, profile)
    assert ids(profile) == ["a", "b"]
    assert sorted(each.name for each in directory.iterdir()) == [".lock", NAME]
