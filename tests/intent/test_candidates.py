from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd.intent.candidates import FEATURES, NEWEST, OF_CANDIDATE, OF_MOMENT, Floats, Past, features
from edgepd.intent.schema import Event
from tests.intent.intent_helpers import MONDAY, NAMES, circle

CODES = {name: code for code, name in enumerate(NAMES)}
HOUR = 3600.0


def column(found: Floats, name: str) -> list[float]:
    return [float(x) for x in found[:, (*OF_CANDIDATE, *OF_MOMENT).index(name)]]


def at_hours(*happened: tuple[float, str]) -> Past:
    return Past.of([Event(MONDAY + hour * HOUR, name, name) for hour, name in happened], CODES)


events = st.lists(
    st.tuples(st.floats(0, 2000), st.sampled_from(NAMES), st.sampled_from([-36000, 0, 19800])), max_size=30
).map(lambda drawn: [Event(MONDAY + h * HOUR, n, n, utc_offset_s=o) for h, n, o in sorted(drawn)])


@given(events, st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_what_comes_later_changes_nothing(history: list[Event], place: int) -> None:
    place = min(place, len(history))
    at = MONDAY + 3000 * HOUR
    before = features(Past.of(history[:place], CODES), len(NAMES), at, 0)
    np.testing.assert_array_equal(features(Past.of(history, CODES).before(place), len(NAMES), at, 0), before)
    assert before.shape == (len(NAMES), FEATURES)
    assert np.isfinite(before).all()


@given(events, st.permutations(range(len(NAMES))))
@settings(max_examples=60, deadline=None)
def test_names_are_only_names(history: list[Event], order: list[int]) -> None:
    other = {name: order[code] for name, code in CODES.items()}
    at = MONDAY + 2001 * HOUR
    one = features(Past.of(history, CODES), len(NAMES), at, 0)
    two = features(Past.of(history, other), len(NAMES), at, 0)
    np.testing.assert_allclose(two[order], one, rtol=1e-5, atol=1e-6)


def test_the_traces_of_an_intent() -> None:
    past = at_hours((0, "mail"), (24, "mail"), (25, "code"), (30, "mail"))
    found = features(past, len(NAMES), MONDAY + 48 * HOUR, 0)
    assert column(found, "count")[:3] == [np.float32(math.log(4)), np.float32(math.log(2)), 0]
    assert column(found, "since")[0] == np.float32(math.log(19))
    assert column(found, "between")[0] == np.float32(math.log(7))
    assert column(found, "never") == [0, 0, 1, 1, 1]
    assert column(found, "is the last") == [1, 0, 0, 0, 0]
    assert column(found, "is the last but one") == [0, 1, 0, 0, 0]
    assert column(found, "gap") == [np.float32(math.log(19))] * 5
    share = np.exp(column(found, "share"))
    assert sum(share) == pytest.approx(1)
    assert share[0] > share[1] > share[2] == share[3]


def test_what_follows_what_and_when() -> None:
    days = [(24 * day + hour, name) for day in range(4) for hour, name in ((8, "mail"), (12, "news"), (18, "music"))]
    past = at_hours(*days)
    morning = features(past, len(NAMES), MONDAY + (4 * 24 + 8) * HOUR, 0)
    evening = features(past, len(NAMES), MONDAY + (4 * 24 + 18) * HOUR, 0)
    mail, music = CODES["mail"], CODES["music"]
    for name in ("at this hour", "at this hour on such a day"):
        assert column(morning, name)[mail] > column(morning, name)[music]
        assert column(evening, name)[mail] < column(evening, name)[music]
    for name in ("after the last", "after the last two"):
        assert np.argmax(column(morning, name)) == mail  # after music, whatever the hour is
        assert np.argmax(column(evening, name)) == mail
    assert column(morning, "days since")[mail] == np.float32(1)


def test_hours_are_those_of_the_clock_on_the_wall() -> None:
    past = at_hours((8, "mail"), (18, "music"), (32, "mail"), (42, "music"))
    abroad = Past.of(
        [Event(MONDAY + h * HOUR - 7200, n, n, utc_offset_s=7200) for h, n in ((8, "mail"), (18, "music"))]
        + [Event(MONDAY + h * HOUR - 7200, n, n, utc_offset_s=7200) for h, n in ((32, "mail"), (42, "music"))],
        CODES,
    )
    at = MONDAY + 56 * HOUR
    np.testing.assert_allclose(
        features(abroad, len(NAMES), at - 7200, 7200), features(past, len(NAMES), at, 0), rtol=1e-5, atol=1e-6
    )


def test_a_clock_that_was_set_back_counts_as_no_time() -> None:
    past = at_hours((10, "mail"), (20, "code"))
    found = features(past, len(NAMES), MONDAY + 5 * HOUR, 0)
    assert np.isfinite(found).all()
    assert column(found, "gap")[0] == 0
    assert column(found, "since")[:2] == [0, 0]


def test_without_a_history_all_are_alike() -> None:
    found = features(Past.of([], CODES), len(NAMES), MONDAY, 0)
    assert (found == found[0]).all()
    assert np.isfinite(found).all()


def test_only_the_newest_events_are_looked_at() -> None:
    old = [Event(MONDAY, "map", "map")]
    long = Past.of(old + circle(NEWEST, 3), CODES)
    found = features(long.before(len(long)), len(NAMES), MONDAY + 1e7, 0)
    np.testing.assert_array_equal(found, features(Past.of(circle(NEWEST, 3), CODES), len(NAMES), MONDAY + 1e7, 0))
