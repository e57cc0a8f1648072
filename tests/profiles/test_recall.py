from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from edgepd_profiles import apps, facts, feedback, recall
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.recall import RecallIndex

Log = Callable[..., Interaction]


@pytest.fixture
def index() -> Iterator[RecallIndex]:
    with closing(RecallIndex()) as made:
        yield made


@pytest.fixture
def accept(conn: sqlite3.Connection, log: Log) -> Callable[..., None]:
    """Store an exchange with a thumb up at a time of its own."""

    def accept_one(name: str, prompt: str, response: str, app: str = "cli", at: float = 2000.0, **more: object) -> None:
        log(name, messages=[{"role": "user", "content": prompt}], response=response, app=app, **more)
        feedback.set_thumb(conn, name, 1, at=at)

    return accept_one


def ids(found: list[recall.Recalled]) -> list[str]:
    return [one.id for one in found]


def test_facts_and_accepted_answers_are_found_together(
    conn: sqlite3.Connection, accept: Callable[..., None], index: RecallIndex
) -> None:
    accept("a", "How hot is green tea?", "Eighty degrees.", at=7.0)
    accept("b", "How old is gold?", "Very.")
    facts.remember(conn, "I take my tea without milk.", at=5.0)
    facts.remember(conn, "My car is red.")
    found = index.recall(conn, "How do I like tea?", 9)
    assert {(f.kind, f.id, f.text, f.prompt, f.at) for f in found} == {
        ("fact", "1", "I take my tea without milk.", "", 5.0),
        ("answer", "a", "Eighty degrees.", "How hot is green tea?", 7.0),
    }
    assert found[0].score >= found[1].score > 0
    assert recall.recall(conn, "How do I like tea?", 9) == found
    assert len(index.recall(conn, "tea", 1)) == 1
    assert index.recall(conn, "What is it?", 9) == []


def test_what_counts_as_accepted(conn: sqlite3.Connection, log: Log, index: RecallIndex) -> None:
    for name in ("none", "up", "down", "five", "three", "edit", "better", "worse", "torn", "up but one", "cut"):
        state, reason = ("cancelled" if name == "torn" else "done"), ("length" if name == "cut" else "stop")
        log(name, response="Tea.", state=state, finish_reason=reason)
    for name, value in (("up", 1), ("down", -1), ("torn", 1), ("cut", 1), ("edit", -1), ("up but one", 1)):
        feedback.set_thumb(conn, name, value)
    for name, value in (("five", 5), ("three", 3), ("up but one", 1)):
        feedback.set_rating(conn, name, value)
    feedback.set_edit(conn, "edit", "Better tea.")
    feedback.prefer(conn, "better", "worse")
    log("tools", kind="tools", response="Tea.")
    feedback.set_thumb(conn, "tools", 1)
    found = {f.id: f.text for f in index.recall(conn, "tea", 20)}
    assert found == {"up": "Tea.", "five": "Tea.", "edit": "Better tea.", "better": "Tea."}


def test_an_index_follows_what_changes(
    conn: sqlite3.Connection, accept: Callable[..., None], index: RecallIndex
) -> None:
    accept("a", "tea?", "hot", at=10.0)
    assert ids(index.recall(conn, "tea", 9)) == ["a"]
    accept("b", "tea or coffee?", "both", at=11.0)
    number = facts.remember(conn, "tea is good").id
    assert sorted(ids(index.recall(conn, "tea", 9))) == ["1", "a", "b"]
    feedback.set_edit(conn, "a", "milk", at=12.0)
    assert ids(index.recall(conn, "milk", 9)) == ["a"]
    assert ids(index.recall(conn, "hot", 9)) == []
    feedback.set_thumb(conn, "b", -1, at=13.0)
    facts.forget_fact(conn, number)
    assert ids(index.recall(conn, "tea", 9)) == ["a"]
    feedback.remove(conn, "a")
    assert index.recall(conn, "tea", 9) == []
    accept("c", "tea again?", "yes", at=9.0)  # an import may be older than all that is there
    assert ids(index.recall(conn, "tea", 9)) == ["c"]
    conn.execute("DELETE FROM interactions WHERE id = 'c'")
    assert index.recall(conn, "tea", 9) == []


def test_clearing_begins_anew(conn: sqlite3.Connection, accept: Callable[..., None], index: RecallIndex) -> None:
    accept("a", "tea?", "hot")
    before = index.recall(conn, "tea", 9)
    index.clear()
    assert index.recall(conn, "tea", 9) == before != []


def test_an_app_finds_its_own_what_is_common_and_what_is_shared(
    conn: sqlite3.Connection, accept: Callable[..., None], index: RecallIndex
) -> None:
    for app in ("", "mail", "notes"):
        accept(app or "all", "Is tea hot or cold?", f"It is {app}.", app)
        facts.remember(conn, f"tea {app}", app)
    assert sorted(ids(index.recall(conn, "tea", 9, "mail"))) == ["1", "2", "all", "mail"]
    assert [e.id for e in index.shots(conn, "red tea", 9, "notes")] != []
    assert {e.id for e in index.shots(conn, "red tea", 9, "notes")} <= {"notes", "all"}
    apps.change(conn, "notes", shared=True)
    assert sorted(ids(index.recall(conn, "tea", 9, "mail"))) == ["1", "2", "3", "all", "mail", "notes"]
    assert len(index.recall(conn, "tea", 9)) == 6
    apps.change(conn, "notes", shared=False)
    assert sorted(ids(index.recall(conn, "tea", 9, "mail"))) == ["1", "2", "all", "mail"]


def test_the_newest_accepted_ones_are_searched(
    conn: sqlite3.Connection, accept: Callable[..., None], index: RecallIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "NEWEST", 4)
    monkeypatch.setattr(recall, "SLACK", 1)
    for n in range(8):
        accept(f"mine{n}", "tea?", f"cup {n}", "mail", at=float(n))
        accept(f"other{n}", "tea?", f"pot {n}", "notes", at=100.0 + n)
    assert sorted(ids(index.recall(conn, "tea", 99, "mail"))) == ["mine4", "mine5", "mine6", "mine7"]
    accept("mine8", "tea?", "cup 8", "mail", at=200.0)
    accept("mine9", "tea?", "cup 9", "mail", at=201.0)
    assert sorted(ids(index.recall(conn, "tea", 99, "mail"))) == ["mine6", "mine7", "mine8", "mine9"]


def test_shots_are_whole_wanted_exchanges(
    conn: sqlite3.Connection, accept: Callable[..., None], index: RecallIndex
) -> None:
    accept("a", "How hot is green tea?", "Eighty degrees.")
    feedback.set_edit(conn, "a", "80 °C.", at=3000.0)
    (shot,) = index.shots(conn, "How strong is black tea?", 2)
    assert (shot.id, shot.prompt, shot.response, shot.created_at) == ("a", "How hot is green tea?", "80 °C.", 3000.0)
    assert [e.id for e in recall.shots(conn, "How strong is black tea?", 2)] == ["a"]
    assert index.shots(conn, "How strong is black tea?", 2, without={"a"}) == []


def test_where_too_few_are_about_it_the_newest_are_shown(
    conn: sqlite3.Connection, accept: Callable[..., None], index: RecallIndex
) -> None:
    accept("tea", "How hot is green tea?", "Eighty degrees.", at=1.0)
    accept("bike", "How do I mend a tyre?", "Take the wheel off.", at=2.0)
    accept("otter", "When do otters sleep?", "At night.", at=3.0)
    assert [e.id for e in index.shots(conn, "How strong is black tea?", 2)] == ["tea", "otter"]
    assert [e.id for e in index.shots(conn, "How strong is black tea?", 9)] == ["tea", "otter", "bike"]
    assert [e.id for e in index.shots(conn, "Who wrote Faust?", 1, without={"otter"})] == ["bike"]


def test_what_is_never_shown_to_the_model(
    conn: sqlite3.Connection, accept: Callable[..., None], index: RecallIndex
) -> None:
    accept("same", "Please tell me a tea joke about dragons", "A joke.")
    accept("secret", "Where is the tea?", "Behind the door; the PIN is 4831.")
    accept("long", "Why is tea so old?", "tea " * 1500)
    accept("once", "What goes with strong tea?", "Two spoons of sugar and a little milk, or a slice of lemon.", at=1.0)
    accept("twice", "With strong tea, what goes?", "Two spoons of sugar and a little milk, or a slice of lemon.")
    found = [e.id for e in index.shots(conn, "Tell me a joke about dragons and tea", 9)]
    assert found in (["once"], ["twice"])
    assert {"same", "secret"} <= set(ids(index.recall(conn, "tea", 9))), "the user may see all of it"


def test_few_facts_are_all_told(conn: sqlite3.Connection, index: RecallIndex) -> None:
    for n in range(8):
        facts.remember(conn, f"Item {n} is on shelf {n}.")
    assert [f.id for f in index.facts(conn, "Why is the sky blue?", 8)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [f.id for f in index.facts(conn, "Why is the sky blue?", 3)] == [1, 2, 3]


def test_of_many_facts_those_that_fit_are_told(conn: sqlite3.Connection, index: RecallIndex) -> None:
    for n in range(20):
        facts.remember(conn, f"Item {n} is on shelf {n}.")
    facts.remember(conn, "I am vegetarian, and so are my guests.")
    facts.remember(conn, "Answer in German.")
    facts.remember(conn, "My sister Ida lives in Oslo.")
    told = [f.text for f in index.facts(conn, "When does Ida come?", 8)]
    assert told == ["Answer in German.", "I am vegetarian, and so are my guests.", "My sister Ida lives in Oslo."]
    told = [f.text for f in index.facts(conn, "When does Ida come?", 8, room=45)]
    assert told == ["Answer in German.", "My sister Ida lives in Oslo."]


def test_facts_and_answers_come_together_in_any_order(
    conn: sqlite3.Connection, accept: Callable[..., None], index: RecallIndex
) -> None:
    facts.remember(conn, "Tea is hot.")
    accept("a", "Is tea old?", "Yes.")
    assert [f.id for f in index.facts(conn, "tea", 8)] == [1]
    assert [e.id for e in index.shots(conn, "red tea", 8)] == ["a"]
    facts.remember(conn, "Tea is red.")
    accept("b", "Is tea good?", "No.", at=9000.0)
    assert [f.id for f in index.facts(conn, "tea", 8)] == [1, 2]
    assert sorted(ids(index.recall(conn, "tea", 8))) == ["1", "2", "a", "b"]


def test_at_most_four_facts_concern_every_answer(conn: sqlite3.Connection, index: RecallIndex) -> None:
    for n in range(20):
        facts.remember(conn, f"Always do thing {n}.")
    assert [f.id for f in index.facts(conn, "Why?", 8)] == [20, 19, 18, 17]
    assert [f.id for f in index.facts(conn, "Which is thing 3?", 5)] == [20, 19, 18, 17, 4]
