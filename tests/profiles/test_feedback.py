from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from edgepd.errors import ConflictError, NotFoundError, RequestError
from edgepd_profiles import feedback
from edgepd_profiles.feedback import Feedback
from edgepd_profiles.interactions import Interaction

Log = Callable[..., Interaction]


def test_thumb_and_edit_stand_side_by_side(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    feedback.set_thumb(conn, "i_1", -1, at=10.0)
    feedback.set_edit(conn, "i_1", "Blau.", "editor", at=11.0)
    assert feedback.of(conn, "i_1") == [
        Feedback("i_1", "edit", None, "Blau.", "editor", 11.0),
        Feedback("i_1", "thumb", -1, None, "user", 10.0),
    ]


def test_setting_again_replaces(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    feedback.set_thumb(conn, "i_1", 1, at=10.0)
    feedback.set_thumb(conn, "i_1", -1, at=20.0)
    assert feedback.of(conn, "i_1") == [Feedback("i_1", "thumb", -1, None, "user", 20.0)]


def test_setting_the_same_again_keeps_the_time(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    feedback.set_edit(conn, "i_1", "Blau.", at=10.0)
    assert feedback.set_edit(conn, "i_1", "Blau.", at=20.0).at == 10.0
    assert feedback.set_edit(conn, "i_1", "Rot.", at=30.0).at == 30.0


def test_an_edit_is_kept_word_for_word_even_if_it_equals_the_answer(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", response="Blue.")
    feedback.set_edit(conn, "i_1", "Blue.")
    assert [f.kind for f in feedback.of(conn, "i_1")] == ["edit"]
    assert feedback.set_edit(conn, "i_1", "  Blue.\n").text == "  Blue.\n"


@pytest.mark.parametrize("value", [0, 2, -2, True])
def test_a_thumb_is_up_or_down(conn: sqlite3.Connection, log: Log, value: int) -> None:
    log("i_1")
    with pytest.raises(RequestError, match=f"thumb is {value!r}, but must be 1"):
        feedback.set_thumb(conn, "i_1", value)
    assert feedback.of(conn, "i_1") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "is empty"), (" \n", "is empty"), ("a\ud800", "position 1"), ("é" * 524289, "has 1048578 bytes")],
)
def test_unusable_edits_are_refused(conn: sqlite3.Connection, log: Log, text: str, problem: str) -> None:
    log("i_1")
    with pytest.raises(RequestError, match=problem):
        feedback.set_edit(conn, "i_1", text)
    assert feedback.of(conn, "i_1") == []


def test_an_edit_may_have_exactly_one_mebibyte(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    assert feedback.set_edit(conn, "i_1", "a" * 1048576).text == "a" * 1048576


@pytest.mark.parametrize(
    "call",
    [
        lambda conn: feedback.set_thumb(conn, "i_nope", 1),
        lambda conn: feedback.set_edit(conn, "i_nope", "x"),
        lambda conn: feedback.prefer(conn, "i_nope", "i_other"),
        lambda conn: feedback.remove(conn, "i_nope"),
        lambda conn: feedback.of(conn, "i_nope"),
    ],
)
def test_unknown_interactions_are_named(conn: sqlite3.Connection, call: Callable[..., Any]) -> None:
    with pytest.raises(NotFoundError, match="i_nope"):
        call(conn)


def test_no_feedback_on_an_answer_that_is_still_streaming(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", state="streaming")
    with pytest.raises(ConflictError, match="'i_1' is still streaming"):
        feedback.set_thumb(conn, "i_1", 1)
    with pytest.raises(ConflictError, match="'i_1' is still streaming"):
        feedback.set_edit(conn, "i_1", "x")


def test_a_preference_lies_on_the_winner_and_names_the_loser(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    log("i_2", response="Red.")
    wanted = Feedback("i_1", "preferred", None, "i_2", "compare", 10.0)
    assert feedback.prefer(conn, "i_1", "i_2", "compare", at=10.0) == wanted
    assert feedback.prefer(conn, "i_1", "i_2", "compare", at=20.0) == wanted
    assert (feedback.of(conn, "i_1"), feedback.of(conn, "i_2")) == ([wanted], [])
    assert feedback.remove(conn, "i_1", "preferred") == 1
    assert feedback.of(conn, "i_1") == []


def test_the_latest_preference_stands(conn: sqlite3.Connection, log: Log) -> None:
    for name in ("i_1", "i_2", "i_3"):
        log(name)
    feedback.prefer(conn, "i_1", "i_2")
    feedback.prefer(conn, "i_1", "i_3")
    assert [f.text for f in feedback.of(conn, "i_1")] == ["i_3"]
    feedback.prefer(conn, "i_2", "i_1")
    assert [f.text for f in feedback.of(conn, "i_1")] == ["i_3"], "that was about another"
    feedback.prefer(conn, "i_3", "i_1")
    assert feedback.of(conn, "i_1") == []
    assert feedback.counts(conn)["preferred"] == 2


def test_only_two_ended_answers_to_the_same_messages_can_be_compared(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    log("i_2", messages=[{"role": "user", "content": "Name a tree."}])
    log("i_3", state="streaming")
    with pytest.raises(RequestError, match="'i_1' cannot be preferred to itself"):
        feedback.prefer(conn, "i_1", "i_1")
    with pytest.raises(RequestError, match="'i_1' and 'i_2' answer different messages"):
        feedback.prefer(conn, "i_1", "i_2")
    with pytest.raises(NotFoundError, match="i_nope"):
        feedback.prefer(conn, "i_1", "i_nope")
    for pair in (("i_1", "i_3"), ("i_3", "i_1")):
        with pytest.raises(ConflictError, match="'i_3' is still streaming"):
            feedback.prefer(conn, *pair)
    assert feedback.counts(conn)["preferred"] == 0


def test_feedback_can_be_undone(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    log("i_2")
    feedback.set_thumb(conn, "i_1", 1)
    feedback.set_edit(conn, "i_1", "x")
    feedback.set_thumb(conn, "i_2", 1)
    assert feedback.remove(conn, "i_1", "edit") == 1
    assert [f.kind for f in feedback.of(conn, "i_1")] == ["thumb"]
    assert feedback.remove(conn, "i_1") == 1
    assert feedback.remove(conn, "i_1") == 0
    assert feedback.of(conn, "i_1") == []
    assert len(feedback.of(conn, "i_2")) == 1
    with pytest.raises(RequestError, match="'star' is not known; use one of thumb, edit, preferred"):
        feedback.remove(conn, "i_1", "star")


def test_counts(conn: sqlite3.Connection, log: Log) -> None:
    assert feedback.counts(conn) == {"thumb_up": 0, "thumb_down": 0, "edit": 0, "preferred": 0}
    for name, value in (("i_1", 1), ("i_2", 1), ("i_3", -1)):
        log(name)
        feedback.set_thumb(conn, name, value)
    feedback.set_edit(conn, "i_3", "x")
    feedback.prefer(conn, "i_1", "i_3")
    assert feedback.counts(conn) == {"thumb_up": 2, "thumb_down": 1, "edit": 1, "preferred": 1}
