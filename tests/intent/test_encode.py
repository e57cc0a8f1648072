from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgepd.intent.encode import NOT_KNOWN, Encoded, beginning_row, encode
from edgepd.intent.schema import Event
from edgepd.intent.shape import GAP_HOURS
from tests.intent.intent_helpers import MONDAY, NAMES, TINY, circle, names


def columns(encoded: Encoded) -> dict[str, list[int]]:
    return {field.name: getattr(encoded, field.name).tolist() for field in fields(encoded)}


def test_a_place_holds_the_event_before_and_the_moment_of_its_own() -> None:
    events = [Event(MONDAY + 8 * 3600, "mail", "mail"), Event(MONDAY + 86_400 + 9.5 * 3600, "code", "code")]
    found = columns(encode(events, names()))
    assert found["intent"] == [beginning_row(TINY.intents), 1]
    assert found["target"] == [0, 1]
    assert (found["weekday"], found["slot"]) == ([7, 0], [48, 16])
    assert (found["now_weekday"], found["now_slot"]) == ([0, 1], [16, 19])
    assert found["now_gap"] == [len(GAP_HOURS), int(np.digitize(25.5, GAP_HOURS))]


def test_the_open_end_has_no_target() -> None:
    found = columns(encode(circle(3, 1), names(), then=(MONDAY + 1e6, 3600)))
    assert len(found["target"]) == 4
    assert found["target"][-1] == NOT_KNOWN


def test_no_events_and_nothing_asked_is_nothing() -> None:
    assert len(encode([], names())) == 0
    assert columns(encode([], names(), then=(MONDAY, 0)))["intent"] == [beginning_row(TINY.intents)]


@given(st.integers(2, 20), st.data())
def test_what_comes_later_and_the_label_itself_change_no_earlier_place(length: int, data: st.DataObject) -> None:
    events = circle(length, 3)
    cut = data.draw(st.integers(0, length - 1))
    other = [*events[:cut], *(replace(e, event="x", intent=NAMES[0], context="y") for e in events[cut:])]
    one, two = columns(encode(events, names())), columns(encode(other, names()))
    del one["target"], two["target"]
    assert {k: v[: cut + 1] for k, v in one.items()} == {k: v[: cut + 1] for k, v in two.items()}


def test_a_clock_that_was_set_back_is_a_gap_of_nothing() -> None:
    events = [Event(MONDAY + 3600, "mail", "mail"), Event(MONDAY, "code", "code")]
    assert columns(encode(events, names()))["now_gap"][1] == 0
