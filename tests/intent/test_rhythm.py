"""The forecast of use: closed forms of small histories, and what holds for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd.intent.rhythm import HALF_LIFE_S, SEEN_S, WEEK_HOURS, Awake, Rhythm, Use, hour_of_week, sessions

HOUR, DAY, WEEK = 3600.0, 86_400.0, 7 * 86_400.0
MONDAY = 1_767_571_200.0  # 2026-01-05 00:00 UTC
many = settings(max_examples=60, deadline=None)


def worked(weeks: int, days: tuple[int, ...] = (0, 1, 2, 3, 4)) -> Iterator[Use]:
    """Yield a use every quarter of an hour from 9 to 17, on these days of so many weeks from MONDAY on."""
    for week in range(weeks):
        for day in days:
            for quarter in range(32):
                yield Use(MONDAY + week * WEEK + day * DAY + 9 * HOUR + quarter * 900)


def always(_: float) -> int:
    return 0


def test_hours_of_the_week_are_local() -> None:
    assert hour_of_week(MONDAY, 0) == 0
    assert hour_of_week(MONDAY, -1) == WEEK_HOURS - 1
    assert hour_of_week(MONDAY + 30 * HOUR, 5 * 3600 + 1800) == 35
    assert hour_of_week(0.0, 0) == 72  # 1970-01-01 was a Thursday
    assert hour_of_week(-0.5, 0) == 71


def test_a_session_is_a_quarter_of_an_hour_at_least() -> None:
    times = [1800.0, 0.0, 10.0, 899.0, 900.0, 1799.0, 1801.0]
    assert [use.at for use in sessions(map(Use, times))] == [0.0, 900.0, 1800.0]


def test_nothing_is_known_of_a_user_without_history() -> None:
    rhythm = Rhythm([], MONDAY)
    assert (rhythm.known, rhythm.sessions) == (False, 0)
    assert rhythm.expected_use(MONDAY, 0, 8 * HOUR) == pytest.approx(2.0)  # a quarter of one an hour
    # Gamma(2, 8 h) in each hour: it is the predictive probability, not that of the mean rate.
    assert rhythm.quiet_probability(MONDAY, 0, 2 * HOUR) == pytest.approx((8 / 9) ** 4)
    assert rhythm.quiet_probability(MONDAY + 1800, 0, HOUR) == pytest.approx((8 / 8.5) ** 4)
    assert rhythm.quiet_probability(MONDAY, 0, 0.0) == 1.0
    assert rhythm.awake_share(MONDAY, 0) == 1.0


def test_one_session_counts_for_its_hour_its_kind_of_day_and_all_days() -> None:
    at = MONDAY + 9 * HOUR
    rhythm = Rhythm([Use(at)], at)  # nothing is observed yet: a session in no time

    def rate(day: int, hour: int) -> float:
        return rhythm.expected_use(MONDAY + day * DAY + hour * HOUR, 0, HOUR)

    whole = (6 + 1) / 24
    assert rate(0, 10) == pytest.approx(whole)
    assert rate(6, 3) == pytest.approx(whole)
    assert rate(6, 9) == pytest.approx(whole * (1 + 1) / 1)
    assert rate(1, 9) == pytest.approx(whole * 2 * (2 + 1) / 2)
    assert rate(0, 9) == pytest.approx(whole * 3 * (2 + 1) / 2)
    hours = 2 / (whole * 3)  # Gamma(2 + 1, hours)
    assert rhythm.quiet_probability(at, 0, HOUR) == pytest.approx((hours / (hours + 1)) ** 3)


def test_time_without_use_counts_as_much_as_it_is_recent() -> None:
    at, weeks = MONDAY, 3
    rhythm = Rhythm([Use(at)], at + weeks * WEEK)

    def fade(age_s: float) -> float:
        return 0.5 ** (age_s / HALF_LIFE_S)

    now = at + weeks * WEEK
    hours = [fade(now - at - k * HOUR) for k in range(weeks * WEEK_HOURS)]  # from the beginning of each hour
    whole = (6 + fade(now - at)) / (24 + sum(hours))
    day = [k for k in range(len(hours)) if k % 24 == 5]
    of_day = 1 / (1 / whole + sum(hours[k] for k in day))
    workday = [k for k in day if k // 24 % 7 < 5]
    of_kind = 2 / (2 / of_day + sum(hours[k] for k in workday))
    rate = 2 / (2 / of_kind + sum(hours[k] for k in workday if k // 24 % 7 == 2))
    assert fade(now - at) == pytest.approx(0.5)
    assert rhythm.expected_use(now + 2 * DAY + 5 * HOUR, 0, HOUR) == pytest.approx(rate)


def test_what_is_older_than_half_a_year_or_later_than_now_is_left_out() -> None:
    uses = [Use(MONDAY + day * DAY) for day in range(20)]
    now = MONDAY + SEEN_S + 10 * DAY
    assert Rhythm(uses, now).sessions == 10
    assert Rhythm(uses, MONDAY + 5 * DAY).sessions == 6
    assert Rhythm(uses, MONDAY - DAY).sessions == 0


def test_enough_is_known_after_three_days_and_ten_sessions() -> None:
    uses = [Use(MONDAY + k * HOUR) for k in range(10)]
    assert not Rhythm(uses, MONDAY + 3 * DAY - 1).known
    assert Rhythm(uses, MONDAY + 3 * DAY).known
    assert not Rhythm(uses[:9], MONDAY + 30 * DAY).known


def test_office_hours_are_learned() -> None:
    rhythm = Rhythm(list(worked(3)), MONDAY + 3 * WEEK)
    tuesday = MONDAY + 3 * WEEK + DAY
    assert rhythm.quiet_probability(tuesday + 11 * HOUR, 0, 1800) < 0.25
    assert rhythm.quiet_probability(tuesday + 20 * HOUR, 0, 1800) > 0.95
    assert rhythm.quiet_probability(tuesday + 4 * DAY + 11 * HOUR, 0, 1800) > 0.8  # a Saturday


def test_neither_summer_time_nor_a_journey_moves_habits() -> None:
    # At nine by the clock on the wall: two weeks in winter, two in summer, two nine hours further west.
    offsets = [3600] * 2 + [7200] * 2 + [-7 * 3600] * 2
    uses = [
        Use(MONDAY + week * WEEK + day * DAY + 9 * HOUR - offset, offset)
        for week, offset in enumerate(offsets)
        for day in range(7)
    ]
    now = MONDAY + 6 * WEEK
    rhythm = Rhythm(uses, now)
    rates = [rhythm.expected_use(now + hour * HOUR - 7200, 7200, HOUR) for hour in range(24)]
    assert max(range(24), key=rates.__getitem__) == 9
    assert rates[9] > 3 * max(rates[:9] + rates[10:])


def test_a_machine_that_was_off_was_not_unused() -> None:
    uses, now = list(worked(4)), MONDAY + 4 * WEEK
    on, closed = Awake.begin(MONDAY), Awake.begin(MONDAY)
    for hour in range(4 * WEEK_HOURS):
        at = MONDAY + hour * HOUR
        on.add(at, 0, HOUR)
        if hour % WEEK_HOURS < 120 and 8 <= hour % 24 < 20:  # closed at night and at weekends
            closed.add(at, 0, HOUR)
    saturday = now + 5 * DAY + 11 * HOUR
    quiet = [Rhythm(uses, now, awake).quiet_probability(saturday, 0, HOUR) for awake in (on, closed)]
    assert quiet[0] > quiet[1] + 0.1
    rhythm = Rhythm(uses, now, closed)
    assert rhythm.awake_share(now + 10 * HOUR, 0) > 0.8
    assert rhythm.awake_share(now + 3 * HOUR, 0) < 0.1
    assert rhythm.awake_share(saturday, 0) < 0.4


def test_a_better_window_begins_at_a_full_hour_of_the_wall_clock() -> None:
    rhythm = Rhythm(list(worked(4)), MONDAY + 4 * WEEK)
    noon = MONDAY + 4 * WEEK + DAY + 12 * HOUR
    assert rhythm.better_window(noon, always, 1800, 12 * HOUR) == 5 * HOUR
    assert rhythm.better_window(noon + 600, always, 1800, 12 * HOUR) == 5 * HOUR - 600
    assert rhythm.better_window(noon, always, 1800, 5 * HOUR - 1) is None
    assert rhythm.better_window(noon, always, 1800, 12 * HOUR, lambda at: at >= noon + 7 * HOUR) == 7 * HOUR
    assert rhythm.better_window(noon, always, 1800, 0.0) is None
    assert rhythm.better_window(noon + 10 * HOUR, always, 1800, 9 * HOUR) is None  # it is as good as it gets


def test_a_clock_that_changes_before_the_window_begins_is_followed() -> None:
    rhythm = Rhythm(list(worked(4)), MONDAY + 4 * WEEK)
    noon = MONDAY + 4 * WEEK + DAY + 12 * HOUR

    def spring(at: float) -> int:
        return 3600 if at >= noon + 2 * HOUR else 0

    assert rhythm.better_window(noon, spring, 1800, 12 * HOUR) == 4 * HOUR


def test_no_window_is_seen_where_the_machine_is_off() -> None:
    awake = Awake.begin(MONDAY)
    for hour in range(4 * WEEK_HOURS):
        if 8 <= hour % 24 < 17 or hour % 24 in (21, 22):
            awake.add(MONDAY + hour * HOUR, 0, HOUR)
    rhythm = Rhythm(list(worked(4)), MONDAY + 4 * WEEK, awake)
    noon = MONDAY + 4 * WEEK + DAY + 12 * HOUR
    assert rhythm.better_window(noon, always, 1800, 12 * HOUR) == 9 * HOUR


def test_hours_that_the_machine_was_on_fade_and_stand_a_clock_that_is_set_back() -> None:
    awake = Awake.begin(MONDAY)
    awake.add(MONDAY + HALF_LIFE_S, 0, 7200)
    awake.add(MONDAY + 2 * HALF_LIFE_S + HOUR, 0, 1800)
    assert awake.hours[0] == pytest.approx(1.0, rel=0.01)  # two, three weeks ago
    assert awake.hours[1] == 0.5
    before = list(awake.hours)
    awake.add(MONDAY - 300 * DAY + 1800, 0, 1800)
    assert sum(awake.hours) == pytest.approx(sum(before) + 0.5)
    assert awake.at == MONDAY + 2 * HALF_LIFE_S + HOUR
    assert awake.faded(MONDAY) == awake.hours
    assert sum(awake.faded(awake.at + HALF_LIFE_S)) == pytest.approx(sum(awake.hours) / 2)


@pytest.mark.parametrize(("at", "horizon_s"), [(0.0, -1.0), (math.inf, 1.0), (0.0, math.nan), (0.0, math.inf)])
def test_no_stretch_of_time_is_refused(at: float, horizon_s: float) -> None:
    rhythm = Rhythm([], MONDAY)
    for forecast in (rhythm.expected_use, rhythm.quiet_probability):
        with pytest.raises(ValueError, match="are no stretch of time"):
            forecast(at, 0, horizon_s)


USES = st.lists(
    st.builds(Use, st.floats(MONDAY - 60 * DAY, MONDAY), st.sampled_from([0, 3600, -25200, 20700])), max_size=60
)
TIMES = st.floats(MONDAY, MONDAY + 2 * WEEK)
HORIZONS = st.floats(0.0, 3 * DAY)


@many
@given(USES, TIMES, HORIZONS, HORIZONS)
def test_more_time_is_less_likely_without_use(uses: list[Use], at: float, one: float, more: float) -> None:
    rhythm = Rhythm(uses, MONDAY)
    quiet, longer = (rhythm.quiet_probability(at, 0, horizon_s) for horizon_s in (one, one + more))
    assert 0 < longer <= quiet <= 1
    # Jensen: not to be sure of the rate makes no use likelier than the mean rate says.
    assert quiet >= math.exp(-rhythm.expected_use(at, 0, one)) - 1e-9


@many
@given(USES, st.integers(0, 400), st.integers(0, 50), st.integers(0, 50))
def test_forecasts_of_stretches_add_up(uses: list[Use], start: int, one: int, more: int) -> None:
    rhythm, at = Rhythm(uses, MONDAY), MONDAY + start * HOUR
    middle, end = one * HOUR, (one + more) * HOUR
    parts = [rhythm.quiet_probability(at, 0, middle), rhythm.quiet_probability(at + middle, 0, end - middle)]
    assert rhythm.quiet_probability(at, 0, end) == pytest.approx(math.prod(parts))
    counts = [rhythm.expected_use(at, 0, middle), rhythm.expected_use(at + middle, 0, end - middle)]
    assert rhythm.expected_use(at, 0, end) == pytest.approx(sum(counts))


@many
@given(USES, TIMES, st.integers(-18 * 3600, 18 * 3600), st.integers(-4, 4))
def test_the_forecast_depends_on_local_time_alone(uses: list[Use], at: float, shift: int, weeks: int) -> None:
    moved = [Use(use.at + weeks * WEEK - shift, use.utc_offset_s + shift) for use in uses]
    by = weeks * WEEK - shift
    here, there = Rhythm(uses, MONDAY), Rhythm(moved, MONDAY + by)
    expected = here.quiet_probability(at, 0, HOUR)
    assert there.quiet_probability(at + by, shift, HOUR) == pytest.approx(expected, rel=1e-6)


@many
@given(USES, TIMES, st.integers(0, 48))
def test_a_better_window_is_one(uses: list[Use], at: float, within: int) -> None:
    rhythm = Rhythm(uses, MONDAY)
    begins = rhythm.better_window(at, always, 1800, within * HOUR)
    if begins is not None:
        assert 0 < begins <= within * HOUR
        use = 1 - rhythm.quiet_probability(at, 0, 1800)
        assert 1 - rhythm.quiet_probability(at + begins, 0, 1800) <= use / 2 + 1e-9
