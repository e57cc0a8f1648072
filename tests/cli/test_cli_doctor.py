"""`edgepd doctor`: with and without a daemon, a profile, settings and rights, and what --repair mends.

What this does not do: the checks one by one; see test_doctor_checks.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edgepd.cli.doctor as doctor
from edgepd.cli.doctor_checks.situation import Situation
from edgepd_daemon.listener import hold_lock
from edgepd_profiles import backup
from edgepd_profiles.integrity import Finding
from edgepd_profiles.store import Store
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import HEALTH, STATUS, FakeDaemon, Reply

# Of the machine that the tests run on, or a process to wait for. One test below runs them all.
MACHINE = ("packages", "llama.cpp", "memory", "model", "service", "room for training")


@pytest.fixture
def all_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the checks of the machine, too."""
    monkeypatch.setattr(doctor, "CHECKS", EVERY)


EVERY = doctor.CHECKS


@pytest.fixture(autouse=True)
def own_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", tuple((what, check) for what, check in EVERY if what not in MACHINE))


@pytest.fixture
def profile(home: Path) -> Path:
    path = home / "data" / "profile.db"
    with Store.open(path) as store:
        backup.make(store, backup.directory_of(path), 2, time.time())
    return path


@pytest.fixture
def closed(daemon: FakeDaemon) -> FakeDaemon:
    """A daemon whose socket is closed to others, as that of a real one."""
    daemon.socket.parent.chmod(0o700)
    daemon.socket.chmod(0o600)
    daemon.on("GET /healthz", HEALTH | {"pid": 4711})
    daemon.on("GET /edgepd/v1/status", STATUS)
    return daemon


def found(edgepd: Edgepd, *options: str) -> dict[str, dict[str, str | None]]:
    return {each["what"]: each for each in json.loads(edgepd("doctor", "--json", *options).stdout)["findings"]}


def test_everything_in_order(profile: Path, closed: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = found(edgepd)
    assert rows["settings"]["detail"] == "all at their defaults"
    assert rows["daemon"]["detail"] == "ready, version 0.1.0, pid 4711"
    names = [*rows]
    at = names.index("modes")
    assert names[at : at + 8] == [
        *("modes", "structure", "schema", "references", "search index", "WAL", "free disk", "backups")
    ]
    assert result.stdout.splitlines()[0].split()[:2] == ["settings", "ok"]
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


def test_profile_in_use_by_a_daemon(profile: Path, closed: FakeDaemon, edgepd: Edgepd) -> None:
    with hold_lock(profile.with_name("daemon.lock")), Store.open(profile):
        assert edgepd("doctor").exit_code == 0


def test_daemon_that_does_not_answer(profile: Path, edgepd: Edgepd, home: Path) -> None:
    lock = profile.with_name("daemon.lock")
    with hold_lock(lock):
        told = found(edgepd)["daemon"]
    socket = home / "run" / "edgepd.sock"
    assert told["problem"] == f"a process holds {lock}, but no daemon answers on {socket}"
    assert told["advice"] == f"wait a moment, else: kill $(head -n 1 {lock})"


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


def test_without_a_model_it_says_how_to_get_one(home: Path, edgepd: Edgepd, all_checks: None) -> None:
    """All checks at once, on whatever machine this is."""
    result = edgepd("doctor", "--json")
    rows = json.loads(result.stdout)["findings"]
    assert {each["what"]: each for each in rows}["model"]["advice"] == "edgepd model add default"
    assert result.exit_code == 1
    assert [
        each for each in rows if "check failed" in str(each["problem"]) or "cannot be checked" in str(each["problem"])
    ] == []
    assert not (home / "data").exists()


def test_a_check_that_fails_ends_no_other(profile: Path, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_situation: Situation) -> list[Finding]:
        raise KeyError("x")

    monkeypatch.setattr(doctor, "CHECKS", (("sensors", broken), *doctor.CHECKS[-3:]))
    result = edgepd("doctor", "--json")
    rows = json.loads(result.stdout)["findings"]
    assert rows[0]["problem"] == "this check failed: KeyError: 'x'; please report it"
    assert (rows[-1]["what"], result.exit_code) == ("training runs", 1)


def test_path_of_the_socket_that_is_too_long(edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPD_HOME", "/tmp/" + "x" * 100)
    row = found(edgepd)["paths"]
    assert "which Unix sockets do not allow" in str(row["problem"])
    assert edgepd("doctor", "--report").exit_code == 1


def as_nobody(edgepd: Edgepd) -> tuple[int, str]:
    """Run `edgepd doctor --json` without the rights of root, and return its exit code and output.

    In a fork, because another user may not be allowed to start the interpreter.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            result = edgepd("doctor", "--json")
            os.write(writer, json.dumps([result.exit_code, result.stdout]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        code, printed = json.loads(told.read())
    os.waitpid(child, 0)
    return code, printed


@pytest.mark.parametrize("with_profile", [False, True])
def test_home_that_cannot_be_written(home: Path, edgepd: Edgepd, with_profile: bool) -> None:
    data = home / "data"
    if with_profile:
        with Store.open(data / "profile.db"):
            pass
    for folder in (data, home):
        if folder.exists():
            folder.chmod(0o555)
    for file in data.glob("*"):
        file.chmod(0o444)
    try:
        code, printed = as_nobody(edgepd)
    finally:
        home.chmod(0o755)
        if data.exists():
            data.chmod(0o755)
    rows = {each["what"]: each for each in json.loads(printed)["findings"]}
    assert (
        rows["directories"]["problem"]
        == f"{data if with_profile else home} cannot be written by you, so nothing can be stored"
    )
    assert code == 1
    assert [each for each in rows.values() if "check failed" in str(each["problem"])] == []
    if with_profile:
        assert rows["structure"]["problem"] is None


def test_help_loads_neither_llama_cpp_nor_psutil() -> None:
    program = "import sys, edgepd.cli; print(sorted({'llama_cpp', 'psutil', 'torch'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout == "[]\n", done.stderr
