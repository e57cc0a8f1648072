"""`edgepd service` beside a fake systemd: what is written, kept, refused and asked of systemctl."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from edgepd.cli import service_units as units
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.fake_systemd import FakeSystemd

ALL = ["edgepd.service", "edgepd.socket", "edgepd.slice", "edgepd-trainer.slice"]


@pytest.fixture
def config_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SUDO_USER", raising=False)
    return tmp_path / "config"


@pytest.fixture
def directory(config_home: Path) -> Path:
    return config_home / "systemd" / "user"


@pytest.fixture
def systemd(tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystemd:
    fake = FakeSystemd(tmp_path / "bin", directory)
    monkeypatch.setenv("PATH", f"{fake.directory}{os.pathsep}{os.environ['PATH']}")
    return fake


def test_install_start_stop_uninstall(systemd: FakeSystemd, edgepd: Edgepd, directory: Path, home: Path) -> None:
    done = edgepd("service", "install")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "written: edgepd.service, edgepd.socket, edgepd.slice, edgepd-trainer.slice",
        f"in {directory}",
        "it starts with your session; to start it now: edgepd service start",
        "it ends when you log out; to keep it running: loginctl enable-linger",
    ]
    assert "it cannot start yet: no model is installed" in done.stderr
    assert systemd.took() == ["daemon-reload", "enable edgepd.socket edgepd.service"]
    assert sorted(path.name for path in directory.iterdir()) == sorted(ALL)
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    service = (directory / "edgepd.service").read_text()
    assert f"\nExecStart={sys.executable} -P -m edgepd_daemon\n" in service
    assert f"\nEnvironment=EDGEPD_HOME={home}\n" in service
    assert f"\nListenStream={home}/run/edgepd.sock\n" in (directory / "edgepd.socket").read_text()

    assert edgepd("service", "start").stdout == "the service is active, pid 94\n"
    assert systemd.took() == ["reset-failed edgepd.socket edgepd.service", "start edgepd.socket edgepd.service"]
    assert edgepd("service", "restart").exit_code == 0
    assert systemd.took() == ["reset-failed edgepd.socket edgepd.service", "restart edgepd.service"]
    assert json.loads(edgepd("service", "stop", "--json").stdout) == {"stopped": ["edgepd.socket", "edgepd.service"]}
    assert systemd.state["active"] == []
    systemd.took()

    (directory / "edgepd.service.d").mkdir()
    assert json.loads(edgepd("service", "uninstall", "--json").stdout) == {"removed": ALL}
    assert systemd.took() == ["disable --now edgepd.service edgepd.socket", "daemon-reload"]
    assert [path.name for path in directory.iterdir()] == ["edgepd.service.d"]
    assert edgepd("service", "uninstall").stdout == "nothing of edgepd is installed\n"


def test_install_again_changes_nothing_or_says_what(
    systemd: FakeSystemd, edgepd: Edgepd, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd.change(linger="yes")
    assert edgepd("service", "install", "--now").stdout.splitlines()[-1] == "the service runs"
    again = json.loads(edgepd("service", "install", "--json").stdout)
    assert (again["written"], again["unchanged"], again["changes"], again["restart_needed"]) == ([], ALL, {}, False)
    assert (again["lingers"], again["running"]) == (True, True)
    systemd.took()

    monkeypatch.setenv("EDGEPD_MODELS_DIR", "/models")
    (home / "config.toml").write_text("[serve]\ntcp_port = 8123\n")
    changed = edgepd("service", "install", "--now")
    assert changed.stdout.splitlines()[:8] == [
        "written: edgepd.service",
        "unchanged: edgepd.socket, edgepd.slice, edgepd-trainer.slice",
        "changed in edgepd.service:",
        "  +Environment=EDGEPD_MODELS_DIR=/models",
        "  -RestrictAddressFamilies=AF_UNIX",
        "  +RestrictAddressFamilies=AF_UNIX AF_INET",
        f"in {units.units_dir()}",
        "the service runs",
    ]
    assert [call.split()[0] for call in systemd.took()] == ["daemon-reload", "enable", "stop", "reset-failed", "start"]
    monkeypatch.delenv("EDGEPD_MODELS_DIR")
    assert "it runs as it was until: edgepd service stop; edgepd service start" in edgepd("service", "install").stdout


def test_what_the_user_changed_is_kept(systemd: FakeSystemd, edgepd: Edgepd, directory: Path) -> None:
    edgepd("service", "install")
    unit = directory / "edgepd.service"
    edited = unit.read_text().replace("WatchdogSec=120", "WatchdogSec=30")
    unit.write_text(edited)
    (directory / "edgepd.socket").write_text("[Socket]\nListenStream=/mine\n")
    for command in ("install", "uninstall"):
        refused = edgepd("service", command)
        assert refused.exit_code == 6
        assert f"{unit}, {directory / 'edgepd.socket'}: changed or written by you" in refused.stderr
    assert unit.read_text() == edited
    status = edgepd("service", "status").stdout
    assert "changed or written by you: edgepd.service, edgepd.socket" in status

    forced = json.loads(edgepd("service", "install", "--force", "--json").stdout)
    assert forced["changes"]["edgepd.service"] == ["-WatchdogSec=30", "+WatchdogSec=120"]
    assert units.state_of(unit) == units.OURS


def test_without_socket(systemd: FakeSystemd, edgepd: Edgepd, directory: Path) -> None:
    edgepd("service", "install", "--now")
    systemd.took()
    assert json.loads(edgepd("service", "install", "--no-socket", "--json").stdout)["running"] is True
    assert not (directory / "edgepd.socket").exists()
    assert systemd.took() == [
        *("daemon-reload", "disable --now edgepd.socket edgepd.service", "daemon-reload"),
        *("enable edgepd.service", "reset-failed edgepd.service", "start edgepd.service"),
    ]
    assert edgepd("service", "stop").exit_code == 0
    assert systemd.took() == ["stop edgepd.service"]
    assert "socket        none" in edgepd("service", "status").stdout

    edgepd("service", "start")
    assert edgepd("service", "install").exit_code == 0
    systemd.took()
    # The service has a socket of its own as yet, for which systemd would not start another.
    assert edgepd("service", "restart").exit_code == 0
    assert systemd.took()[1:] == ["stop edgepd.service", "start edgepd.socket", "restart edgepd.service"]


def test_status(systemd: FakeSystemd, edgepd: Edgepd, daemon: FakeDaemon, home: Path) -> None:
    missing = edgepd("service", "status")
    assert (missing.exit_code, missing.stdout) == (3, "not installed; run: edgepd service install --now\n")
    edgepd("service", "install")
    inactive = edgepd("service", "status")
    assert inactive.exit_code == 3
    assert inactive.stdout.splitlines()[:2] == ["service       inactive (dead)", "starts        at login: enabled"]
    assert daemon.requests == []  # a question at the socket would have started the service

    systemd.change(active=["edgepd.service", "edgepd.socket"])
    running = edgepd("service", "status")
    assert running.exit_code == 0
    assert running.stdout.splitlines()[0] == "service       active (running), pid 94"
    assert "says          tiny ready, 0 running, 0 waiting" in running.stdout
    told = json.loads(edgepd("service", "status", "--json").stdout)
    assert told["files"] == dict.fromkeys(ALL, "ours")
    assert told["health"]["status"] == "ready"
    assert {asked.path for asked in daemon.requests} == {"/healthz"}
    assert (told["lingers"], told["problems"]) == (False, [])

    (home / "config.toml").write_text("[serve]\nslotz = 2\n")
    assert "Problem: " in (broken := edgepd("service", "status")).stdout
    assert (broken.exit_code, "did you mean 'serve.slots'?" in broken.stdout) == (0, True)
    (home / "config.toml").write_text("[serve]\ntcp_port = 8123\n")
    assert "from this shell: edgepd.service; run: edgepd service install" in edgepd("service", "status").stdout


def test_a_failed_service_is_explained(systemd: FakeSystemd, edgepd: Edgepd) -> None:
    edgepd("service", "install")
    systemd.change(inactive="failed", failing={"start": "Job for edgepd.service failed."})
    assert edgepd("service", "status").stdout.splitlines()[-1] == (
        "read why: edgepd service logs; then: edgepd service start"
    )
    refused = edgepd("service", "start")
    assert refused.exit_code == 1
    assert "Job for edgepd.service failed.; `edgepd service logs` may say more" in refused.stderr


def test_a_second_daemon_is_not_started(systemd: FakeSystemd, edgepd: Edgepd, daemon: FakeDaemon) -> None:
    edgepd("service", "install")
    for command in (["start"], ["restart"], ["install", "--now"]):
        refused = edgepd("service", *command)
        assert refused.exit_code == 6
        assert "a daemon that systemd did not start runs already" in refused.stderr
        assert systemd.state["active"] == []


def test_bad_settings_do_not_end_a_running_service(systemd: FakeSystemd, edgepd: Edgepd, home: Path) -> None:
    edgepd("service", "install", "--now")
    systemd.took()
    (home / "config.toml").write_text("[serve]\nslotz = 2\n")
    for command in ("restart", "start", "install"):
        refused = edgepd("service", command)
        assert (refused.exit_code, "did you mean 'serve.slots'?" in refused.stderr) == (2, True)
    assert systemd.took() == []


def test_without_systemd(edgepd: Edgepd, config_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for command in (["install"], ["status"], ["start"], ["stop"], ["restart"], ["logs"], ["logs", "-f"]):
        refused = edgepd("service", *command)
        assert refused.exit_code == 4, command
        assert "start the daemon by hand with `edgepd daemon run`" in refused.stderr
    assert not config_home.exists()

    assert edgepd("service", "install", "--autostart").exit_code == 0
    entry = config_home / "autostart" / "edgepd.desktop"
    assert f"{sys.executable} -P -m edgepd_daemon\n" in entry.read_text()
    assert edgepd("service", "install", "--autostart").stdout.splitlines()[0] == "unchanged: edgepd.desktop"
    assert edgepd("service", "uninstall").stdout == "removed: edgepd.desktop\n"
    assert not entry.exists()


def test_without_a_manager_only_files_are_removed(systemd: FakeSystemd, edgepd: Edgepd, directory: Path) -> None:
    edgepd("service", "install")
    wants = directory / "default.target.wants"
    wants.mkdir()
    (wants / "edgepd.service").symlink_to(directory / "edgepd.service")
    systemd.change(failing={"show": "Failed to connect to bus: No medium found"})
    refused = edgepd("service", "install")
    assert refused.exit_code == 4
    assert "(Failed to connect to bus: No medium found); log in as this user" in refused.stderr
    done = edgepd("service", "uninstall")
    assert (done.exit_code, "only the files are removed" in done.stderr) == (0, True)
    assert list(directory.iterdir()) == [wants]
    assert list(wants.iterdir()) == []


def test_a_unit_from_elsewhere_is_noticed(systemd: FakeSystemd, edgepd: Edgepd) -> None:
    systemd.change(fragment="/usr/lib/systemd/user/edgepd.service")
    refused = edgepd("service", "install")
    assert refused.exit_code == 6
    assert "systemd reads edgepd.service from /usr/lib/systemd/user/edgepd.service" in refused.stderr
    assert "enable" not in " ".join(systemd.took())


def test_not_with_sudo(systemd: FakeSystemd, edgepd: Edgepd, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "ada")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    refused = edgepd("service", "install")
    assert (refused.exit_code, "without sudo" in refused.stderr) == (2, True)
    assert not directory.exists()


def test_print_writes_nothing(systemd: FakeSystemd, edgepd: Edgepd, directory: Path) -> None:
    printed = edgepd("service", "install", "--print")
    assert f"# {directory / 'edgepd.service'}\n# Written by" in printed.stdout
    systemd.change(failing={"show": "no manager"})
    files = json.loads(edgepd("service", "install", "--print", "--json").stdout)["files"]
    assert list(files) == [str(directory / name) for name in ALL]
    assert not directory.exists()


def test_logs(systemd: FakeSystemd, edgepd: Edgepd) -> None:
    assert edgepd("service", "logs", "-n", "7").stdout == systemd.state["journal"]
    assert systemd.state["calls"][-1] == ["journalctl", "--user-unit=edgepd.service", "--lines=7", "--no-pager"]
    assert edgepd("service", "logs", "-f", "--json").exit_code == 0
    assert systemd.state["calls"][-1][-2:] == ["--output=json", "--follow"]
    systemd.change(journal="-- No entries --\n")
    silent = edgepd("service", "logs")
    assert (silent.exit_code, silent.stdout) == (4, "")
    assert "the journal holds nothing of edgepd.service" in silent.stderr
