"""Runs that make way for others, for the end of the daemon, or for who stops them: who wins, and what is left."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepd.adapt.job import Outcome
from edgepd.errors import ConflictError
from edgepd.settings import Budget
from edgepd_profiles import runs
from tests.daemon.training_parts import Parts, with_parts


def states(daemon: Parts) -> list[tuple[str, str, str | None]]:
    with daemon.store.read() as conn:
        return [(run.kind, run.state, run.stopped_by) for run in reversed(runs.runs(conn, 9))]


async def begun(daemon: Parts, kind: Any = "live", *, asked: bool = True) -> runs.Run:
    """Start a run and return it when its child is there."""
    (daemon.directory / "environment.json").unlink(missing_ok=True)
    run = await daemon.trainer.start(kind, asked=asked)
    await daemon.until((daemon.directory / "environment.json").exists)
    return run


def test_a_run_that_nobody_waited_for_becomes_the_one_that_is_asked_for(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        trainer = daemon.trainer
        trainer.settings = replace(trainer.settings, budget=Budget(cpu_percent=30, asked_cpu_percent=90))
        daemon.child_says("wait go", Outcome(False, "not better"))
        run = await begun(daemon, asked=False)
        pid = trainer.pid
        assert trainer.throttle._limits[0] == 30
        response = await daemon.client.post("/edgepd/v1/training", json={"kind": "live"})
        assert (response.status_code, response.json()["run"]["id"]) == (202, run.id)
        described = trainer.running()
        assert described is not None
        assert (described.asked, trainer.asked, trainer.pid) == (True, True, pid)
        assert (trainer.throttle._limits[0], trainer.throttle._resume_after_s) == (90, 0.5)
        with pytest.raises(ConflictError, match=f"training run {run.id} is going on"):
            await trainer.start("live")
        with pytest.raises(ConflictError):
            await trainer.start("baked")
        daemon.let_go()
        await daemon.until(lambda: trainer.run is None)
        assert states(daemon) == [("live", "rejected", None)]

    with_parts(tmp_path, work)


def test_a_run_that_nobody_waited_for_makes_way_for_one_of_the_other_kind(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("wait go", Outcome(False, "not better"))
        await begun(daemon, "baked", asked=False)
        run = await begun(daemon, "live")
        assert (run.id, daemon.trainer.asked) == (2, True)
        daemon.let_go()
        await daemon.until(lambda: daemon.trainer.run is None)
        assert states(daemon) == [("baked", "parked", None), ("live", "rejected", None)]

    with_parts(tmp_path, work)


def test_what_starts_by_itself_makes_nothing_make_way(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("wait go")
        await begun(daemon, asked=False)
        for kind in ("live", "baked"):
            with pytest.raises(ConflictError):
                await daemon.trainer.start(kind, asked=False)

    with_parts(tmp_path, work)


@pytest.mark.parametrize("first", ["park", "stop"])
def test_who_stops_a_run_that_is_being_parked_stops_it(tmp_path: Path, first: str) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("wait go")
        await begun(daemon)
        ways = {"park": daemon.trainer.park("it makes way"), "stop": daemon.trainer.stop()}
        await asyncio.gather(ways.pop(first), *ways.values())
        assert states(daemon) == [("live", "interrupted", "user")]

    with_parts(tmp_path, work)


def test_a_run_that_was_asked_for_is_remembered_as_such_when_it_is_parked(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("wait go")
        for asked in (True, False):
            await begun(daemon, asked=asked)
            await daemon.trainer.park("it makes way")
            with daemon.store.read() as conn:
                assert (runs.parked(conn), runs.parked_as_asked(conn)) == ("live", asked)

    with_parts(tmp_path, work)


def test_a_start_whose_caller_goes_away_leaves_a_run_that_is_followed(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("wait go", Outcome(False, "not better"))
        starting = asyncio.create_task(daemon.trainer.start("live"))
        await daemon.until(daemon.trainer._starting.locked)
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        await daemon.until(lambda: daemon.trainer.run)
        daemon.let_go()
        await daemon.until(lambda: daemon.trainer.run is None)
        assert states(daemon) == [("live", "rejected", None)]

    with_parts(tmp_path, work)


def test_the_end_of_the_daemon_parks_even_what_has_only_begun_to_start(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("wait go")
        starting = asyncio.create_task(daemon.trainer.start("live", asked=False))
        await daemon.until(daemon.trainer._starting.locked)
        await daemon.trainer.close("the daemon was stopped")
        await starting
        assert (states(daemon), daemon.trainer.run) == ([("live", "parked", None)], None)
        with pytest.raises(ConflictError, match="the daemon is ending"):
            await daemon.trainer.start("live")

    with_parts(tmp_path, work)


def test_a_child_that_does_not_end_is_killed_even_if_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepd_daemon.trainer.STOP_SECONDS", 0.1)
    script = tmp_path / "stubborn.py"

    async def work(daemon: Parts) -> None:
        text = (tmp_path / "child.py").read_text()
        script.write_text(f"import signal\nsignal.signal({int(signal.SIGTERM)}, signal.SIG_IGN)\n{text}")
        daemon.trainer._command = lambda _kind: (sys.executable, str(script), str(tmp_path))
        daemon.child_says("wait go")
        await begun(daemon)
        parking = asyncio.create_task(daemon.trainer.park("it makes way"))
        await asyncio.sleep(0)
        parking.cancel()
        await daemon.until(lambda: daemon.trainer.run is None)
        assert states(daemon) == [("live", "parked", None)]

    with_parts(tmp_path, work)


def test_who_ends_a_run_while_its_child_begins_again_ends_it(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("wait go")
        await begun(daemon)
        spawn = daemon.trainer._spawn
        again = asyncio.Event()

        async def slowly(*args: Any) -> Any:
            again.set()
            await asyncio.sleep(0.05)
            return await spawn(*args)

        daemon.trainer._spawn = slowly  # type: ignore[method-assign,assignment]
        daemon.trainer.shrink(500)
        daemon.trainer.shrink(400)  # while the child still ends: that is no further try
        assert (daemon.trainer.changing, daemon.trainer.shrinks) == (True, 1)
        await again.wait()
        await daemon.trainer.stop()
        assert (states(daemon), daemon.trainer.run) == ([("live", "interrupted", "user")], None)

    with_parts(tmp_path, work)


def test_the_review_of_a_run_is_no_run_to_take_over(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        daemon.child_says("write", Outcome(True, "better", {}, "cd" * 32), "wait go")
        await begun(daemon, asked=False)
        await daemon.until(lambda: daemon.trainer._running and daemon.trainer._running.promoted)
        second = await begun(daemon)
        assert (second.id, second.parent_generation) == (2, 2)

    with_parts(tmp_path, work)
