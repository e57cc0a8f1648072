from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd.errors import NotFoundError
from edgepd_profiles import similar_pairs
from edgepd_profiles.examples import Example
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.similar_pairs import SimilarPair, add, in_band, of, parse, prompt_for, rouge1

Log = Callable[..., Interaction]
EXAMPLE = Example("i1", "c1", 1.0, [{"role": "user", "content": "How long do eggs boil?"}], "Ten minutes.", 1.0)
WORDS = st.lists(st.sampled_from(["egg", "milk", "tea", "salt"]), max_size=8).map(" ".join)


def test_the_model_is_shown_question_and_answer() -> None:
    (message,) = prompt_for(EXAMPLE)
    assert message["role"] == "user"
    assert message["content"].endswith("\n\nQuestion: How long do eggs boil?\nAnswer: Ten minutes.")


@pytest.mark.parametrize(
    "text",
    [
        "Question: And potatoes?\nAnswer: Twenty minutes.",
        "Sure!\n\n**Question:** And potatoes?\n\n**Answer:** Twenty minutes.",
        "### question : And potatoes?\n### ANSWER : Twenty minutes.\n",
        "1. Question 1: And potatoes?\nAnswer 1: Twenty minutes.\n\n2. Question 2: And rice?\nAnswer 2: Twelve.",
    ],
)
def test_a_pair_is_read_however_the_labels_are_written(text: str) -> None:
    assert parse(text) == ("And potatoes?", "Twenty minutes.")


def test_several_lines_belong_to_the_answer() -> None:
    assert parse("Question: Two lines?\nAnswer: One.\nTwo: so.") == ("Two lines?", "One.\nTwo: so.")


@pytest.mark.parametrize(
    "text",
    ["", "Twenty minutes.", "Question: And potatoes?", "Question:\nAnswer: Ten.", "Question: Why?\nAnswer: ",
     "Answer: Ten.\nQuestion: Why?", "Question: Why?\nAnswer: " + "x" * 2001],
)  # fmt: skip
def test_what_is_no_pair_is_not_read(text: str) -> None:
    assert parse(text) is None


def test_rouge1_counts_words_as_often_as_both_have_them() -> None:
    assert rouge1("Boil the egg, the egg!", "The egg is done.") == pytest.approx(2 * 2 / (5 + 4))
    assert rouge1("egg", "") == rouge1("", "") == 0.0


@given(WORDS, WORDS)
def test_rouge1_is_symmetric_and_one_for_the_same_words_only(a: str, b: str) -> None:
    assert rouge1(a, b) == rouge1(b, a)
    assert 0.0 <= rouge1(a, b) <= 1.0
    assert (rouge1(a, b) == 1.0) == (bool(a) and sorted(a.split()) == sorted(b.split()))


def test_neither_a_copy_nor_another_subject_is_in_the_band() -> None:
    similar = similar_pairs.similarity(EXAMPLE, "How long do potatoes boil?", "Twenty minutes.")
    assert similar == pytest.approx(2 * 5 / 14)
    assert in_band(similar, 0.3, 0.85)
    assert not in_band(similar_pairs.similarity(EXAMPLE, EXAMPLE.prompt, EXAMPLE.response), 0.3, 0.85)
    assert not in_band(similar_pairs.similarity(EXAMPLE, "Name a river.", "The Rhine."), 0.3, 0.85)


def test_pairs_are_numbered_and_the_same_one_is_kept_once(conn: sqlite3.Connection, log: Log) -> None:
    for name in ("i1", "i2"):
        log(name)
    assert add(conn, "i1", "And potatoes?", "Twenty.", 0.5, at=10.0) == "i1#1"
    assert add(conn, "i1", "And rice?", "Twelve.", 0.4, at=11.0) == "i1#2"
    assert add(conn, "i1", "And potatoes?", "Twenty.", 0.5, at=12.0) == "i1#1"
    assert add(conn, "i2", "And potatoes?", "Twenty.", 0.5, at=13.0) == "i2#1"
    assert of(conn, ["i1"]) == [
        SimilarPair("i1#1", "i1", "And potatoes?", "Twenty.", 0.5, 10.0),
        SimilarPair("i1#2", "i1", "And rice?", "Twelve.", 0.4, 11.0),
    ]
    assert [pair.id for pair in of(conn, {"i1", "i2", "gone"})] == ["i1#1", "i1#2", "i2#1"]


def test_pairs_are_ordered_by_number_and_a_number_is_not_given_out_twice(conn: sqlite3.Connection, log: Log) -> None:
    log("i1")
    for n in range(11):
        add(conn, "i1", f"Question {n}?", "Yes.", 0.5, at=10.0)
    conn.execute("DELETE FROM similar_pairs WHERE id = 'i1#3'")
    assert add(conn, "i1", "Another?", "Yes.", 0.5, at=10.0) == "i1#12"
    assert [pair.id for pair in of(conn, ["i1"])][-3:] == ["i1#10", "i1#11", "i1#12"]


def test_pairs_that_imitate_a_text_that_was_corrected_since_are_left_out(conn: sqlite3.Connection, log: Log) -> None:
    log("i1")
    add(conn, "i1", "And potatoes?", "Twenty.", 0.5, at=10.0)
    conn.execute(
        "INSERT INTO feedback (interaction, kind, value, text, source, at) "
        "VALUES ('i1', 'edit', NULL, 'Nine.', 'user', 11)"
    )
    add(conn, "i1", "And rice?", "Twelve.", 0.4, at=12.0)
    assert [pair.id for pair in of(conn, ["i1"])] == ["i1#2"]


def test_a_pair_goes_with_its_exchange(conn: sqlite3.Connection, log: Log) -> None:
    log("i1")
    add(conn, "i1", "And potatoes?", "Twenty.", 0.5)
    assert similar_pairs.remove(conn, "i1") == 1
    add(conn, "i1", "And potatoes?", "Twenty.", 0.5)
    conn.execute("DELETE FROM interactions")
    assert of(conn, ["i1"]) == []
    with pytest.raises(NotFoundError, match="'i1' is not known"):
        add(conn, "i1", "And potatoes?", "Twenty.", 0.5)
