"""Waiting for a time in which the user is likely to be away: which runs wait, how long at most, and that it helps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd.intent.rhythm import Awake, Rhythm, Use
from edgepd.settings import Budget
from edgepd_daemon.scheduler.types import Action, Demand, Readings
from tests.daemon.scheduler.simulation import Month, World, simulate
from tests.daemon.scheduler.situations import ASKED, BAKED_DUE, DAY, LIVE_DUE, UNASKED, WELL, about, decided
from tests.daemon.scheduler.test_month import judge

HOUR = 3600.0
WINDOW = 12 * HOUR
BUSY_NOON = replace(WELL, quiet_probability=0.125, better_window_in_s=5 * HOUR, window_s=WINDOW)


def test_a_run_waits_for_a_quieter_time_and_says_why() -> None:
    decision = decided(LIVE_DUE, readings=BUSY_NOON)
    assert (decision.action, decision.constraint, decision.kind, decision.due) == (Action.WAIT, "window", "live", True)
    assert decision.reason == "waits for a quieter time: use is expected soon (with 88 %), and one begins at 17:00"
    assert decision.look_again_s == 15.0
    assert decided(BAKED_DUE, readings=BUSY_NOON).constraint == "window"


def test_the_time_that_is_told_is_a_full_hour_whatever_the_second() -> None:
    late = replace(BUSY_NOON, minute_of_day=23 * 60 + 59, better_window_in_s=2 * HOUR + 1.5)
    assert decided(LIVE_DUE, readings=late).reason.endswith("begins at 02:00")


@pytest.mark.parametrize(
    "changed",
    [
        {"quiet_probability": 0.5},
        {"quiet_probability": None},
        {"better_window_in_s": None},
        {"better_window_in_s": WINDOW + 1},
        {"window_s": 0.0},
    ],
)
def test_where_nothing_better_is_known_it_starts(changed: dict[str, Any]) -> None:
    assert decided(LIVE_DUE, readings=replace(BUSY_NOON, **changed)).action is Action.START


def test_it_waits_no_longer_than_was_set_in_all() -> None:
    assert decided(LIVE_DUE, readings=BUSY_NOON, due_s=7 * HOUR).action is Action.WAIT
    assert decided(LIVE_DUE, readings=BUSY_NOON, due_s=7 * HOUR + 1).action is Action.START  # it would be too late


def test_patience_ends_it() -> None:
    far = replace(BUSY_NOON, window_s=7 * DAY)
    assert decided(LIVE_DUE, readings=far, due_s=1.9 * DAY).constraint == "window"
    assert decided(LIVE_DUE, readings=far, due_s=2.1 * DAY).action is Action.START


def test_what_the_user_waits_for_does_not_wait() -> None:
    assert decided(replace(LIVE_DUE, parked="live", parked_asked=True), readings=BUSY_NOON).action is Action.START
    assert decided(replace(LIVE_DUE, forgotten="live"), readings=BUSY_NOON).action is Action.START
    assert decided(Demand(forgotten="baked"), readings=BUSY_NOON).action is Action.START
    assert decided(replace(LIVE_DUE, parked="live"), readings=BUSY_NOON).constraint == "window"


def test_a_run_that_goes_on_is_left_alone() -> None:
    assert about(UNASKED, readings=BUSY_NOON).action is Action.GO_ON
    assert about(ASKED, readings=BUSY_NOON).action is Action.GO_ON
    # Nor is one held after a pause, as it would be by a margin.
    paused = replace(UNASKED, paused_s=30.0)
    assert about(paused, readings=BUSY_NOON, held_by="window", held_s=1.0).action is Action.GO_ON


def test_what_is_wrong_with_the_machine_is_told_first() -> None:
    assert decided(LIVE_DUE, readings=replace(BUSY_NOON, on_ac=False)).constraint == "mains power"
    assert decided(LIVE_DUE, readings=replace(BUSY_NOON, idle_s=10.0)).constraint == "idle"


FORECASTS = st.lists(st.tuples(st.none() | st.floats(0, 1), st.none() | st.floats(0, 8 * DAY)), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(FORECASTS, st.sampled_from([0.0, 0.5, 12.0, 168.0]), st.sampled_from([0.0, 0.25, 2.0]))
def test_no_forecast_holds_a_run_longer_than_its_bound(
    forecasts: list[tuple[float | None, float | None]], window_hours: float, patience_days: float
) -> None:
    """Also not one that promises a better time again and again."""
    step_s, waited_s = 1800.0, 0.0
    bound_s = min(window_hours * HOUR, patience_days * DAY)
    for turn in range(400):
        quiet, better_s = forecasts[turn % len(forecasts)]
        readings = replace(WELL, quiet_probability=quiet, better_window_in_s=better_s, window_s=window_hours * HOUR)
        decision = decided(LIVE_DUE, budget=Budget(patience_days=patience_days), readings=readings, due_s=waited_s)
        if decision.action is Action.START:
            break
        assert decision.constraint == "window"
        assert waited_s <= bound_s
        waited_s += step_s
    assert decision.action is Action.START


@settings(max_examples=80, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, DAY), st.floats(0, DAY), st.floats(0, DAY))
def test_a_quieter_moment_never_holds_what_a_busier_one_does_not(
    quiet: float, more: float, better_s: float, later_s: float, due_s: float
) -> None:
    def held(quiet: float, better_s: float, due_s: float) -> bool:
        readings = replace(BUSY_NOON, quiet_probability=quiet, better_window_in_s=better_s)
        return decided(LIVE_DUE, readings=readings, due_s=due_s).action is Action.WAIT

    if not held(quiet, better_s, due_s):
        assert not held(min(1.0, quiet + more), better_s, due_s)
        assert not held(quiet, better_s + later_s, due_s)
        assert not held(quiet, better_s, due_s + later_s)


# The first day of the simulated month is a Monday, and its clock has no zone: this makes both so for the forecast.
TO_MONDAY = -8 * HOUR + 3 * DAY


@dataclass(frozen=True)
class Foreseen(World):
    """The same world, seen by a daemon that learns the rhythm of its user from the questions so far."""

    window_hours: float = 12.0

    def minutes(self) -> Iterator[tuple[int, Readings, float]]:
        """Yield each minute with the forecast in its readings."""
        uses: list[Use] = []
        rhythm, awake, made, forecast_of = None, None, -1, -1
        quiet, begins = 0.0, None
        for minute, readings, weight in super().minutes():
            at = readings.at + TO_MONDAY
            awake = awake or Awake.begin(at)
            awake.add(at, 0, 60.0)
            if readings.busy:
                uses.append(Use(at))
            if minute // 1440 != made:
                rhythm, made = Rhythm(uses, at, awake), minute // 1440
            if rhythm is not None and rhythm.known:
                if minute // 10 != forecast_of:
                    forecast_of = minute // 10
                    quiet = rhythm.quiet_probability(at, 0, 1800)
                    better = rhythm.better_window(at, lambda _: 0, 1800, self.window_hours * HOUR)
                    begins = None if better is None else at + better
                readings = replace(
                    readings,
                    quiet_probability=quiet,
                    better_window_in_s=None if begins is None else max(0.0, begins - at),
                    window_s=self.window_hours * HOUR,
                )
            yield minute, readings, weight


def at_work_while_used(month: Month) -> float:
    """Return the share of training, from the second week on, that is in the working hours of the world."""
    worked = [note.readings for note in month.notes if note.kind and note.minute >= 7 * 1440]
    days = [(int((readings.at + TO_MONDAY) // DAY) + 3) % 7 for readings in worked]
    used = [
        day < 5 and (540 <= each.minute_of_day < 720 or 780 <= each.minute_of_day < 1080)
        for day, each in zip(days, worked, strict=True)
    ]
    return sum(used) / len(used)


def longest_held(month: Month) -> int:
    """Return the most minutes between a run becoming due, or the last work, and its being held for a window."""
    longest, since = 0, None
    for note in month.notes:
        if note.kind or not note.decision.due:
            since = None
        else:
            since = note.minute if since is None else since
            if note.decision.constraint == "window":
                longest = max(longest, note.minute - since)
    return longest


@pytest.mark.parametrize("closed_at_night", [True, False])
def test_runs_go_where_the_user_is_away(closed_at_night: bool) -> None:
    budget = Budget()
    # The user asks something every four minutes in working hours, with an hour at noon, and now and then in evenings.
    things: dict[str, Any] = {"days": 22, "closed_at_night": closed_at_night, "on_battery_every": 100}
    without, foreseen = (simulate(kind(1, **things), budget) for kind in (World, Foreseen))
    for month in (without, foreseen):
        judge(month, budget)  # nothing starves
    assert at_work_while_used(without) > 0.5
    assert at_work_while_used(foreseen) < 0.5 * at_work_while_used(without)
    assert 0 < longest_held(foreseen) <= 12 * 60
    learned = [month.counts["live"] + month.counts["baked"] for month in (without, foreseen)]
    assert learned[1] >= 0.6 * learned[0]
