from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd.intent.schema import Event, Names, Vocabulary, moment


@given(st.floats(-1e9, 4e9), st.integers(-18 * 3600, 18 * 3600))
def test_a_moment_is_what_the_calendar_says(at: float, offset: int) -> None:
    local = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(at // 1) + offset)
    assert moment(at // 1, offset) == moment(at // 1 + 0.5, offset)
    found = moment(at // 1, offset)
    assert (found.weekday, found.slot) == (local.weekday(), local.hour * 2 + local.minute // 30)


def test_slots_are_given_in_the_order_of_first_appearance_while_there_is_room() -> None:
    known = Vocabulary.empty(events=2, intents=2, contexts=1).learn(
        [Event(0, "a", "x"), Event(1, "b", "x", "home"), Event(2, "c", "y", "work"), Event(3, "a", "z")]
    )
    assert known.events.names == ["a", "b"]
    assert known.intents.names == ["x", "y"]
    assert known.contexts.names == ["home"]
    assert (known.events.slot("c"), known.intents.slot("z"), known.contexts.slot("work")) == (0, 0, 0)


def test_a_copy_learns_alone() -> None:
    first = Vocabulary.empty(4, 4, 4).learn([Event(0, "a", "x")])
    first.copy().learn([Event(1, "b", "y")])
    assert first.intents.names == ["x"]


def test_names_that_are_there_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="not all different"):
        Names(3, ["a", "a"])
