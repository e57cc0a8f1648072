"""What is remembered between decisions: how long a run is due, and how long ago a limit was broken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgepd_daemon.scheduler.after import after
from edgepd_daemon.scheduler.decide import decide
from edgepd_daemon.scheduler.types import Action, Decision, Demand, Readings, State
from tests.daemon.scheduler.situations import ASKED, BUDGET, LIVE_DUE, MIN_EXAMPLES, UNASKED, WELL

HOT = replace(WELL, temperature_c=90.0)
WARM = replace(WELL, temperature_c=82.0)


def step(state: State, readings: Readings, elapsed_s: float) -> tuple[Decision, State]:
    """Decide, and let time pass."""
    decision = decide(state, readings, BUDGET, MIN_EXAMPLES)
    return decision, after(state, readings, BUDGET, decision, elapsed_s)


def test_a_run_is_due_as_long_as_it_is_held_and_while_it_goes_on() -> None:
    _, state = step(State(LIVE_DUE), HOT, 15.0)
    _, state = step(state, HOT, 15.0)
    assert state.due_s == 30.0
    _, state = step(replace(state, running=UNASKED), WELL, 1.0)
    assert state.due_s == 31.0
    _, state = step(replace(state, running=None, demand=Demand()), WELL, 60.0)
    assert state.due_s == 0.0


def test_a_missed_margin_is_not_a_broken_limit() -> None:
    first, state = step(State(LIVE_DUE), HOT, 15.0)
    assert (first.action, state.held_by, state.held_s) == (Action.WAIT, "temperature", 15.0)
    actions = []
    for _ in range(5):
        decision, state = step(state, WARM, 15.0)
        actions.append(decision.action)
    # Between limit and margin it waits for a minute after it was last too hot, and no longer.
    assert actions == [Action.WAIT, Action.WAIT, Action.WAIT, Action.START, Action.START]


def test_a_limit_that_is_broken_again_counts_anew() -> None:
    state = State(LIVE_DUE, held_by="temperature", held_s=50.0)
    _, state = step(state, HOT, 15.0)
    assert state.held_s == 15.0
    other: dict[str, Any] = {"temperature_c": 50.0, "on_ac": False}
    _, state = step(state, replace(WELL, **other), 15.0)
    assert (state.held_by, state.held_s) == ("mains power", 15.0)


def test_pauses_add_up_until_the_run_goes_on() -> None:
    state = State(LIVE_DUE, running=ASKED)
    for seconds in (1.0, 2.0):
        _, state = step(state, HOT, 1.0)
        assert state.running is not None
        assert state.running.paused_s == seconds
    decision, state = step(state, WELL, 1.0)
    assert (decision.action, state.running) == (Action.GO_ON, ASKED)


def test_failures_are_further_away_with_time() -> None:
    _, state = step(State(LIVE_DUE, failures=1, since_failure_s=10.0), WELL, 15.0)
    assert (state.failures, state.since_failure_s) == (1, 25.0)
