"""Which run is due, and what holds its start: one case for each rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgepd.settings import Budget
from edgepd_daemon.scheduler.constraints import retry_after_s
from edgepd_daemon.scheduler.types import Action, Demand, Readings
from tests.daemon.scheduler.situations import (
    BAKED_DUE,
    BOTH_DUE,
    BROKEN,
    BUDGET,
    DAY,
    LIVE_DUE,
    SOFT,
    TUNING_DUE,
    WELL,
    decided,
)


@pytest.mark.parametrize(
    ("demand", "due_s", "kind"),
    [
        (LIVE_DUE, 0.0, "live"),
        (BAKED_DUE, 0.0, "baked"),
        (BOTH_DUE, 0.0, "live"),
        (BOTH_DUE, 2 * DAY, "live"),
        (BOTH_DUE, 2 * DAY + 1, "baked"),  # it has waited too long
        (replace(BOTH_DUE, baked_weight=95.9), 0.0, "live"),
        (replace(BOTH_DUE, baked_weight=96.0), 0.0, "baked"),  # short runs have come before it often enough
        (replace(LIVE_DUE, live_weight=4.0), 0.0, "live"),
        (replace(LIVE_DUE, examples=10), 0.0, "live"),
        (replace(LIVE_DUE, forgotten="baked"), 0.0, "baked"),
        (Demand(forgotten="live"), 0.0, "live"),
        (replace(BAKED_DUE, forgotten="live"), 3 * DAY, "live"),
        (TUNING_DUE, 0.0, "intent"),  # without an example
        (replace(LIVE_DUE, intent_events=79, intent_enough=40), 0.0, "live"),
        (replace(LIVE_DUE, intent_events=80, intent_enough=40), 0.0, "intent"),  # it has waited long enough
        (replace(LIVE_DUE, intent_events=40, intent_enough=40), 2 * DAY + 1, "intent"),
        (replace(BAKED_DUE, intent_events=40, intent_enough=40), 0.0, "intent"),
        (replace(BAKED_DUE, intent_events=39, intent_enough=40), 0.0, "baked"),
        (replace(BAKED_DUE, intent_events=999, intent_enough=0), 0.0, "baked"),  # switched off
        (replace(BAKED_DUE, baked_weight=96.0, intent_events=79, intent_enough=40), 0.0, "baked"),
        (replace(BAKED_DUE, intent_events=999, intent_enough=40, last="intent"), 0.0, "baked"),
        (replace(LIVE_DUE, intent_events=999, intent_enough=40, last="intent"), 3 * DAY, "live"),
        (replace(TUNING_DUE, last="intent"), 0.0, "intent"),  # nothing else is due
        (replace(BOTH_DUE, parked="intent"), 0.0, "intent"),
        (replace(BOTH_DUE, forgotten="intent"), 0.0, "intent"),
    ],
)
def test_the_run_that_is_due_is_started(demand: Demand, due_s: float, kind: str) -> None:
    decision = decided(demand, due_s=due_s)
    assert (decision.action, decision.kind, decision.due, decision.constraint) == (Action.START, kind, True, "")
    assert decision.look_again_s == 1.0


def test_a_start_says_why() -> None:
    assert decided(LIVE_DUE).reason == "starts a short run: 5 of the weight 4 of new feedback that starts a short run"
    assert decided(BAKED_DUE).reason == "starts a consolidation: 50 of the weight 48 that starts a consolidation"
    assert decided(Demand(forgotten="live")).reason == (
        "starts a short run: it restores what was learned, without what you had forgotten"
    )
    assert decided(TUNING_DUE).reason == (
        "starts a tuning of what comes next: 40 of the 40 new events that start a tuning of what comes next"
    )
    assert decided(Demand(parked="intent")).reason == "starts a tuning of what comes next: it was parked"
    assert decided(LIVE_DUE, due_s=2.5 * DAY).reason.endswith("; after 2.5 days it no longer waits for an idle machine")


@pytest.mark.parametrize(
    ("demand", "budget", "reason"),
    [
        (
            Demand(live_weight=3.96, baked_weight=20.0, examples=12),
            BUDGET,
            "there is 3.96 of the weight 4 of new feedback that starts a short run, and 20 of the weight 48 that "
            "starts a consolidation",
        ),
        (replace(LIVE_DUE, examples=9), BUDGET, "there are 9 of the 10 examples that training needs"),
        (LIVE_DUE, Budget(automatic=False), "training starts only when you ask for it (budget.automatic)"),
        (TUNING_DUE, Budget(automatic=False), "training starts only when you ask for it (budget.automatic)"),
        (
            Demand(intent_events=39, intent_enough=40),
            BUDGET,
            "there are 0 of the 10 examples that training needs; there are 39 of the 40 new events that start a tuning "
            "of what comes next",
        ),
    ],
)
def test_what_is_missing_is_said_where_nothing_is_due(demand: Demand, budget: Budget, reason: str) -> None:
    decision = decided(demand, budget=budget)
    assert (decision.action, decision.reason) == (Action.WAIT, reason)
    assert (decision.kind, decision.due, decision.constraint, decision.look_again_s) == (None, False, "", 60.0)


def test_what_was_forgotten_is_mended_without_being_asked() -> None:
    decision = decided(Demand(forgotten="baked"), budget=Budget(automatic=False))
    assert (decision.action, decision.kind) == (Action.START, "baked")


@pytest.mark.parametrize(("worse", "constraint", "reason"), BROKEN)
def test_a_broken_constraint_holds_the_start(worse: dict[str, Any], constraint: str, reason: str) -> None:
    decision = decided(LIVE_DUE, readings=replace(WELL, **worse))
    assert (decision.action, decision.constraint, decision.reason) == (Action.WAIT, constraint, reason)
    assert (decision.kind, decision.due) == ("live", True)


@pytest.mark.parametrize(
    "kept",
    [
        {"free_disk_mb": 1024.0},
        {"battery_percent": 40.0},
        {"temperature_c": 85.0},
        {"available_mb": 400.0},
        {"memory_pressure": 10.0},
        {"idle_s": 300.0},
        {"other_cpu_percent": 40.0},
        {"io_pressure": 40.0},
    ],
)
def test_a_reading_at_its_limit_holds_nothing(kept: dict[str, Any]) -> None:
    assert decided(LIVE_DUE, readings=replace(WELL, **kept)).action is Action.START


@pytest.mark.parametrize(("worse", "constraint", "reason"), BROKEN)
def test_patience_ends_for_soft_constraints_alone(worse: dict[str, Any], constraint: str, reason: str) -> None:
    readings = replace(WELL, **worse)
    assert decided(LIVE_DUE, readings=readings, due_s=2 * DAY).action is Action.WAIT
    later = decided(LIVE_DUE, readings=readings, due_s=2 * DAY + 1)
    assert later.action is (Action.START if constraint in SOFT else Action.WAIT)


def test_sensors_that_are_not_there_hold_nothing() -> None:
    optional = [name for name, value in vars(WELL).items() if name not in ("at", "minute_of_day", "busy", "idle_s")]
    assert len(optional) == 12
    nothing: dict[str, Any] = dict.fromkeys(optional)
    blind = replace(WELL, **nothing)
    assert decided(LIVE_DUE, readings=blind).action is Action.START
    assert decided(LIVE_DUE, readings=blind, held_by="mains power", held_s=1.0).action is Action.START


def test_the_user_can_pause_training() -> None:
    decision = decided(LIVE_DUE, paused_by_user=True)
    assert (decision.action, decision.constraint) == (Action.WAIT, "user pause")
    assert decision.reason == "waits for you to resume it: training is paused"


def test_nothing_is_started_in_quiet_hours() -> None:
    budget = Budget(quiet_hours="22:00-07:00")
    decision = decided(LIVE_DUE, budget=budget, readings=replace(WELL, minute_of_day=1390))
    assert (decision.action, decision.constraint) == (Action.WAIT, "quiet hours")
    assert decision.reason == "waits for the end of the quiet hours: it is 23:10, and they last until 07:00"
    assert decided(LIVE_DUE, budget=budget, readings=replace(WELL, minute_of_day=420)).action is Action.START
    always = decided(LIVE_DUE, budget=Budget(quiet_hours="00:00-24:00"))
    assert always.reason == "waits for the end of the quiet hours: it is 12:00, and they last all day"


def test_a_day_has_so_many_minutes_of_training() -> None:
    assert decided(LIVE_DUE, at_work_s=3599.0).action is Action.START
    decision = decided(LIVE_DUE, at_work_s=3600.0)
    assert (decision.action, decision.constraint) == (Action.WAIT, "minutes")
    assert decision.reason == "waits for tomorrow: 60 of today's 60 minutes of training are used"
    assert decided(LIVE_DUE, budget=Budget(minutes_per_day=0.0)).constraint == "minutes"


@pytest.mark.parametrize(
    ("budget", "constraint"),
    [
        (Budget(ac_only=False), "battery"),
        (Budget(min_battery_percent=0.0), "mains power"),
        (Budget(ac_only=False, min_battery_percent=0.0), ""),
    ],
)
def test_power_can_be_left_out_of_account(budget: Budget, constraint: str) -> None:
    on_battery = replace(WELL, on_ac=False, battery_percent=10.0)
    assert decided(LIVE_DUE, readings=on_battery, budget=budget).constraint == constraint


@pytest.mark.parametrize(
    ("failures", "wait"), [(0, 0.0), (1, 300.0), (2, 600.0), (3, 1200.0), (7, 19200.0), (8, 21600.0), (9999, 21600.0)]
)
def test_a_run_that_failed_is_tried_again_later_each_time(failures: int, wait: float) -> None:
    assert retry_after_s(failures) == wait
    assert decided(LIVE_DUE, failures=failures, since_failure_s=wait).action is Action.START
    if failures:
        early = decided(LIVE_DUE, failures=failures, since_failure_s=wait - 2.0)
        assert (early.action, early.constraint, early.look_again_s) == (Action.WAIT, "failures", 2.0)


def test_the_wait_after_failures_is_told() -> None:
    assert decided(LIVE_DUE, failures=3, since_failure_s=300.0).reason == (
        "waits for its next try: the last 3 runs failed, the next one starts in 15 min"
    )


@pytest.mark.parametrize(
    ("readings", "look_again_s"),
    [
        (replace(WELL, on_ac=False), 15.0),
        (replace(WELL, idle_s=200.0), 15.0),
        (replace(WELL, idle_s=292.0), 8.0),
        (replace(WELL, idle_s=299.9), 0.5),
        (replace(WELL, idle_s=2.0), 3.0),
    ],
)
def test_it_looks_again_when_that_can_change_something(readings: Readings, look_again_s: float) -> None:
    assert decided(LIVE_DUE, readings=readings).look_again_s == pytest.approx(look_again_s)


@pytest.mark.parametrize(
    ("constraint", "between", "better"),
    [
        ("disk", {"free_disk_mb": 1100.0}, {"free_disk_mb": 1124.0}),
        ("battery", {"battery_percent": 44.0}, {"battery_percent": 45.0}),
        ("temperature", {"temperature_c": 81.0}, {"temperature_c": 80.0}),
        ("other cpu", {"other_cpu_percent": 31.0}, {"other_cpu_percent": 30.0}),
        ("io pressure", {"io_pressure": 31.0}, {"io_pressure": 30.0}),
    ],
)
def test_what_has_held_lets_go_with_a_margin_or_after_a_minute(
    constraint: str, between: dict[str, Any], better: dict[str, Any]
) -> None:
    readings = replace(WELL, **between)
    held = decided(LIVE_DUE, readings=readings, held_by=constraint, held_s=50.0)
    assert (held.action, held.constraint, held.look_again_s) == (Action.WAIT, constraint, 10.0)
    assert decided(LIVE_DUE, readings=readings, held_by=constraint, held_s=60.0).action is Action.START
    assert decided(LIVE_DUE, readings=readings, held_by="minutes", held_s=1.0).action is Action.START
    assert decided(LIVE_DUE, readings=replace(WELL, **better), held_by=constraint, held_s=1.0).action is Action.START


@pytest.mark.parametrize(
    ("constraint", "wants", "settle_s"),
    [
        ("mains power", "mains power", 60.0),
        ("memory", "free memory", 300.0),
        ("memory pressure", "less demand for memory", 300.0),
    ],
)
def test_mains_and_memory_must_be_there_for_a_while(constraint: str, wants: str, settle_s: float) -> None:
    held = decided(LIVE_DUE, held_by=constraint, held_s=12.0)
    assert (held.action, held.constraint) == (Action.WAIT, constraint)
    assert held.reason == f"waits for {wants}: it was missing 12 s ago, and must last {settle_s:.0f} s"
    assert decided(LIVE_DUE, held_by=constraint, held_s=settle_s).action is Action.START


@pytest.mark.parametrize("constraint", ["user pause", "quiet hours", "minutes", "busy", "idle", "failures"])
def test_what_has_no_reading_lets_go_at_once(constraint: str) -> None:
    assert decided(LIVE_DUE, held_by=constraint, held_s=0.0).action is Action.START


def test_the_first_of_several_constraints_is_told() -> None:
    readings = replace(WELL, on_ac=False, temperature_c=95.0, busy=True, idle_s=0.0)
    assert decided(LIVE_DUE, readings=readings).constraint == "mains power"
