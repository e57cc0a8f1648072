"""The supervisor: what it starts, explains, pauses, parks, makes smaller and gives up, and what outlives a restart.

The real profile, trainer and throttle; the child follows a script, and machine and clocks are made up.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgepd.adapt.job import Outcome
from edgepd.errors import ConflictError
from edgepd_daemon.sensors.clocks import Jump
from tests.daemon.scheduler.situations import WELL
from tests.daemon.training_parts import Parts, correct, with_parts
from tests.daemon.watched import Clock, Watched, clock, newest

__all__ = ["clock"]

REJECTED = Outcome(False, "not better")
DAY = 86_400.0


def test_a_run_starts_by_itself_and_its_feedback_is_not_new_any_more(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        daemon.child_says("wait go", REJECTED)
        await on.started()
        assert (newest(daemon).kind, daemon.trainer.asked, daemon.read("job.json")["patient"]) == ("live", False, True)
        shown = on.supervisor.view()
        assert shown["decision"]["reason"].startswith("starts a short run: 12 of the weight 4 of new feedback")
        assert shown["demand"]["live_weight"] == 12
        assert (await on.look()).action == "go on"
        assert on.supervisor.view()["trainer"]["asked"] is False
        daemon.let_go()
        await on.ended()
        decision = await on.look()
        assert (decision.action, decision.due) == ("wait", False)
        assert decision.reason.startswith("there is 0 of the weight 4")
        assert on.noted() == [("start", ""), ("go on", ""), ("wait", "")]
        correct(daemon.store, range(20, 24), since=2000.0)
        await on.started()

    with_parts(tmp_path, work)


def test_what_is_known_before_the_first_look(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        shown = Watched(daemon, clock).supervisor.view()
        assert (shown["decision"]["action"], shown["decisions"], shown["trainer"]) == ("wait", [], None)
        assert (shown["readings"]["battery_percent"], shown["readings"]["busy"]) == (None, False)

    with_parts(tmp_path, work)


def test_why_nothing_is_trained_is_told_once_and_over_a_restart(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        on.machine.becomes(on_ac=False, battery_percent=62.0)
        for percent in (62.0, 61.0):
            on.machine.becomes(battery_percent=percent)
            await on.look()
        assert on.noted() == [("wait", "mains power")]
        reason = "waits for mains power: on battery at 61 %"
        assert on.supervisor.view()["decision"]["reason"] == reason  # the values are those of now
        assert on.due_since() == WELL.at
        on.machine.becomes(temperature_c=99.0, on_ac=True, at=WELL.at + 5)
        await on.look()
        assert on.due_since() == WELL.at
        on.restarted()
        await on.look()
        shown = on.supervisor.view()["decisions"]
        assert [(each["action"], each["constraint"]) for each in shown][-2:] == [
            ("wait", "temperature"),
            ("wait", "mains power"),
        ]
        assert on.due_since() == WELL.at

    with_parts(tmp_path, work)


def test_patience_outlives_restarts(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock, patience_days=2.0)
        on.activity.note()
        clock.let_pass(10)
        assert (await on.look()).constraint == "idle"
        for days, action in ((1.9, "wait"), (2.1, "start")):
            on.restarted()
            clock.let_pass(10)
            on.machine.becomes(at=WELL.at + days * DAY)
            daemon.child_says("wait go")
            assert (await on.look()).action == action

    with_parts(tmp_path, work)


def test_a_clock_that_is_set_while_it_runs_is_no_patience(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        on.activity.note()
        for days in (0.0, 400.0, -400.0):
            clock.let_pass(10)
            on.machine.becomes(at=WELL.at + days * DAY)
            assert (await on.look()).constraint == "idle"

    with_parts(tmp_path, work)


def test_who_wakes_the_machine_is_there(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        jumps: Any = SimpleNamespace(look=lambda: Jump(suspended_s=3600.0))
        on.supervisor._jumps = jumps
        assert (await on.look()).constraint == "busy"

    with_parts(tmp_path, work)


def test_a_run_is_paused_goes_on_and_is_parked_when_that_takes_long(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        daemon.child_says("wait go", REJECTED)
        await on.started()
        throttle = daemon.trainer.throttle
        on.machine.becomes(temperature_c=90.0)
        assert (await on.look()).action == "pause"
        assert throttle.paused == "waits for a cooler machine: it has 90 °C, the limit is 85"
        assert on.supervisor.view()["trainer"]["paused"] == throttle.paused
        clock.let_pass(1)
        on.machine.becomes(temperature_c=79.0)
        assert (await on.look()).action == "go on"
        assert throttle.paused is None
        on.machine.becomes(temperature_c=90.0)
        for seconds in (0, 100, 30):
            clock.let_pass(seconds)
            decision = await on.look()
        assert (decision.action, daemon.trainer.run) == ("park", None)
        run = newest(daemon)
        assert (run.state, run.reason, run.numbers) == ("parked", decision.reason, {})
        assert (await on.look()).reason.startswith("waits for a cooler machine")
        on.machine.becomes(temperature_c=50.0)
        await on.started()
        assert on.supervisor.view()["decision"]["reason"] == "starts a short run: it goes on where it was parked"

    with_parts(tmp_path, work)


def test_a_question_takes_the_place_of_another_reason_to_pause(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        daemon.child_says("wait go")
        await on.started()
        on.machine.becomes(temperature_c=90.0)
        await on.look()
        on.machine.becomes(temperature_c=50.0)
        on.busy = True
        assert (await on.look()).constraint == "busy"
        assert daemon.trainer.throttle.paused is None  # here nobody told the throttle of a request

    with_parts(tmp_path, work)


def test_too_much_memory_is_made_less_and_then_given_up(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        on.set(replace(on.settings, train=replace(on.settings.train, memory_mb=1000)))
        daemon.child_says("wait go")
        await on.started()
        on.machine.rss_mb = 2000.0
        planned = [daemon.read("job.json")["memory_mb"]]
        for _ in range(3):
            (tmp_path / "environment.json").unlink()
            assert (await on.look()).action == "shrink"
            await daemon.until((tmp_path / "environment.json").exists)
            await daemon.until(lambda: not daemon.trainer.changing)
            planned.append(daemon.read("job.json")["memory_mb"])
        assert planned == [1000, 800, 640, 512]
        decision = await on.look()
        assert (decision.action, decision.reason.startswith("given up: ")) == ("wait", True)
        assert (newest(daemon).state, daemon.trainer.run) == ("failed", None)
        assert (await on.look()).constraint == "failures"

    with_parts(tmp_path, work)


def test_the_users_pause_parks_and_outlives_a_restart(tmp_path: Path, clock: Clock) -> None:
    async def work(daemon: Parts) -> None:
        on = Watched(daemon, clock)
        daemon.child_says("wait go", REJECTED)
        await on.started()
        on.supervisor.pause(None)
        assert (await on.look()).action == "park"
        on.restarted()
        clock.let_pass(3600)
        decision = await on.look()
        assert (decision.action, decision.constraint) == ("wait", "user pause")
        assert (on.supervisor.view()["paused"], on.supervisor.view()["paused_until"]) == (True, None)
        with pytest.raises(ConflictError, match="edgepd budget resume"):
            on.supervisor.refuse_if_paused()
        on.supervisor.resume()
        await on.started()

    with_parts(tmp_path, work)
