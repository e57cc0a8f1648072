"""Sleep and clocks that are set, on clocks that go by hand; and the time of day."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd_daemon.sensors.clocks import LEAST_S, Jump, Jumps, minute_of_day


class Clocks:
    """A machine that runs, sleeps, and whose clock is set."""

    def __init__(self) -> None:
        self.ran_s, self.slept_s, self.set_s = 1000.0, 50.0, 1_750_000_000.0

    def jumps(self) -> Jumps:
        return Jumps(
            wall=lambda: self.set_s + self.ran_s + self.slept_s,
            monotonic=lambda: self.ran_s,
            boot=lambda: self.ran_s + self.slept_s,
        )


def told(jumps: Jumps) -> tuple[float, float]:
    jump = jumps.look()
    return pytest.approx(jump.suspended_s, abs=1e-3), pytest.approx(jump.clock_s, abs=1e-3)


def test_time_that_passes_is_no_jump() -> None:
    clocks = Clocks()
    jumps = clocks.jumps()
    clocks.ran_s += 86_400
    assert jumps.look() == Jump(0.0, 0.0)


def test_sleep_is_told_once_and_is_no_set_clock() -> None:
    clocks = Clocks()
    jumps = clocks.jumps()
    clocks.ran_s, clocks.slept_s = clocks.ran_s + 7, clocks.slept_s + 3600
    assert told(jumps) == (3600, 0)
    assert jumps.look() == Jump(0.0, 0.0)


@pytest.mark.parametrize("seconds", [7200.0, -86_400.0, 1.5])
def test_a_clock_that_was_set(seconds: float) -> None:
    clocks = Clocks()
    jumps = clocks.jumps()
    clocks.set_s += seconds
    assert told(jumps) == (0, seconds)
    assert jumps.look() == Jump(0.0, 0.0)


def test_both_at_once() -> None:
    clocks = Clocks()
    jumps = clocks.jumps()
    clocks.slept_s, clocks.set_s = clocks.slept_s + 600, clocks.set_s - 30
    assert told(jumps) == (600, -30)


def test_small_steps_are_told_when_they_have_added_up() -> None:
    clocks = Clocks()
    jumps = clocks.jumps()
    clocks.set_s += 0.625
    assert jumps.look() == Jump(0.0, 0.0)
    clocks.set_s += 0.625
    assert told(jumps) == (0, 1.25)


def test_short_naps_are_told_when_they_have_added_up() -> None:
    clocks = Clocks()
    jumps = clocks.jumps()
    clocks.slept_s += 0.625
    assert jumps.look() == Jump(0.0, 0.0)
    clocks.slept_s += 0.625
    assert told(jumps) == (1.25, 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5000), st.floats(-5000, 5000)), max_size=20))
def test_nothing_is_lost_and_nothing_made_up(steps: list[tuple[float, float]]) -> None:
    clocks = Clocks()
    jumps = clocks.jumps()
    slept = set_by = 0.0
    for more_sleep, change in steps:
        clocks.slept_s, clocks.set_s, clocks.ran_s = (
            clocks.slept_s + more_sleep,
            clocks.set_s + change,
            clocks.ran_s + 1,
        )
        jump = jumps.look()
        assert jump.suspended_s == 0 or jump.suspended_s >= LEAST_S
        slept, set_by = slept + jump.suspended_s, set_by + jump.clock_s
    assert abs(sum(step[0] for step in steps) - slept) < LEAST_S + 0.01
    assert abs(sum(step[1] for step in steps) - set_by) < LEAST_S + 0.01


def test_a_pause_between_two_clocks_is_no_jump() -> None:
    clocks = Clocks()
    pauses = iter([0.0] * 4 + [9.0] + [0.0] * 100)  # in seconds; the first look begins at the fourth reading

    def monotonic() -> float:
        clocks.ran_s += next(pauses)
        return clocks.ran_s

    def boot() -> float:
        clocks.ran_s += next(pauses)
        return clocks.ran_s + clocks.slept_s

    jumps = Jumps(wall=lambda: clocks.set_s + clocks.ran_s + clocks.slept_s, monotonic=monotonic, boot=boot)
    before_s = clocks.ran_s
    assert jumps.look() == Jump(0.0, 0.0)
    assert clocks.ran_s == before_s + 9  # it did happen, during this look


@pytest.fixture
def zones(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    yield monkeypatch
    monkeypatch.undo()
    time.tzset()


def test_the_minute_of_day_is_local_and_follows_the_traveller(zones: pytest.MonkeyPatch) -> None:
    noon = 1_767_268_800.0  # 2026-01-01 12:00:00 UTC
    zones.setenv("TZ", "UTC0")
    assert minute_of_day(noon + 59.9) == 720
    zones.setenv("TZ", "ABC-5:30")  # east of Greenwich, as POSIX writes it
    assert minute_of_day(noon) == 1050
    zones.setenv("TZ", "DEF+13")
    assert minute_of_day(noon) == 1380


def test_summer_time(zones: pytest.MonkeyPatch) -> None:
    zones.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    before = 1_774_745_999.0  # 2026-03-29 00:59:59 UTC
    assert minute_of_day(before) == 119
    assert minute_of_day(before + 1) == 180


def test_the_clocks_of_this_machine() -> None:
    jumps = Jumps()
    assert jumps.look() == Jump(0.0, 0.0)
