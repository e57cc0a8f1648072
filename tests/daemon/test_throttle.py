"""The trainer held to its budget: stopped for requests, for the scheduler, and by its CPU share."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from edgepd_daemon import throttle
from edgepd_daemon.throttle import REQUEST, Handle, Throttle

BUSY = "while True: pass"
IDLE = "import time\nwhile True: time.sleep(60)"


@pytest.fixture
def child() -> Iterator[Callable[[str], int]]:
    """Start a Python program; return its pid."""
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str) -> int:
        started.append(subprocess.Popen([sys.executable, "-c", program]))
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.wait()


class Requests:
    """What the engine says: whether it is busy."""

    def __init__(self) -> None:
        self.busy = False

    def __call__(self) -> bool:
        return self.busy


def state(pid: int) -> str:
    """The letter of proc(5): T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def stopped(pid: int) -> bool:
    """Whether it is, or is within a moment: the kernel sends the signal at once, and stops on the next interrupt."""
    deadline = time.monotonic() + 5
    while state(pid) != "T" and time.monotonic() < deadline:
        time.sleep(0.001)
    return state(pid) == "T"


def runs(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while state(pid) == "T" and time.monotonic() < deadline:
        time.sleep(0.001)
    return state(pid) != "T"


def with_throttle(work: Callable[[Throttle, Requests], Awaitable[None]]) -> None:
    async def run() -> None:
        requests = Requests()
        made = Throttle(requests)
        try:
            await work(made, requests)
        finally:
            made.close()

    asyncio.run(run())


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return condition()


def test_a_request_stops_it_at_once_and_it_goes_on_when_all_is_quiet(child: Callable[[str], int]) -> None:
    async def work(made: Throttle, requests: Requests) -> None:
        pid = child(BUSY)
        made.attach(pid, 100, 1, 0.3)
        assert runs(pid)
        requests.busy = True
        thread = threading.Thread(target=made.request_came)
        thread.start()
        thread.join()
        assert stopped(pid)
        assert (made.paused, made.pauses) == (REQUEST, 1)
        assert await until(lambda: made.last_pause_ms is not None)
        await asyncio.sleep(0.5)
        made.request_came()  # another one, while the first is still being answered
        assert (state(pid), made.pauses) == ("T", 1)
        requests.busy = False
        began = time.monotonic()
        made.requests_ended()
        assert await until(lambda: made.paused is None)
        assert time.monotonic() - began >= 0.3
        assert runs(pid)

    with_throttle(work)


def test_requests_that_are_there_before_the_child(child: Callable[[str], int]) -> None:
    async def work(made: Throttle, requests: Requests) -> None:
        made.request_came()  # nobody to stop
        assert (made.paused, made.pauses) == (None, 0)
        requests.busy = True
        pid = child(IDLE)
        made.attach(pid, 100, 1, 0.0)
        assert stopped(pid)
        assert made.paused == REQUEST

    with_throttle(work)


def test_the_scheduler_holds_it_too(child: Callable[[str], int]) -> None:
    """Whoever lets go first, it runs only when the other one has let go as well."""

    async def work(made: Throttle, requests: Requests) -> None:
        pid = child(IDLE)
        made.attach(pid, 100, 1, 0.05)
        made.hold("on battery")
        assert stopped(pid)
        assert (made.paused, made.pauses) == ("on battery", 1)
        made.hold("on battery, still")
        assert (made.paused, made.pauses) == ("on battery, still", 1)
        requests.busy = True
        made.request_came()
        made.hold(None)
        assert (made.paused, state(pid)) == (REQUEST, "T")
        made.hold("hot")
        requests.busy = False
        assert await until(lambda: made._requested is False)
        assert (made.paused, state(pid)) == ("hot", "T")
        made.hold(None)
        assert runs(pid)
        assert made.paused is None

    with_throttle(work)


def test_who_is_let_go_of_runs_and_is_left_alone(child: Callable[[str], int]) -> None:
    async def work(made: Throttle, requests: Requests) -> None:
        pid = child(IDLE)
        made.attach(pid, 100, 1, 60)
        requests.busy = True
        made.request_came()
        made.hold("hot")
        assert stopped(pid)
        made.detach()
        assert runs(pid)
        made.request_came()
        made.hold("hot")
        made.detach()
        await asyncio.sleep(0.3)
        assert state(pid) != "T"
        assert (made.paused, made.cpu_percent) == (None, None)
        other = child(IDLE)
        made.attach(other, 100, 1, 60)  # what was asked for the one before does not count, but requests do
        assert (made.paused, stopped(other)) == (REQUEST, True)
        made.attach(pid, 100, 1, 60)
        assert runs(other)

    with_throttle(work)


def test_a_child_that_has_ended(child: Callable[[str], int]) -> None:
    """Before it was attached, or after, seen or not: nothing happens."""

    async def work(made: Throttle, requests: Requests) -> None:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        made.attach(gone.pid, 50, 1, 0.0)
        assert made.paused is None
        process = subprocess.Popen([sys.executable, "-c", IDLE])
        made.attach(process.pid, 50, 1, 0.0)
        process.kill()
        process.wait()
        made.request_came()
        made.hold("hot")
        made.hold(None)
        await asyncio.sleep(0.3)
        assert made._watching is not None and made._watching.done()
        made.detach()

    with_throttle(work)


@pytest.mark.parametrize("descriptors", [True, False])
def test_a_pid_that_is_used_again_is_not_signalled(descriptors: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the help of the kernel: a handle knows a process by more than its pid."""
    if not descriptors:
        monkeypatch.delattr(os, "pidfd_open")
    process = subprocess.Popen([sys.executable, "-c", IDLE])
    handle = Handle(process.pid)
    assert handle.signal(throttle.signal.SIGSTOP)
    assert stopped(process.pid)
    assert handle.signal(throttle.signal.SIGCONT)
    if not descriptors:  # as if the process of this pid were a younger one; psutil compares the times of creation
        monkeypatch.setattr(psutil.Process, "_get_ident", lambda self: (self.pid, 1.0))
        assert not handle.signal(throttle.signal.SIGSTOP)
        monkeypatch.undo()
        assert runs(process.pid)
    process.kill()
    process.wait()
    assert not handle.signal(throttle.signal.SIGSTOP)
    assert handle.cpu_s() is None
    assert handle.is_stopped()
    handle.close()
    handle.close()


def test_a_busy_child_keeps_to_its_share_and_the_books_are_right(child: Callable[[str], int]) -> None:
    """With bounds that a busy machine keeps too: it can only use less."""

    async def work(made: Throttle, requests: Requests) -> None:
        pid = child(BUSY)
        await asyncio.sleep(0.2)
        process = psutil.Process(pid)
        before, began = process.cpu_times().user + process.cpu_times().system, time.monotonic()
        made.attach(pid, 30, 1, 0.0)
        assert made.cpu_percent is None
        seen = set()
        while time.monotonic() - began < 4:
            seen.add(state(pid))
            await asyncio.sleep(0.02)
        used = process.cpu_times().user + process.cpu_times().system - before
        elapsed = time.monotonic() - began
        assert used <= 0.3 * elapsed + 0.8
        assert "T" in seen and len(seen) > 1
        assert made.paused is None, "the budget is nothing that anybody waits for"
        assert 0 < made.cpu_s <= used + 0.1
        assert made.cpu_percent is not None and 0 < made.cpu_percent <= 60
        assert 3.9 <= made.at_work_s <= elapsed + 0.1  # the stops of the duty cycle are work
        made.hold("hot")
        at_work = made.at_work_s
        await asyncio.sleep(0.3)
        assert made.at_work_s == at_work
        made.detach()
        assert made.at_work_s == pytest.approx(at_work, abs=0.05)
        assert made.cpu_s > 0  # of the last child, after its end too

    with_throttle(work)


def test_a_limit_can_be_changed(child: Callable[[str], int]) -> None:
    async def work(made: Throttle, requests: Requests) -> None:
        pid = child(BUSY)
        made.attach(pid, 1, 1, 0.0)
        assert await until(lambda: state(pid) == "T")
        made.limit(100, 1)
        assert await until(lambda: state(pid) != "T")

    with_throttle(work)


def test_a_throttle_that_fails_lets_go(child: Callable[[str], int], caplog: pytest.LogCaptureFixture) -> None:
    """A child that stands still with nobody to look after it would stand still for ever."""

    async def work(made: Throttle, requests: Requests) -> None:
        pid = child(IDLE)
        made.attach(pid, 100, 1, 0.0)
        requests.busy = True
        made.request_came()
        assert stopped(pid)
        made._busy = lambda: bool(1 / 0)
        assert await until(lambda: "not held to its budget any more" in caplog.text)
        assert runs(pid)

    with_throttle(work)
