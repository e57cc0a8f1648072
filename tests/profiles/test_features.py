"""What one exchange says of the user."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd_profiles import features, wording
from edgepd_profiles.features import contributions, interests, wanted
from edgepd_profiles.feedback_kinds import CHANNELS, Feedback
from edgepd_profiles.interactions import Interaction

MAIL = """Dear Ann,

the harbour opens again on Monday and the ferry leaves at noon from the old quay.

Kind regards,
Jo"""


def exchange(prompt: str = "Name a colour.", response: str = "Blue.", **fields: object) -> Interaction:
    values: dict[str, object] = {
        "id": "i_1",
        "conversation": "c1",
        "created_at": 3600.0 * 30,
        "app": "cli",
        "model": "smollm2",
        "generation": 1,
        "messages": [{"role": "user", "content": prompt}],
        "prompt": prompt,
        "response": response,
        "state": "done",
    }
    return Interaction(**(values | fields))  # type: ignore[arg-type]


def said(kind: str, value: int | None = None, text: str | None = None) -> Feedback:
    return Feedback("i_1", kind, value, text, "user", 5.0)


def of(kind: str, interaction: Interaction, *feedback: Feedback) -> dict[str, float]:
    return {c.name: c.value for c in contributions(interaction, feedback) if c.kind == kind}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("Please explain how the tide and the moon move the sea.", ["tide", "moon", "move", "sea"]),
        ("Bread, bread and butter; then bread.", ["bread", "butter"]),
        ("Wie backe ich ein Brot mit Sauerteig?", ["backe", "brot", "sauerteig"]),
        ("Quelle est la recette du pain au levain ?", ["recette", "pain", "levain"]),
        ("¿Cuál es la receta del pan con masa madre?", ["receta", "pan", "masa", "madre"]),
        ("Mail anna@harbour.example about https://ferry.example/x?y=quay and room 12b or 404", ["mail", "room"]),
        ("My password: Tr0ub4dor&3x for the router", ["password", "router"]),
        ("", []),
    ],
)
def test_interests_are_words_of_the_topic(prompt: str, words: list[str]) -> None:
    assert interests(prompt) == words


def test_there_are_at_most_eight_interests_and_the_most_frequent_come_first() -> None:
    names = "alder birch cedar elm fir gum hazel ivy juniper kapok larch".split()  # noqa: SIM905
    assert interests(" ".join([*names, "larch"])) == ["larch", *("alder birch cedar elm fir gum hazel".split())]  # noqa: SIM905


@given(st.text(max_size=200))
def test_interests_of_any_text_are_private_and_plain(prompt: str) -> None:
    found = interests(prompt)
    assert len(found) <= 8
    assert len(set(found)) == len(found)
    for word in found:
        assert 3 <= len(word) <= 40
        assert word.isalpha()
        assert word not in wording.ALL_STOP_WORDS


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The ferry leaves from the old quay at noon.", "en"),
        ("Die Fähre fährt um zwölf vom alten Kai ab.", "de"),
        ("Le bateau part du vieux quai à midi et revient dans la soirée.", "fr"),
        ("El barco sale del muelle viejo a las doce y vuelve por la tarde.", "es"),
        ("Blue.", None),
        ("12 34", None),
    ],
)
def test_the_language_is_told_by_little_words(text: str, language: str | None) -> None:
    assert wording.language(text) == language


@pytest.mark.parametrize(
    ("kinds", "channel"),
    [
        ([], "unjudged"),
        (["copied"], "passive"),
        (["copied", "regenerated"], "implicit"),
        (["regenerated", "taken"], "suggestion"),
        (["taken", "survey"], "survey"),
        (["survey", "thumb", "copied"], "active"),
    ],
)
def test_all_of_an_exchange_counts_with_its_strongest_channel(kinds: list[str], channel: str) -> None:
    assert {c.channel for c in contributions(exchange(), [said(kind, 1) for kind in kinds])} == {channel}
    assert set(features.STRENGTH) == {*CHANNELS, "unjudged"}


@pytest.mark.parametrize(
    ("feedback", "sign"),
    [
        ([], 0),
        ([said("thumb", 1)], 1),
        ([said("thumb", -1)], -1),
        ([said("thumb", -1), said("copied")], -1),
        ([said("preferred", None, "i_2")], 1),
        ([said("rating", 4)], 1),
        ([said("rating", 3)], 0),
        ([said("rating", 2)], -1),
        ([said("copied")], 1),
        ([said("regenerated")], -1),
        ([said("corrected", None, "shorter")], 0),
        ([said("dwell", 3000)], 0),
    ],
)
def test_what_was_wanted(feedback: list[Feedback], sign: int) -> None:
    assert wanted(exchange(), feedback) == ("Blue.", sign)


def test_an_edit_decides_and_is_the_wanted_text() -> None:
    assert wanted(exchange(), [said("edit", None, "Red."), said("thumb", -1)]) == ("Red.", 1)


@pytest.mark.parametrize(("state", "reason"), [("cancelled", None), ("done", "length")])
def test_an_answer_that_broke_off_is_no_model_even_if_it_was_liked(state: str, reason: str | None) -> None:
    assert wanted(exchange(state=state, finish_reason=reason), [said("thumb", 1)])[1] == 0


def test_the_form_of_a_wanted_mail() -> None:
    assert of("preference", exchange(response=MAIL), said("thumb", 1)) == {
        "*": 1,
        "*exchanges": 1,
        "words": pytest.approx(math.log(21)),
        "format:plain": 1,
        "tone:greeting": 1,
        "tone:farewell": 1,
        "language:en": 1,
        "opening:Dear Ann,": 1,
        "closing:Kind regards, Jo": 1,
    }


def test_an_unwanted_text_counts_against_its_form_and_not_for_its_length() -> None:
    found = of("preference", exchange(response="- tide!\n- moon"), said("thumb", -1))
    assert found == {
        "*": -1, "*exchanges": 1, "format:list": -1, "tone:exclamation": -1, "tone:lower case": -1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("1. One\n2. Two", "format:numbered list"),
        ("* One\n* Two", "format:list"),
        ("```\nx = 1\n```", "format:code"),
        ("# Title\nText", "format:headings"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "format:table"),
        ("One line.", "format:plain"),
        ("Bread 🍞", "tone:emoji"),
        ("Sehr geehrte Frau Amsel", "tone:formal"),
        ("In short: " + "Tides follow the moon. " * 3, "opening:In short:"),
        ("Tides follow the moon. " * 3 + "Over to you!", "closing:Over to you!"),
        ("Here comes what matters about tides and moons and seas", "opening:Here comes what"),
    ],
)
def test_forms(text: str, name: str) -> None:
    assert name in wording.traits(text)


@pytest.mark.parametrize(
    "text",
    [
        "It is the most of all that was there once in a sea",  # says nothing of its own
        "Room 12: the key is under the mat and the tea is on the table",  # a number
        "- Tides, that is: the sea and the moon and the sun and the wind",  # a list item
        "The password is: correcthorse9 and you must keep it well, dear Ann",  # a secret behind it
    ],
)
def test_what_is_no_opening(text: str) -> None:
    assert not [name for name in wording.traits(text) if name.startswith("opening:")]


def test_nothing_is_read_off_the_form_of_an_unjudged_or_other_exchange() -> None:
    assert of("preference", exchange()) == {"*exchanges": 1}
    assert of("preference", exchange(kind="tools"), said("thumb", 1)) == {"*exchanges": 1}


def test_what_the_user_asked_for() -> None:
    given = [said("corrected", None, "language:de"), said("comment", None, "too long")]
    assert of("preference", exchange(), *given) == {"*exchanges": 1, "asked:language:de": 1, "asked:shorter": 1}
    assert of("preference", exchange(), said("corrected", None, "not a rule")) == {"*exchanges": 1}


def test_context_and_history_come_from_the_exchange_alone() -> None:
    messages = [
        {"role": "user", "content": "What is the tide?"},
        {"role": "assistant", "content": "Water."},
        {"role": "user", "content": "Who makes the tide go out?"},
    ]
    long = exchange("Who makes the tide go out?", messages=messages, state="cancelled")
    assert of("context", long) == {
        "*": 1, "*hour:30": 1, "app:cli": 1, "session:2 to 4 questions": 1, "language:en": 1,
    }  # fmt: skip
    assert of("history", long) == {"*": 1, "turns": 2, "ended:cancelled": 1, "returns to a topic": 1}
    assert of("history", exchange(kind="tools")) == {"*": 1, "turns": 1, "kind:tools": 1}


def test_quality_of_feedback() -> None:
    assert of("quality", exchange()) == {"*": 1}
    assert of("quality", exchange(), said("thumb", 1), said("rating", 2), said("comment", None, "Hm.")) == {
        "*": 1,
        "judged": 1,
        "given:thumb": 1,
        "given:rating": 1,
        "given:comment": 1,
        "satisfaction": 0.25,
        "consistency": 0,
    }
    assert of("quality", exchange(), said("thumb", 1), said("copied"))["consistency"] == 1
