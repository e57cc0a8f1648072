"""What can go wrong around the supervisor: too little to learn, failures, full disks, mistakes.

As in test_supervisor.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from edgepd.adapt.job import Outcome, Refused
from edgepd.errors import StoreError
from edgepd.settings import Gate
from edgepd_daemon.scheduler.types import Action, Decision
from edgepd_profiles import decisions, demand, forgetting, runs
from tests.daemon.scheduler.situations import WELL
from tests.daemon.training_parts import Parts, correct, with_parts
from tests.daemon.watched import Clock, Watched, clock, newest, wanted

__all__ = ["clock"]

REJECTED = Outcome(False, "not better")
DAY = 86_400.0


def test_what_forgetting_made_necessary_is_settled_only_when_it_was_judged(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock, automatic=False)
        daemon.store.write(lambda c: forgetting.want(c, "baked", "because")).result()
        daemon.child_says("exit 3")
        await on.look()
        await on.ended()
        assert (newest(daemon).kind, newest(daemon).state, wanted(daemon)) == ("baked", "failed", ["baked"])
        assert (await on.look()).constraint == "failures"
        clock.let_pass(301)
        daemon.child_says(REJECTED)
        assert (await on.look()).action == "start"
        await on.ended()
        assert (newest(daemon).state, wanted(daemon)) == ("rejected", [])
        assert (await on.look()).reason.startswith("training starts only when you ask for it")

    with_parts(tmp_path, work)


def test_too_little_to_learn_is_not_tried_again_until_there_is_more(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        on.set(replace(on.settings, gate=Gate(min_held_out=50)))
        daemon.store.write(lambda c: forgetting.want(c, "live", "because")).result()
        decision = await on.look()
        assert (decision.action, decision.due) == ("wait", False)
        assert decision.reason.startswith("nothing was trained: only ")
        assert (wanted(daemon), on.due_since()) == ([], None)
        assert (await on.look()).reason.startswith("there is 0 of the weight 4")
        with daemon.store.read() as conn:
            assert runs.runs(conn, 9) == []

    with_parts(tmp_path, work)


def test_what_was_parked_and_has_too_little_left_ends_there(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        daemon.child_says("wait go")
        await on.started()
        await daemon.trainer.park("it makes way")
        daemon.store.write(lambda c: c.execute("DELETE FROM feedback")).result()
        decision = await on.look()
        assert decision.reason.startswith("nothing was trained: there are 0 different examples")
        assert (newest(daemon).state, newest(daemon).stopped_by) == ("interrupted", "edgepd")
        assert (await on.look()).reason.startswith("there are 0 of the 10 examples")
        with daemon.store.read() as conn:
            assert runs.failures_in_a_row(conn) == 0

    with_parts(tmp_path, work)


def test_a_child_that_cannot_be_started_costs_nothing_that_was_to_be_learned(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        daemon.trainer._command = lambda _kind: (str(tmp_path / "missing"),)
        daemon.store.write(lambda c: forgetting.want(c, "live", "because")).result()
        decision = await on.look()
        assert (decision.action, decision.due) == ("wait", True)
        assert decision.reason.startswith("the trainer could not be started: ")
        assert (newest(daemon).state, wanted(daemon)) == ("failed", ["live"])
        assert (await on.look()).constraint == "failures"
        assert on.supervisor.view()["demand"]["live_weight"] == 12

    with_parts(tmp_path, work)


def test_what_the_user_asked_for_goes_on_as_such_where_nothing_is_automatic(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock, automatic=False)
        daemon.child_says("wait go", REJECTED)
        await daemon.trainer.start("live")
        on.machine.becomes(available_mb=100.0, on_ac=False)
        assert (await on.look()).action == "park"
        on.restarted()
        decision = await on.look()
        assert (decision.action, decision.constraint) == ("wait", "memory")
        on.machine.becomes(available_mb=4000.0)
        clock.let_pass(301)
        decision = await on.look()
        assert (decision.action, daemon.trainer.asked) == ("start", True)  # on battery, too
        daemon.let_go()
        await on.ended()
        assert (await on.look()).reason.startswith("training starts only when you ask for it")

    with_parts(tmp_path, work)


def test_a_run_that_the_user_stops_does_not_begin_again_at_once(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        daemon.child_says("wait go")
        await on.started()
        await daemon.trainer.stop()
        clock.let_pass(60)
        assert (await on.look()).constraint == "idle"
        clock.let_pass(300)
        await on.started()

    with_parts(tmp_path, work)


def test_a_decision_about_a_run_that_has_changed_meanwhile_is_not_carried_out(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        daemon.child_says("wait go")
        await on.started()
        running = daemon.trainer._running
        assert running is not None

        def taken_over(*_: object) -> Decision:
            running.asked = True
            return Decision(Action.PARK, "parked, waits for tomorrow", "minutes", "live")

        monkeypatch.setattr("edgepd_daemon.supervisor.decide", taken_over)
        decision = await on.look()
        assert (decision.look_again_s, daemon.trainer.run is not None) == (1.0, True)
        assert on.noted() == [("start", "")]
        await on.look()  # now it is about what is
        assert (daemon.trainer.run, on.noted()[-1]) == (None, ("park", "minutes"))

    with_parts(tmp_path, work)


def test_a_disk_that_is_full_keeps_no_run_from_making_way(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        daemon.child_says("wait go")
        await on.started()
        for module, name in ((decisions, "note"), (runs, "finish_run")):
            monkeypatch.setattr(module, name, full)
        on.machine.becomes(free_disk_mb=10.0)
        assert (await on.look()).action == "park"
        assert (daemon.trainer.run, newest(daemon).state) == (None, "running")
        assert "the end of training run 1 could not be stored: the disk is full" in caplog.text
        monkeypatch.undo()

    with_parts(tmp_path, work)


def test_what_cannot_be_looked_after_is_parked(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        daemon.child_says("wait go")
        await on.started()
        on.machine.fails = ValueError("a mistake of ours")
        waits = [await on.supervisor._looked() for _ in range(3)]
        assert (waits, daemon.trainer.run, newest(daemon).state) == ([5.0] * 3, None, "parked")
        assert await on.supervisor._looked() == 60.0
        on.machine.fails = None
        await on.started()

    with_parts(tmp_path, work)


def test_the_loop_looks_at_once_when_a_run_begins_or_the_settings_change(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock, automatic=False)
        task = asyncio.create_task(on.supervisor.run())
        await daemon.until(lambda: on.noted() == [("wait", "")])  # it would look again in a minute
        daemon.child_says("wait go", Refused("enough"))
        await daemon.trainer.start("live")
        await daemon.until(lambda: on.noted()[1:] == [("go on", "")])
        daemon.let_go()
        await on.ended()
        await daemon.until(lambda: len(on.noted()) == 3)
        on.set(replace(on.settings, budget=replace(on.settings.budget, automatic=True)))
        on.machine.becomes(on_ac=False)
        await asyncio.to_thread(on.supervisor.look_soon)
        await daemon.until(lambda: on.noted()[-1] == ("wait", "mains power"))
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    with_parts(tmp_path, work)


def test_a_new_cpu_budget_holds_the_run_that_goes_on(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock, cpu_percent=50.0)
        daemon.child_says("wait go")
        await on.started()
        on.set(replace(on.settings, budget=replace(on.settings.budget, cpu_percent=20.0)))
        await on.look()
        assert daemon.trainer.throttle._limits[0] == 20.0

    with_parts(tmp_path, work)


def test_minutes_are_counted_and_end_the_day(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock, minutes_per_day=1.0)
        daemon.child_says("wait go")
        await on.started()
        daemon.trainer.throttle._earlier_at_work_s += 61
        decision = await on.look()
        assert (decision.action, decision.constraint) == ("park", "minutes")
        assert on.supervisor.view()["today"]["at_work_s"] >= 61
        on.restarted()
        clock.let_pass(3600)
        assert (await on.look()).constraint == "minutes"
        on.machine.becomes(at=WELL.at + DAY)
        await on.started()

    with_parts(tmp_path, work)


def test_marks_are_those_of_the_feedback_that_the_run_knew(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        daemon.child_says("wait go", REJECTED)
        await on.started()
        correct(daemon.store, range(20, 23), since=2000.0)
        daemon.let_go()
        await on.ended()
        with daemon.store.read() as conn:
            assert demand.measure(conn, 0.5) == (3.0, 15.0)

    with_parts(tmp_path, work)
