"""What systemd is told, against a socket that listens as systemd does."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepd_daemon.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, edgepd_home: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that receives notifications, and its name as NOTIFY_SOCKET has it."""
    name = str(edgepd_home / "notify") if request.param == "path" else f"@edgepd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0"))
        listener.settimeout(10)
        yield listener, name


def test_what_is_said(manager: tuple[socket.socket, str]) -> None:
    listener, name = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": name})
    notifier.ready()
    notifier.status("tiny ready,\n1 running")
    notifier.status("tiny ready,\n1 running")  # said once
    notifier.watchdog()
    notifier.stopping()
    said = [listener.recv(4096) for _ in range(4)]
    assert said == [b"READY=1", b"STATUS=tiny ready, 1 running", b"WATCHDOG=1", b"STOPPING=1"]


def test_reloading_says_when(manager: tuple[socket.socket, str]) -> None:
    listener, name = manager
    before = time.monotonic_ns() // 1000
    Notifier(name).reloading()
    first, second = listener.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    key, _, usec = second.partition("=")
    assert key == "MONOTONIC_USEC"
    assert before <= int(usec) <= time.monotonic_ns() // 1000


def test_children_do_not_inherit_the_variables() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Notifier.from_environment(environment)
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "500000"}, 0.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_ours_only_if_it_says_so(variables: dict[str, str], seconds: float | None) -> None:
    assert Notifier.from_environment({"NOTIFY_SOCKET": "/x", **variables}).watchdog_s == seconds


def test_without_a_service_manager_nothing_happens() -> None:
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "1000000"})
    assert notifier.watchdog_s is None
    notifier.ready()


def test_a_service_manager_that_is_gone_is_no_problem(edgepd_home: Path) -> None:
    Notifier(str(edgepd_home / "nobody")).ready()


def test_a_service_manager_that_does_not_read_does_not_block(manager: tuple[socket.socket, str]) -> None:
    notifier = Notifier(manager[1])
    for _ in range(5000):
        notifier.watchdog()


def test_a_status_that_was_not_taken_is_said_again(manager: tuple[socket.socket, str]) -> None:
    listener, name = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": name})
    listener.setblocking(False)
    for _ in range(10_000):  # more than any queue holds
        notifier.watchdog()
    notifier.status("tiny ready")
    with contextlib.suppress(BlockingIOError):
        while True:
            assert listener.recv(4096) == b"WATCHDOG=1"
    notifier.status("tiny ready")
    assert listener.recv(4096) == b"STATUS=tiny ready"


def test_an_address_of_another_kind_is_said_to_be_ignored(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "1000000"})
    notifier.ready()
    assert "NOTIFY_SOCKET is 'vsock:2:1234', but must begin with / or @" in caplog.text
    assert notifier.watchdog_s is None
