"""`edgepd backup`, `backups`, `restore`, `export` and `import`."""

from __future__ import annotations

import json
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from edgepd.cli import backup as commands
from edgepd_daemon.listener import hold_lock
from edgepd_profiles import backup
from edgepd_profiles.store import Store
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import FakeDaemon, Reply, error
from tests.cli.fake_privacy import importing

NOON = 1_767_355_200.0  # 2026-01-02 12:00:00 UTC
LINES = ['{"messages": []}', '{"edgepd": {"fact": "Caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{LINE SEPARATOR} noir"}}']


@pytest.fixture
def profile(home: Path) -> Path:
    path = home / "data" / "profile.db"
    with Store.open(path) as store:
        note(store, "before")
    return path


def note(store: Store, text: str) -> None:
    store.write(lambda conn: conn.execute("INSERT INTO facts (app, text, at) VALUES ('', ?, 1.0)", (text,)).close())


def notes(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as conn:
        return [text for (text,) in conn.execute("SELECT text FROM facts ORDER BY id")]


def test_the_daemon_makes_the_backup(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    made = {"path": "/data/backups/profile-20260102-120000.db", "bytes": 3 * 2**19}
    daemon.on("POST /edgepd/v1/backup", made)
    assert edgepd("backup").stdout == "/data/backups/profile-20260102-120000.db: 1.5 MiB\n"
    assert json.loads(edgepd("backup", "--json").stdout) == made
    daemon.on("POST /edgepd/v1/backup", error(507, "storage_failed", "make room first"))
    assert (edgepd("backup").exit_code, edgepd("backup").stderr) == (8, "Error: make room first\n")


def test_backup_without_the_daemon(profile: Path, edgepd: Edgepd) -> None:
    made = json.loads(edgepd("backup", "--json").stdout)
    assert notes(Path(made["path"])) == ["before"]
    assert Path(made["path"]).stat().st_size == made["bytes"]
    with hold_lock(profile.with_name("daemon.lock")):
        assert edgepd("backup").exit_code == 6


def test_backup_of_nothing(edgepd: Edgepd, home: Path) -> None:
    result = edgepd("backup")
    assert (result.exit_code, (home / "data").exists()) == (4, False)
    assert "there is no profile at" in result.stderr


def test_list_of_backups(profile: Path, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "moment", lambda seconds: f"t{seconds:.0f}")
    assert edgepd("backups").stdout == "no backups; make one with: edgepd backup\n"
    with Store.open(profile) as store:
        made = backup.make(store, backup.directory_of(profile), 2, NOON)
    lines = edgepd("backups").stdout.splitlines()
    assert lines[0].split() == ["made", "size", "file"]
    assert lines[1].split() == ["t1767355200", *f"{made.stat().st_size / 2**20:.1f} MiB".split(), str(made)]
    assert json.loads(edgepd("backups", "--json").stdout) == {
        "backups": [{"path": str(made), "at": NOON, "bytes": made.stat().st_size}]
    }


def test_restore(profile: Path, edgepd: Edgepd) -> None:
    with Store.open(profile) as store:
        made = backup.make(store, backup.directory_of(profile), 2, NOON)
        note(store, "after")
    result = edgepd("restore", str(made))
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first == f"the profile is that of {made} again"
    aside = Path(second.removeprefix("the one until now is kept as "))
    assert (notes(profile), notes(aside)) == (["before"], ["before", "after"])


def test_restore_of_a_lost_profile(profile: Path, edgepd: Edgepd) -> None:
    with Store.open(profile) as store:
        made = backup.make(store, backup.directory_of(profile), 2, NOON)
    profile.unlink()
    assert json.loads(edgepd("restore", str(made), "--json").stdout) == {"restored": str(made), "aside": None}
    assert notes(profile) == ["before"]


def test_restore_while_a_daemon_runs(profile: Path, edgepd: Edgepd) -> None:
    with Store.open(profile) as store:
        made = backup.make(store, backup.directory_of(profile), 2, NOON)
        note(store, "after")
    with hold_lock(profile.with_name("daemon.lock")):
        result = edgepd("restore", str(made))
    assert (result.exit_code, notes(profile)) == (6, ["before", "after"])
    assert result.stderr.endswith("stop it with `edgepd daemon stop`\n")


def test_restore_of_no_backup(profile: Path, edgepd: Edgepd, home: Path) -> None:
    assert edgepd("restore", str(home / "nothing.db")).exit_code == 4
    (home / "bad.db").write_bytes(b"no database at all, but long enough" * 200)
    result = edgepd("restore", str(home / "bad.db"))
    assert (result.exit_code, notes(profile)) == (8, ["before"])


def exported(daemon: FakeDaemon) -> bytes:
    data = "".join(f"{line}\n" for line in LINES).encode()
    daemon.on("GET /edgepd/v1/export", Reply(data))
    return data


@pytest.mark.parametrize("args", [(), ("-",), ("--json",)])
def test_export_to_stdout(daemon: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...]) -> None:
    data = exported(daemon)
    result = edgepd("export", *args)
    assert (result.exit_code, result.stdout_bytes, result.stderr) == (0, data, "")


def test_export_to_a_file(daemon: FakeDaemon, edgepd: Edgepd, home: Path) -> None:
    data = exported(daemon)
    file = home / "mine.jsonl"
    assert edgepd("export", str(file)).stdout == f"{file}: 2 lines, 0.0 MiB\n"
    assert file.read_bytes() == data
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    refused = edgepd("export", str(file))
    assert (refused.exit_code, "replace it with --force" in refused.stderr) == (6, True)
    done = json.loads(edgepd("export", str(file), "--force", "--json").stdout)
    assert done == {"file": str(file), "lines": 2, "bytes": len(data)}


def test_export_that_fails_leaves_no_file(daemon: FakeDaemon, edgepd: Edgepd, home: Path) -> None:
    daemon.on("GET /edgepd/v1/export", error(507, "storage_failed", "the disk reported an error"))
    result = edgepd("export", str(home / "mine.jsonl"))
    assert (result.exit_code, result.stderr) == (8, "Error: the disk reported an error\n")
    assert [each.name for each in home.iterdir()] == ["run"]
    assert edgepd("export", str(home)).exit_code == 2
    assert edgepd("export", str(home / "missing" / "mine.jsonl")).exit_code == 8


def test_import(daemon: FakeDaemon, edgepd: Edgepd, home: Path) -> None:
    daemon.routes.append(importing)
    file = home / "in.jsonl"
    file.write_text("\ufeff" + "\n".join(['{"messages": []}', "", '{"known": 1}', '{"fact": 1}', '{"messages": [1]}']))
    result = edgepd("import", str(file))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "2 exchanges and 1 facts added, 1 were known already\n"
    assert daemon.asked("/edgepd/v1/import") == [
        {"lines": ['{"messages": []}', '{"known": 1}', '{"fact": 1}', '{"messages": [1]}']}
    ]


def test_import_goes_in_chunks_and_numbers_lines_of_the_file(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.routes.append(importing)
    lines = ['{"messages": []}'] * 1100
    lines[0], lines[700], lines[1099] = "", "oops", "oops again"
    result = edgepd("import", "-", stdin="\n".join(lines))
    assert result.exit_code == 2
    assert result.stdout == "1,097 exchanges and 0 facts added, 0 were known already\n"
    assert result.stderr == "line 701: not JSON\nline 1100: not JSON\n2 lines were refused\n"
    assert [len(body["lines"]) for body in daemon.asked("/edgepd/v1/import")] == [500, 500, 99]
    told = json.loads(edgepd("import", "-", "--json", stdin="\n".join(lines)).stdout)
    assert told["refused"] == [{"line": 701, "reason": "not JSON"}, {"line": 1100, "reason": "not JSON"}]


def test_import_bounds_requests_and_lines(daemon: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.routes.append(importing)
    monkeypatch.setattr(commands, "CHUNK_BYTES", 60)
    monkeypatch.setattr(commands, "LINE_BYTES", 40)
    lines = [b'{"messages": []}'] * 4 + [b"x" * 500, b'{"messages": "\xff"}', b'{"fact": 1}']
    result = edgepd("import", "-", stdin=b"\n".join(lines))
    assert (result.exit_code, result.stdout) == (2, "4 exchanges and 1 facts added, 0 were known already\n")
    assert result.stderr.splitlines() == [
        "line 5: longer than 40 bytes",
        "line 6: not UTF-8 text: byte 14 is bad",
        "2 lines were refused",
    ]
    # As JSON strings they have 20 bytes, the last one 16.
    assert [len(body["lines"]) for body in daemon.asked("/edgepd/v1/import")] == [3, 2]


def test_only_the_first_refusals_are_told(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.routes.append(importing)
    told = edgepd("import", "-", stdin="oops\n" * 25).stderr.splitlines()
    assert len(told) == 21
    assert told[-1] == "25 lines were refused; --json shows the other 5 as well"


def test_import_of_nothing(daemon: FakeDaemon, edgepd: Edgepd, home: Path) -> None:
    assert edgepd("import", str(home / "nothing.jsonl")).exit_code == 2
    assert edgepd("import", "-", stdin="\n\n").stdout == "0 exchanges and 0 facts added, 0 were known already\n"
    assert daemon.requests == []
