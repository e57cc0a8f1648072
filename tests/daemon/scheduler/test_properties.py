"""What holds for every situation: no start against a constraint, and nothing gets worse when a reading gets better."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd.adapt.job import JobKind
from edgepd.settings import Budget
from edgepd_daemon.scheduler.after import after
from edgepd_daemon.scheduler.constraints import CONSTRAINTS, retry_after_s
from edgepd_daemon.scheduler.decide import decide
from edgepd_daemon.scheduler.types import Action, Decision, Demand, Readings, Running, State
from tests.daemon.scheduler.situations import DAY, MIN_EXAMPLES, WELL

# Values on both sides of the limits and on them; more than half of what is drawn would otherwise be held by something.
PERCENT = st.sampled_from([0.0, 5.0, 9.5, 10.0, 10.5, 30.0, 35.0, 39.5, 40.0, 40.5, 45.0, 80.0, 100.0])
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "on_ac": st.sampled_from([True, True, True, None, False]),
    "battery_percent": st.sampled_from([None, 100.0, 80.0, 45.0, 44.0, 40.0, 39.5, 0.0]),
    "temperature_c": st.sampled_from([None, 40.0, 60.0, 80.0, 82.0, 85.0, 85.5, 110.0]),
    "other_cpu_percent": st.none() | PERCENT,
    "available_mb": st.sampled_from([None, 8000.0, 2000.0, 500.0, 400.0, 399.0, 0.0]),
    "memory_pressure": st.sampled_from([None, 0.0, 0.0, 0.0, 10.0, 10.5, 90.0]),
    "io_pressure": st.none() | PERCENT,
    "free_disk_mb": st.sampled_from([None, 90_000.0, 5000.0, 1124.0, 1100.0, 1024.0, 1023.0, 0.0]),
    "trainer_rss_mb": st.sampled_from([None, 500.0, 1000.0, 1001.0, 1250.0, 1251.0, 3000.0]),
    "idle_s": st.sampled_from([0.0, 0.4, 0.5, 4.9, 5.0, 299.0, 300.0, 300.0, 4000.0, 4000.0]),
}
READINGS = st.builds(
    Readings,
    at=st.floats(0, 4e9),
    minute_of_day=st.integers(0, 1439),
    busy=st.sampled_from([False, False, True]),
    **GOOD,
)
WEIGHTS = st.sampled_from([0.0, 1.5, 3.9, 4.0, 20.0, 48.0, 96.0, 500.0])
KINDS: tuple[JobKind, ...] = ("live", "baked", "intent")
DEMANDS = st.builds(
    Demand,
    WEIGHTS,
    WEIGHTS,
    st.sampled_from([0, 9, 10, 200]),
    st.sampled_from([None, None, None, *KINDS]),
    intent_events=st.sampled_from([0, 39, 40, 79, 80, 500]),
    intent_enough=st.sampled_from([0, 40]),
    last=st.sampled_from([None, *KINDS]),
)
RUNNING = st.builds(
    Running,
    st.sampled_from(KINDS),
    st.booleans(),
    st.booleans(),
    st.just(1000.0),
    st.sampled_from([0.0, 1.0, 120.0, 121.0, 700.0, 3 * DAY]),
)
NAMES = [constraint.name for constraint in CONSTRAINTS]
STATES = st.builds(
    State,
    DEMANDS,
    st.none() | RUNNING,
    at_work_s=st.sampled_from([0.0, 0.0, 3599.0, 3600.0, 7200.0]),
    due_s=st.sampled_from([0.0, 0.0, 60.0, 2 * DAY, 2 * DAY + 1, 90 * DAY]),
    failures=st.sampled_from([0, 0, 0, 1, 4, 100]),
    since_failure_s=st.sampled_from([0.0, 299.0, 300.0, 5000.0, float("inf")]),
    held_s=st.sampled_from([0.0, 20.0, 59.0, 60.0, 299.0, 300.0, float("inf")]),
    held_by=st.sampled_from(["", *NAMES]),
    paused_by_user=st.sampled_from([False, False, False, True]),
)
BUDGETS = st.builds(
    Budget,
    automatic=st.sampled_from([True, True, False]),
    ac_only=st.booleans(),
    minutes_per_day=st.sampled_from([0.0, 60.0, 60.0, 1440.0]),
    min_battery_percent=st.sampled_from([0.0, 40.0]),
    idle_minutes=st.sampled_from([0.0, 5.0]),
    hard_memory_mb=st.sampled_from([0, 2000]),
    patience_days=st.sampled_from([0.0, 2.0]),
    quiet_hours=st.sampled_from(["", "22:00-07:00", "00:00-06:00,12:00-12:01"]),
)
STATELESS = STATES.map(lambda state: replace(state, running=None))
many = settings(max_examples=150, deadline=None)


def made(state: State, readings: Readings, budget: Budget) -> Decision:
    return decide(state, readings, budget, MIN_EXAMPLES)


def violated(state: State, readings: Readings, budget: Budget) -> bool:
    """Say in the plainest words whether an unasked run may not be at work now, however long it has been due."""
    minute = readings.minute_of_day
    quiet = {
        "": False,
        "22:00-07:00": minute >= 1320 or minute < 420,
        "00:00-06:00,12:00-12:01": minute < 360 or minute == 720,
    }[budget.quiet_hours]
    return (
        quiet
        or state.paused_by_user
        or readings.busy
        or readings.idle_s < 5
        or state.at_work_s >= 60 * budget.minutes_per_day
        or (budget.ac_only and readings.on_ac is False)
        or (readings.battery_percent is not None and readings.battery_percent < budget.min_battery_percent)
        or (readings.temperature_c is not None and readings.temperature_c > 85)
        or (readings.available_mb is not None and readings.available_mb < 400)
        or (readings.memory_pressure is not None and readings.memory_pressure > 10)
        or (readings.free_disk_mb is not None and readings.free_disk_mb < 1024)
    )


@many
@given(STATES, READINGS, BUDGETS, st.floats(0, 4e9))
def test_the_same_situation_gives_the_same_decision_at_any_time(
    state: State, readings: Readings, budget: Budget, at: float
) -> None:
    assert made(state, readings, budget) == made(state, replace(readings, at=at), budget)


@many
@given(STATES, READINGS, BUDGETS)
def test_nothing_is_started_or_goes_on_against_a_hard_constraint(
    state: State, readings: Readings, budget: Budget
) -> None:
    decision = made(state, readings, budget)
    if state.running is None:
        assert decision.action in (Action.WAIT, Action.START)
        if decision.action is Action.START:
            assert not violated(state, readings, budget)
            assert state.since_failure_s >= retry_after_s(state.failures)
            assert budget.automatic or state.demand.forgotten
    else:
        assert decision.action not in (Action.WAIT, Action.START)
        if not state.running.asked and violated(state, readings, budget):
            assert decision.action is not Action.GO_ON


@many
@given(STATES, READINGS, BUDGETS)
def test_what_nobody_is_held_by_is_started(state: State, readings: Readings, budget: Budget) -> None:
    # The other direction: a scheduler that never started anything would keep all the other rules.
    decision = made(replace(state, running=None, held_by=""), readings, budget)
    idle = readings.idle_s >= 60 * budget.idle_minutes
    quiet = (readings.other_cpu_percent or 0) <= 40 and (readings.io_pressure or 0) <= 40
    ready = not violated(state, readings, budget) and state.since_failure_s >= retry_after_s(state.failures)
    if decision.due and ready and ((idle and quiet) or state.due_s > budget.patience_days * DAY):
        assert decision.action is Action.START


@many
@given(STATES, READINGS, BUDGETS, st.sampled_from([*GOOD, "busy"]), st.data())
def test_a_better_reading_never_stops_training(
    state: State, readings: Readings, budget: Budget, name: str, data: st.DataObject
) -> None:
    if name == "busy":
        better: Any = False
    else:
        better = data.draw(GOOD[name].filter(lambda value: is_better(name, value, getattr(readings, name))))
    before, now = made(state, readings, budget), made(state, replace(readings, **{name: better}), budget)
    if before.action in (Action.START, Action.GO_ON):
        assert now.action is before.action


def is_better(name: str, value: Any, than: Any) -> bool:
    """Return whether a reading is at least as good; one that is not there is the best, for it holds nothing."""
    if value is None or value == than:
        return True
    if than is None:
        return False
    more = name in ("on_ac", "battery_percent", "available_mb", "free_disk_mb", "idle_s")
    return bool(value >= than if more else value <= than)


@many
@given(STATELESS, READINGS, BUDGETS)
def test_a_better_state_never_stops_training(state: State, readings: Readings, budget: Budget) -> None:
    if made(state, readings, budget).action is Action.START:
        better = replace(state, failures=0, at_work_s=0.0, due_s=state.due_s + DAY, held_s=float("inf"))
        assert made(better, readings, budget).action is Action.START


@many
@given(STATES, READINGS, BUDGETS)
def test_every_decision_says_why_with_the_value_that_decided(state: State, readings: Readings, budget: Budget) -> None:
    decision = made(state, readings, budget)
    assert decision.reason.strip()
    assert not decision.reason.endswith(".")
    assert 0.5 <= decision.look_again_s <= 60
    assert decision.constraint in ("", "plan", "hard memory", *NAMES)
    if decision.action in (Action.START, Action.GO_ON):
        assert decision.constraint == ""
    values = {
        "disk": (readings.free_disk_mb, "{:.0f} MiB"),
        "battery": (readings.battery_percent, "{:g} %"),
        "temperature": (readings.temperature_c, "{:g} °C"),
        "memory": (readings.available_mb, "{:.0f} MiB"),
        "memory pressure": (readings.memory_pressure, "{:g} %"),
        "other cpu": (readings.other_cpu_percent, "{:g} %"),
        "io pressure": (readings.io_pressure, "{:g} %"),
        "minutes": (state.at_work_s / 60, "{:.0f} of"),
        "failures": (state.failures, "last run" if state.failures == 1 else "last {} runs"),
        "plan": (readings.trainer_rss_mb, "{:.0f} MiB"),
        "hard memory": (readings.trainer_rss_mb, "{:.0f} MiB"),
    }
    if decision.constraint in values and "it was missing" not in decision.reason:
        value, form = values[decision.constraint]
        assert form.format(value) in decision.reason


@many
@given(STATES, READINGS, BUDGETS, st.floats(0, 1e6))
def test_time_only_adds_up(state: State, readings: Readings, budget: Budget, elapsed_s: float) -> None:
    decision = made(state, readings, budget)
    later = after(state, readings, budget, decision, elapsed_s)
    since = (later.held_by, later.held_s)
    assert since in ((decision.constraint, elapsed_s), (state.held_by, state.held_s + elapsed_s))
    assert later.since_failure_s == state.since_failure_s + elapsed_s
    assert later.due_s in (0.0, state.due_s + elapsed_s)
    kept = {f.name for f in fields(State)} - {"running", "due_s", "since_failure_s", "held_s", "held_by"}
    assert all(getattr(later, name) == getattr(state, name) for name in kept)


@many
@given(STATELESS, READINGS, BUDGETS)
def test_margins_hold_for_five_minutes_at_most(state: State, readings: Readings, budget: Budget) -> None:
    # Readings that stay as they are: what was held by a margin alone is started, however little better it is.
    first = made(state, readings, budget)
    without = made(replace(state, held_by=""), readings, budget)
    for _ in range(21):
        state = after(state, readings, budget, made(state, readings, budget), 15.0)
    if first.action is Action.WAIT and without.action is Action.START:
        assert made(state, readings, budget).action is Action.START


SLOTS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1.0, 4.0, 30.0]),  # feedback
        st.sampled_from([0, 1, 40, 300]),  # events besides the exchanges that the feedback is on
        st.booleans(),  # whether a tuning fails
        st.sampled_from([0.0, 3 * DAY]),  # for how long a run has been due
    ),
    max_size=60,
)


@many
@given(SLOTS)
def test_where_runs_take_turns_none_starves(slots: list[tuple[float, int, bool, float]]) -> None:
    """There is always something due, and only now and then a moment in which one run may be made."""
    demand, waited = Demand(examples=200, intent_enough=40), dict.fromkeys(KINDS, 0)
    for feedback, events, fails, due_s in slots:
        demand = replace(
            demand,
            live_weight=demand.live_weight + feedback,
            baked_weight=demand.baked_weight + feedback,
            intent_events=demand.intent_events + events + math.ceil(feedback),
        )
        kind = made(State(demand, due_s=due_s), WELL, Budget()).kind
        due = {
            "live": demand.live_weight >= 4,
            "baked": demand.baked_weight >= 48,
            "intent": demand.intent_events >= 40,
        }
        assert (kind is not None) == any(due.values())
        if kind is None:
            continue
        assert due[kind]
        assert kind != "intent" or demand.last != "intent" or not (due["live"] or due["baked"])
        for name in KINDS:
            waited[name] = waited[name] + 1 if due[name] and kind != name else 0
        # A tuning waits until as many events came again, ten short runs at most, each with a consolidation at most.
        assert waited["intent"] <= 21
        # A short run takes at least 4: after twelve of them a consolidation is overdue, with as many tunings between.
        assert waited["baked"] <= 26
        assert min(waited["live"], waited["baked"]) <= 1  # one of them at least every second time
        if kind == "intent":
            left = demand if fails else replace(demand, intent_events=0)
        else:
            left = replace(demand, live_weight=0.0, baked_weight=0.0 if kind == "baked" else demand.baked_weight)
        demand = replace(left, last=kind)
