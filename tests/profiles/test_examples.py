from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd_profiles import feedback
from edgepd_profiles.examples import Example, data_hash, split, training_examples
from edgepd_profiles.interactions import Interaction

Log = Callable[..., Interaction]
QUESTION = [{"role": "user", "content": "Name a colour."}]


def example(name: str, conversation: str | None = None, text: str | None = None, at: float = 0.0) -> Example:
    return Example(name, conversation or name, at, QUESTION, text or f"answer {name}", 1.0)


def ids(examples: list[Example]) -> list[str]:
    return [e.id for e in examples]


def test_what_each_kind_of_feedback_teaches(conn: sqlite3.Connection, log: Log) -> None:
    for name in ("i_up", "i_down", "i_edit", "i_both", "i_fixed", "i_none"):
        log(name, response=f"response {name}")
    feedback.set_edit(conn, "i_edit", "edited", at=50.0)
    feedback.set_thumb(conn, "i_up", 1, at=40.0)
    feedback.set_thumb(conn, "i_down", -1, at=30.0)
    feedback.set_thumb(conn, "i_both", 1, at=20.0)
    feedback.set_edit(conn, "i_both", "better", at=60.0)
    feedback.set_thumb(conn, "i_fixed", -1, at=10.0)
    feedback.set_edit(conn, "i_fixed", "fixed", at=11.0)
    wanted = [
        Example("i_fixed", "c1", 11.0, QUESTION, "fixed", 1.0, rejected="response i_fixed"),
        Example("i_up", "c1", 40.0, QUESTION, "response i_up", 0.5),
        Example("i_edit", "c1", 50.0, QUESTION, "edited", 1.0, rejected="response i_edit"),
        Example("i_both", "c1", 60.0, QUESTION, "better", 1.0, rejected="response i_both"),
    ]
    assert all(e.desirable and e.reward == 1.0 for e in wanted)
    assert training_examples(conn, accepted_weight=0.5) == wanted
    down = Example("i_down", "c1", 30.0, QUESTION, "response i_down", 1.0, desirable=False, reward=-1.0)
    assert training_examples(conn, 0.5, undesirable=True) == [wanted[0], down, *wanted[1:]]
    assert training_examples(conn, 0.0, undesirable=True) == [wanted[0], down, *wanted[2:]]


@pytest.mark.parametrize(
    ("state", "response", "edit", "rejected"),
    [
        ("done", "Blue.", "Red.", "Blue."),
        ("done", "Blue.", " Blue.\n", None),  # differs in surrounding space only
        ("done", "blue.", "Blue.", "blue."),
        ("done", "  ", "Blue.", None),
        ("cancelled", "Blu", "Blue.", None),  # broke off: no answer to compare with
    ],
)
def test_an_edit_rejects_what_it_replaces_if_that_was_an_answer(
    conn: sqlite3.Connection, log: Log, state: str, response: str, edit: str, rejected: str | None
) -> None:
    log("i_1", state=state, response=response)
    feedback.set_edit(conn, "i_1", edit)
    (found,) = training_examples(conn, 0.5)
    assert (found.response, found.rejected) == (edit, rejected)


def test_an_accepted_answer_that_broke_off_is_not_learned_but_its_correction_is(
    conn: sqlite3.Connection, log: Log
) -> None:
    for state in ("cancelled", "interrupted", "failed"):
        log(state, state=state, response="half an")
        feedback.set_thumb(conn, state, 1)
    log("empty", response=" ")
    feedback.set_thumb(conn, "empty", 1)
    assert training_examples(conn, 0.5) == []
    for name in ("cancelled", "empty"):
        feedback.set_thumb(conn, name, -1)
    assert training_examples(conn, 0.5, undesirable=True) == []
    feedback.set_edit(conn, "failed", "whole")
    assert ids(training_examples(conn, 0.5)) == ["failed"]


def test_weight_zero_leaves_accepted_answers_out(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    feedback.set_thumb(conn, "i_1", 1)
    assert training_examples(conn, 0.0) == []


def test_the_newest_quarter_is_held_out() -> None:
    examples = [example(f"e{n}", at=n) for n in range(12)]
    train, held_out = split(examples, 0.25)
    assert ids(train) == [f"e{n}" for n in range(9)]
    assert ids(held_out) == ["e9", "e10", "e11"]


def test_at_least_two_are_held_out() -> None:
    assert ids(split([example(f"e{n}", at=n) for n in range(4)], 0.05)[1]) == ["e2", "e3"]


def test_a_conversation_is_never_cut() -> None:
    examples = [example(f"e{n}", at=n) for n in range(6)] + [example(f"f{n}", "f", at=10 + n) for n in range(4)]
    train, held_out = split(examples, 0.2)
    assert ids(held_out) == ["f0", "f1", "f2", "f3"]
    assert len(train) == 6


def test_one_long_conversation_is_cut_in_time() -> None:
    examples = [example(f"e{n}", "c", at=n) for n in range(12)]
    train, held_out = split(examples, 0.25)
    assert ids(held_out) == ["e9", "e10", "e11"]
    assert len(train) == 9


def test_a_conversation_that_holds_most_of_all_is_cut_in_time() -> None:
    examples = [example("first", at=0)] + [example(f"e{n}", "c", at=1 + n) for n in range(11)]
    assert ids(split(examples, 0.25)[1]) == ["e8", "e9", "e10"]


@given(st.lists(st.integers(0, 20), max_size=20), st.floats(0.05, 0.5))
def test_small_conversations_are_never_cut(times: list[int], fraction: float) -> None:
    examples = [example(f"e{n}", f"c{n // 2}", at=float(n)) for n in range(len(times))]
    train, held_out = split(examples, fraction)
    if len(examples) >= 8:
        assert not {e.conversation for e in train} & {e.conversation for e in held_out}


def test_the_cut_nearest_to_the_share_is_taken_and_of_two_the_one_that_trains_on_more() -> None:
    sizes = (1, 3, 2)  # held out: 2 or 5; the target of 0.3 * 6 is 2
    examples = [example(f"g{g}-{k}", f"g{g}", at=10 * g + k) for g, size in enumerate(sizes) for k in range(size)]
    assert len(split(examples, 0.3)[1]) == 2
    sizes = (1, 2, 2)  # held out: 2 or 4; 0.6 * 5 is 3: equally near
    examples = [example(f"g{g}-{k}", f"g{g}", at=10 * g + k) for g, size in enumerate(sizes) for k in range(size)]
    assert len(split(examples, 0.6)[1]) == 2


def test_what_was_held_out_before_is_held_out_first_and_leaves_the_newest_to_training() -> None:
    examples = [example(f"e{n}", at=n) for n in range(12)]
    train, held_out = split(examples, 0.25, ["e5", "e6", "e7", "e8"])
    assert ids(held_out) == ["e6", "e7", "e8"]
    assert ids(train)[-3:] == ["e9", "e10", "e11"]
    assert ids(split(examples, 0.25, ["e8"])[1]) == ["e8", "e10", "e11"], "one alone is too few"
    assert ids(split(examples, 0.5, ["e6", "e7", "e8"])[1]) == ["e6", "e7", "e8"]


def test_near_identical_examples_stay_together_across_conversations() -> None:
    examples = [
        example("old", text="It is  BLUE", at=1),
        example("mid", at=2),
        example("mid2", at=3),
        example("new", text="it is blue\n", at=4),
    ]
    assert ids(split(examples, 0.25)[1]) == ["old", "new"]


def test_unwanted_answers_are_never_held_out_and_do_not_count() -> None:
    """Held out are the two newest wanted ones; what is unwanted in their conversations is on neither side."""
    examples = [example(f"e{n}", f"c{n}", at=n) for n in range(8)]
    unwanted = [
        replace(example("x", "c2", at=2.5), desirable=False),
        replace(example("y", "c7", at=7.5), desirable=False),
        replace(example("z", at=9.0), desirable=False),
    ]
    train, held_out = split([*examples, *unwanted], 0.25)
    assert ids(held_out) == ["e6", "e7"]
    assert ids(train) == [f"e{n}" for n in range(6)] + ["x", "z"]
    assert split(unwanted, 0.25) == (unwanted, [])


def test_an_unwanted_answer_is_near_identical_to_the_same_answer_elsewhere() -> None:
    examples = [example(f"e{n}", at=n) for n in range(4)]
    same = replace(example("x", text="ANSWER e3", at=0.5), desirable=False)
    train, held_out = split([*examples, same], 0.25)
    assert (ids(train), ids(held_out)) == (["e0", "e1"], ["e2", "e3"])


def test_what_was_rejected_does_not_make_examples_alike() -> None:
    examples = [replace(example(f"e{n}", at=n), rejected="the usual") for n in range(8)]
    assert ids(split(examples, 0.25)[1]) == ["e6", "e7"]


def test_groups_that_touch_through_a_third_are_one() -> None:
    # a and c share nothing, but b has the conversation of a and the text of c.
    examples = [
        example("a", "shared", "one", at=1),
        example("x", at=2),
        example("y", at=2),
        example("z", at=2),
        example("c", "other", "two", at=3),
        example("b", "shared", "two", at=4),
    ]
    train, held_out = split(examples, 0.25)
    assert (ids(train), ids(held_out)) == (["x", "y", "z"], ["a", "c", "b"])


@pytest.mark.parametrize(
    "examples",
    [[], [example("a")], [example("a"), example("b")], [example("a", "c", "x"), example("b", "c", "x")]],
)
def test_nothing_is_held_out_when_no_cut_leaves_two_and_one(examples: list[Example]) -> None:
    assert split(examples, 0.5) == (examples, [])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_an_impossible_share_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="held_out_fraction"):
        split([], fraction)


@st.composite
def example_lists(draw: st.DrawFn) -> list[Example]:
    specs = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8), st.integers(0, 20)), max_size=20))
    return [example(f"e{n}", f"c{c}", f"t{t}", float(at)) for n, (c, t, at) in enumerate(specs)]


@given(example_lists(), st.floats(0.05, 0.5))
def test_split_properties(examples: list[Example], fraction: float) -> None:
    train, held_out = split(examples, fraction)
    assert sorted(ids(train + held_out)) == sorted(ids(examples))
    assert not {e.response for e in train} & {e.response for e in held_out}
    assert len(held_out) == 0 or len(held_out) >= 2
    assert not examples or train
    if held_out:
        assert max(e.created_at for e in held_out) >= max(e.created_at for e in train)


@given(st.integers(3, 60), st.floats(0.05, 0.5))
def test_unrelated_examples_are_cut_exactly_by_time(n: int, fraction: float) -> None:
    train, held_out = split([example(f"e{k}", at=k) for k in range(n)], fraction)
    assert len(held_out) == max(2, int(fraction * n + 0.5))
    assert ids(train) + ids(held_out) == [f"e{k}" for k in range(n)]


def test_data_hash_is_the_sha256_of_canonical_json() -> None:
    # printf '[{"conversation":"c","created_at":1.5,...}]' | sha256sum
    one = Example("i_1", "c", 1.5, [{"role": "user", "content": "é"}], "ok", 1.0)
    assert data_hash([one]) == "fd502798b2f9227c44b850630f9b43ff1d53d5e661f2f0088ab46eb987d1c8fc"
    assert data_hash([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"


def test_data_hash_sees_every_field_and_the_order() -> None:
    one, two = example("a"), example("b")
    base = data_hash([one, two])
    changed = [
        replace(one, response="other"),
        replace(one, weight=0.5),
        replace(one, messages=[{"role": "user", "content": "Name a color."}]),
        replace(one, created_at=9.0),
        replace(one, rejected="other"),
        replace(one, desirable=False),
        replace(one, reward=-1.0),
    ]
    assert len({base, data_hash([two, one]), *(data_hash([c, two]) for c in changed)}) == 9
