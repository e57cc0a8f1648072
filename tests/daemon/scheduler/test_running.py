"""What may stop a run that goes on: more for one that nobody waits for than for one that the user asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgepd.settings import Budget
from edgepd_daemon.scheduler.decide import hard_limit_mb, smaller_mb
from edgepd_daemon.scheduler.types import Action, Running
from tests.daemon.scheduler.situations import ASKED, BROKEN, BUDGET, DAY, LIVE_DUE, UNASKED, WELL, about, decided

PARKED = {"disk", "memory", "memory pressure"}  # of BROKEN: what lasts, or needs the memory
HOLDS_ASKED = {"temperature", "memory", "memory pressure", "busy"}


def test_a_run_goes_on_while_nothing_holds_it() -> None:
    unasked, asked = about(UNASKED, at_work_s=720.0), about(ASKED)
    assert (unasked.action, unasked.kind, unasked.constraint, unasked.look_again_s) == (Action.GO_ON, "live", "", 1.0)
    assert unasked.reason == "a short run goes on: 12 of today's 60 minutes of training are used"
    assert (asked.action, asked.reason) == (Action.GO_ON, "a short run that you asked for goes on")
    assert about(replace(UNASKED, reviewing=True)).action is Action.GO_ON
    assert about(UNASKED, failures=3, since_failure_s=1.0).action is Action.GO_ON  # that was waited for before it began


@pytest.mark.parametrize(("worse", "constraint", "reason"), BROKEN)
def test_an_unasked_run_makes_way(worse: dict[str, Any], constraint: str, reason: str) -> None:
    decision = about(UNASKED, readings=replace(WELL, **worse))
    if constraint == "idle":  # that is for the start alone
        assert decision.action is Action.GO_ON
        return
    action = Action.PARK if constraint in PARKED else Action.PAUSE
    assert (decision.action, decision.constraint) == (action, constraint)
    assert decision.reason == f"{action}{'d' if action is Action.PAUSE else 'ed'}, {reason}"


@pytest.mark.parametrize(("worse", "constraint", "reason"), BROKEN)
def test_a_run_that_was_asked_for_makes_way_for_memory_heat_and_questions(
    worse: dict[str, Any], constraint: str, reason: str
) -> None:
    decision = about(ASKED, readings=replace(WELL, **worse))
    if constraint in HOLDS_ASKED and worse != {"idle_s": 4.5}:
        expected = Action.PARK if constraint in PARKED else Action.PAUSE
        assert (decision.action, decision.constraint) == (expected, constraint)
    else:
        assert decision.action is Action.GO_ON


@pytest.mark.parametrize(
    ("worse", "parks"),
    [
        ({"on_ac": False}, True),
        ({"battery_percent": 39.0}, True),
        ({"temperature_c": 86.0}, True),
        ({"busy": True, "idle_s": 0.0}, False),
        ({"other_cpu_percent": 41.0}, False),
        ({"io_pressure": 41.0}, False),
    ],
)
def test_a_pause_that_lasts_gives_the_memory_back(worse: dict[str, Any], parks: bool) -> None:
    readings = replace(WELL, **worse)
    assert about(replace(UNASKED, paused_s=120.0), readings=readings).action is Action.PAUSE
    later = about(replace(UNASKED, paused_s=121.0), readings=readings)
    assert later.action is (Action.PARK if parks else Action.PAUSE)
    hours = about(replace(UNASKED, paused_s=5 * 3600.0), readings=readings)
    assert hours.action is (Action.PARK if parks else Action.PAUSE)


def test_a_run_that_the_user_waits_for_is_not_parked_for_heat() -> None:
    hot = replace(WELL, temperature_c=90.0)
    assert about(replace(ASKED, paused_s=5000.0), readings=hot).action is Action.PAUSE


@pytest.mark.parametrize(
    ("readings", "state", "budget", "constraint"),
    [
        (replace(WELL, minute_of_day=1390), {}, Budget(quiet_hours="22:00-07:00"), "quiet hours"),
        (WELL, {"at_work_s": 3600.0}, BUDGET, "minutes"),
        (WELL, {}, Budget(automatic=False), "automatic"),
    ],
)
def test_what_lasts_parks_an_unasked_run_at_once(readings: Any, state: Any, budget: Budget, constraint: str) -> None:
    decision = about(UNASKED, readings=readings, budget=budget, **state)
    assert (decision.action, decision.constraint) == (Action.PARK, constraint)
    assert about(ASKED, readings=readings, budget=budget, **state).action is Action.GO_ON


def test_a_run_for_what_was_forgotten_goes_on_where_nothing_is_automatic() -> None:
    demand = replace(LIVE_DUE, forgotten="live")
    assert decided(demand, budget=Budget(automatic=False), running=UNASKED).action is Action.GO_ON


@pytest.mark.parametrize("running", [ASKED, UNASKED])
def test_the_user_can_park_every_run(running: Running) -> None:
    decision = about(running, paused_by_user=True)
    assert (decision.action, decision.constraint) == (Action.PARK, "user pause")
    assert decision.reason == "parked, waits for you to resume it: training is paused"


@pytest.mark.parametrize(("running", "resume_s"), [(UNASKED, 5.0), (ASKED, 0.5)])
def test_a_run_goes_on_some_time_after_a_question(running: Running, resume_s: float) -> None:
    paused = replace(running, paused_s=30.0)
    assert about(paused, readings=replace(WELL, idle_s=resume_s - 0.1)).constraint == "busy"
    assert about(paused, readings=replace(WELL, idle_s=resume_s)).action is Action.GO_ON


def test_a_run_that_fails_to_fit_its_plan_begins_again_smaller() -> None:
    assert about(UNASKED, readings=replace(WELL, trainer_rss_mb=1000.0)).action is Action.GO_ON
    soft = about(UNASKED, readings=replace(WELL, trainer_rss_mb=1001.0))
    assert (soft.action, soft.constraint) == (Action.SHRINK, "plan")
    assert soft.reason == "the trainer holds 1001 MiB and should hold 1000 MiB; it goes on with less"
    assert about(ASKED, readings=replace(WELL, trainer_rss_mb=1001.0)).action is Action.SHRINK


def test_above_its_plan_a_run_that_stands_still_is_left_alone_but_not_above_the_hard_limit() -> None:
    busy = replace(WELL, busy=True, idle_s=0.0)
    assert about(ASKED, readings=replace(busy, trainer_rss_mb=1250.0)).action is Action.PAUSE
    hard = about(ASKED, readings=replace(busy, trainer_rss_mb=1251.0))
    assert (hard.action, hard.constraint) == (Action.SHRINK, "hard memory")
    assert hard.reason == "the trainer holds 1251 MiB and may hold 1250 MiB; it goes on with less"


def test_above_the_hard_limit_a_run_is_not_started_again_against_a_constraint() -> None:
    over = replace(WELL, trainer_rss_mb=1251.0)
    assert about(UNASKED, readings=over).action is Action.SHRINK
    held = about(UNASKED, readings=replace(over, on_ac=False))
    assert (held.action, held.constraint) == (Action.PARK, "hard memory")
    assert held.reason == (
        "the trainer holds 1251 MiB and may hold 1250 MiB; it waits for mains power: on battery at 80 %"
    )


def test_where_memory_is_wanted_parking_comes_before_shrinking() -> None:
    decision = about(UNASKED, readings=replace(WELL, available_mb=100.0, trainer_rss_mb=2000.0))
    assert (decision.action, decision.constraint) == (Action.PARK, "memory")


@pytest.mark.parametrize(
    ("planned", "hard", "limit", "smaller"),
    [(1000.0, 0, 1250.0, 800.0), (1000.0, 600, 600.0, 480.0), (1000.0, 3000, 3000.0, 800.0), (0.0, 600, 600.0, 480.0)],
)
def test_the_limits_of_memory(planned: float, hard: int, limit: float, smaller: float) -> None:
    running, budget = replace(UNASKED, planned_mb=planned), Budget(hard_memory_mb=hard)
    assert hard_limit_mb(running, budget) == limit
    assert smaller_mb(running, budget) == smaller


def test_a_run_without_a_plan_yet_has_no_limit_of_its_own() -> None:
    unplanned = replace(UNASKED, planned_mb=0.0)
    assert about(unplanned, readings=replace(WELL, trainer_rss_mb=5000.0)).action is Action.GO_ON


def test_patience_holds_in_a_run_too() -> None:
    loud = replace(WELL, other_cpu_percent=90.0)
    assert about(UNASKED, readings=loud, due_s=2 * DAY).action is Action.PAUSE
    assert about(UNASKED, readings=loud, due_s=2 * DAY + 1).action is Action.GO_ON
    assert about(replace(UNASKED, paused_s=2 * DAY + 1), readings=loud).action is Action.GO_ON


def test_a_paused_run_goes_on_with_a_margin_and_one_that_goes_on_needs_none() -> None:
    warm = replace(WELL, temperature_c=83.0)
    paused = replace(UNASKED, paused_s=20.0)
    assert about(paused, readings=warm, held_by="temperature", held_s=20.0).action is Action.PAUSE
    assert about(paused, readings=warm, held_by="temperature", held_s=60.0).action is Action.GO_ON
    assert about(UNASKED, readings=warm, held_by="temperature", held_s=20.0).action is Action.GO_ON
    # The user asks for a run soon after one was parked: memory that is there is enough.
    assert about(ASKED, held_by="memory", held_s=20.0).action is Action.GO_ON
