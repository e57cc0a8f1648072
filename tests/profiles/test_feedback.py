from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd.errors import ConflictError, NotFoundError, RequestError
from edgepd_profiles import feedback, interactions, migrations
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
    with pytest.raises(RequestError, match="'star' is not known; use one of thumb, rating, edit, comment, preferred"):
        feedback.remove(conn, "i_1", "star")


NONE = dict.fromkeys(("thumb_up", "thumb_down", *(k for k in feedback.KINDS if k != "thumb")), 0)


def test_counts(conn: sqlite3.Connection, log: Log) -> None:
    assert feedback.counts(conn) == NONE
    for name, value in (("i_1", 1), ("i_2", 1), ("i_3", -1)):
        log(name)
        feedback.set_thumb(conn, name, value)
    feedback.set_edit(conn, "i_3", "x")
    feedback.prefer(conn, "i_1", "i_3")
    feedback.note(conn, "i_1", "copied")
    feedback.note(conn, "i_2", "copied")
    given = {"thumb_up": 2, "thumb_down": 1, "edit": 1, "preferred": 1, "copied": 2}
    assert feedback.counts(conn) == NONE | given
    conn.execute(
        "INSERT INTO feedback (interaction, kind, value, text, source, at) "
        "VALUES ('i_1', 'star', 1, NULL, 'later', 1.0)"
    )
    assert feedback.counts(conn) == NONE | given, "what another edgepd stored is not ours to count"


def test_every_kind_comes_through_one_channel() -> None:
    assert list(feedback.CHANNELS) == ["active", "passive", "survey", "implicit", "suggestion"]
    assert len(set(feedback.KINDS)) == len(feedback.KINDS) == 13
    assert [feedback.channel_of(kind) for kind in ("comment", "dwell", "survey", "corrected", "taken")] == list(
        feedback.CHANNELS
    )
    with pytest.raises(ValueError, match="'star' is not known"):
        feedback.channel_of("star")


@pytest.mark.parametrize(
    ("kind", "value", "score"),
    [
        *[("thumb", 1, 1.0), ("thumb", -1, -1.0)],
        *[("rating", value, score) for value, score in ((1, -1.0), (2, -0.5), (3, 0.0), (4, 0.5), (5, 1.0))],
        *[("survey", 5, 1.0), ("survey", 2, -0.5), ("edit", None, -0.5), ("comment", None, None)],
        *[("preferred", None, 0.5), ("copied", None, 0.6), ("abandoned", None, -0.6), ("dwell", 60_000, None)],
        *[("regenerated", None, -0.5), ("corrected", None, -0.4), ("taken", None, 0.8), ("ignored", None, -0.2)],
    ],
)
def test_what_each_kind_says_of_the_answer(kind: str, value: int | None, score: float | None) -> None:
    assert feedback.satisfaction(Feedback("i_1", kind, value, None, "user", 1.0)) == score


def test_a_rating_and_a_comment(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    feedback.set_rating(conn, "i_1", 2, at=10.0)
    assert feedback.set_rating(conn, "i_1", 4, at=11.0) == Feedback("i_1", "rating", 4, None, "user", 11.0)
    assert feedback.set_rating(conn, "i_1", 4, at=12.0).at == 11.0
    said = feedback.set_comment(conn, "i_1", " a bit long", "editor", at=13.0)
    assert said == Feedback("i_1", "comment", None, " a bit long", "editor", 13.0)
    assert feedback.set_comment(conn, "i_1", " a bit long", "editor", at=14.0) == said
    assert [f.kind for f in feedback.of(conn, "i_1")] == ["comment", "rating"]
    assert (feedback.remove(conn, "i_1", "rating"), feedback.remove(conn, "i_1", "comment")) == (1, 1)


@pytest.mark.parametrize("value", [0, 6, -1, True, 4.5])
def test_a_rating_is_one_to_five(conn: sqlite3.Connection, log: Log, value: Any) -> None:
    log("i_1")
    with pytest.raises(RequestError, match=f"rating is {value!r}, but must be a whole number from 1"):
        feedback.set_rating(conn, "i_1", value)
    assert feedback.of(conn, "i_1") == []


@pytest.mark.parametrize(
    ("text", "problem"), [(" \n", "comment is empty"), ("a\udc00", "position 1"), ("é" * 8193, "has 16386 bytes")]
)
def test_unusable_comments_are_refused(conn: sqlite3.Connection, log: Log, text: str, problem: str) -> None:
    log("i_1")
    with pytest.raises(RequestError, match=problem):
        feedback.set_comment(conn, "i_1", text)
    assert feedback.set_comment(conn, "i_1", "é" * 8192).kind == "comment"


def test_what_apps_observe(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    assert feedback.note(conn, "i_1", "dwell", 4200, at=1.0) == Feedback("i_1", "dwell", 4200, None, "app", 1.0)
    feedback.note(conn, "i_1", "abandoned", at=2.0)
    feedback.note(conn, "i_1", "copied", source="editor", at=3.0)
    assert [(f.kind, f.at) for f in feedback.of(conn, "i_1")] == [("copied", 3.0), ("dwell", 1.0)]
    assert feedback.note(conn, "i_1", "copied", source="editor", at=4.0).at == 3.0
    feedback.note(conn, "i_1", "abandoned", at=5.0)
    assert [(f.kind, f.at) for f in feedback.of(conn, "i_1")] == [("abandoned", 5.0), ("dwell", 1.0)]
    feedback.note(conn, "i_1", "corrected", text="shorter", source="rules", at=6.0)
    feedback.note(conn, "i_1", "survey", 4, "s_1", at=6.0)
    feedback.note(conn, "i_1", "taken", text="g_1", at=7.0)
    assert feedback.remove(conn, "i_1") == 5


@pytest.mark.parametrize(
    ("kind", "value", "text", "problem"),
    [
        ("thumb", 1, None, "'thumb' is not something that is observed; use one of copied, dwell"),
        ("star", None, None, "'star' is not something that is observed"),
        ("dwell", None, None, "a dwell is None, but must be 0 to 86400000 milliseconds"),
        ("dwell", -1, None, "a dwell is -1"),
        ("dwell", 86_400_001, None, "a dwell is 86400001"),
        ("dwell", True, None, "a dwell is True"),
        ("copied", 1, None, "'copied' has the value 1, but takes none"),
        ("survey", 6, None, "a rating is 6"),
        ("corrected", None, "w" * 201, "has 201 characters, but at most 200"),
    ],
)
def test_unusable_observations_are_refused(
    conn: sqlite3.Connection, log: Log, kind: str, value: int | None, text: str | None, problem: str
) -> None:
    log("i_1")
    feedback.note(conn, "i_1", "abandoned")
    with pytest.raises(RequestError, match=problem):
        feedback.note(conn, "i_1", kind, value, text)
    assert [f.kind for f in feedback.of(conn, "i_1")] == ["abandoned"]


def test_an_observation_is_about_an_exchange_that_has_ended(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", state="streaming")
    with pytest.raises(ConflictError, match="'i_1' is still streaming"):
        feedback.note(conn, "i_1", "copied")
    with pytest.raises(NotFoundError, match="i_nope"):
        feedback.note(conn, "i_nope", "copied")


def test_a_preference_explains_why_the_same_was_asked_twice(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    log("i_2")
    for name in ("i_1", "i_2"):
        feedback.note(conn, name, "regenerated", text="same messages")
    feedback.note(conn, "i_2", "corrected", text="shorter")
    feedback.prefer(conn, "i_2", "i_1")
    assert [f.kind for f in feedback.of(conn, "i_2")] == ["corrected", "preferred"]
    assert feedback.of(conn, "i_1") == []


def test_the_profile_is_told_of_every_change_and_of_nothing_else(
    conn: sqlite3.Connection, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside of `refolded` the old rows must still be there when it begins, and the new ones when it ends."""
    seen: list[tuple[str, list[str], list[str]]] = []

    def kinds(name: str) -> list[str]:
        return [f.kind for f in feedback.of(conn, name)]

    @contextmanager
    def refolded(_: sqlite3.Connection, name: str) -> Iterator[None]:
        before = kinds(name)
        yield
        seen.append((name, before, kinds(name)))

    monkeypatch.setattr("edgepd_profiles.profile.refolded", refolded)
    log("i_1")
    log("i_2")
    for _ in range(2):
        feedback.set_rating(conn, "i_1", 5, at=1.0)
        feedback.prefer(conn, "i_1", "i_2", at=2.0)
    feedback.note(conn, "i_2", "copied", at=3.0)
    feedback.prefer(conn, "i_2", "i_1", at=4.0)
    feedback.remove(conn, "i_1", "thumb")
    feedback.remove(conn, "i_1")
    feedback.remove(conn, "i_1")
    assert seen == [
        ("i_1", [], ["rating"]),
        ("i_1", ["rating"], ["preferred", "rating"]),
        ("i_2", [], ["copied"]),
        ("i_1", ["preferred", "rating"], ["rating"]),
        ("i_2", ["copied"], ["copied", "preferred"]),
        ("i_1", ["rating"], []),
    ]


GIVEN = st.one_of(
    st.tuples(st.just("thumb"), st.sampled_from((1, -1))),
    st.tuples(st.just("rating"), st.integers(1, 5)),
    st.tuples(st.just("dwell"), st.integers(0, 1000)),
    st.tuples(st.sampled_from(("copied", "abandoned", "regenerated", "corrected")), st.none()),
    st.tuples(st.just("remove"), st.sampled_from((None, *feedback.KINDS))),
)


@settings(max_examples=40)
@given(st.lists(GIVEN, max_size=12))
def test_giving_each_thing_twice_is_giving_it_once(given_things: list[tuple[str, Any]]) -> None:
    results = []
    for times in (1, 2):
        db = sqlite3.connect(":memory:", isolation_level=None)
        migrations.migrate(db)
        interactions.begin(db, Interaction("i_1", "c", 1.0, "cli", "m", 1, [], response="x", state="done"))
        clock = 0.0
        for kind, value in given_things:
            for _ in range(times):
                clock += 1.0 / times
                if kind == "remove":
                    feedback.remove(db, "i_1", value)
                elif kind in ("thumb", "rating"):
                    setter = feedback.set_thumb if kind == "thumb" else feedback.set_rating
                    setter(db, "i_1", value, at=math.ceil(clock))
                else:
                    feedback.note(db, "i_1", kind, value, at=math.ceil(clock))
        results.append(feedback.of(db, "i_1"))
        db.close()
    assert results[0] == results[1]
