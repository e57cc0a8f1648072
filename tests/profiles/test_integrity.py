"""What `examine` finds in a profile that was damaged on purpose, and what `repair` mends."""

from __future__ import annotations

import shutil
import sqlite3
from collections import namedtuple
from contextlib import closing
from pathlib import Path

import pytest

from edgepd.errors import StoreError
from edgepd_profiles import backup, integrity, interactions
from edgepd_profiles.integrity import REPAIR, Finding, examine, repair
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.profile_file import reading
from edgepd_profiles.store import Store

NOW = 1_767_355_200.0
DAY = 86400.0
ALL = ["modes", "structure", "schema", "references", "search index", "WAL", "free disk", "backups"]


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """Five exchanges and a backup, closed cleanly."""
    path = tmp_path / "data" / "profile.db"
    with Store.open(path) as store:
        for n in range(5):
            add(store, f"i{n}")
        backup.make(store, backup.directory_of(path), 2, NOW)
    return path


def add(store: Store, name: str, state: str = "done") -> None:
    made = Interaction(
        id=name,
        conversation="c1",
        created_at=1.0,
        app="cli",
        model="tiny",
        generation=1,
        messages=[{"role": "user", "content": f"Where does heron {name} nest?"}],
        response="In the reeds. " * 100,
        state=state,  # type: ignore[arg-type]
    )
    store.write(lambda conn: interactions.begin(conn, made)).result()


def problems(path: Path, **options: float) -> list[Finding]:
    return [each for each in examine(path, **({"now": NOW} | options)) if each.problem]


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        for statement in statements:
            conn.execute(statement)


def test_profile_in_order(profile: Path) -> None:
    found = examine(profile, now=NOW)
    assert [each.what for each in found] == ALL
    assert [each for each in found if each.problem or each.advice] == []
    assert {each.what: each.detail for each in found}["backups"] == "1, the newest is 0.0 days old"
    assert sorted(each.name for each in profile.parent.iterdir()) == ["backups", "profile.db"]  # nothing was made


def test_profile_in_use(profile: Path) -> None:
    """A streaming answer is not in the index yet, and the WAL holds what the file does not."""
    with Store.open(profile) as store:
        add(store, "s", "streaming")
        assert problems(profile) == []


def test_no_profile(tmp_path: Path) -> None:
    assert examine(tmp_path / "profile.db") == [Finding("file", detail="there is no profile yet")]
    assert repair(tmp_path / "profile.db") == []


def test_lost_profile(profile: Path) -> None:
    profile.unlink()
    newest = backup.listing(backup.directory_of(profile))[0].path
    assert examine(profile) == [
        Finding("file", f"{profile} is gone, but there are backups of it", f"edgepd restore {newest}")
    ]


def test_not_a_database(profile: Path) -> None:
    profile.write_bytes(b"one two three four five " * 500)
    (found,) = problems(profile)
    newest = backup.listing(backup.directory_of(profile))[0].path
    assert (found.what, found.advice) == ("file", f"edgepd restore {newest}")
    assert "this is not an SQLite database" in str(found.problem)
    backup.remove_all(backup.directory_of(profile))
    assert problems(profile)[0].advice == f"mv {profile} {profile}.damaged"
    with pytest.raises(StoreError, match="this is not an SQLite database"):
        repair(profile)


def test_corrupt(profile: Path) -> None:
    with closing(sqlite3.connect(profile)) as conn:
        page = conn.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'feedback_by_time'").fetchone()[0]
    with profile.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    found = {each.what: each for each in problems(profile)}
    assert "the database is corrupt" in str(found["structure"].problem)
    assert str(found["structure"].advice).startswith("edgepd restore ")
    with pytest.raises(StoreError, match="the database is corrupt.*; edgepd restore "):
        repair(profile)


def test_rows_that_refer_to_nothing(profile: Path) -> None:
    change(
        profile,
        "INSERT INTO feedback (interaction, kind, value, text, source, at) "
        "VALUES ('gone', 'thumb', 1, NULL, 'cli', 1.0)",
    )
    (found,) = problems(profile)
    assert found.what == "references"
    assert found.problem == f"{profile}: rows refer to others that are gone: 1 of feedback to interactions"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (
            "INSERT INTO interaction_search (interaction_search) VALUES ('delete-all')",
            "the search index lacks 5 exchanges and has 0 that are gone",
        ),
        (
            "INSERT INTO interaction_search (rowid, prompt, response) VALUES (99, 'a', 'b')",
            "the search index lacks 0 exchanges and has 1 that are gone",
        ),
        (
            "UPDATE interactions SET response = 'On the cliff.' WHERE id = 'i3'",
            "the search index has other words than the exchanges",
        ),
    ],
)
def test_index_is_found_wrong_and_made_anew(profile: Path, damage: str, problem: str) -> None:
    change(profile, damage)
    assert problems(profile) == [Finding("search index", problem, REPAIR)]
    assert repair(profile) == ["the search index was made anew"]
    assert problems(profile) == []


def test_large_profile_is_compared_by_row_numbers(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "SMALL_BYTES", 0)
    details = {each.what: each.detail for each in examine(profile, now=NOW)}
    assert details["structure"].startswith("quick_check of ")
    assert details["search index"] == "its row numbers are those of the exchanges"
    change(profile, "UPDATE interactions SET response = 'On the cliff.' WHERE id = 'i3'")
    assert problems(profile) == []  # as documented
    change(profile, "INSERT INTO interaction_search (interaction_search) VALUES ('delete-all')")
    assert [each.what for each in problems(profile)] == ["search index"]


def test_rebuild_does_not_index_an_interrupted_answer_twice(profile: Path) -> None:
    with Store.open(profile) as store:
        add(store, "s", "streaming")
    change(profile, "INSERT INTO interaction_search (interaction_search) VALUES ('delete-all')")
    repair(profile)
    with Store.open(profile) as store:
        store.write(interactions.mark_interrupted).result()
    assert problems(profile) == []
    with reading(profile) as conn:
        rows = conn.execute("SELECT rowid FROM interaction_search WHERE interaction_search MATCH 'reeds'").fetchall()
    assert len(rows) == 6


def test_newer_schema(profile: Path) -> None:
    change(profile, "INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('edgepd_profiles', 'm999_later')")
    (found,) = problems(profile)
    assert found == Finding(
        "schema", f"{profile}: written by a newer edgepd (schema step m999_later)", "pip install --upgrade edgepd"
    )
    with pytest.raises(StoreError, match="written by a newer edgepd"):
        repair(profile)


def test_older_schema_and_foreign_file(profile: Path) -> None:
    change(profile, "DELETE FROM _sqlite_migrations WHERE name >= 'm005'")
    assert {each.what: each.detail for each in examine(profile, now=NOW)}["schema"].endswith("wait for the next start")
    change(profile, "DROP TABLE _sqlite_migrations")
    assert [each.problem for each in problems(profile)] == [f"{profile}: this SQLite file is not a profile of edgepd"]


def test_empty_file_is_a_profile_to_be(tmp_path: Path) -> None:
    path = tmp_path / "profile.db"
    path.touch(mode=0o600)
    found = {each.what: each for each in examine(path, now=NOW, backup_days=0)}
    assert found["schema"].detail == "empty; the daemon will make the tables"
    assert [each.what for each in found.values() if each.problem] == []


def test_wide_modes(profile: Path) -> None:
    profile.parent.chmod(0o755)
    profile.chmod(0o640)
    assert problems(profile) == [
        Finding("modes", f"other users of this machine have rights on {profile.parent} and 1 more", REPAIR)
    ]
    assert repair(profile) == [
        f"{profile.parent} is readable for you alone now",
        f"{profile} is readable for you alone now",
    ]
    assert (profile.parent.stat().st_mode & 0o777, profile.stat().st_mode & 0o777) == (0o700, 0o600)
    assert problems(profile) == []


def test_wal_that_has_grown(profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "WAL_LIMIT_BYTES", 0)
    crashed = tmp_path / "crashed" / "profile.db"
    crashed.parent.mkdir(mode=0o700)
    with Store.open(profile) as store:
        add(store, "late")
        for name in ("profile.db", "profile.db-wal"):
            shutil.copy2(profile.with_name(name), crashed.with_name(name))
    (found,) = [each for each in problems(crashed) if each.what == "WAL"]
    assert (found.advice, str(found.problem).endswith("for being moved into the file")) == (REPAIR, True)
    (done,) = repair(crashed)
    assert done.endswith(" MiB of changes were moved from the WAL into the file")
    assert not crashed.with_name("profile.db-wal").exists()
    with reading(crashed) as conn:
        assert conn.execute("SELECT count(*) FROM interactions").fetchone()[0] == 6


def test_little_room(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**30, 2**30 - 2**20, 2**20))
    (found,) = problems(profile)
    assert found.problem == f"{profile.parent} has 1 MiB free, which is less than the 256 MiB it may need"
    assert str(found.advice).startswith("edgepd adapters list")


@pytest.mark.parametrize(
    ("later", "days", "problem"),
    [
        (3 * DAY, 1.0, None),
        (3.1 * DAY, 1.0, "the newest backup is 3 days old, but one is due every 1 days"),
        (20 * DAY, 7.0, None),
        (22 * DAY, 7.0, "the newest backup is 22 days old, but one is due every 7 days"),
        (900 * DAY, 0.0, None),
        (-DAY, 1.0, None),  # the clock was set back
    ],
)
def test_age_of_the_newest_backup(profile: Path, later: float, days: float, problem: str | None) -> None:
    found = examine(profile, backup_days=days, now=NOW + later)[-1]
    assert (found.problem, found.advice) == (problem, "edgepd backup" if problem else None)


def test_profile_without_a_backup(profile: Path) -> None:
    backup.remove_all(backup.directory_of(profile))
    created = "UPDATE _sqlite_migrations SET applied_at = '2026-01-01 00:00:00+00:00'"
    change(profile, created)
    assert examine(profile, now=NOW)[-1] == Finding("backups", detail="none yet")
    assert examine(profile, now=NOW + 9 * DAY)[-1].problem == "there is no backup, but one is due every 1 days"
    change(profile, "UPDATE _sqlite_migrations SET applied_at = 'once upon a time'")
    assert examine(profile, now=NOW)[-1].problem == "there is no backup, but one is due every 1 days"


@pytest.mark.parametrize("truncate_to", [0, 50, 4096, 10_000, 40_960])
def test_truncated_file_never_raises(profile: Path, truncate_to: int) -> None:
    with profile.open("r+b") as file:
        file.truncate(truncate_to)
    found = examine(profile, now=NOW)
    assert [each.what for each in found[-3:]] == ["WAL", "free disk", "backups"]
    if truncate_to:
        assert any(str(each.advice).startswith("edgepd restore ") for each in found if each.problem)
