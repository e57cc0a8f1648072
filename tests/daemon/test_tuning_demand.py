"""How many events are new to the model of what comes next, and what a tuning that was judged changes.

Over the real profile of training_parts.py; what follows from the numbers is in scheduler/test_decide.py.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from edgepd.adapt.job import Parked, Progress
from edgepd.settings import Intent, Train
from edgepd_daemon.remembered import Remembered
from edgepd_daemon.scheduler.types import Demand
from edgepd_profiles import demand, forgetting
from tests.daemon.test_tuning import PASSED, SMALL, WORSE, files, send, with_events
from tests.daemon.training_parts import Parts
from tests.daemon.watched import Clock, Watched, clock

__all__ = ["clock"]


def demanded(daemon: Parts, intent: Intent | None, remembered: Remembered) -> Demand:
    state = remembered.state(1000.0, Train(), None, at_work_s=0.0, paused_by_user=False, intent=intent)
    return state.demand


def test_new_events_are_counted_from_the_last_tuning_that_was_judged(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        remembered = Remembered(daemon.store)
        intent = SMALL.intent

        def count() -> tuple[int, int]:
            found = demanded(daemon, intent, remembered)
            return found.intent_events, found.intent_enough

        assert count() == (0, 0)
        send(daemon.store, range(9))
        assert count() == (9, 0)  # too few in all
        send(daemon.store, range(9, 11))
        assert count() == (11, 5)
        assert demanded(daemon, Intent(enabled=False), remembered).intent_enough == 0
        assert demanded(daemon, None, remembered).intent_enough == 0
        assert count() == (11, 5)
        daemon.child_says("write", WORSE)
        await daemon.ended("intent")
        assert (count(), demanded(daemon, intent, remembered).last) == ((0, 5), "intent")
        send(daemon.store, range(11, 15))
        assert count() == (4, 5)
        send(daemon.store, range(100))
        assert count() == (20, 5)  # more decide nothing, and need not be counted

    with_events(tmp_path, work, 0)


def test_without_a_change_nothing_is_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    real = demand.intent_events

    def counting(conn: sqlite3.Connection, *, enough: int) -> int:
        counted.append(enough)
        return real(conn, enough=enough)

    monkeypatch.setattr(demand, "intent_events", counting)

    async def work(daemon: Parts) -> None:
        remembered = Remembered(daemon.store)
        found = [demanded(daemon, SMALL.intent, remembered) for _ in range(5)]
        assert found == [found[0]] * 5
        assert (found[0].intent_events, len(counted)) == (20, 1)
        send(daemon.store, [50])
        assert (demanded(daemon, SMALL.intent, remembered).intent_events, len(counted)) == (20, 2)

    with_events(tmp_path, work)


def test_a_tuning_that_was_judged_lets_those_that_wait_wait_on(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        remembered = Remembered(daemon.store)

        def due_s() -> float:
            state = remembered.state(1000.0, Train(), None, at_work_s=0.0, paused_by_user=False, intent=SMALL.intent)
            return state.due_s

        assert due_s() == 0.0
        assert remembered._state is not None
        remembered._state = replace(remembered._state, due_s=5000.0)
        daemon.child_says("write", PASSED)
        await daemon.ended("intent")
        assert due_s() == 5000.0
        daemon.child_says("write", replace(PASSED, scores={"held_out_after": 2.0}))
        await daemon.ended("live")
        assert due_s() == 0.0

    with_events(tmp_path, work)


def test_while_prediction_is_off_no_tuning_is_due_and_none_is_given_up(tmp_path: Path) -> None:
    async def work(daemon: Parts) -> None:
        remembered, off = Remembered(daemon.store), Intent(enabled=False)
        daemon.child_says(Progress("train"), "write", Parked(0), "wait go")
        await daemon.trainer.start("intent", asked=True)
        await daemon.until(lambda: daemon.trainer.progress)
        await daemon.trainer.park("prediction was switched off")
        assert demanded(daemon, SMALL.intent, remembered).parked == "intent"
        assert demanded(daemon, off, remembered).parked is None
        daemon.store.write(lambda conn: forgetting.want(conn, "intent", "forgotten")).result()
        assert demanded(daemon, SMALL.intent, remembered).forgotten == "intent"
        assert demanded(daemon, off, remembered).forgotten is None
        daemon.store.write(lambda conn: forgetting.want(conn, "live", "forgotten")).result()
        assert demanded(daemon, off, remembered).forgotten == "live"

    with_events(tmp_path, work)


def test_switching_prediction_off_ends_a_tuning_and_switching_it_on_makes_it_again(
    tmp_path: Path, clock: Clock
) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock, automatic=False)  # so that nothing else is due
        on.set(replace(on.settings, intent=SMALL.intent))
        daemon.child_says(Progress("train"), "write", Parked(0), "wait go")
        run = await daemon.trainer.start("intent", asked=True)
        await daemon.until(lambda: daemon.trainer.progress)
        assert (await on.look()).action == "go on"
        on.set(replace(on.settings, intent=replace(SMALL.intent, enabled=False)))
        assert (await on.look()).kind != "intent"
        assert (daemon.trainer.run, files(daemon)) == (None, [])
        ended = daemon.stored(run.id)
        assert (ended.state, ended.reason) == ("parked", "prediction was switched off (intent.enabled)")
        assert (await on.look()).kind != "intent"
        on.set(replace(on.settings, intent=SMALL.intent))
        daemon.child_says("write", PASSED)
        assert ((await on.look()).action, (daemon.trainer.run or run).kind) == ("start", "intent")
        await on.ended()

    with_events(tmp_path, work)
