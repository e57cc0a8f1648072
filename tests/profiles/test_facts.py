from __future__ import annotations

import sqlite3

import pytest

from edgepd.errors import NotFoundError, RequestError
from edgepd_profiles import apps, facts
from edgepd_profiles.facts import MAX_CHARACTERS, Fact


def texts(found: list[Fact]) -> list[str]:
    return [fact.text for fact in found]


def test_a_fact_is_remembered_once_and_forgotten(conn: sqlite3.Connection) -> None:
    first = facts.remember(conn, "  I am\n vegetarian. ", at=5.0)
    assert first == Fact(1, "", "I am vegetarian.", 5.0)
    assert facts.remember(conn, "I am vegetarian.", at=9.0) == first
    assert facts.remember(conn, "I am vegetarian.", "mail", at=9.0).id == 2
    assert facts.forget_fact(conn, 1) == first
    assert texts(facts.listing(conn)) == ["I am vegetarian."]
    with pytest.raises(NotFoundError, match="fact 1 is not known"):
        facts.forget_fact(conn, 1)
    assert facts.remember(conn, "I am vegetarian.", at=9.0).id == 3, "no number is used twice"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" \n", "the fact is empty"),
        ("x" * (MAX_CHARACTERS + 1), "has 2001 characters, but at most 2000"),
        ("half \ud800", "half a character at position 5"),
        ("my PIN is 4831", "a secret in it \\(labelled secret\\)"),
    ],
)
def test_what_is_no_fact_is_refused(conn: sqlite3.Connection, text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        facts.remember(conn, text)
    assert "4831" not in str(refused.value)
    assert facts.listing(conn) == []


def test_there_is_a_most(conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "MAX_FACTS", 2)
    for text in ("one", "two"):
        facts.remember(conn, text)
    with pytest.raises(RequestError, match="there are 2 facts"):
        facts.remember(conn, "three")
    assert facts.remember(conn, "two").id == 2


def test_an_app_sees_its_own_those_of_all_and_shared_ones(conn: sqlite3.Connection) -> None:
    for app in ("", "mail", "notes", "diary"):
        facts.remember(conn, f"Tea from {app or 'all'}.", app)
    apps.change(conn, "notes", shared=True)
    seen = ["Tea from all.", "Tea from mail.", "Tea from notes."]
    assert texts(facts.listing(conn, "mail")) == seen
    assert sorted(texts(facts.matching(conn, "tea", 9, "mail"))) == seen
    assert len(facts.listing(conn)) == 4
    assert facts.get(conn, 3, "mail").app == "notes"
    with pytest.raises(NotFoundError):
        facts.get(conn, 4, "mail")
    with pytest.raises(NotFoundError):
        facts.forget_fact(conn, 4, "mail")


def test_a_fact_matches_if_it_shares_a_content_word(conn: sqlite3.Connection) -> None:
    for text in (
        "My cat is called Minka.",
        "I live in Oslo.",
        "My allergies: nuts, wool.",
        "The cat sleeps in the car.",
    ):
        facts.remember(conn, text)
    assert texts(facts.matching(conn, "What is the name of my cats? Is Minka good?", 9))[0] == "My cat is called Minka."
    assert texts(facts.matching(conn, "Am I allergic?", 9)) == ["My allergies: nuts, wool."]
    assert facts.matching(conn, "What is my ... in the ...?", 9) == []
    assert len(facts.matching(conn, "cats", 1)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "Answer in German.",
        "please always use metric units",
        "Call me Anna.",
        "I'm a nurse.",
        "I am vegetarian",
        "My name is Anna.",
        "Ich heiße Anna.",
        "Mein Name ist Anna",
        "Antworte kurz.",
        "Je suis médecin.",
        "Je m'appelle Anna",
        "Soy médico.",
        "Me llamo Ana",
    ],
)
def test_facts_about_answers_and_the_user_concern_every_answer(text: str) -> None:
    assert facts.is_standing(text)


@pytest.mark.parametrize("text", ["My sister lives in Oslo.", "The answer is 42.", "I ambled home.", "Usage: tea", ""])
def test_other_facts_do_not(text: str) -> None:
    assert not facts.is_standing(text)
