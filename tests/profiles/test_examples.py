from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd.cli.demo_script import LESSONS
from edgepd_profiles import apps, feedback
from edgepd_profiles.examples import Example, data_hash, split, training_examples
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.similar_pairs import examples_of

Log = Callable[..., Interaction]
QUESTION = [{"role": "user", "content": "Name a colour."}]


def example(
    name: str, conversation: str | None = None, text: str | None = None, at: float = 0.0, question: str | None = None
) -> Example:
    messages = QUESTION if question is None else [{"role": "user", "content": question}]
    return Example(name, conversation or name, at, messages, text or f"answer {name}", 1.0)


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


def test_a_preferred_answer_is_accepted_and_the_other_one_rejected(conn: sqlite3.Connection, log: Log) -> None:
    for name in ("i_1", "i_2", "i_3", "i_4", "i_5", "i_6"):
        log(name, response=f"response {name}")
    feedback.prefer(conn, "i_1", "i_2", at=10.0)
    wanted = Example("i_1", "c1", 10.0, QUESTION, "response i_1", 0.5, rejected="response i_2")
    assert training_examples(conn, 0.5) == [wanted]
    assert training_examples(conn, 0.0) == []
    feedback.set_thumb(conn, "i_1", 1, at=5.0)
    feedback.set_thumb(conn, "i_2", -1, at=20.0)
    assert training_examples(conn, 0.5) == [wanted]
    unwanted = Example("i_2", "c1", 20.0, QUESTION, "response i_2", 1.0, desirable=False, reward=-1.0)
    assert training_examples(conn, 0.5, undesirable=True) == [wanted, unwanted]
    feedback.set_edit(conn, "i_2", "whole", at=30.0)
    corrected = Example("i_2", "c1", 30.0, QUESTION, "whole", 1.0, rejected="response i_2")
    assert training_examples(conn, 0.5) == [wanted, corrected]
    feedback.set_edit(conn, "i_1", "my own", at=40.0)
    mine = Example("i_1", "c1", 40.0, QUESTION, "my own", 1.0, rejected="response i_1")
    assert training_examples(conn, 0.5) == [corrected, mine]


def test_the_better_of_two_bad_answers_is_not_learned(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", response="one")
    log("i_2", response="two")
    feedback.prefer(conn, "i_1", "i_2")
    feedback.set_thumb(conn, "i_1", -1)
    assert training_examples(conn, 0.5) == []
    (unwanted,) = training_examples(conn, 0.5, undesirable=True)
    assert (unwanted.id, unwanted.desirable, unwanted.rejected) == ("i_1", False, None)


@pytest.mark.parametrize(
    ("winner", "loser", "learned"),
    [
        (("done", "one"), ("done", "two"), [("one", "two")]),
        (("done", "one"), ("done", " one\n"), [("one", None)]),
        (("done", "one"), ("cancelled", "tw"), [("one", None)]),
        (("done", "one"), ("done", " "), [("one", None)]),
        (("cancelled", "on"), ("done", "two"), []),
    ],
)
def test_a_preference_teaches_whole_answers_only(
    conn: sqlite3.Connection, log: Log, winner: tuple[str, str], loser: tuple[str, str], learned: list[tuple[str, str]]
) -> None:
    log("i_1", state=winner[0], response=winner[1])
    log("i_2", state=loser[0], response=loser[1])
    feedback.prefer(conn, "i_1", "i_2")
    assert [(e.response, e.rejected) for e in training_examples(conn, 0.5)] == learned


def test_a_preference_outlives_the_answer_that_lost(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", response="one")
    log("i_2", response="two")
    feedback.prefer(conn, "i_1", "i_2")
    conn.execute("DELETE FROM interactions WHERE id = 'i_2'")
    assert [(e.response, e.rejected) for e in training_examples(conn, 0.5)] == [("one", None)]
    conn.execute("DELETE FROM interactions WHERE id = 'i_1'")
    assert training_examples(conn, 0.5) == []


def test_kinds_of_feedback_that_are_not_known_teach_nothing(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    conn.execute(
        "INSERT INTO feedback (interaction, kind, value, text, source, at) "
        "VALUES ('i_1', 'copied', 1, 'x', 'later', 1.0)"
    )
    assert training_examples(conn, 0.5, undesirable=True) == []
    feedback.set_thumb(conn, "i_1", 1)
    assert ids(training_examples(conn, 0.5)) == ["i_1"]


@pytest.mark.parametrize(
    ("rating", "weight", "desirable"),
    [(5, 0.5, True), (4, 0.375, True), (3, None, None), (2, 1.0, False), (1, 1.0, False)],
)
def test_what_a_rating_teaches(
    conn: sqlite3.Connection, log: Log, rating: int, weight: float | None, desirable: bool | None
) -> None:
    log("i_1")
    feedback.set_rating(conn, "i_1", rating, at=7.0)
    found = training_examples(conn, 0.5, undesirable=True)
    assert [(e.response, e.created_at, e.weight, e.desirable, e.reward) for e in found] == (
        [] if weight is None else [("Blue.", 7.0, weight, desirable, 1.0 if desirable else -1.0)]
    )
    assert len(training_examples(conn, 0.5)) == (1 if desirable else 0)
    assert [e.id for e in training_examples(conn, 0.0)] == []


def test_a_thumb_beats_a_rating_and_an_edit_both(conn: sqlite3.Connection, log: Log) -> None:
    for name, thumb, rating in (("i_1", 1, 1), ("i_2", -1, 5)):
        log(name)
        feedback.set_rating(conn, name, rating, at=9.0)
        feedback.set_thumb(conn, name, thumb, at=1.0)
    up = Example("i_1", "c1", 1.0, QUESTION, "Blue.", 0.5)
    down = Example("i_2", "c1", 1.0, QUESTION, "Blue.", 1.0, desirable=False, reward=-1.0)
    assert training_examples(conn, 0.5, undesirable=True) == [up, down]
    for name in ("i_1", "i_2"):
        feedback.set_edit(conn, name, "Red.", at=20.0)
    assert [(e.response, e.weight) for e in training_examples(conn, 0.5)] == [("Red.", 1.0), ("Red.", 1.0)]


def test_a_rating_and_a_preference(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", response="one")
    log("i_2", response="two")
    feedback.prefer(conn, "i_1", "i_2", at=5.0)
    preferred = Example("i_1", "c1", 5.0, QUESTION, "one", 0.5, rejected="two")
    for rating in (3, 4, 5):
        feedback.set_rating(conn, "i_1", rating, at=6.0)
        assert training_examples(conn, 0.5) == [preferred]
    feedback.set_rating(conn, "i_1", 2, at=6.0)
    assert training_examples(conn, 0.5) == []
    feedback.set_thumb(conn, "i_1", 1, at=7.0)
    assert training_examples(conn, 0.5) == [preferred], "the thumb beats the rating"


def test_what_an_app_that_may_not_teach_was_told_is_left_out(conn: sqlite3.Connection, log: Log) -> None:
    for app in ("mail", "notes", ""):
        log(f"i_{app}", app=app)
        feedback.set_thumb(conn, f"i_{app}", 1, at=1.0)
    apps.change(conn, "mail", teaches=False)
    apps.change(conn, "notes", shared=True)
    assert ids(training_examples(conn, 0.5)) == ["i_notes", "i_"]
    apps.change(conn, "mail", teaches=True)
    assert ids(training_examples(conn, 0.5)) == ["i_mail", "i_notes", "i_"]


def test_only_some_can_be_asked_for(conn: sqlite3.Connection, log: Log) -> None:
    for n in range(4):
        log(f"i_{n}", response=f"r{n}")
    feedback.set_thumb(conn, "i_0", 1, at=9.0)
    feedback.set_edit(conn, "i_1", "x", at=8.0)
    feedback.prefer(conn, "i_2", "i_3", at=7.0)
    assert training_examples(conn, 0.5, only=["i_0", "i_2", "i_3", "i_gone", "i_0"]) == [
        Example("i_2", "c1", 7.0, QUESTION, "r2", 0.5, rejected="r3"),
        Example("i_0", "c1", 9.0, QUESTION, "r0", 0.5),
    ]
    assert training_examples(conn, 0.5, only=()) == []
    assert training_examples(conn, 0.5, only={"i_0", "i_1", "i_2"}) == training_examples(conn, 0.5)
    assert ids(training_examples(conn, 0.5, only=[*(f"x{n}" for n in range(100_000)), "i_1"])) == ["i_1"]


def test_the_time_for_some_does_not_depend_on_how_many_there_are(conn: sqlite3.Connection) -> None:
    statements: list[str] = []
    conn.set_trace_callback(statements.append)
    training_examples(conn, 0.5, only=["i_1"])
    conn.set_trace_callback(None)
    (statement,) = statements
    plan = [row[3] for row in conn.execute("EXPLAIN QUERY PLAN " + statement)]
    assert not [step for step in plan if step.startswith("SCAN") and step.split()[1] not in ("f", "json_each")], plan
    assert sum("SEARCH" in step for step in plan) == 4, plan


def pair(conn: sqlite3.Connection, name: str, prompt: str, response: str) -> None:
    source = name.partition("#")[0]
    conn.execute("INSERT INTO similar_pairs VALUES (?, ?, ?, ?, 0.5, 1.0)", (name, source, prompt, response))


def test_pairs_that_the_model_made_are_examples_like_their_source(conn: sqlite3.Connection, log: Log) -> None:
    told = [{"role": "system", "content": "Be brief."}, *QUESTION]
    log("i_1", messages=told)
    log("i_2")
    log("i_3")
    for name in ("i_2#1", "i_1#2", "i_1#10", "i_3#1"):
        pair(conn, name, f"ask {name}", f"say {name}")
    one = replace(example("i_1", "c7", at=5.0), messages=told)
    two, unwanted = example("i_2", "c8", at=6.0), replace(example("i_3"), desirable=False)
    made = examples_of(conn, [one, two, unwanted, example("i_4")], 0.25)
    system = told[:1]
    assert made == [
        Example("i_1#2", "c7", 5.0, [*system, {"role": "user", "content": "ask i_1#2"}], "say i_1#2", 0.25),
        Example("i_1#10", "c7", 5.0, [*system, {"role": "user", "content": "ask i_1#10"}], "say i_1#10", 0.25),
        Example("i_2#1", "c8", 6.0, [{"role": "user", "content": "ask i_2#1"}], "say i_2#1", 0.25),
    ]
    assert [(e.source, e.judges) for e in made] == [("i_1", False), ("i_1", False), ("i_2", False)]
    assert (one.source, one.judges, unwanted.judges) == ("i_1", True, False)
    conn.execute("DELETE FROM interactions WHERE id = 'i_1'")
    assert ids(examples_of(conn, [one, two], 0.25)) == ["i_2#1"]


def made_after(source: Example, n: int = 1) -> Example:
    return replace(source, id=f"{source.id}#{n}", response=f"copy{n} {source.id}", weight=0.5)


def test_what_was_made_after_an_example_is_on_its_side_and_never_judges() -> None:
    examples = [example(f"e{n}", at=n) for n in range(8)]
    made = [made_after(e, n) for e in examples for n in (1, 2)]
    train, held_out = split([*examples, *made], 0.25)
    assert ids(held_out) == ["e6", "e7"], "a quarter of what the user wrote"
    assert ids(train) == [f"e{n}" for n in range(6)] + [f"e{n}#{k}" for n in range(6) for k in (1, 2)]


def test_a_conversation_cut_in_time_takes_what_was_made_with_it() -> None:
    examples = [example(f"e{n}", "c", at=n) for n in range(8)]
    train, held_out = split([*examples, *map(made_after, examples)], 0.25)
    assert ids(held_out) == ["e6", "e7"]
    assert [name for name in ids(train) if "#" in name] == [f"e{n}#1" for n in range(6)]


def test_an_example_is_taught_if_what_was_made_after_it_was() -> None:
    examples = [example(f"e{n}", at=n) for n in range(8)]
    assert ids(split(examples, 0.25, taught=["e7#3"])[1]) == ["e5", "e6"]


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([], ""),
        ([{"role": "system", "content": "Be brief."}], ""),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
            "c",
        ),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "a"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "a b"),
        ([{"role": "user", "content": None}], ""),
    ],
)
def test_the_prompt_is_the_last_user_message(messages: list[dict[str, object]], prompt: str) -> None:
    assert Example("e", "c", 0.0, messages, "x", 1.0).prompt == prompt


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
    examples = [example(f"g{g}k{k}", f"g{g}", at=10 * g + k) for g, size in enumerate(sizes) for k in range(size)]
    assert len(split(examples, 0.3)[1]) == 2
    sizes = (1, 2, 2)  # held out: 2 or 4; 0.6 * 5 is 3: equally near
    examples = [example(f"g{g}k{k}", f"g{g}", at=10 * g + k) for g, size in enumerate(sizes) for k in range(size)]
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
    "examples", [[], [example("a")], [example("a", "c", "x"), example("b", "c", "x")], [example("a", "c", "x")] * 5]
)
def test_nothing_is_held_out_when_no_half_can_be_spared(examples: list[Example]) -> None:
    assert split(examples, 0.5) == (examples, [])


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (3, 1), (4, 2), (8, 4), (10, 5), (11, 5), (12, 5), (24, 6)])
def test_a_minimum_is_held_out_but_never_more_than_half(count: int, held_out: int) -> None:
    examples = [example(f"e{n}", at=n) for n in range(count)]
    assert ids(split(examples, 0.25, min_held_out=5)[1]) == [f"e{n}" for n in range(count - held_out, count)]


def test_conversations_are_cut_in_time_if_that_gives_the_minimum() -> None:
    examples = [example(f"e{n}", f"c{n // 3}", at=n) for n in range(12)]
    assert ids(split(examples, 0.25, min_held_out=3)[1]) == ["e9", "e10", "e11"]
    assert ids(split(examples, 0.25, min_held_out=5)[1]) == [f"e{n}" for n in range(6, 12)]
    examples = [example(f"e{n}", f"c{n // 4}", at=n) for n in range(10)]  # whole conversations: 2, or 6 of 10
    assert ids(split(examples, 0.25, min_held_out=3)[1]) == ["e7", "e8", "e9"]


def test_a_group_too_large_for_the_half_is_trained_on_and_older_ones_judge() -> None:
    examples = [example(f"e{n}", at=n) for n in range(5)]
    copies = [example(f"copy{n}", text="it is ever the same", at=10 + n) for n in range(7)]
    train, held_out = split([*examples, *copies], 0.25, min_held_out=3)
    assert ids(held_out) == ["e2", "e3", "e4"]
    assert len(train) == 9


def test_as_many_as_there_can_be_are_held_out_if_they_are_too_few() -> None:
    pairs = [example(f"e{n}", text=f"number{n // 4}", at=n) for n in range(9)]  # groups of 4, 4 and 1
    assert ids(split(pairs, 0.25, min_held_out=2)[1]) == ["e8"], "5 of 9 would be more than half"


def test_nothing_that_was_taught_is_held_out_nor_a_near_duplicate_of_it() -> None:
    lessons = [example(f"e{n}", at=n, text=text, question=question) for n, (question, text) in enumerate(LESSONS[:12])]
    question, text = LESSONS[1]
    copy = example("copy", at=20, question=question, text=text.replace("light", "colour"))
    old = [f"e{n}" for n in range(6)]
    train, held_out = split([*lessons, copy], 0.5, taught=old)
    assert ids(held_out) == ["e6", "e7", "e8", "e9", "e10", "e11"]
    assert ids(train) == [*old, "copy"]
    assert ids(split(lessons, 0.25, ["e2", "e7", "e8"], taught=old)[1]) == ["e7", "e8"], "e2 was taught since"
    assert split(lessons, 0.25, taught=ids(lessons)) == (lessons, [])


def test_what_shares_a_conversation_with_something_taught_is_held_out_last() -> None:
    examples = [example(f"e{n}", f"c{n // 2}", at=n) for n in range(12)]
    assert ids(split(examples, 0.25, taught=["e0", "e10"])[1]) == ["e8", "e9"], "e11 is left to training"
    one = [example(f"e{n}", "c", at=n) for n in range(8)]
    assert ids(split(one, 0.25, taught=["e7"])[1]) == ["e5", "e6"]


@pytest.mark.parametrize("order", [1, -1])
def test_planted_leakage_is_caught(order: int) -> None:
    """The newest answers, which would be held out, are the oldest with a word, a number or a sentence changed."""
    source = [example(f"e{n}", at=n, text=text, question=question) for n, (question, text) in enumerate(LESSONS[:12])]
    planted = [
        replace(source[0], response=LESSONS[0][1].replace("eight", "9")),
        replace(source[1], response=LESSONS[1][1].upper().replace(".", " -")),
        replace(source[2], response="Sure. " + LESSONS[2][1] + " Ask me again tomorrow."),
        replace(source[3], response=LESSONS[3][1].replace("plan", "table")),
    ]
    planted = [replace(e, id=f"{e.id} again", conversation=f"x{n}", created_at=20.0 + n) for n, e in enumerate(planted)]
    train, held_out = split([*source, *planted][::order], 0.25)
    assert {e.id[:2] for e in held_out} == {"e2", "e3"}
    assert not {e.id.split()[0] for e in train} & {e.id.split()[0] for e in held_out}
    assert len(held_out) == 4


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_an_impossible_share_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="held_out_fraction"):
        split([], fraction)


def test_an_impossible_minimum_is_refused() -> None:
    with pytest.raises(ValueError, match="min_held_out is 0"):
        split([], 0.5, min_held_out=0)


@st.composite
def example_lists(draw: st.DrawFn) -> list[Example]:
    specs = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8), st.integers(0, 20)), max_size=20))
    return [example(f"e{n}", f"c{c}", f"t{t}", float(at)) for n, (c, t, at) in enumerate(specs)]


@given(example_lists(), st.floats(0.05, 0.5))
def test_split_properties(examples: list[Example], fraction: float) -> None:
    train, held_out = split(examples, fraction)
    assert sorted(ids(train + held_out)) == sorted(ids(examples))
    assert not {e.response for e in train} & {e.response for e in held_out}
    assert 2 * len(held_out) <= len(examples)


@given(st.integers(3, 60), st.floats(0.05, 0.5))
def test_unrelated_examples_are_cut_exactly_by_time(n: int, fraction: float) -> None:
    train, held_out = split([example(f"e{k}", at=k) for k in range(n)], fraction)
    assert len(held_out) == min(n // 2, max(2, int(fraction * n + 0.5)))
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
