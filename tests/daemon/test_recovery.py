"""An engine that dies or hangs: the daemon starts again by itself, or is started again by the service manager."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import httpx
import pytest

from edgepd_daemon.restarting import VARIABLE
from tests.daemon.hacked import hacked, states
from tests.daemon.running import START_SECONDS, question, wait_for

DYING = """
step = EngineLoop._step
def die(self):
    idle = not any(host.active_versions() for host in self.hosts.all())
    assert idle or os.path.exists("spared"), "a bug"
    step(self)
EngineLoop._step = die
"""
HANGING = """
watching.HANG_SECONDS = 3.0
step = ModelHost.step
def hang(self, version):
    while not os.path.exists("spared"):
        time.sleep(0.1)
    step(self, version)
ModelHost.step = hang
"""
HUNG_UP_EARLY = """
from edgepd_daemon import service
find = service.find_base
def early(settings, where):
    os.kill(os.getpid(), 1)
    time.sleep(0.2)
    return find(settings, where)
service.find_base = early
"""


@pytest.mark.parametrize("body", [DYING, HANGING], ids=["dies", "hangs"])
def test_a_daemon_started_by_hand_serves_again(body: str, edgepd_home: Path, tiny_models: Path) -> None:
    with hacked(edgepd_home, tiny_models, body) as daemon:
        pid = daemon.get("/healthz")["pid"]
        try:
            assert daemon.client.post("/v1/chat/completions", json=question("Hi")).status_code == 503
        except httpx.TransportError:  # cut off: an engine that hangs is not waited for
            assert body is HANGING
        wait_for(lambda: daemon.starts() == 2, START_SECONDS)
        (edgepd_home / "spared").touch()
        daemon.client.close()
        daemon.connect()
        assert daemon.get("/healthz")["pid"] == pid
        daemon.chat("Hi", max_tokens=2)
        if body is HANGING:
            assert "the engine has not moved for minutes" in daemon.log
            assert "in hang" in daemon.log  # the stacks of the threads
        assert daemon.stop() == 0
    assert "done" in states(edgepd_home)
    assert "streaming" not in states(edgepd_home)


def test_it_does_not_start_again_for_ever(edgepd_home: Path, tiny_models: Path) -> None:
    before = f"{time.monotonic() - 100:.1f},{time.monotonic() - 50:.1f}"
    with hacked(edgepd_home, tiny_models, DYING, **{VARIABLE: before}) as daemon:
        for start in (1, 2):
            wait_for(lambda start=start: daemon.starts() == start, START_SECONDS)  # type: ignore[misc]
            daemon.client.close()
            daemon.connect()
            assert daemon.client.post("/v1/chat/completions", json=question("Hi")).status_code == 503
        assert daemon.process.wait(30) == 1
        assert "Error: the engine has died; the log says why" in daemon.log
    assert not daemon.paths.socket.exists()


@pytest.mark.parametrize("body", [DYING, HANGING], ids=["dies", "hangs"])
def test_under_a_service_manager_it_ends(body: str, edgepd_home: Path, tiny_models: Path) -> None:
    with hacked(edgepd_home, tiny_models, body, INVOCATION_ID="00") as daemon:
        try:
            assert daemon.client.post("/v1/chat/completions", json=question("Hi")).status_code == 503
        except httpx.TransportError:
            assert body is HANGING
        assert daemon.process.wait(60) == 1
        assert daemon.starts() == 1


def test_a_hang_up_before_it_is_ready_does_not_end_it(edgepd_home: Path, tiny_models: Path) -> None:
    with hacked(edgepd_home, tiny_models, HUNG_UP_EARLY) as daemon:
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.get("/healthz")["status"]
        assert daemon.stop() == 0
