"""`edgepd doctor`: with and without a daemon, and what --repair mends."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from edgepd_daemon.listener import hold_lock
from edgepd_profiles import backup
from edgepd_profiles.store import Store
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import HEALTH, FakeDaemon, Reply


@pytest.fixture
def profile(home: Path) -> Path:
    path = home / "data" / "profile.db"
    with Store.open(path) as store:
        backup.make(store, backup.directory_of(path), 2, time.time())
    return path


def found(edgepd: Edgepd, *options: str) -> dict[str, dict[str, str | None]]:
    return {each["what"]: each for each in json.loads(edgepd("doctor", "--json", *options).stdout)["findings"]}


def test_everything_in_order(profile: Path, daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on("GET /healthz", HEALTH | {"pid": 4711})
    result = edgepd("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["settings", "ok", "all", "at", "their", "defaults"]
    assert lines[1] == ["daemon", "ok", "ready,", "version", "0.1.0,", "pid", "4711"]
    assert [line[0] for line in lines[2:]] == [
        *("modes", "structure", "schema", "references", "search", "WAL", "free", "backups")
    ]
    assert "PROBLEM" not in result.stdout
    assert json.loads(edgepd("doctor", "--json").stdout)["ok"] is True


def test_without_anything(home: Path, edgepd: Edgepd) -> None:
    result = edgepd("doctor")
    assert result.exit_code == 0
    assert "not running; start it with: edgepd daemon run" in result.stdout
    assert "there is no profile yet" in result.stdout
    assert not (home / "data").exists()


def test_problem_comes_with_what_mends_it(profile: Path, edgepd: Edgepd) -> None:
    profile.chmod(0o644)
    result = edgepd("doctor")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("modes"))
    assert lines[at].split(maxsplit=2)[1:] == ["PROBLEM", f"other users of this machine have rights on {profile}"]
    assert lines[at + 1].strip() == "-> edgepd doctor --repair"


def test_repair(profile: Path, edgepd: Edgepd) -> None:
    profile.chmod(0o644)
    result = edgepd("doctor", "--repair")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == f"repaired: {profile} is readable for you alone now"
    assert json.loads(edgepd("doctor", "--repair", "--json").stdout)["repaired"] == []


def test_repair_needs_the_daemon_to_be_stopped(profile: Path, edgepd: Edgepd) -> None:
    profile.chmod(0o644)
    with hold_lock(profile.with_name("daemon.lock")):
        result = edgepd("doctor", "--repair")
    assert (result.exit_code, profile.stat().st_mode & 0o777) == (6, 0o644)
    assert result.stderr.endswith("stop it with `edgepd daemon stop`\n")


def test_profile_in_use_by_a_daemon(profile: Path, daemon: FakeDaemon, edgepd: Edgepd) -> None:
    with hold_lock(profile.with_name("daemon.lock")), Store.open(profile):
        assert edgepd("doctor").exit_code == 0


def test_daemon_that_does_not_answer(profile: Path, edgepd: Edgepd, home: Path) -> None:
    lock = profile.with_name("daemon.lock")
    with hold_lock(lock):
        told = found(edgepd)["daemon"]
    socket = home / "run" / "edgepd.sock"
    assert told["problem"] == f"a process holds {lock}, but no daemon answers on {socket}"
    assert told["advice"] == f"wait a moment, else: kill $(cat {lock})"


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (
            Reply(HEALTH | {"status": "failed", "pid": 1}, 503),
            "the daemon does not serve: failed, version 0.1.0, pid 1",
        ),
        (Reply(b"<h1>", 500), "the daemon answered with status 500: '<h1>'"),
    ],
)
def test_daemon_that_is_unwell(profile: Path, daemon: FakeDaemon, edgepd: Edgepd, reply: Reply, problem: str) -> None:
    daemon.on("GET /healthz", reply)
    told = found(edgepd)["daemon"]
    assert told["problem"] == problem
    assert told["advice"] is not None


def test_bad_settings_do_not_hide_the_rest(profile: Path, edgepd: Edgepd, home: Path) -> None:
    (home / "config.toml").write_text("[serve]\nthread = 4\n")
    told = found(edgepd)
    assert "unknown setting 'serve.thread'; did you mean 'serve.threads'?" in str(told["settings"]["problem"])
    assert told["structure"]["problem"] is None


def test_days_between_backups_are_those_of_the_settings(profile: Path, edgepd: Edgepd, home: Path) -> None:
    (home / "config.toml").write_text("[keep]\nbackup_days = 0\n")
    assert found(edgepd)["backups"]["detail"] == "switched off by keep.backup_days = 0"
