"""Quiet hours are read as they are written, also over midnight, and refused with what is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd.errors import ConfigError
from edgepd_daemon.scheduler.quiet_hours import QuietHours, clock


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("", ()),
        ("  ", ()),
        ("22:00-07:00", ((1320, 420),)),
        ("9:00 - 12:00, 14:00-18:30", ((540, 720), (840, 1110))),
        ("22:00-24:00", ((1320, 1440),)),
        ("22:00-00:00", ((1320, 1440),)),
        ("00:00-24:00", ((0, 1440),)),
        ("23:59-00:01", ((1439, 1),)),
    ],
)
def test_what_is_written_is_read(text: str, spans: tuple[tuple[int, int], ...]) -> None:
    assert QuietHours.parse(text).spans == spans


@pytest.mark.parametrize(
    ("text", "part", "why"),
    [
        ("night", "'night'", "not a span of time"),
        ("22:00", "'22:00'", "not a span of time"),
        ("22:00-07:00,", "''", "not a span of time"),
        ("22-7", "'22-7'", "not a span of time"),
        ("22:00-07:00;12:00-13:00", "'22:00-07:00;12:00-13:00'", "not a span of time"),
        ("२२:00-07:00", "'२२:00-07:00'", "not a span of time"),
        ("12:00-13:00,22:60-07:00", "'22:60-07:00'", "more than 59 minutes"),
        ("24:00-07:00", "'24:00-07:00'", "beyond the day"),
        ("22:00-24:01", "'22:00-24:01'", "beyond the day"),
        ("22:00-25:00", "'22:00-25:00'", "beyond the day"),
        ("07:00-07:00", "'07:00-07:00'", "ends where it starts; write '00:00-24:00' for the whole day"),
        ("00:00-00:00", "'00:00-00:00'", "ends where it starts"),
    ],
)
def test_what_is_wrong_is_said(text: str, part: str, why: str) -> None:
    with pytest.raises(ConfigError) as raised:
        QuietHours.parse(text)
    assert str(raised.value).startswith(f"budget.quiet_hours = '{text}': {part} ")
    assert why in str(raised.value)


@pytest.mark.parametrize(
    ("text", "minute", "left"),
    [
        ("", 0, 0),
        ("22:00-07:00", 1319, 0),
        ("22:00-07:00", 1320, 540),
        ("22:00-07:00", 1439, 421),
        ("22:00-07:00", 0, 420),
        ("22:00-07:00", 419, 1),
        ("22:00-07:00", 420, 0),
        ("12:00-13:00", 720, 60),
        ("12:00-13:00", 780, 0),
        ("22:00-24:00,00:00-07:00", 1320, 540),  # spans that meet are one
        ("12:00-13:00,12:30-14:00", 720, 120),  # and so are spans that overlap
        ("00:00-24:00", 700, 1440),
        ("00:00-12:00,12:00-24:00", 700, 1440),
    ],
)
def test_the_minutes_left(text: str, minute: int, left: int) -> None:
    hours = QuietHours.parse(text)
    assert hours.minutes_left(minute) == left
    assert hours.within(minute) == (left > 0)


SPANS = st.lists(
    st.tuples(st.integers(0, 1439), st.integers(1, 1440)).filter(lambda s: s[0] != s[1] % 1440), max_size=4
)


@given(SPANS, st.integers(0, 1439))
def test_the_minutes_left_are_those_that_are_within(spans: list[tuple[int, int]], minute: int) -> None:
    written = ",".join(f"{a // 60:02d}:{a % 60:02d}-{b // 60:02d}:{b % 60:02d}" for a, b in spans)
    hours = QuietHours.parse(written)
    counted = next((n for n in range(1440) if not hours.within((minute + n) % 1440)), 1440)
    assert hours.minutes_left(minute) == counted
    inside = any(minute in range(a, b) if a < b else minute not in range(b, a) for a, b in spans)
    assert hours.within(minute) == inside


def test_a_minute_of_the_next_day_is_told_as_one_of_the_day() -> None:
    assert [clock(0), clock(425), clock(1439), clock(1440), clock(1505)] == [
        "00:00",
        "07:05",
        "23:59",
        "00:00",
        "01:05",
    ]
