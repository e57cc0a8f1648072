"""What goes with what, which generations must not serve any more, and that no byte of it stays in any file."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgepd.errors import ConflictError, NotFoundError, RequestError, StoreError
from edgepd_profiles import (
    apps,
    decisions,
    demand,
    events,
    facts,
    feedback,
    forgetting,
    health,
    interactions,
    profile,
    registry,
    scrubbing,
    students,
    usage,
)
from edgepd_profiles.byte_search import search_files
from edgepd_profiles.forgetting import Plan, Receipt, Selector, Switch, find
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.store import Store

BASE = "a" * 64
OTHER = "b" * 64
Log = Callable[..., Interaction]


def asked(*texts: str) -> list[dict[str, Any]]:
    """Return messages: questions and answers in turn, beginning with a question."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def forget(conn: sqlite3.Connection, selector: Selector, viewer: str | None = None) -> Receipt:
    return forgetting.delete(conn, find(conn, selector, viewer), 50.0)


def left(conn: sqlite3.Connection) -> list[str]:
    return [name for (name,) in conn.execute("SELECT id FROM interactions ORDER BY seq")]


def dump(conn: sqlite3.Connection) -> list[str]:
    return list(conn.iterdump())


# What is named


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ids": ("i_1",), "search": "blue"},
        {"since": 1.0, "everything": True},
        {"search": "a"},
        {"search": "  a  "},
        {"since": 2.0, "until": 2.0},
    ],
)
def test_a_request_names_something_in_exactly_one_way(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Selector(**fields)


def test_ids_are_forgotten_and_unknown_ones_refused(conn: sqlite3.Connection, log: Log) -> None:
    for name in ("i_1", "i_2", "i_3"):
        log(name, conversation=name)
    with pytest.raises(NotFoundError, match="interaction 'i_9' is not known"):
        find(conn, Selector(ids=("i_1", "i_9")))
    receipt = forget(conn, Selector(ids=("i_3", "i_1#2")))
    assert receipt.counts == {
        "interactions": 2, "carried_along": 0, "facts": 0, "suggestions": 0, "surveys": 0, "edits": 0,
        "events": 0, "mapped_events": 0, "generations": 0, "students": 0,
    }  # fmt: skip
    assert left(conn) == ["i_2"]


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("heron", ["i_prompt"]),
        ("HERON NESTS", ["i_prompt"]),
        ("erons nest", []),
        ("straße", ["i_response"]),
        ("STRASSE", ["i_response"]),
        ("caf\u00e9", ["i_system"]),
        ("cafe\u0301", ["i_system"]),
        ('said "no"', ["i_system"]),
        ("user", []),
        ("otter", ["i_edit"]),
        ("kingfisher", ["i_pair"]),
        ("größe", ["i_tool"]),
    ],
)
def test_a_search_finds_a_text_wherever_it_is(
    conn: sqlite3.Connection, log: Log, search: str, found: list[str]
) -> None:
    log("i_prompt", conversation="i_prompt", messages=asked("Where does the blue heron nests?"))
    log("i_response", conversation="i_response", response="In der Hauptstraße.")
    log(
        "i_system",
        conversation="i_system",
        messages=[{"role": "system", "content": 'At the caf\u00e9 she said "no".'}, *asked("Well?")],
    )
    log("i_edit", conversation="i_edit")
    feedback.set_edit(conn, "i_edit", "An otter.")
    log("i_pair", conversation="i_pair")
    conn.execute("INSERT INTO similar_pairs VALUES ('i_pair#1', 'i_pair', 'A kingfisher?', 'Yes.', 0.5, 1.0)")
    calls = [{"function": {"name": "measure", "arguments": json.dumps({"what": "die Größe"})}}]
    log(
        "i_tool",
        conversation="i_tool",
        messages=[*asked("Measure."), {"role": "assistant", "content": None, "tool_calls": calls}],
    )
    assert list(find(conn, Selector(search=search)).interactions) == found


def test_a_search_finds_what_belongs_to_no_exchange(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    fact = facts.remember(conn, "I have a Heron tattoo.", "mail")
    facts.remember(conn, "I am vegetarian.")
    conn.execute("INSERT INTO surveys VALUES ('v_1', 'cli', 'How?', 1.0, 'answered', 4, 'like a heron', 2.0)")
    conn.execute("INSERT INTO suggestions VALUES ('s_1', 'cli', 'Draw a heron.', 'often', NULL, 1.0, NULL, NULL)")
    conn.execute("INSERT INTO feature_edits VALUES ('', 'interest', 'herons', '1', 0, 1.0)")
    plan = find(conn, Selector(search="heron"))
    assert (plan.facts, plan.surveys, plan.suggestions) == ((fact.id,), ("v_1",), ("s_1",))
    assert plan.edits == (("", "interest", "herons"),)
    forgetting.delete(conn, plan, 5.0)
    assert [f.text for f in facts.listing(conn)] == ["I am vegetarian."]
    assert not [line for line in dump(conn) if "heron" in line.lower()]
    assert left(conn) == ["i_1"]


def test_a_time_ends_before_until_and_covers_corrections_that_were_given_in_it(
    conn: sqlite3.Connection, log: Log
) -> None:
    for n in range(1, 6):
        log(f"i_{n}", created_at=float(n), conversation=f"i_{n}")
    feedback.set_edit(conn, "i_1", "Green.", at=3.5)
    feedback.set_thumb(conn, "i_5", 1, at=3.5)
    facts.remember(conn, "Late.", at=9.0)
    plan = find(conn, Selector(since=3.0, until=4.0))
    assert plan.interactions == ("i_1", "i_3")
    assert find(conn, Selector(since=4.0)).counts | {"facts": 1} == find(conn, Selector(since=4.0)).counts
    assert find(conn, Selector(until=3.0)).interactions == ("i_1", "i_2")


def test_an_app_is_forgotten_with_all_that_is_its_own(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", app="mail", messages=asked("Invitation to the zeppelin museum"))
    log("i_2", app="notes")
    apps.change(conn, "mail", stored=False)
    facts.remember(conn, "I sign with K.", "mail")
    facts.remember(conn, "I am vegetarian.")
    profile.catch_up(conn, 30.0)
    assert conn.execute("SELECT count(*) FROM features WHERE name LIKE '%zeppelin%'").fetchone()[0] > 0
    receipt = forget(conn, Selector(app="mail"))
    assert (receipt.what, receipt.counts["facts"]) == ("what came from the app 'mail'", 1)
    assert left(conn) == ["i_2"]
    assert conn.execute("SELECT count(*) FROM features WHERE app = 'mail'").fetchone() == (0,)
    assert conn.execute("SELECT count(*) FROM features WHERE app = 'notes'").fetchone()[0] > 0
    assert not apps.get(conn, "mail").stored  # a setting of the user, and no text


def test_an_app_forgets_only_what_it_sees(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", app="mail", messages=asked("About herons"), conversation="i_1")
    log("i_2", app="notes", messages=asked("About herons"), conversation="i_2")
    secret = facts.remember(conn, "I like herons.", "mail")
    assert find(conn, Selector(search="herons"), "notes").interactions == ("i_2",)
    assert find(conn, Selector(search="herons"), "notes").facts == ()
    for selector in (Selector(ids=("i_1",)), Selector(facts=(secret.id,))):
        with pytest.raises(NotFoundError):
            find(conn, selector, "notes")
    assert find(conn, Selector(app="mail"), "notes").interactions == ()
    forget(conn, Selector(everything=True), "notes")
    assert left(conn) == ["i_1"]
    forget(conn, Selector(everything=True), "stranger")
    assert left(conn) == ["i_1"]


def test_a_fact_is_forgotten_by_its_number(conn: sqlite3.Connection) -> None:
    first = facts.remember(conn, "I am vegetarian.")
    facts.remember(conn, "I live by the sea.")
    assert forget(conn, Selector(facts=(first.id,))).counts["facts"] == 1
    assert [f.text for f in facts.listing(conn)] == ["I live by the sea."]
    with pytest.raises(NotFoundError, match="fact 1 is not known"):
        find(conn, Selector(facts=(first.id,)))


def test_what_is_being_answered_cannot_be_forgotten(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", state="streaming")
    for selector in (Selector(ids=("i_1",)), Selector(search="colour"), Selector(everything=True), Selector(app="cli")):
        with pytest.raises(ConflictError, match="interaction 'i_1' is being answered; stop it first"):
            find(conn, selector)


# What is carried along


def test_later_turns_of_a_conversation_are_carried_along(conn: sqlite3.Connection, log: Log) -> None:
    log("i_0", messages=asked("Hello"), response="Hi.")
    log("i_1", messages=asked("Hello", "Hi.", "Name a bird."), response="A heron.")
    log("i_2", messages=asked("Name a bird.", "A heron.", "Another one."), response="A crane.")
    log("i_3", messages=asked("Another one.", "A crane.", "Enough."), response="Fine.")  # the client cut the beginning
    log("i_4", messages=asked("Something else"), response="Yes?")
    log("i_5", messages=asked("Name a bird."), response="A tit.", conversation="c2")
    plan = find(conn, Selector(ids=("i_1",)))
    assert plan.interactions == ("i_1", "i_2", "i_3")
    assert plan.carried == ("i_2", "i_3")
    assert (plan.counts["interactions"], plan.counts["carried_along"]) == (1, 2)


def test_a_question_that_was_asked_again_in_the_conversation_goes_too(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", messages=asked("Name a bird."), response="A heron.")
    log("i_2", messages=asked("Name a bird."), response="A crane.")
    assert find(conn, Selector(ids=("i_1",))).carried == ("i_2",)
    assert find(conn, Selector(ids=("i_2",))).carried == ()  # it came later


def test_clients_without_conversations_are_recognised_by_question_and_answer(
    conn: sqlite3.Connection, log: Log
) -> None:
    def alone(name: str, *texts: str, response: str, app: str = "cli") -> None:
        log(name, conversation=name, messages=asked(*texts), response=response, app=app)

    alone("i_1", "Name a bird.", response="A heron.\n")
    alone("i_2", "Name a bird.", response="A heron.")  # the same again is another conversation
    alone("i_3", "Name a bird.", "A heron.", "Another.", response="A crane.")
    alone("i_4", "Name a bird.", "A crane.", "Another.", response="A heron.")
    alone("i_5", "Name a bird.", "A heron.", "Why?", response="Because.", app="notes")
    alone("i_6", "Another.", "A crane.", "Thanks.", response="Bye.")
    assert find(conn, Selector(ids=("i_1",))).carried == ("i_3", "i_6")


def test_what_follows_a_call_of_tools_is_carried_along(conn: sqlite3.Connection, log: Log) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    result = {"role": "tool", "content": "12 degrees"}
    log("i_1", conversation="i_1", kind="tools", messages=asked("How warm?"), response="")
    log("i_2", conversation="i_2", kind="tools", messages=[*asked("How warm?"), call, result], response="12.")
    assert find(conn, Selector(ids=("i_1",))).carried == ("i_2",)


def test_a_later_turn_that_is_being_answered_is_in_the_way(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", messages=asked("Name a bird."), response="A heron.")
    log("i_2", messages=asked("Name a bird.", "A heron.", "Why?"), state="streaming", response="")
    with pytest.raises(ConflictError, match="'i_2' is being answered"):
        find(conn, Selector(ids=("i_1",)))


# What hangs on exchanges


def test_everything_derived_goes_with_an_exchange(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", messages=asked("Plan the zeppelin ride"), conversation="i_1")
    log("i_2", messages=asked("Name a colour."), conversation="i_2")
    feedback.set_edit(conn, "i_1", "Take off at nine in the zeppelin.")
    profile.catch_up(conn, 30.0)
    for name in ("i_1", "i_2"):
        conn.execute("INSERT INTO embeddings VALUES (?, 'm', x'00', 0.5)", (name,))
        conn.execute("INSERT INTO bins VALUES ('examples', ?, 0, 0, 0, 0, 'newest', 1.0)", (name,))
        conn.execute("INSERT INTO questions VALUES (?, 1.0, NULL)", (name,))
        conn.execute("INSERT INTO similar_pairs VALUES (?, ?, 'a', 'b', 0.5, 1.0)", (f"{name}#1", name))
        text = "Plan the zeppelin" if name == "i_1" else "Name a colour."
        for source in (name, None):
            row = (f"s_{name}{source}", "cli", text, "often", source, 1.0)
            conn.execute("INSERT INTO suggestions VALUES (?, ?, ?, ?, ?, ?, NULL, NULL)", row)
    conn.execute("INSERT INTO lexicons VALUES (0, 'zeppelin', 1.0)")
    plan = find(conn, Selector(ids=("i_1",)))
    assert plan.suggestions == ("s_i_1None", "s_i_1i_1")
    forgetting.delete(conn, plan, 5.0)
    assert not [line for line in dump(conn) if "zeppelin" in line.lower() or "'i_1" in line]
    tables = ("embeddings", "bins", "questions", "similar_pairs")
    assert [conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables] == [1] * 4
    assert conn.execute("SELECT count(*) FROM suggestions").fetchone() == (2,)


def test_the_profile_is_that_of_what_stays(conn: sqlite3.Connection, log: Log) -> None:
    for n in range(6):
        log(f"i_{n}", conversation=f"i_{n}", messages=asked(f"Tell me of topic{n} and gardens"), created_at=1000.0 * n)
    profile.catch_up(conn, 30.0)
    forget(conn, Selector(ids=("i_1", "i_5")))
    log("i_6", conversation="i_6", messages=asked("Tell me of topic6"), created_at=9000.0)  # takes the place of i_5
    profile.catch_up(conn, 30.0)
    query = "SELECT app, kind, name, channel, count, round(mass, 6), round(total, 6) FROM features ORDER BY 1, 2, 3, 4"
    incremental = conn.execute(query).fetchall()
    assert incremental
    profile.recompute(conn, 30.0)
    assert conn.execute(query).fetchall() == incremental


def test_everything_leaves_settings_and_empty_tables(conn: sqlite3.Connection, log: Log) -> None:
    registry.ensure_base(conn, BASE)
    made = taught(conn, "i_1")
    switch(conn, made)
    log("i_1", messages=asked("Plan the zeppelin ride"))
    feedback.set_edit(conn, "i_1", "Take the zeppelin.")
    facts.remember(conn, "I own a zeppelin.")
    profile.catch_up(conn, 30.0)
    conn.execute("INSERT INTO pools VALUES ('examples', 'recency', 5, 5)")
    conn.execute("INSERT INTO surveys VALUES ('v_1', 'cli', 'How?', 1.0, 'answered', 4, 'zeppelin', 2.0)")
    conn.execute("INSERT INTO feature_edits VALUES ('', 'interest', 'zeppelin', '1', 0, 1.0)")
    forgetting.want(conn, "live", "before")
    decisions.note(conn, 1.0, "wait", None, "busy", "a question is being answered")
    demand.judged(conn, "live", 1)
    usage.add(conn, "2026-03-28", 60.0, 30.0, 0.0)
    events.note_chat(conn, interactions.get(conn, "i_1"))
    events.add(conn, [events.New(3.0, "zeppelin:land", "zeppelin", "zeppelin", 0, "")], now=3.0)
    events.map_event(conn, "zeppelin:land", "zeppelin trips")
    conn.execute("INSERT INTO chats_to_take VALUES (1, 1, 1)")
    students.activate(conn, students.add(conn, file="s.npz", sha256="00", seq=2, scores={"nll": 1.5}).id)
    apps.change(conn, "mail", stored=False)
    receipt = forget(conn, Selector(everything=True))
    assert receipt.counts == {
        "interactions": 1, "carried_along": 0, "facts": 1, "suggestions": 0, "surveys": 1, "edits": 1,
        "events": 2, "mapped_events": 1, "generations": 1, "students": 1,
    }  # fmt: skip
    assert (receipt.generations, receipt.retraining, forgetting.wanted(conn)) == ([made], False, [])
    assert registry.active(conn, BASE).kind == "base"
    assert not apps.get(conn, "mail").stored
    assert usage.today(conn, "2026-03-28").at_work_s == 60.0, "forgetting must not make room in the budget of the day"
    assert demand.newest(conn) > 1, "what comes must be new to what was judged before"
    assert events.newest_seq(conn) == 2, "the same holds for events"
    assert [s.state for s in students.listing(conn)] == ["stale"]
    kept = {"_sqlite_migrations", "apps", "generations", "activations", "receipts"}
    kept |= {"feedback_clock", "learned_marks", "training_days", "intent_students"}  # numbers only
    for (table,) in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql IS NOT NULL").fetchall():
        if table not in kept and not table.startswith(("interaction_search", "sqlite_")):
            assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    assert not [line for line in dump(conn) if "zeppelin" in line]


def test_a_dry_run_says_the_same_and_changes_nothing(conn: sqlite3.Connection, log: Log) -> None:
    registry.ensure_base(conn, BASE)
    switch(conn, taught(conn, "i_1"))
    log("i_1", messages=asked("Name a bird."), response="A heron.")
    log("i_2", messages=asked("Name a bird.", "A heron.", "Why?"))
    facts.remember(conn, "I like a heron.")
    for selector in (Selector(search="heron"), Selector(everything=True)):
        before = dump(conn)
        plan = find(conn, selector)
        assert dump(conn) == before
        conn.execute("SAVEPOINT try")
        receipt = forgetting.delete(conn, find(conn, selector), 5.0)
        assert receipt.counts == plan.counts
        assert len(receipt.generations) == plan.counts["generations"] == 1
        conn.execute("ROLLBACK TO try")
    with pytest.raises(sqlite3.OperationalError, match="no such function|raised exception"):
        conn.execute("SELECT holds('x')")


# What was learned


def taught(
    conn: sqlite3.Connection,
    *ids: str,
    kind: str = "live",
    base: str = BASE,
    model_file: str | None = None,
    state: str = "candidate",
    **fields: Any,
) -> int:
    count = conn.execute("SELECT count(*) FROM generations").fetchone()[0] + 1
    active = registry.active(conn, base)
    files = {"adapter_file": f"a{count}.gguf", "model_file": model_file}
    if kind == "baked":
        files = {"model_file": f"m{count}.gguf"}
    return registry.add(
        conn, parent=active.id, kind=kind, base_sha256=base, state=state, example_ids=ids, **files, **fields
    ).id


def switch(conn: sqlite3.Connection, number: int, base: str = BASE, *, confirmed: bool = True) -> int:
    registry.activate(conn, base, number, registry.active(conn, base).id)
    while confirmed and health.answered(conn, number):
        pass
    return number


def states(conn: sqlite3.Connection, base: str = BASE) -> list[str]:
    return [g.state for g in registry.listing(conn, base)]


@pytest.fixture
def four(conn: sqlite3.Connection, log: Log) -> sqlite3.Connection:
    """Exchanges i_1 to i_4; the base is 1, and 2, 3, 4 are live generations, each going on from the one before."""
    for n in range(1, 5):
        log(f"i_{n}", conversation=f"i_{n}")
    registry.ensure_base(conn, BASE)
    for n in range(1, 4):
        switch(conn, taught(conn, f"i_{n}"))
    return conn


def test_what_never_saw_it_serves_at_once(four: sqlite3.Connection) -> None:
    registry.pin(four, 3, True)
    plan = find(four, Selector(ids=("i_2",)))
    assert (plan.generations, plan.switches) == ((3, 4), (Switch(BASE, 4, 2),))
    receipt = forgetting.delete(four, plan, 5.0, expected=Switch(BASE, 4, 2))
    assert (receipt.generations, receipt.retraining) == ([3, 4], True)
    assert states(four) == ["retired", "active", "stale", "stale"]
    stale = registry.get(four, 3)
    assert (stale.pinned, stale.reason, stale.example_ids) == (False, forgetting.REASON, ["i_2"])
    assert registry.file_names(four) == {"a2.gguf"}
    assert registry.previous(four, BASE).id == 1
    with pytest.raises(ConflictError, match="is stale and its files may be gone"):
        registry.pin(four, 3, True)
    with pytest.raises(ConflictError, match="generation 4 is stale and cannot become active"):
        switch(four, 4)
    assert [(w.kind, w.reason, w.at) for w in forgetting.wanted(four)] == [
        ("live", "generation 4 was taught what has been forgotten since", 5.0)
    ]
    assert forgetting.settled(four, "live")
    assert not forgetting.settled(four, "live")


def test_nothing_is_trained_anew_if_what_serves_is_clean(four: sqlite3.Connection) -> None:
    switch(four, 2)
    receipt = forget(four, Selector(ids=("i_3",)))
    assert (receipt.generations, receipt.retraining, forgetting.wanted(four)) == ([4], False, [])
    assert states(four) == ["retired", "active", "retired", "stale"]


def test_what_was_not_taught_leaves_generations_alone(four: sqlite3.Connection) -> None:
    assert forget(four, Selector(ids=("i_4",))).generations == []
    assert states(four) == ["retired", "retired", "retired", "active"]


def test_only_a_confirmed_one_takes_over_and_else_the_base(conn: sqlite3.Connection, log: Log) -> None:
    log("i_2")
    registry.ensure_base(conn, BASE)
    switch(conn, taught(conn, "i_1"), confirmed=False)
    switch(conn, taught(conn, "i_2"))
    assert find(conn, Selector(ids=("i_2",))).switches == (Switch(BASE, 3, 1),)


def test_candidates_those_in_training_and_rejected_ones_lose_their_files(four: sqlite3.Connection) -> None:
    switch(four, 1)
    candidate, training, rejected = (taught(four, "i_3") for _ in range(3))
    four.execute("UPDATE generations SET state = 'training' WHERE id = ?", (training,))
    registry.pin(four, rejected, True)
    registry.set_state(four, rejected, "rejected", reason="no better")
    receipt = forget(four, Selector(ids=("i_3",)))
    assert receipt.generations == [4, candidate, training]
    assert [registry.get(four, n).state for n in (candidate, training, rejected)] == ["stale", "rejected", "rejected"]
    assert registry.get(four, rejected).reason == "no better"
    assert registry.file_names(four) == {"a2.gguf", "a3.gguf"}


def test_pairs_made_from_an_example_count_as_it(four: sqlite3.Connection) -> None:
    made = switch(four, taught(four, "i_4#1", kind="baked"))
    assert find(four, Selector(ids=("i_4",))).generations == (made,)


def test_a_live_adapter_upon_a_baked_file_knows_what_that_was_taught(four: sqlite3.Connection) -> None:
    baked = switch(four, taught(four, "i_4", kind="baked"))
    switch(four, 1)
    imported = taught(four, model_file=f"m{baked}.gguf", config={"origin": "imported"})  # a child of the base
    switch(four, imported)
    receipt = forget(four, Selector(ids=("i_4",)))
    assert receipt.generations == [baked, imported]
    assert [w.kind for w in forgetting.wanted(four)] == ["baked"]
    assert not {f"m{baked}.gguf", f"a{imported}.gguf"} & registry.file_names(four)


def test_a_merged_generation_knows_what_its_parts_were_taught(four: sqlite3.Connection) -> None:
    switch(four, 1)
    merged = taught(four, "i_3", config={"merged": [3, 4]})
    assert find(four, Selector(ids=("i_1",))).generations == (2, 3, 4, merged)


def test_a_consolidation_begins_at_the_base_and_knows_only_its_own(four: sqlite3.Connection) -> None:
    baked = switch(four, taught(four, "i_4", kind="baked"))
    assert find(four, Selector(ids=("i_1",))).generations == (2, 3, 4)
    assert forget(four, Selector(ids=("i_1",))).retraining is False
    assert registry.active(four, BASE).id == baked


def test_every_base_model_goes_back(four: sqlite3.Connection) -> None:
    registry.ensure_base(four, OTHER)
    other = switch(four, taught(four, "i_3", base=OTHER), OTHER)
    forget(four, Selector(ids=("i_3",)))
    assert registry.active(four, BASE).id == 3
    assert registry.active(four, OTHER).kind == "base"
    assert registry.get(four, other).state == "stale"


def test_what_serves_is_changed_only_as_expected(four: sqlite3.Connection) -> None:
    plan = find(four, Selector(ids=("i_3",)))
    before = dump(four)
    for expected in (Switch(BASE, 4, 1), Switch(BASE, 3, 2), Switch(OTHER, 4, 3)):
        with pytest.raises(ConflictError, match="has changed meanwhile; try again"):
            forgetting.delete(four, plan, 5.0, expected=expected)
    assert dump(four) == before
    switch(four, 2)
    with pytest.raises(ConflictError, match="generation 2 is active, not 4 as expected"):
        registry.retire_stale(four, plan.generations, plan.switches, "forgotten")
    with pytest.raises(ConflictError, match="generation 3 was taught what is forgotten"):
        registry.retire_stale(four, [2, 3], [Switch(BASE, 2, 3)], "forgotten")
    with pytest.raises(ConflictError, match="generation 2 serves now and cannot become stale"):
        registry.retire_stale(four, [2], [], "forgotten")


# Receipts


def test_a_receipt_is_found_again_and_holds_no_text(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", messages=asked("Plan the zeppelin ride"))
    first = forget(conn, Selector(search="zeppelin"))
    second = forget(conn, Selector(since=1.0))
    assert [r.id for r in forgetting.unfinished(conn)] == [first.id, second.id]
    assert (first.what, first.state, first.verified) == ("what contains a text", "begun", None)
    done = forgetting.finished(conn, first.id, {"backups": 2}, {"files": 3, "bytes": 400, "found": 0})
    assert (done.state, done.counts["backups"], done.counts["interactions"]) == ("done", 2, 1)
    assert forgetting.receipts(conn) == [second, done]
    assert forgetting.receipts(conn, 1) == [second]
    assert forgetting.unfinished(conn) == [second]
    assert forgetting.receipt(conn, first.id) == done
    assert "zeppelin" not in str(done)
    with pytest.raises(NotFoundError, match="receipt 'r_0' is not known"):
        forgetting.receipt(conn, "r_0")


# The bytes


ANSWER = " ".join(f"Verse {n} of the quetzal song, sung at {n * 7919 % 10007} by the lake." for n in range(400))
SECRETS = (b"quetzal", b"axolotl", b"narwhal")


def fill(store: Store) -> None:
    """Several hundred exchanges, of which each tenth is to be forgotten: streamed in steps, and judged again."""
    for n in range(300):
        wanted = n % 10 == 0
        question = f"Sing number {n} of the quetzal." if wanted else f"What is {n} times three?"
        answer = f"{ANSWER[: 900 + n * 60]} End of {n}." if wanted else f"It is {3 * n}." * 20
        store.write(lambda c, n=n, q=question: interactions.begin(c, one(f"i_{n}", q)))  # type: ignore[misc]
        for part in range(1, 4):
            text = answer[: len(answer) * part // 4]
            store.write(lambda c, n=n, t=text: interactions.update(c, f"i_{n}", t, 1))  # type: ignore[misc]
        store.write(lambda c, n=n, a=answer: end(c, f"i_{n}", a))  # type: ignore[misc]
        for version in range(3):
            edit = f"Version {version} {'of the axolotl hymn' if wanted else 'of it'}: {answer[::-1][:500]}"
            store.write(lambda c, n=n, e=edit: feedback.set_edit(c, f"i_{n}", e))  # type: ignore[misc]
    for n in range(0, 300, 30):
        store.write(lambda c, n=n: feedback.remove(c, f"i_{n}", "edit"))  # type: ignore[misc]
    store.write(lambda c: facts.remember(c, "My narwhal is called Quetzal."))
    store.write(lambda c: profile.catch_up(c, 30.0)).result()


def one(name: str, question: str) -> Interaction:
    return Interaction(name, name, 1000.0, "cli", "m", 1, asked(question))


def end(conn: sqlite3.Connection, name: str, answer: str) -> None:
    interactions.finish(
        conn, name, answer, "done", "stop", prompt_tokens=1, completion_tokens=1, ttft_ms=1.0, duration_ms=1.0
    )


def hits(directory: Path) -> set[bytes]:
    content = b"".join(file.read_bytes().lower() for file in directory.iterdir() if file.is_file())
    return {secret for secret in SECRETS if secret in content}


def test_no_byte_of_it_is_left_in_any_file(tmp_path: Path) -> None:
    with Store.open(tmp_path / "profile.db") as store:
        fill(store)
        assert hits(tmp_path) == set(SECRETS)

        def job(conn: sqlite3.Connection) -> tuple[Plan, list[bytes]]:
            plan = find(conn, Selector(search="quetzal"))
            pieces = forgetting.needles(conn, plan)
            forgetting.delete(conn, plan, 5.0)
            return plan, pieces

        with store.read() as conn:
            before = find(conn, Selector(search="quetzal"))
        pieces_before = store.write(lambda c: forgetting.needles(c, before)).result()
        assert len(search_files(tmp_path, pieces_before).pieces) > len(pieces_before) * 0.6  # pages cut some in two
        plan, pieces = store.write(job).result()
        assert len(plan.interactions) == 30
        assert pieces == pieces_before
        assert hits(tmp_path)  # in the WAL at least
        store.scrub().result()
        assert hits(tmp_path) == set()
        searched = search_files(tmp_path, pieces)
        with store.read() as conn:
            assert searched.pieces == forgetting.kept_elsewhere(conn, pieces) == set()
            assert len(left(conn)) == 270
            assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            conn.execute("SELECT count(*) FROM interaction_search WHERE interaction_search MATCH 'times'")
    assert hits(tmp_path) == set()


def test_what_others_say_too_is_counted_as_kept(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", conversation="i_1", messages=asked("Where do the herons nest?"), response="Only by this quiet lake.")
    log("i_2", conversation="i_2", messages=asked("Where do the herons nest?"), response="Somewhere else entirely.")
    plan = find(conn, Selector(ids=("i_1",)))
    pieces = forgetting.needles(conn, plan)
    assert pieces == [b"Where do the herons nest?", b"Only by this quiet lake."]
    forgetting.delete(conn, plan, 5.0)
    assert forgetting.kept_elsewhere(conn, pieces) == {b"Where do the herons nest?"}
    assert forgetting.kept_elsewhere(conn, []) == set()


def test_pieces_are_taken_evenly_of_many_exchanges(conn: sqlite3.Connection, log: Log) -> None:
    for n in range(1200):
        log(f"i_{n}", conversation=f"i_{n}", messages=asked(f"Question number {n:05d}?"), response="")
    for selector in (Selector(search="question number"), Selector(everything=True)):
        pieces = forgetting.needles(conn, find(conn, selector))
        assert forgetting.SAMPLE * 0.7 < len(pieces) <= forgetting.SAMPLE * 1.3
        assert pieces[0] == b"Question number 00000?"
        assert int(pieces[-1][16:21]) > 1190


def test_pieces_of_a_search_lie_around_what_was_found(conn: sqlite3.Connection, log: Log) -> None:
    earlier = "x" * 300 + " said the Quetzal to its neighbour " + "y" * 300
    log("i_1", messages=[{"role": "system", "content": earlier}, *asked("Well?")], response="Yes.")
    [piece] = forgetting.needles(conn, find(conn, Selector(search="quetzal")))
    assert b" said the Quetzal to its neighbour " in piece


def test_a_scrub_waits_for_readers_and_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "profile.db") as store:
        store.write(lambda c: facts.remember(c, "I keep an axolotl.")).result()
        with store.read() as conn:
            conn.execute("SELECT count(*) FROM facts").fetchone()
            store.write(lambda c: c.execute("DELETE FROM facts").close()).result()
            writer = store._writer
            with pytest.raises(StoreError, match="reading the profile for more than 0.2 s"):
                store.write(lambda c: None).result()
                scrubbing.scrub(writer, store.path, patience_s=0.2)
            future = store.scrub()
            done = threading.Event()
            future.add_done_callback(lambda _: done.set())
            assert not done.wait(0.3)  # it waits for this reader
        future.result(timeout=20)
        assert hits(tmp_path) == set()
        assert store.write(lambda c: facts.remember(c, "Again.")).result().text == "Again."


def test_what_another_program_deleted_without_overwriting_it_goes_too(tmp_path: Path) -> None:
    with Store.open(tmp_path / "profile.db") as store:
        store.write(lambda c: facts.remember(c, "I keep an axolotl.")).result()
        other = sqlite3.connect(tmp_path / "profile.db", isolation_level=None)
        other.execute("PRAGMA secure_delete = OFF")
        other.execute("DELETE FROM facts")
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        other.close()
        assert hits(tmp_path) == {b"axolotl"}
        store.scrub().result()
        assert hits(tmp_path) == set()


def test_a_large_profile_is_written_anew_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "IN_MEMORY_BYTES", 0)
    directory = tmp_path / "it's mine"
    with Store.open(directory / "profile.db") as store:
        store.write(lambda c: facts.remember(c, "I keep an axolotl.")).result()
        store.write(lambda c: c.execute("DELETE FROM facts").close()).result()
        store.scrub().result()
        assert hits(directory) == set()
        assert sorted(f.name for f in directory.iterdir()) == ["profile.db", "profile.db-shm", "profile.db-wal"]
        assert store.write(lambda c: c.execute("PRAGMA temp_store").fetchone()).result() == (2,)  # memory again


def test_an_index_of_nothing_holds_no_words(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", messages=asked("Plan the zeppelin ride"))
    conn.execute("DELETE FROM interactions")
    forgetting.purge_index(conn)
    blocks = b"".join(block for (block,) in conn.execute("SELECT block FROM interaction_search_data"))
    assert b"eppelin" not in blocks
    log("i_2", messages=asked("Plan the balloon ride"))
    found = conn.execute("SELECT rowid FROM interaction_search WHERE interaction_search MATCH 'balloon'").fetchall()
    assert len(found) == 1
