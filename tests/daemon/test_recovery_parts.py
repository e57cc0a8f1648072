"""What notices that the engine hangs, who starts the daemon again, and what becomes of ends that were not stored."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import pytest

from edgepd.errors import StoreError
from edgepd_daemon.recorder import Ending, Recorder
from edgepd_daemon.restarting import VARIABLE, Restarts
from edgepd_daemon.watching import HANG_SECONDS, PATIENCE, Pulse
from edgepd_profiles import interactions
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.store import Store

T = TypeVar("T")


class World:
    """A clock, an engine that turned last at `beat`, and what this process has done."""

    def __init__(self) -> None:
        self.now, self.beat = 1000.0, 1000.0
        self.cpu, self.pages = 0.0, 0
        self.pulse = Pulse(lambda: self.beat, clock=lambda: self.now, work=lambda: (self.cpu, self.pages))

    def pass_time(self, seconds: float, *, step: float = 2.0, cpu: float = 0.0, pages: int = 0) -> None:
        """Let the engine be quiet; `cpu` is a share of one core, `pages` are those read in each step."""
        for _ in range(int(seconds / step)):
            self.now += step
            self.cpu += cpu * step
            self.pages += pages
            self.pulse.look()


@pytest.mark.parametrize(
    ("work", "patience"),
    [({}, HANG_SECONDS), ({"cpu": 0.1}, HANG_SECONDS), ({"cpu": 1.0}, PATIENCE), ({"pages": 1}, PATIENCE)],
)
def test_how_long_an_engine_is_waited_for(work: dict[str, float], patience: float) -> None:
    world = World()
    world.pulse.look()
    world.pass_time(patience - 2, **work)  # type: ignore[arg-type]
    assert not world.pulse.hangs
    assert world.pulse.works == bool(work and patience == PATIENCE)
    world.pass_time(4, **work)  # type: ignore[arg-type]
    assert world.pulse.hangs


def test_a_turn_begins_the_time_anew() -> None:
    world = World()
    world.pulse.look()
    for _ in range(10):
        world.pass_time(HANG_SECONDS - 10)
        world.beat = world.now
        world.pass_time(2)
    assert not world.pulse.hangs
    assert not world.pulse.works


def test_time_in_which_the_process_was_stopped_itself_does_not_count() -> None:
    world = World()
    world.pulse.look()
    world.pass_time(20_000, step=10_000)
    assert not world.pulse.hangs


@pytest.mark.parametrize(
    ("environment", "managed"),
    [
        ({}, False),
        ({"NOTIFY_SOCKET": "/run/notify"}, True),
        ({"INVOCATION_ID": "ab"}, True),
        ({"INVOCATION_ID": "ab", "SYSTEMD_EXEC_PID": str(os.getpid())}, True),
        ({"INVOCATION_ID": "ab", "SYSTEMD_EXEC_PID": "1"}, False),  # a terminal that a service has started
        ({"LISTEN_PID": str(os.getpid())}, True),
        ({"LISTEN_PID": "1"}, False),
    ],
)
def test_who_starts_the_daemon_again(environment: dict[str, str], managed: bool) -> None:
    restarts = Restarts.from_environment(environment)
    assert (restarts.managed, restarts.possible) == (managed, not managed)


@pytest.mark.parametrize(
    ("at", "possible"),
    [((), True), ((990.0, 980.0), True), ((990.0, 980.0, 970.0), False), ((990.0, 980.0, 300.0), True)],
)
def test_three_times_in_ten_minutes(at: tuple[float, ...], possible: bool) -> None:
    assert Restarts(managed=False, at=at, clock=lambda: 1000.0).possible is possible


@pytest.mark.parametrize(("text", "left"), [("1.5,2.5", {}), ("nonsense", {}), ("", {})])
def test_what_an_earlier_self_left_is_taken_out_of_the_environment(text: str, left: dict[str, str]) -> None:
    environment = {VARIABLE: text}
    assert Restarts.from_environment(environment).possible
    assert environment == left


class FullDisk(Store):
    """A store on a disk that is full for a while."""

    full = False

    def write(self, job: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Queue a job, or fail."""
        if not self.full:
            return super().write(job)
        failed: Future[T] = Future()
        failed.set_exception(StoreError("the disk is full"))
        return failed


@pytest.mark.parametrize("attended", [True, False])
def test_the_end_of_an_answer_is_stored_when_there_is_room_again(attended: bool, tmp_path: Path) -> None:
    ending = Ending("Blue.", "done", "stop", 3, 2, 1.0, 2.0)
    messages = [{"role": "user", "content": "Name a colour."}]

    async def go(store: FullDisk) -> None:
        recorder = Recorder(store, enabled=True)
        await recorder.begin(Interaction("i_1", "c", 1.0, "cli", "tiny", 1, messages))
        store.full = True
        if attended:
            assert "the disk is full" in str(await recorder.finish("i_1", ending))
        else:
            recorder.finish_unattended("i_1", ending)
        assert recorder.problem is not None
        with pytest.raises(StoreError):
            await recorder.finish_left()
        store.full = False
        await recorder.finish_left()
        assert recorder.problem is None
        await recorder.finish_left()  # nothing is left

    opened = FullDisk.open(tmp_path / "profile.db")
    assert isinstance(opened, FullDisk)
    with opened:
        asyncio.run(go(opened))
        with opened.read() as conn:
            found = interactions.get(conn, "i_1")
    assert (found.response, found.state) == ("Blue.", "done")
