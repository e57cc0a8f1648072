"""What of the profile is put before a question, and what never is.

The real API, profile and personaliser over a scripted engine, for which a token is a byte: so the room is exact.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from edgepd.errors import TemplateError
from edgepd.settings import Profile, Settings
from edgepd_daemon.personal import MARGIN, Proven, proven
from edgepd_profiles import apps, facts, feedback, interactions, profile
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.registry import Generation
from tests.daemon.running import Json
from tests.daemon.scripted import Scripted, scripted

T = TypeVar("T")
PUMPKIN = "Which spices belong into a soup of pumpkins, and which do not?"
KNOWN = "What you know about the user:"
NOTHING: Json = {"profile": False, "facts": [], "shots": []}


@pytest.fixture
def served() -> Iterator[Scripted]:
    with scripted() as started:
        yield started


def with_settings(**fields: Any) -> Any:
    return scripted(settings=Settings(profile=Profile(**fields)))


def written(served: Scripted, job: Callable[[sqlite3.Connection], T]) -> T:
    return served.store.write(job).result()


def remember(served: Scripted, text: str, app: str = "") -> int:
    return written(served, lambda conn: facts.remember(conn, text, app).id)


def accept(served: Scripted, name: str, question: str, answer: str, app: str = "") -> None:
    """Store an answer that the user has written himself."""
    row = Interaction(name, name, 1000.0, app, "tiny", 1, user(question), response="Hm.", state="done")
    written(served, lambda conn: interactions.begin(conn, row))
    written(served, lambda conn: feedback.set_edit(conn, name, answer))


def user(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


def ask(served: Scripted, messages: str | list[Json], **fields: Any) -> Json:
    """Ask, and return the answer's fields."""
    given = user(messages) if isinstance(messages, str) else messages
    response = served.client.post("/v1/chat/completions", json={"messages": given, **fields})
    assert response.is_success, response.text
    body: Json = response.json()
    return body


def shown(served: Scripted) -> list[Json]:
    """Return the conversation that the model got last."""
    return served.engine.rendered[-1][0]


def test_nothing_is_known_so_nothing_is_told(served: Scripted) -> None:
    answer = ask(served, "Hello")
    assert (answer["personal"], shown(served)) == ({}, user("Hello"))


def test_a_fact_is_told_and_the_conversation_is_stored_as_it_came(served: Scripted) -> None:
    number = remember(served, "I am vegetarian")
    answer = ask(served, "What shall I cook?")
    assert shown(served) == [{"role": "system", "content": f"{KNOWN}\n- I am vegetarian"}, *user("What shall I cook?")]
    assert answer["personal"] == NOTHING | {"facts": [number]}
    (row,) = served.rows()
    assert (row.messages, row.personal) == (user("What shall I cook?"), NOTHING | {"facts": [number]})
    assert row.prompt == "What shall I cook?"


def test_what_the_client_says_to_the_model_comes_after_it(served: Scripted) -> None:
    remember(served, "I am vegetarian")
    mine = [{"role": "system", "content": "You are a pirate."}, *user("Hello")]
    ask(served, mine)
    assert shown(served)[0] == {"role": "system", "content": f"{KNOWN}\n- I am vegetarian\n\nYou are a pirate."}
    assert shown(served)[1:] == user("Hello")
    assert served.rows()[0].messages == mine


def test_what_was_set_by_hand_is_told_with_every_question(served: Scripted) -> None:
    written(served, lambda conn: profile.edit(conn, "", "preference", "format:list", value=True))
    answer = ask(served, "Hello")
    assert answer["personal"] == NOTHING | {"profile": True}
    assert shown(served)[0]["content"] == (
        "Answer the way this user likes it. Write a list with a bullet for each point."
    )


@pytest.mark.parametrize(("prompt", "told"), [("auto", False), ("on", True), ("off", False)])
def test_what_was_only_observed_is_told_if_that_is_wanted(prompt: str, told: bool) -> None:
    """With `auto` it is told as soon as it was measured to help: see the tests of `proven`."""
    with with_settings(prompt=prompt) as served:
        for n in range(6):
            accept(served, f"a{n}", f"Question number {n} on gardens", f"- point {n}\n- another one\n- a third")
        written(served, lambda conn: profile.catch_up(conn, 1e6))
        assert ask(served, "Hello")["personal"].get("profile", False) is told
        assert ("Write a list" in str(shown(served))) is told


def test_off_is_off_for_what_was_set_by_hand_too() -> None:
    with with_settings(prompt="off", facts=False) as served:
        written(served, lambda conn: profile.edit(conn, "", "preference", "format:list", value=True))
        remember(served, "I am vegetarian")
        assert ask(served, "Hello")["personal"] == {}


def test_accepted_answers_are_shown_if_that_is_wanted() -> None:
    with with_settings(retrieval="on") as served:
        accept(served, "soup", "How do I cook tomato soup?", "Roast the tomatoes first.")
        accept(served, "bike", "How do I mend a tyre?", "Take the wheel off.")
        answer = ask(served, PUMPKIN)
        assert answer["personal"] == NOTHING | {"shots": ["soup", "bike"]}  # what is about it comes first
        assert shown(served) == [
            *user("How do I cook tomato soup?"),
            {"role": "assistant", "content": "Roast the tomatoes first."},
            *user("How do I mend a tyre?"),
            {"role": "assistant", "content": "Take the wheel off."},
            *user(PUMPKIN),
        ]
        asked_again = ask(served, "How do I cook tomato soup?")["personal"]
        assert asked_again == NOTHING | {"shots": ["bike"]}  # its own answer would be copied


def test_by_default_they_are_not_shown_until_that_was_measured_to_help(served: Scripted) -> None:
    accept(served, "soup", "How do I cook tomato soup?", "Roast the tomatoes first.")
    assert ask(served, PUMPKIN)["personal"] == {}
    arms = {"arms": {"base": 3.0, "profile": 2.9, "retrieval": 2.8, "adapter": 2.5, "adapter+retrieval": 2.0}}
    base, active = served.generations.listing()
    measured = [base, dataclasses.replace(active, scores=arms)]
    served.generations.listing = lambda: measured  # type: ignore[method-assign]
    assert ask(served, PUMPKIN)["personal"] == NOTHING | {"shots": ["soup"]}


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "base"},
        {"model": "tiny@2"},
        {"personal": False},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
    ],
)
def test_where_nothing_is_told(served: Scripted, fields: Json) -> None:
    remember(served, "I am vegetarian")
    answer = ask(served, "Hello", **fields)
    assert (answer["personal"], shown(served)) == ({}, user("Hello"))
    for name in ("default", "tiny"):
        assert ask(served, "Hello", model=name)["personal"] == NOTHING | {"facts": [1]}


def test_nothing_is_told_in_a_conversation_with_tools_or_before_a_bare_prompt(served: Scripted) -> None:
    remember(served, "I am vegetarian")
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        *user("Hello"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ]
    assert ask(served, turns)["personal"] == {}
    assert "vegetarian" not in str(shown(served))
    response = served.client.post("/v1/completions", json={"prompt": "Once"})
    assert response.json()["personal"] == {}
    assert bytes(served.engine.requests[-1].prompt) == b"Once"


def test_an_app_is_told_only_what_it_may_see() -> None:
    with with_settings(retrieval="on") as served:
        remember(served, "I am ill", app="diary")
        common = remember(served, "I live in Ghent")
        accept(served, "soup", "How do I cook tomato soup?", "Roast the tomatoes first.", app="diary")
        question = PUMPKIN
        assert ask(served, question, app="mail")["personal"] == NOTHING | {"facts": [common]}
        assert ask(served, question)["personal"] == NOTHING | {"facts": [common]}  # nobody is anybody, not the owner
        assert ask(served, question, app="diary")["personal"] == {
            "profile": False,
            "facts": [1, common],
            "shots": ["soup"],
        }
        written(served, lambda conn: apps.change(conn, "diary", shared=True))
        assert ask(served, question, app="mail")["personal"]["facts"] == [1, common]


def test_there_is_only_so_much_room() -> None:
    """384 tokens by default; what does not fit is left out, and what is shorter may still fit."""
    with scripted() as served:
        written(served, lambda conn: [facts.remember(conn, name * size) for name, size in (("a", 200), ("b", 185))])
        written(served, lambda conn: facts.remember(conn, "c" * 184))
        assert ask(served, "Hello")["personal"]["facts"] == [1, 3]
    with with_settings(context_tokens=0) as served:
        remember(served, "I am vegetarian")
        assert ask(served, "Hello")["personal"] == {}


def test_never_more_than_a_quarter_of_the_context() -> None:
    with scripted(context_tokens=400) as served:
        remember(served, "d" * 101)
        fits = remember(served, "e" * 100)
        assert ask(served, "Hello")["personal"]["facts"] == [fits]


def test_a_long_question_goes_without(served: Scripted) -> None:
    """The answer needs room too, so a prompt is not extended beyond three quarters of the context."""
    remember(served, "I am vegetarian")
    added = len(f"system: {KNOWN}\n- I am vegetarian\nuser: \n")
    fits = "x" * (1536 - added)
    assert ask(served, fits)["personal"] == NOTHING | {"facts": [1]}
    assert len(served.engine.requests[-1].prompt) == 1536
    assert ask(served, fits + "x")["personal"] == {}
    assert len(served.engine.requests[-1].prompt) == len(f"user: {fits}x\n")
    assert served.rows()[-1].personal == {}


def test_a_model_that_takes_no_system_message_answers_all_the_same(
    served: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(served, "I am vegetarian")
    encode = served.engine.encode

    def strict(version: Any, messages: Any, tools: Any = None) -> list[int]:
        if messages[0]["role"] == "system":
            raise TemplateError("the chat template refuses these messages: System role not supported")
        return encode(version, messages, tools)

    monkeypatch.setattr(served.engine, "encode", strict)
    assert ask(served, "Hello")["personal"] == {}


def test_as_a_conversation_goes_on_the_beginning_stays_the_same() -> None:
    """Facts that later questions bring up come after those that were told, and take no room from what was shown."""
    with with_settings(retrieval="on", context_tokens=160) as served:
        texts = [
            "My bicycle is red",
            "My soup pot is made of copper",
            *(f"Secret number {n} is a bore" for n in "abcdefg"),
        ]
        numbers = [remember(served, text) for text in texts]
        assert len(numbers) > 8  # fewer would all be told with every question
        accept(served, "stew", "How long does a stew cook with a pot lid?", "Two hours, with the lid on.")
        turns = user("How do I cook in a soup pot?")
        first = ask(served, turns)
        before = shown(served)
        assert first["personal"] == {"profile": False, "facts": [numbers[1]], "shots": ["stew"]}
        turns += [{"role": "assistant", "content": "With water."}, *user("And which colour has my bicycle?")]
        second = ask(served, turns)
        after = shown(served)
        assert second["personal"] == {"profile": False, "facts": [numbers[1], numbers[0]], "shots": ["stew"]}
        assert after[0]["content"] == f"{before[0]['content']}\n- {texts[0]}"
        assert after[1:3] == before[1:3]
        turns += [{"role": "assistant", "content": "Red."}, *user("What do you know of secret numbers a, b and c?")]
        third = ask(served, turns)
        assert third["personal"]["facts"][:2] == [numbers[1], numbers[0]]
        assert third["personal"]["shots"] == ["stew"]  # although there was no room for more facts
        assert shown(served)[0]["content"].startswith(after[0]["content"])


def test_an_app_that_is_not_stored(served: Scripted) -> None:
    written(served, lambda conn: apps.change(conn, "diary", stored=False))
    remember(served, "I am vegetarian")
    answer = ask(served, "Hello", app="diary")
    assert (answer["logged"], answer["interaction_id"], served.rows()) == (False, None, [])
    assert answer["personal"] == NOTHING | {"facts": [1]}  # what is known is told; only nothing is learned
    assert served.engine.requests[-1].persist is False
    assert ask(served, "Hello", app="mail")["logged"] is True
    assert served.engine.requests[-1].persist is True


def test_what_was_forgotten_is_not_told(served: Scripted) -> None:
    remember(served, "I am vegetarian")
    assert ask(served, "Hello")["personal"]["facts"] == [1]
    written(served, lambda conn: facts.forget_fact(conn, 1))
    assert ask(served, "Hello")["personal"] == {}  # even before anybody says that something was forgotten
    served.services.personaliser.forget()
    assert remember(served, "I live in Ghent") == 2  # no number is used twice
    assert ask(served, "Hello")["personal"]["facts"] == [2]


def test_several_threads_ask_while_more_is_remembered(served: Scripted) -> None:
    """The index in memory is SQLite too, and one thread's at a time."""
    personaliser = served.services.personaliser

    def work(n: int) -> int:
        remember(served, f"Fact number {n} is about herons")
        if n % 5 == 0:
            personaliser.forget()
        return len(personaliser.recall("herons", 100, None))

    with ThreadPoolExecutor(6) as pool:
        counts = list(pool.map(work, range(40)))
    assert (max(counts), len(personaliser.recall("herons", 100, None))) == (40, 40)


def generation(number: int, kind: str, state: str = "retired", **arms: float | None) -> Generation:
    values: dict[str, Any] = {f.name: None for f in dataclasses.fields(Generation)}
    scores = {"arms": {name.replace("_", "+"): loss for name, loss in arms.items()}} if arms else {}
    return Generation(**values | {"id": number, "kind": kind, "state": state, "scores": scores})


BASE = generation(1, "base", "active")
THRESHOLD = 3.0 * (1 - MARGIN)


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ({"base": 3.0, "profile": 2.5, "retrieval": 2.8}, (True, False)),
        ({"base": 3.0, "profile": 2.8, "retrieval": 2.5}, (False, True)),
        ({"base": 3.0, "profile": THRESHOLD, "retrieval": 3.1}, (False, False)),  # too little to be called better
        ({"base": 3.0, "profile": THRESHOLD - 0.001, "retrieval": 3.1}, (True, False)),
        ({"base": 3.0, "profile": 3.1, "retrieval": THRESHOLD}, (False, True)),
        ({"base": 3.0, "profile": 3.5, "retrieval": 3.5}, (False, False)),
        ({"base": 3.0, "profile": None, "retrieval": 2.0}, (False, False)),  # it was no number
        ({"base": 3.0, "profile": 2.0}, (False, False)),
    ],
)
def test_while_the_base_serves_the_better_arm_counts(arms: Any, expected: tuple[bool, bool]) -> None:
    found = proven(BASE, [BASE, generation(2, "live", "rejected", **arms)])
    assert (found.profile, found.retrieval) == expected


def test_the_newest_measurement_counts_unless_it_is_stale() -> None:
    listing = [
        BASE,
        generation(2, "live", base=3.0, profile=2.0, retrieval=2.5),
        generation(3, "live", base=3.0, profile=3.0, retrieval=3.0),
        generation(4, "live", "stale", base=3.0, profile=2.0, retrieval=2.5),
        generation(5, "live"),
    ]
    assert proven(BASE, listing) == Proven(
        False, False, "measured with generation 3, in nats/token: base 3.000, profile 3.000, similar answers 3.000"
    )


def test_with_an_adapter_its_own_measurement_counts() -> None:
    """What helps the base may not help it any more, and a profile beside it was never measured."""
    others = [BASE, generation(2, "live", base=3.0, profile=2.0, retrieval=2.5)]
    helps = generation(3, "live", "active", base=3.0, profile=1.0, retrieval=1.0, adapter=2.5, adapter_retrieval=2.0)
    assert proven(helps, [*others, helps]) == Proven(
        False, True, "measured with generation 3, in nats/token: alone 2.500, with similar answers 2.000"
    )
    hurts = generation(4, "live", "active", adapter=2.5, adapter_retrieval=2.49)
    assert proven(hurts, [*others, hurts]).retrieval is False
    unknown = generation(5, "live", "active")
    assert proven(unknown, [*others, unknown]) == Proven(False, False, "it has not been measured with generation 5")


def test_what_was_read_before_something_was_forgotten_is_not_told_after_it(
    served: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    personaliser = served.services.personaliser
    said = iter(["Mention Atlantis.", "Be brief."])

    def read(*_: object) -> str:
        personaliser.forget()  # just after it was read
        return next(said)

    monkeypatch.setattr(personaliser, "prompt", read)
    assert ask(served, "Hello")["personal"]["profile"]  # the one that is on its way
    ask(served, "Hello")
    assert "Atlantis" not in str(shown(served))
