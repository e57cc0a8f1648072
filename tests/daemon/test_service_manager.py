"""Under a service manager: its socket, what it is told, and what it sees when the engine hangs or dies."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from edgepd_daemon.engine.types import EngineStatus
from edgepd_daemon.listener import listening
from edgepd_daemon.notify import Notifier
from edgepd_daemon.service import watch
from tests.daemon.running import START_SECONDS, TINY_SETTINGS, arguments, environment, question, running, wait_for

# Started as a service manager starts it: its socket is descriptor 3, and LISTEN_PID is the daemon's own.
ACTIVATED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_of_the_service_manager_is_served_and_left_behind(edgepd_home: Path, tiny_models: Path) -> None:
    path = edgepd_home / "run" / "edgepd.sock"
    transport = httpx.HTTPTransport(uds=str(path))
    with listening(path) as listener, httpx.Client(transport=transport, base_url="http://edgepd") as client:
        program = [sys.executable, "-c", ACTIVATED, str(listener.fileno()), *arguments(TINY_SETTINGS)]
        process = subprocess.Popen(
            program, env=environment(edgepd_home, tiny_models), pass_fds=[listener.fileno()], stderr=subprocess.PIPE
        )
        try:
            # The connection waits in the socket until the daemon accepts.
            assert client.get("/healthz", timeout=START_SECONDS).json()["pid"] == process.pid
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert path.is_socket()
        assert b"none of the sockets" not in errors


def test_the_service_manager_is_told(edgepd_home: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(edgepd_home / "notify"))
        manager.settimeout(30)
        said: list[str] = []

        def hear(expected: str) -> str:
            while not said or not said[-1].startswith(expected):
                said.append(manager.recv(4096).decode())
            return said[-1]

        monkeypatch.setenv("NOTIFY_SOCKET", str(edgepd_home / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        with running(edgepd_home, tiny_models, *TINY_SETTINGS) as daemon:
            hear("READY=1")
            for _ in range(3):
                hear("WATCHDOG=1")
                said.clear()
            daemon.chat("Hello", max_tokens=1)
            assert hear("STATUS=tiny ready, 0 running, 0 waiting")  # before that, for a moment, it may be waiting
            daemon.process.send_signal(signal.SIGHUP)
            assert "\nMONOTONIC_USEC=" in hear("RELOADING=1")
            hear("READY=1")
            assert daemon.stop() == 0
            hear("STOPPING=1")


def watched(engine: Any, usec: str = "40000") -> tuple[list[str], bool]:
    """Watch a fake engine for half a second; return what the service manager was told, and whether it was stopped."""
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": usec})
    said: list[str] = []
    stopped: list[bool] = []
    notifier.watchdog = lambda: said.append("WATCHDOG")  # type: ignore[method-assign]
    services: Any = SimpleNamespace(engine=engine, generations=SimpleNamespace(base=SimpleNamespace(name="tiny")))

    async def half_a_second() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await watch(services, notifier, lambda: stopped.append(True))
                await asyncio.sleep(10)

    asyncio.run(half_a_second())
    return said, bool(stopped)


def engine_that(beat: Callable[[], float], *, alive: bool = True) -> Any:
    return SimpleNamespace(alive=alive, beat=beat, status=EngineStatus)


def test_the_watchdog_is_fed_by_the_engine() -> None:
    said, stopped = watched(engine_that(time.monotonic))
    assert len(said) > 5
    assert not stopped
    stuck_since = time.monotonic()
    said, stopped = watched(engine_that(lambda: stuck_since - 1))
    assert (said, stopped) == ([], False)


def test_a_dead_engine_stops_the_daemon() -> None:
    assert watched(engine_that(time.monotonic, alive=False)) == ([], True)


# A daemon whose engine fails in a way that nobody thought of.
DYING = """
import sys
from edgepd_daemon.engine.loop import EngineLoop
from edgepd_daemon.__main__ import main
def die(self):
    assert not self.waiting, "a bug"
EngineLoop._admit = die
main(sys.argv[1:])
"""


def test_a_daemon_without_engine_ends_with_an_error(edgepd_home: Path, tiny_models: Path) -> None:
    options = arguments(TINY_SETTINGS)[3:]
    process = subprocess.Popen(
        [sys.executable, "-c", DYING, *options],
        env=environment(edgepd_home, tiny_models) | {"INVOCATION_ID": "00"},  # as systemd sets it
        stderr=subprocess.PIPE,
    )
    path = edgepd_home / "run" / "edgepd.sock"
    try:
        wait_for(path.exists, START_SECONDS)
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://edgepd", timeout=60) as client:
            assert client.post("/v1/chat/completions", json=question("Hi")).status_code == 503
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert b"AssertionError: a bug" in errors
    assert b"Error: the engine has died; the log says why; start the daemon again" in errors
    assert not path.exists()
