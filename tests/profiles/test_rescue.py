"""A damaged profile: put aside, replaced by the newest good backup and what can be read, and told to the user."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd.errors import StoreError
from edgepd_profiles import backup, damage, events, feedback, health, interactions, registry, rescue
from edgepd_profiles.backup import Backup, directory_of
from edgepd_profiles.interactions import Interaction

NOW = 1_750_000_000.0
DAY = 86_400.0
BASE = "ab" * 32


class Killed(BaseException):
    """The process ended here."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "profile.db"


def exchange(n: int, text: str = "") -> Interaction:
    messages = [{"role": "user", "content": f"question {n} {text}"}]
    return Interaction(
        f"i_{n:04}", f"c{n}", 1000.0 + n, "cli", "tiny", 1, messages, response=f"answer {n}", state="done"
    )


def add(path: Path, first: int, last: int, text: str = "") -> None:
    """Store the exchanges first..last."""

    def job(conn: sqlite3.Connection) -> None:
        for n in range(first, last + 1):
            interactions.begin(conn, exchange(n, text))

    with rescue.open_profile(path, now=NOW).store as store:
        store.write(job).result()


def back_up(path: Path, at: float) -> Path:
    with rescue.open_profile(path, now=NOW).store as store:
        return backup.make(store, directory_of(path), 9, at, pause=lambda: None)


def ids(path: Path) -> list[str]:
    """Open as the daemon does and return the ids of the exchanges."""
    with rescue.open_profile(path, now=NOW).store as store, store.read() as conn:
        return [row[0] for row in conn.execute("SELECT id FROM interactions ORDER BY seq")]


def numbered(*numbers: int) -> list[str]:
    return [f"i_{n:04}" for n in numbers]


def told(path: Path, at: float) -> None:
    """Store an event."""
    with rescue.open_profile(path, now=NOW).store as store:
        store.write(lambda c: events.add(c, [events.New(at, "walk", "dog", "", 0, "maps")], now=NOW)).result()


def spoil_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"not a database at all")


def spoil_schema(path: Path) -> None:
    """Overwrite the page with the list of tables, behind the header."""
    with path.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(3000))


def unclean(path: Path) -> None:
    """Make it look as if the daemon had been killed: a WAL with content that says nothing is beside the file."""
    path.with_name("profile.db-wal").write_bytes(b"x" * 64)


@pytest.fixture
def kept(path: Path) -> Iterator[Path]:
    """Three exchanges in a backup, and two that came later."""
    add(path, 1, 3)
    back_up(path, NOW - DAY)
    add(path, 4, 5)
    yield path


def test_a_sound_profile_is_opened_and_nothing_is_told(kept: Path) -> None:
    before = kept.stat().st_ino
    assert ids(kept) == numbered(1, 2, 3, 4, 5)
    assert kept.stat().st_ino == before
    assert rescue.last(kept) is None
    assert rescue.to_be_told(kept, NOW) is None
    assert rescue.damaged_files(kept) == []


@pytest.mark.parametrize("spoil", [spoil_header, spoil_schema])
def test_the_newest_backup_takes_the_place_and_the_damaged_file_is_kept(kept: Path, spoil: object) -> None:
    assert callable(spoil)
    spoil(kept)
    content = kept.read_bytes()
    assert ids(kept) == numbered(1, 2, 3)
    (aside,) = rescue.damaged_files(kept)
    assert aside.read_bytes() == content
    assert stat.S_IMODE(aside.stat().st_mode) == stat.S_IMODE(kept.stat().st_mode) == 0o600
    told = rescue.last(kept)
    assert told is not None
    assert (told.at, told.damaged, told.backup_at, told.salvaged, told.finished) == (
        NOW,
        str(aside),
        NOW - DAY,
        0,
        True,
    )
    assert str(aside) in told.told()
    assert ids(kept) == numbered(1, 2, 3)  # and a second start changes nothing
    assert len(rescue.damaged_files(kept)) == 1


def test_what_is_newer_than_the_backup_is_carried_over_with_its_feedback(kept: Path) -> None:
    add(kept, 6, 40, "long " * 400)
    with rescue.open_profile(kept).store as store:
        store.write(lambda c: feedback.set_edit(c, "i_0005", "better", at=7.0)).result()
    with closing(sqlite3.connect(kept)) as conn:  # a page of an index: quick_check finds it, the tables are whole
        conn.execute("PRAGMA journal_mode = DELETE")
        page = conn.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'feedback_seq'").fetchone() or (
            conn.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'generations'").fetchone()
        )
        size = conn.execute("PRAGMA page_size").fetchone()[0]
    with kept.open("r+b") as file:
        file.seek((page[0] - 1) * size)
        file.write(os.urandom(size))
    unclean(kept)
    assert ids(kept) == numbered(*range(1, 41))
    told = rescue.last(kept)
    assert told is not None
    assert (told.salvaged, told.unreadable) == (37, 0)
    with rescue.open_profile(kept).store as store, store.read() as conn:
        assert [(f.kind, f.text, f.at) for f in feedback.of(conn, "i_0005")] == [("edit", "better", 7.0)]
        assert conn.execute("SELECT count(*) FROM interaction_search WHERE interaction_search MATCH 'long'").fetchone()


def test_older_backups_are_tried_in_turn(kept: Path) -> None:
    spoil_header(back_up(kept, NOW - 100))
    spoil_header(kept)
    assert ids(kept) == numbered(1, 2, 3)
    told = rescue.last(kept)
    assert told is not None
    assert told.backup_at == NOW - DAY


def test_a_backup_from_the_future_comes_last(kept: Path) -> None:
    backup.listing(directory_of(kept))[0].path.rename(directory_of(kept) / "profile-20990101-000000.db")
    back_up(kept, NOW - 100)
    spoil_header(kept)
    assert ids(kept) == numbered(1, 2, 3, 4, 5)


def test_without_a_backup_an_empty_profile_takes_the_place(path: Path) -> None:
    add(path, 1, 3)
    spoil_header(path)
    assert ids(path) == []
    told = rescue.last(path)
    assert told is not None
    assert told.backup_at is None
    assert "no good backup" in told.told()


def test_an_empty_file_is_a_loss_where_there_are_backups_and_a_new_profile_where_not(
    kept: Path, tmp_path: Path
) -> None:
    kept.write_bytes(b"")
    assert ids(kept) == numbered(1, 2, 3)
    fresh = tmp_path / "other" / "profile.db"
    fresh.parent.mkdir()
    fresh.touch()
    assert ids(fresh) == []
    assert rescue.last(fresh) is None


def test_a_wal_without_its_file_is_kept_aside(kept: Path) -> None:
    kept.unlink()
    unclean(kept)
    assert ids(kept) == numbered(1, 2, 3)
    assert [f.name.rpartition("-")[2] for f in rescue.damaged_files(kept)] == ["wal"]


def test_another_program_s_database_is_refused_and_not_touched(kept: Path) -> None:
    kept.unlink()
    with closing(sqlite3.connect(kept)) as conn:
        conn.execute("CREATE TABLE bookmarks (url TEXT)")
    content = kept.read_bytes()
    with pytest.raises(StoreError, match="is not a profile of edgepd; move it away"):
        rescue.open_profile(kept)
    assert kept.read_bytes() == content
    assert rescue.damaged_files(kept) == []


def test_a_directory_in_its_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be created"):
        rescue.open_profile(path)


def test_damage_is_found_after_a_kill_even_if_the_wal_is_gone(kept: Path) -> None:
    with rescue.open_profile(kept).store as store:
        store.write(lambda c: registry.ensure_base(c, BASE)).result()
        store.write(lambda c: health.booted(c, BASE, registry.active(c, BASE).id)).result()
    with closing(sqlite3.connect(kept)) as conn:
        conn.execute("PRAGMA journal_mode = DELETE")
        page = conn.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'facts'").fetchone()[0]
        size = conn.execute("PRAGMA page_size").fetchone()[0]
    with kept.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    assert ids(kept) == numbered(1, 2, 3, 4, 5)
    assert rescue.last(kept) is not None


def test_a_boot_in_the_backup_is_no_crash(path: Path) -> None:
    with rescue.open_profile(path).store as store:
        store.write(lambda c: registry.ensure_base(c, BASE)).result()
        store.write(lambda c: health.booted(c, BASE, registry.active(c, BASE).id)).result()
        backup.make(store, directory_of(path), 2, NOW - DAY, pause=lambda: None)
    spoil_header(path)
    with rescue.open_profile(path, now=NOW).store as store, store.read() as conn:
        assert [row[0] for row in conn.execute("SELECT state FROM boots")] == ["ended"]


@pytest.mark.parametrize("dies_after", range(8))
def test_a_rescue_that_is_killed_is_finished_by_the_next_start(
    kept: Path, dies_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_header(kept)
    unclean(kept)
    content = kept.read_bytes()
    steps = iter(range(100))
    rename = Path.replace

    def mortal(self: Path, target: Path) -> Path:
        if next(steps) == dies_after:
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", mortal)
        try:
            ids(kept)
        except Killed:
            died = True
        else:
            died = False
    assert ids(kept) == numbered(1, 2, 3)
    aside = [f for f in rescue.damaged_files(kept) if not f.name.endswith(("-wal", "-shm"))]
    assert [f.read_bytes() for f in aside] == [content]
    told = rescue.last(kept)
    assert told is not None
    assert told.finished
    assert not kept.with_name("profile.db.rescue.tmp").exists()
    assert died or dies_after >= 5  # note, WAL, file, replacement, note


def test_there_must_be_room(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_header(kept)
    content = kept.read_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(StoreError, match="make room, then start edgepd again"):
        rescue.open_profile(kept)
    assert kept.read_bytes() == content


def test_the_user_is_told_for_a_week_or_until_the_file_is_deleted(kept: Path) -> None:
    spoil_header(kept)
    ids(kept)
    assert "took its place" in str(rescue.to_be_told(kept, NOW + 6 * DAY))
    assert rescue.to_be_told(kept, NOW + 8 * DAY) is None
    for file in rescue.damaged_files(kept):
        file.unlink()
    assert rescue.to_be_told(kept, NOW) is None


def test_damage_that_is_met_later_is_remembered_and_examined_once_a_day(kept: Path) -> None:
    store = rescue.open_profile(kept).store
    with closing(store):
        assert store.damage is None
        with pytest.raises(StoreError):
            store.write(corrupt).result()
        assert store.damage is not None
        assert "SQLITE_CORRUPT" in store.damage
        reason = store.damage
    assert damage.suspect(kept, reason, NOW)
    assert ids(kept) == numbered(1, 2, 3, 4, 5)  # nothing is found
    assert not damage.suspect(kept, reason, NOW + 100)
    assert damage.suspect(kept, reason, NOW + 2 * DAY)


def corrupt(conn: sqlite3.Connection) -> None:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
    raise error


def test_a_damaged_search_index_is_made_anew(kept: Path) -> None:
    with closing(sqlite3.connect(kept, isolation_level=None)) as conn:
        conn.execute("UPDATE interaction_search_data SET block = x'ffffffff' WHERE id > 10")
    opened = rescue.open_profile(kept).store
    with closing(opened):
        with pytest.raises(StoreError), opened.read() as conn:
            conn.execute("SELECT rowid FROM interaction_search WHERE interaction_search MATCH 'question'").fetchall()
        assert opened.damage is not None
        assert damage.suspect(kept, opened.damage, NOW)
    with rescue.open_profile(kept).store as store, store.read() as conn:
        sql = "SELECT rowid FROM interaction_search WHERE interaction_search MATCH 'question'"
        assert len(conn.execute(sql).fetchall()) == 5
    assert rescue.last(kept) is None


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_whatever_is_spoilt_the_profile_opens_with_at_least_the_backup(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("spoilt") / "data" / "profile.db"
    add(path, 1, 3)
    back_up(path, NOW - DAY)
    add(path, 4, 12, "word " * 300)
    size = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(data.draw(st.integers(1, 3))):
            file.seek(data.draw(st.integers(0, size - 1)))
            file.write(data.draw(st.binary(min_size=1, max_size=2000)))
        file.truncate(data.draw(st.sampled_from([size, size // 2])))
    unclean(path)
    found = ids(path)
    assert set(found) <= set(numbered(*range(1, 13)))
    if rescue.last(path) is not None:
        assert found[:3] == numbered(1, 2, 3)
        assert damage.damage(path) is None


@pytest.mark.parametrize(
    ("ages", "due"),
    [((), True), ((0.5,), False), ((1.5,), True), ((-30.0,), True), ((-30.0, 0.5), False), ((-30.0, 2.0), True)],
)
def test_a_backup_is_due_whatever_the_clock_was_before(ages: tuple[float, ...], due: bool) -> None:
    made = [Backup(Path("b"), NOW - age * DAY, 1) for age in ages]
    assert rescue.backup_due(made, 1.0, NOW) is due
    assert rescue.backup_due(made, 0.0, NOW) is False


def test_newer_events_and_the_map_are_carried_over(path: Path) -> None:
    add(path, 1, 1)
    told(path, 1.0)
    back_up(path, NOW - DAY)
    told(path, 2.0)
    add(path, 2, 3)
    with rescue.open_profile(path, now=NOW).store as store:
        store.write(lambda c: events.note_chat(c, exchange(2))).result()
        store.write(lambda c: events.map_event(c, "walk", "sport", at=3.0)).result()
        # Of this exchange nothing can be read, so that its event has nothing to belong to.
        store.write(lambda c: events.note_chat(c, exchange(3))).result()
        store.write(lambda c: c.execute("UPDATE interactions SET messages = '{' WHERE id = 'i_0003'").close()).result()
    with closing(sqlite3.connect(path)) as conn:  # a table that salvaging does not look into
        conn.execute("PRAGMA journal_mode = DELETE")
        (page,) = conn.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'generations'").fetchone()
        (size,) = conn.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    unclean(path)
    with rescue.open_profile(path, now=NOW).store as store, store.read() as conn:
        assert [(each.at, each.intent, each.interaction) for each in events.history(conn)] == [
            (1.0, "sport", None), (2.0, "sport", None), (1002.0, "cli", "i_0002"),
        ]  # fmt: skip
    rescued = rescue.last(path)
    assert rescued is not None
    assert (rescued.salvaged, rescued.unreadable) == (1, 1)
