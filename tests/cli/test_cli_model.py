"""`edgepd model` and `edgepd daemon`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from edgepd_quant.types import GGMLType
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import HEALTH, FakeDaemon, Reply, error
from tests.tiny_gguf import tiny_llama


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny.gguf", qtype=GGMLType.Q4_1, seed=0)


def test_add_list_use_remove(edgepd: Edgepd, gguf: Path) -> None:
    assert edgepd("model", "list").stdout == "no model is installed; run: edgepd model add default\n"
    added = edgepd("model", "add", str(gguf))
    assert (added.exit_code, added.stdout) == (0, "tiny: 0 MiB, unknown licence\n")
    assert edgepd("model", "add", str(gguf), "--name", "other").exit_code == 0
    assert edgepd("model", "list").stdout == (
        f"  name   size   licence  source\n  other  0 MiB  unknown  {gguf}\n  tiny   0 MiB  unknown  {gguf}\n"
    )
    used = edgepd("model", "use", "other")
    assert (used.exit_code, used.stdout, used.stderr) == (0, "other is selected\n", "")
    assert edgepd("model", "list").stdout.splitlines()[1].startswith("*  other")
    assert edgepd("model", "remove", "other").stdout == "other is removed\n"
    assert edgepd("model", "list").stdout.splitlines()[1].startswith("*  tiny")


def test_model_json(edgepd: Edgepd, gguf: Path, home: Path) -> None:
    added = json.loads(edgepd("model", "add", str(gguf), "--json").stdout)
    assert (added["name"], added["path"]) == ("tiny", str(home / "data" / "models" / "tiny.gguf"))
    listed = json.loads(edgepd("model", "list", "--json").stdout)
    assert listed == {"selected": "tiny", "models": [added]}
    assert json.loads(edgepd("model", "use", "tiny", "--json").stdout) == {"selected": "tiny", "restart_needed": False}
    assert json.loads(edgepd("model", "remove", "tiny", "--json").stdout) == {"removed": "tiny"}


def test_broken_model_is_refused(edgepd: Edgepd, gguf: Path) -> None:
    with gguf.open("r+b") as file:
        file.truncate(100)  # inside the header: only the reader notices
    result = edgepd("model", "add", str(gguf))
    assert result.exit_code == 5
    assert result.stderr.startswith(f"Error: {gguf}: byte ")
    assert edgepd("model", "list").stdout.startswith("no model is installed")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("add", "nothing-known"), 4, "is no known model"),
        (("add", "/nowhere/x.gguf"), 5, "there is no such file"),
        (("use", "nope"), 4, "is not installed"),
        (("remove", "nope"), 4, "is not installed"),
        (("use", "../x"), 2, "is not allowed"),
    ],
)
def test_bad_names(edgepd: Edgepd, args: tuple[str, ...], code: int, message: str) -> None:
    result = edgepd("model", *args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


def test_use_says_when_the_daemon_must_be_restarted(daemon: FakeDaemon, edgepd: Edgepd, gguf: Path) -> None:
    edgepd("model", "add", str(gguf))
    edgepd("model", "add", str(gguf), "--name", "other")
    assert edgepd("model", "use", "tiny").stderr == ""  # the fake daemon serves "tiny"
    result = edgepd("model", "use", "other")
    assert result.stderr == "the running daemon serves tiny until it is restarted\n"
    assert json.loads(edgepd("model", "use", "other", "--json").stdout)["restart_needed"] is True


def test_daemon_run_becomes_the_daemon(edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []
    monkeypatch.setattr("os.execv", lambda program, args: seen.append((program, args)))
    options = ("--set", "serve.slots=2", "--set", "log.level=debug", "--log-level", "error")
    assert edgepd("daemon", "run", *options).exit_code == 0
    assert seen == [(sys.executable, [sys.executable, "-P", "-m", "edgepd_daemon", *options])]
    assert edgepd("daemon", "run", "--log-level", "loud").exit_code == 2


def test_daemon_stop_waits_until_it_is_gone(
    daemon: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    def kill(pid: int, number: int) -> None:
        assert pid == os.getpid()
        sent.append(number)
        if len(sent) == 3:
            daemon.socket.unlink()

    monkeypatch.setattr("edgepd.cli.daemon.os.kill", kill)
    result = edgepd("daemon", "stop")
    assert (result.exit_code, result.stdout) == (0, f"the daemon (pid {os.getpid()}) has stopped\n")
    assert sent == [signal.SIGTERM, 0, 0]


def test_daemon_that_dies_without_clearing_up_counts_as_stopped(
    daemon: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: int) -> None:
        if number == 0:
            raise ProcessLookupError

    monkeypatch.setattr("edgepd.cli.daemon.os.kill", kill)
    assert json.loads(edgepd("daemon", "stop", "--json").stdout) == {"stopped": os.getpid()}


def test_daemon_that_does_not_stop_is_an_error(
    daemon: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepd.cli.daemon.os.kill", lambda pid, number: None)
    monkeypatch.setattr("edgepd.cli.daemon.STOP_TIMEOUT_S", 0.1)
    result = edgepd("daemon", "stop")
    assert result.exit_code == 1
    assert "still runs" in result.stderr


@pytest.mark.parametrize("status", ["failed", "draining"])
def test_daemon_that_serves_no_more_can_be_stopped(
    daemon: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    sent: list[int] = []

    def kill(pid: int, number: int) -> None:
        sent.append(number)
        daemon.socket.unlink(missing_ok=True)

    monkeypatch.setattr("edgepd.cli.daemon.os.kill", kill)
    daemon.on("GET /healthz", Reply({**HEALTH, "status": status, "pid": os.getpid()}, 503))
    assert edgepd("daemon", "stop").exit_code == 0
    assert sent == [signal.SIGTERM]


def test_model_use_beside_a_daemon_that_stops(daemon: FakeDaemon, edgepd: Edgepd, gguf: Path) -> None:
    edgepd("model", "add", str(gguf))
    daemon.on("GET /healthz", Reply({**HEALTH, "status": "draining", "pid": os.getpid(), "model": "other"}, 503))
    assert edgepd("model", "use", "tiny").stderr == "the running daemon serves other until it is restarted\n"


@pytest.mark.parametrize(
    ("applied", "needs_restart", "text"),
    [
        ([], [], "nothing has changed\n"),
        (["serve.threads", "log.level"], [], "applied: serve.threads, log.level\n"),
        ([], ["serve.slots"], "needs a restart: serve.slots\n"),
        (["log.level"], ["serve.slots"], "applied: log.level\nneeds a restart: serve.slots\n"),
    ],
)
def test_daemon_reload(
    daemon: FakeDaemon, edgepd: Edgepd, applied: list[str], needs_restart: list[str], text: str
) -> None:
    done = {"applied": applied, "needs_restart": needs_restart}
    daemon.on("POST /edgepd/v1/reload", done)
    assert edgepd("daemon", "reload").stdout == text
    assert json.loads(edgepd("daemon", "reload", "--json").stdout) == done


def test_daemon_reload_of_settings_that_make_no_sense(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on("POST /edgepd/v1/reload", error(400, "invalid_config", "unknown setting 'serve.threds'"))
    result = edgepd("daemon", "reload")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "Error: unknown setting 'serve.threds'\n")


@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_impossible_process_id_is_never_signalled(
    daemon: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch, pid: int
) -> None:
    sent: list[int] = []
    monkeypatch.setattr("edgepd.cli.daemon.os.kill", lambda pid, number: sent.append(pid))
    daemon.on("GET /healthz", {**HEALTH, "pid": pid})
    assert edgepd("daemon", "stop").exit_code == 1
    assert sent == []
