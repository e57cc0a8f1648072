"""Out and in again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepd_profiles import apps, events, examples, facts, feedback, interactions, migrations, portable, profile
from edgepd_profiles.feedback_kinds import KINDS
from edgepd_profiles.interactions import FINAL_STATES, Interaction

Log = Callable[..., Interaction]


def empty() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    migrations.migrate(connection)
    return connection


def exported(conn: sqlite3.Connection, viewer: str | None = None) -> list[str]:
    return list(portable.export(lambda: nullcontext(conn), viewer))


def line(*texts: str, **own: object) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return json.dumps({"messages": messages, **own})


def test_the_profile_is_read_a_batch_at_a_time(log: Log, conn: sqlite3.Connection) -> None:
    for n in range(2 * portable.BATCH + 1):
        log(f"i_{n}", response=f"answer {n}")
    opened: list[int] = []

    def reading() -> AbstractContextManager[sqlite3.Connection]:
        opened.append(1)
        return nullcontext(conn)

    lines = portable.export(reading)
    ids = [json.loads(next(lines))["edgepd"]["id"] for _ in range(portable.BATCH)]
    assert (ids[0], ids[-1], len(opened)) == ("i_0", f"i_{portable.BATCH - 1}", 1)
    assert [json.loads(text)["edgepd"]["id"] for text in lines][-1] == f"i_{2 * portable.BATCH}"


def test_an_exchange_is_a_line_that_others_can_train_on(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", messages=[{"role": "user", "content": "Größe?\u2028"}], finish_reason="stop", created_at=5.5)
    feedback.set_edit(conn, "i_1", "Green.", at=7.0)
    feedback.set_thumb(conn, "i_1", -1, "app", at=6.0)
    facts.remember(conn, "I am vegetarian.", "mail", at=9.0)
    first, second = exported(conn)
    assert len(f"{first}\n{second}".splitlines()) == 2
    assert json.loads(first) == {
        "messages": [{"role": "user", "content": "Größe?\u2028"}, {"role": "assistant", "content": "Green."}],
        "edgepd": {
            "id": "i_1", "app": "cli", "conversation": "c1", "created_at": 5.5, "model": "smollm2", "kind": "chat",
            "state": "done", "finish_reason": "stop", "prompt_tokens": 0, "completion_tokens": 0, "response": "Blue.",
            "feedback": [
                {"kind": "edit", "value": None, "text": "Green.", "source": "user", "at": 7.0},
                {"kind": "thumb", "value": -1, "text": None, "source": "app", "at": 6.0},
            ],
        },
    }  # fmt: skip
    assert json.loads(second) == {"edgepd": {"fact": "I am vegetarian.", "app": "mail", "at": 9.0}}


def test_bare_prompts_have_the_role_of_the_user_outside(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", kind="completion", messages=[{"role": "prompt", "content": "Once upon"}], response=" a time")
    [text] = exported(conn)
    assert [m["role"] for m in json.loads(text)["messages"]] == ["user", "assistant"]
    other = empty()
    portable.import_lines(other, [text])
    assert interactions.get(other, "i_1").messages == [{"role": "prompt", "content": "Once upon"}]
    other.close()


def test_what_streams_or_is_not_seen_is_not_exported(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", state="streaming")
    log("i_2", app="mail")
    log("i_3", app="notes")
    facts.remember(conn, "For mail.", "mail")
    facts.remember(conn, "For all.")
    apps.change(conn, "notes", shared=False)
    found = [json.loads(text)["edgepd"] for text in exported(conn, "mail")]
    assert [own.get("id") or own.get("fact") for own in found] == ["i_2", "For mail.", "For all."]


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"])},
        optional={
            "content": texts | st.none() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}))
        },
    ),
    max_size=4,
)
given_feedback = st.dictionaries(
    st.sampled_from(KINDS), st.tuples(st.none() | st.integers(-1, 5), st.none() | texts, texts, st.floats(0, 1e10))
)
exchanges = st.lists(
    st.tuples(messages, texts, st.sampled_from(FINAL_STATES), st.floats(0, 1e10), given_feedback), max_size=5
)
known_facts = st.lists(st.text("abcdefgh äß", min_size=1, max_size=20).filter(str.strip), max_size=3)


@given(exchanges, known_facts)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_was_exported_comes_back(rows: list[Any], wanted: list[str]) -> None:
    first, second = empty(), empty()
    for n, (said, response, state, at, judged) in enumerate(rows):
        kind = "chat" if n % 2 else "tools"
        one = Interaction(
            f"i_{n}", f"c{n % 2}", at, "mail" if n % 3 else "", "m", 7, said, kind=kind, response=response, state=state
        )
        interactions.begin(first, one)
        for name, (value, text, source, when) in judged.items():
            row = (f"i_{n}", name, value, text, source, when)
            first.execute(
                "INSERT INTO feedback (interaction, kind, value, text, source, at) VALUES (?, ?, ?, ?, ?, ?)", row
            )
    for text in wanted:
        facts.remember(first, text, at=5.0)
    lines = exported(first)
    count = len(set(" ".join(text.split()) for text in wanted))
    assert portable.import_lines(second, lines) == portable.Imported(len(rows), 0, count, [])
    assert exported(second) == lines
    changes = second.total_changes
    assert portable.import_lines(second, lines) == portable.Imported(0, len(lines), 0, [])
    assert second.total_changes == changes
    assert examples.training_examples(second, 0.5) == examples.training_examples(first, 0.5)
    first.close()
    second.close()


def test_the_profile_takes_in_what_was_imported(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    profile.catch_up(conn, 30.0)
    portable.import_lines(conn, [line("Where is the zeppelin museum?", "In Friedrichshafen.")])
    assert profile.catch_up(conn, 30.0) == 1


def test_lines_of_other_programs_are_accepted_answers(conn: sqlite3.Connection) -> None:
    lines = [
        "\ufeff" + line("Name a bird.", "A heron."),
        "",
        line("Name a bird.", "A heron."),
        line("Name a bird.", "A heron.", "Another.", "A crane."),
        json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hm?"}]},
                                 {"role": "assistant", "content": "Yes.", "weight": 1}]}),
    ]  # fmt: skip
    assert portable.import_lines(conn, lines, app="mail", now=9.0) == portable.Imported(3, 1, 0, [])
    first, second, third = interactions.recent(conn, 9)[::-1]
    assert (first.response, first.app, first.conversation, first.created_at, first.generation) == (
        "A heron.", "mail", first.id, 9.0, 0,
    )  # fmt: skip
    assert (len(first.id), first.id[:2]) == (28, "i_")
    assert (len(second.messages), second.response, third.prompt) == (3, "A crane.", "Hm?")
    found = examples.training_examples(conn, 0.5)
    assert [(e.id, e.response) for e in found] == [(i.id, i.response) for i in (first, second, third)]
    assert portable.import_lines(conn, lines[:1]).known == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "the line is not JSON"),
        ("[" * 100_000, "too deeply nested"),
        ("[]", "not a JSON object with `messages`"),
        ("{}", "`messages` is not a list of 1 to"),
        ('{"messages": []}', "`messages` is not a list of 1 to"),
        ('{"messages": [1]}', "message 1 is not a JSON object with a role"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "message 1 is not a JSON object with a role"),
        ('{"messages": [{"role": "user", "content": 3}]}', "the content of message 1 is neither"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}', "the content of message 1 is neither"),
        (line("Only a question"), "the last message is not the assistant's"),
        (line("Question", " "), "the answer is empty"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "no message is from the user"),
        (line("x", "\ud800"), "the answer has half a character"),
        ('{"messages": [{"role": "user", "content": "x", "n": 1e999}, {"role": "assistant", "content": ""}]}', "fini"),
        ('{"messages": NaN}', "the line is not JSON"),
        (line("x", "y", edgepd=3), "`edgepd` is not a JSON object"),
        (line("x", "y", edgepd={"id": "a#1", "response": "y"}), "the id is not 1 to 128 letters"),
        (line("x", "y", edgepd={"id": 3, "response": "y"}), "the id is not"),
        (line("x", "y", edgepd={"id": "i_1"}), "the response is missing or not a text"),
        (line("x", "y", edgepd={"id": "i_1", "response": "y", "state": "streaming"}), "the state is not one of"),
        (line("x", "y", edgepd={"id": "i_1", "response": "y", "kind": []}), "the kind is not one of"),
        (line("x", "y", edgepd={"id": "i_1", "response": "y", "app": "a\n"}), "the app is not a name"),
        (line("x", "y", edgepd={"id": "i_1", "response": "y", "created_at": True}), "a time is not a number"),
        (line("x", "y", edgepd={"id": "i_1", "response": "y", "created_at": -1}), "a time is not between"),
        (line("x", "y", edgepd={"id": "i_1", "response": "y", "prompt_tokens": 2.5}), "prompt_tokens is not a count"),
        (line("x", "y", edgepd={"id": "i_1", "response": "y", "feedback": [3]}), "`feedback` is not a list"),
        (line("x", "y", edgepd={"id": "i_1", "response": "y", "feedback": [{"kind": "?"}]}), "the kind of feedback"),
        (line("x", "y", edgepd={"id": "i", "response": "y", "feedback": [{"kind": "thumb", "value": 2**70}]}), "whole"),
        (line("x", "y", edgepd={"id": "i_1", "response": "y", "feedback": [{"kind": "edit"}] * 2}), "same kind twice"),
        ('{"edgepd": {"fact": ""}}', "the fact is empty"),
        ('{"edgepd": {"fact": 3}}', "the fact is missing or not a text"),
        ('{"edgepd": {"event": ""}}', "the event is empty"),
        ('{"edgepd": {"event": 3}}', "the event is missing or not a text"),
        ('{"edgepd": {"event": "a", "intent": null}}', "the intent is missing or not a text"),
        ('{"edgepd": {"event": "a", "context": "b\\n"}}', "the context has the character U+000A"),
        ('{"edgepd": {"event": "a", "at": 1e12}}', "a time is not between"),
        ('{"edgepd": {"event": "a", "at": 9e10}}', "hours from now"),
        ('{"edgepd": {"event": "a", "utc_offset_s": 1.5}}', "the UTC offset of the event is not a whole number"),
        ('{"edgepd": {"event": "a", "utc_offset_s": 99999}}', "the UTC offset is 99999 s"),
        ('{"edgepd": {"event": "a", "interaction": "a#1"}}', "the interaction of the event is no id"),
        ('{"edgepd": {"event": "a", "interaction": "i_404"}}', "an exchange of its app that is not there"),
        ('{"edgepd": {"mapped": "a"}}', "the intent is missing or not a text"),
        ('{"edgepd": {"mapped": "a", "intent": ""}}', "the intent is empty"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_used_is_refused_alone(conn: sqlite3.Connection, text: str, reason: str) -> None:
    result = portable.import_lines(conn, [line("Good?", "Yes."), text, line("Better?", "No.")])
    [(number, why)] = result.refused
    assert (result.added, number) == (2, 2)
    assert reason in why
    assert conn.execute("SELECT count(*) FROM interactions").fetchone() == (2,)


def test_what_is_too_large_is_refused(conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    long = line("x", "y" * (1024 * 1024 + 1))
    too_many = line(*["x"] * 2001)
    huge = line("x" * (4 * 1024 * 1024), "y")
    reasons = [why for _, why in portable.import_lines(conn, [long, too_many, huge]).refused]
    assert reasons[0] == "the answer has 1048577 bytes, but at most 1048576 are allowed"
    assert reasons[1] == "`messages` is not a list of 1 to 2000 messages"
    assert reasons[2].startswith("the line has 4194")


def test_an_id_that_is_known_is_left_as_it_is(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", response="Blue.")
    other = line("x", "y", edgepd={"id": "i_1", "response": "y", "feedback": [{"kind": "thumb", "value": 1}]})
    assert portable.import_lines(conn, [other]).known == 1
    assert interactions.get(conn, "i_1").response == "Blue."
    assert feedback.of(conn, "i_1") == []


def test_events_and_the_map_come_back(conn: sqlite3.Connection, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "EVENTS_BATCH", 2)
    events.add(conn, [events.New(9.0 - n, f"walk {n}", "dog", "rain" * n, 3600, "maps") for n in range(5)], now=9.0)
    events.note_chat(conn, log("i_1", app="mail"))
    events.note_chat(conn, log("i_2", app="mail", state="streaming", created_at=5000.0))
    events.map_event(conn, "walk 1", "sport", at=7.0)
    lines = exported(conn)
    assert [json.loads(text)["edgepd"] for text in lines[1:2] + lines[-2:]] == [
        {
            "event": "walk 0", "intent": "dog", "context": "", "at": 9.0, "utc_offset_s": 3600, "app": "maps",
            "interaction": None,
        },
        {
            "event": "chat:name", "intent": "mail", "context": "", "at": 1000.0,
            "utc_offset_s": events.local_offset(1000.0), "app": "mail", "interaction": "i_1",
        },
        {"mapped": "walk 1", "intent": "sport", "at": 7.0},
    ]  # fmt: skip
    other = empty()
    assert portable.import_lines(other, lines) == portable.Imported(1, 0, 0, [], events=6, mapped=1)
    assert exported(other) == lines
    assert [each.intent for each in events.history(other)] == ["dog", "dog", "dog", "sport", "dog", "mail"]
    changes = other.total_changes
    assert portable.import_lines(other, lines) == portable.Imported(0, 8, 0, [])
    assert other.total_changes == changes
    other.execute("DELETE FROM interactions")
    assert len(events.history(other)) == 5
    other.close()


def test_an_app_takes_out_its_own_events_and_brings_no_map(conn: sqlite3.Connection, log: Log) -> None:
    events.add(conn, [events.New(1.0, "walk", "dog", "", 0, app) for app in ("maps", "mail", "")], now=9.0)
    events.map_event(conn, "walk", "sport")
    mapped = exported(conn)[-1]
    lines = exported(conn, "mail")
    assert [json.loads(text)["edgepd"]["app"] for text in lines] == ["mail", ""]
    log("i_1", app="mail")
    chat = json.dumps({"edgepd": {"event": "chat:", "at": 1.0, "app": "mail", "interaction": "i_1"}})
    result = portable.import_lines(conn, [*lines, mapped, chat], app="notes")
    assert (result.events, result.known, result.mapped) == (1, 1, 0)
    assert [why for _, why in result.refused] == [
        "the map of events is the user's, not that of an app",
        "the event belongs to an exchange of its app that is not there",
    ]
    events.map_event(conn, "walk", "work")
    assert portable.import_lines(conn, [mapped]).known == 1
    assert events.known(conn) == {"walk": "work"}
