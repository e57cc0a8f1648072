"""A simulated month: budgets are kept to the minute, nothing starves, and nothing is started over and over."""

from __future__ import annotations

from collections import Counter

import pytest

from edgepd.settings import Budget
from edgepd_daemon.scheduler.types import Action
from tests.daemon.scheduler.simulation import HOT_DAY, Month, World, local_day, simulate

QUIET = Budget(quiet_hours="22:00-07:00")
# Minutes that may go by where an overdue run could be at work: a limit that was broken is believed again after five.
SETTLING = 6


def judge(month: Month, budget: Budget) -> None:
    """Check what must hold in every month."""
    worked = Counter(local_day(note.readings) for note in month.notes if note.kind)
    assert max(worked.values(), default=0) <= budget.minutes_per_day
    assert [note for note in month.notes if note.kind and not note.permitted] == []
    assert month.counts["starts"] >= sum(month.counts[kind] for kind in ("live", "baked", "intent"))
    assert longest_wait(month) <= SETTLING


def longest_wait(month: Month) -> int:
    """Return the most minutes in a row that an overdue run was held although the hard constraints allowed it."""
    longest = waited = 0
    for note in month.notes:
        waited = waited + 1 if note.overdue and note.permitted and not note.kind and note.readings.idle_s >= 60 else 0
        longest = max(longest, waited)
    return longest


@pytest.mark.parametrize("seed", [1, 3])
def test_an_ordinary_month(seed: int) -> None:
    month = simulate(World(seed), QUIET)
    judge(month, QUIET)
    assert month.counts["live"] >= 12  # some hundred and fifty pieces of feedback came, at four a run
    assert month.counts["baked"] >= 2
    assert month.counts["failed"] >= 1
    assert month.counts["starts"] <= 60  # two a day
    held = Counter(note.decision.constraint for note in month.notes)
    # Were the world too kind, the month would prove nothing.
    assert min(held[name] for name in ("mains power", "busy", "idle", "other cpu", "failures", "memory")) > 0
    assert all(note.kind is None for note in month.notes if note.readings.minute_of_day in range(420))


def test_a_month_with_events() -> None:
    month = simulate(World(1, events=0.1), QUIET)  # some eighty a day
    judge(month, QUIET)
    assert month.counts["live"] >= 12  # no fewer than without
    assert month.counts["baked"] >= 2
    assert 15 <= month.counts["intent"] <= 60
    assert month.counts["starts"] <= 120


def test_events_alone_are_enough() -> None:
    month = simulate(World(2, days=14, events=0.1, feedback=0.0), QUIET)
    judge(month, QUIET)
    assert month.counts["intent"] >= 7
    assert month.counts["live"] == month.counts["baked"] == 0


def test_where_nothing_is_ever_idle_events_and_feedback_take_turns() -> None:
    world = World(6, days=30, steady_cpu=60.0, on_battery_every=100, events=0.5, failing=0.0)
    month = simulate(world, QUIET)
    judge(month, QUIET)
    assert month.counts["intent"] >= 5
    assert month.counts["live"] + month.counts["baked"] >= 5


def test_the_same_month_goes_the_same_way() -> None:
    first, second = (simulate(World(3, days=6), QUIET) for _ in range(2))
    assert first.notes == second.notes
    assert first.counts["starts"] > 0


def test_a_hot_afternoon_is_waited_for() -> None:
    # Questions all day long bring so much that a run is always due.
    month = simulate(World(4, days=12, questions=0.1, feedback=1.0), Budget(idle_minutes=0.0))
    judge(month, Budget(idle_minutes=0.0))
    afternoon = [n for n in month.notes if local_day(n.readings) == HOT_DAY and 780 <= n.readings.minute_of_day < 1080]
    too_hot = [note for note in afternoon if (note.readings.temperature_c or 0) > 85]
    assert len(too_hot) > 50
    assert {note.kind for note in too_hot} == {None}
    assert "temperature" in {note.decision.constraint for note in afternoon}


def test_where_much_is_to_be_learned_both_kinds_get_their_turn() -> None:
    budget = Budget(idle_minutes=1.0)
    month = simulate(World(5, days=14, feedback=0.9), budget)
    judge(month, budget)
    assert month.counts["live"] >= 10
    assert month.counts["baked"] >= 5


def test_a_machine_that_is_never_idle_learns_after_two_days() -> None:
    month = simulate(World(6, days=14, steady_cpu=60.0, on_battery_every=100), QUIET)
    judge(month, QUIET)
    first = next(note for note in month.notes if note.kind)
    due = next(note for note in month.notes if note.decision.due)
    assert first.minute - due.minute >= 2 * 1440
    assert "it no longer waits for an idle machine" in first.decision.reason
    assert month.counts["live"] >= 2
    assert month.counts["baked"] >= 1
    assert sum(note.overdue for note in month.notes) > 0  # else the longest wait would say nothing


def test_runs_that_always_fail_are_not_tried_all_day() -> None:
    budget = Budget(minutes_per_day=1440.0, ac_only=False)
    month = simulate(World(7, days=10, failing=1.0, closed_at_night=False), budget)
    judge(month, budget)
    starts = Counter(local_day(note.readings) for note in month.notes if note.decision.action is Action.START)
    assert month.counts["live"] == month.counts["baked"] == 0
    assert 10 <= month.counts["failed"] <= 45
    assert max(list(starts.values())[2:]) <= 5  # six hours apart, once the waits have grown


def test_a_run_goes_over_several_days_of_few_minutes() -> None:
    budget = Budget(minutes_per_day=2.0)
    month = simulate(World(8, days=14, failing=0.0), budget)
    judge(month, budget)
    assert month.counts["parked"] >= 2
    assert month.counts["live"] >= 1
