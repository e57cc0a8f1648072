"""Which events, rows of the map and tuned models a request to forget covers, and that no byte of them stays."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepd_profiles import apps, events, expiry, feedback, forgetting, interactions, migrations, students
from edgepd_profiles.byte_search import search_files
from edgepd_profiles.events import New
from edgepd_profiles.forgetting import Plan, Selector, find
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.store import Store

Log = Callable[..., Interaction]


def asked(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def chat(conn: sqlite3.Connection, log: Log, name: str, text: str, **fields: object) -> None:
    events.note_chat(conn, log(name, conversation=name, messages=asked(text), **fields))


def told(
    conn: sqlite3.Connection, at: float, event: str, app: str = "", intent: str = "life", context: str = ""
) -> int:
    return events.add(conn, [New(at, event, intent, context, 0, app)], now=1e6)[0]


def student(conn: sqlite3.Connection, seq: int, state: str = "candidate") -> int:
    count = len(students.listing(conn)) + 1
    made = students.add(conn, file=f"s{count}.npz", sha256="ab", seq=seq, scores={"nll": 2.0})
    if state == "active":
        students.activate(conn, made.id)
    return made.id


def forget(conn: sqlite3.Connection, selector: Selector, viewer: str | None = None) -> Plan:
    plan = find(conn, selector, viewer)
    forgetting.delete(conn, plan, 50.0)
    return plan


def left(conn: sqlite3.Connection) -> list[str]:
    return [each.event for each in events.history(conn)]


@pytest.fixture
def week(conn: sqlite3.Connection, log: Log) -> sqlite3.Connection:
    """Events 1 to 7: two chats and what two apps told; two of those are on the map."""
    chat(conn, log, "i_1", "Repair the zeppelin", created_at=10.0, app="mail")
    told(conn, 20.0, "maps:arrive", "maps", context="Ulm station")
    told(conn, 30.0, "maps:leave", "maps", intent="Zeppelin museum")
    chat(conn, log, "i_2", "Name a colour", created_at=40.0, app="notes")
    told(conn, 50.0, "maps:arrive", "maps")
    told(conn, 60.0, "clock:alarm", "clock")
    told(conn, 70.0, "maps:leave", "maps")
    events.map_event(conn, "clock:alarm", "sleep", at=5.0)
    events.map_event(conn, "maps:arrive", "travel by zeppelin", at=65.0)
    return conn


@pytest.mark.parametrize(
    ("selector", "seqs", "mapped"),
    [
        (Selector(ids=("i_2",)), (4,), ()),
        (Selector(search="zeppelin"), (1, 3), ("maps:arrive",)),
        (Selector(search="ULM"), (2,), ()),
        (Selector(search="clock:"), (6,), ("clock:alarm",)),
        (Selector(search="chat"), (), ()),  # a word of ours
        (Selector(search="mail"), (), ()),  # the name of an app is none of its texts
        (Selector(since=30.0, until=60.0), (3, 4, 5), ()),
        (Selector(since=60.0), (6, 7), ("clock:alarm", "maps:arrive")),
        (Selector(until=10.0), (), ("clock:alarm",)),
        (Selector(app="maps"), (2, 3, 5, 7), ("maps:arrive",)),
        (Selector(app="mail"), (1,), ()),
    ],
)
def test_what_a_request_covers(
    week: sqlite3.Connection, selector: Selector, seqs: tuple[int, ...], mapped: tuple[str, ...]
) -> None:
    before = [each.seq for each in events.history(week)]
    plan = forget(week, selector)
    assert (plan.events, plan.mapped) == (seqs, mapped)
    assert (plan.counts["events"], plan.counts["mapped_events"]) == (len(seqs), len(mapped))
    assert [each.seq for each in events.history(week)] == [seq for seq in before if seq not in seqs]
    assert set(events.known(week)) == {"clock:alarm", "maps:arrive"} - set(mapped)


def test_a_later_turn_that_is_carried_along_takes_its_event_with_it(conn: sqlite3.Connection, log: Log) -> None:
    repair = log("i_1", conversation="c9", messages=asked("Repair the zeppelin"), created_at=1.0)
    events.note_chat(conn, repair)
    again = [*asked("Repair the zeppelin"), {"role": "assistant", "content": "Blue."}, *asked("How much?")]
    events.note_chat(conn, log("i_2", conversation="c9", messages=again, created_at=2.0))
    assert forget(conn, Selector(ids=("i_1",))).events == (1, 2)
    assert left(conn) == []


def test_a_fact_alone_takes_no_event_and_no_student_with_it(week: sqlite3.Connection) -> None:
    fact = week.execute("INSERT INTO facts (app, text, at) VALUES ('', 'x', 1.0) RETURNING id").fetchone()[0]
    student(week, 7)
    week.execute("DELETE FROM events WHERE seq = 1")
    plan = find(week, Selector(facts=(fact,)))
    assert (plan.events, plan.mapped, plan.students) == ((), (), ())


def test_an_app_covers_what_it_sees_and_nothing_of_the_map(week: sqlite3.Connection) -> None:
    assert find(week, Selector(search="zeppelin"), "maps").events == (3,)
    plan = forget(week, Selector(everything=True), "maps")
    assert (plan.events, plan.mapped) == ((2, 3, 5, 7), ())
    apps.change(week, "clock", shared=True)
    assert find(week, Selector(everything=True), "stranger").events == (6,)
    assert set(events.known(week)) == {"clock:alarm", "maps:arrive"}


# What was tuned


def test_what_saw_it_never_predicts_again_and_is_made_anew(week: sqlite3.Connection) -> None:
    clean, saw, active = student(week, 3), student(week, 4, "active"), student(week, 7, "active")
    plan = find(week, Selector(ids=("i_2",)))
    assert (plan.students, plan.counts["students"]) == ((saw, active), 2)
    receipt = forgetting.delete(week, plan, 50.0)
    assert (receipt.counts["students"], receipt.retraining, receipt.generations) == (2, True, [])
    assert [students.get(week, n).state for n in (clean, saw, active)] == ["candidate", "stale", "stale"]
    assert students.stale_files(week) == ["s2.npz", "s3.npz"]
    assert students.active(week) is None
    [wanted] = forgetting.wanted(week)
    assert (wanted.kind, wanted.at) == ("intent", 50.0)


def test_nothing_is_tuned_anew_if_what_predicts_is_clean(week: sqlite3.Connection) -> None:
    student(week, 3, "active")
    student(week, 7)
    receipt = forgetting.delete(week, find(week, Selector(ids=("i_2",))), 50.0)
    assert (receipt.retraining, forgetting.wanted(week)) == (False, [])
    assert [each.state for each in students.listing(week)] == ["stale", "active"]


def test_a_name_of_the_map_is_known_to_all_who_saw_an_event_of_it(week: sqlite3.Connection) -> None:
    before, after = student(week, 1), student(week, 2)
    assert find(week, Selector(search="travel by")).students == (after,)
    assert before not in find(week, Selector(search="travel by")).students


def test_who_saw_what_has_expired_is_covered_by_any_search(week: sqlite3.Connection) -> None:
    """Nobody can say whether that was in it."""
    old = student(week, 7, "active")
    assert find(week, Selector(search="no such text")).students == ()
    feedback.set_thumb(week, "i_1", 1)
    assert expiry.expire(week, 0, 1.0, 86_400.0 + 15.0) == 1
    assert left(week)[0] == "maps:arrive"
    young = student(week, 7)
    for selector in (Selector(search="no such text"), Selector(since=1e5), Selector(app="x"), Selector(ids=("i_1",))):
        assert find(week, selector).students == (old,)
    assert find(week, Selector(search="Ulm")).students == (old, young)


# The bytes


SECRETS = (b"narwhal-tank", b"axolotl-pond", b"quetzal-nest", b"heron-lake")


def hits(directory: Path) -> set[bytes]:
    content = b"".join(file.read_bytes() for file in directory.iterdir() if file.is_file())
    return {secret for secret in SECRETS if secret in content}


def fill(conn: sqlite3.Connection) -> None:
    for n in range(400):
        name = SECRETS[n // 10 % 4].decode() if n % 10 == 0 else f"place number {n}"
        new = New(float(n), f"visit:{name}" if n % 3 else "visit", name, name if n % 2 else "", 3600, "maps")
        events.add(conn, [new], now=1e6)
    events.map_event(conn, "visit:heron-lake", "trips to the heron-lake")
    events.map_event(conn, "visit:quetzal-nest", "see the quetzal-nest")
    interactions.begin(conn, Interaction("i_1", "i_1", 1.0, "maps", "m", 1, asked("heron-lake?"), state="done"))
    events.note_chat(conn, interactions.get(conn, "i_1"))


@pytest.mark.parametrize("wanted", ["search", "app", "time", "everything"])
def test_no_byte_of_it_is_left_in_any_file(tmp_path: Path, wanted: str) -> None:
    selectors = {
        "search": [Selector(search=secret.decode()) for secret in SECRETS],
        "app": [Selector(app="maps")],
        "time": [Selector(since=0.0)],
        "everything": [Selector(everything=True)],
    }
    with Store.open(tmp_path / "profile.db") as store:
        store.write(fill).result()
        assert hits(tmp_path) == set(SECRETS)

        def job(conn: sqlite3.Connection, selector: Selector) -> list[bytes]:
            plan = find(conn, selector)
            pieces = forgetting.needles(conn, plan)
            forgetting.delete(conn, plan, 5.0)
            return pieces

        pieces: list[bytes] = []
        for selector in selectors[wanted]:
            pieces += store.write(lambda c, s=selector: job(c, s)).result()  # type: ignore[misc]
        assert {piece for piece in pieces if any(secret in piece for secret in SECRETS)}
        store.scrub().result()
        assert hits(tmp_path) == set()
        searched = search_files(tmp_path, pieces)
        with store.read() as conn:
            assert searched.pieces == forgetting.kept_elsewhere(conn, pieces) == set()
            assert len(left(conn)) == (360 if wanted == "search" else 0)


def test_a_name_that_others_have_too_is_counted_as_kept(conn: sqlite3.Connection, log: Log) -> None:
    """Also where it is the name of an app, in the receipt for example; that would look like a failure otherwise."""
    told(conn, 1.0, "org.gnome.Calculator:open", "org.gnome.Calculator", intent="org.gnome.Calculator")
    told(conn, 2.0, "Botanical garden", "maps", context="By the quiet lake")
    told(conn, 3.0, "Walk the dog", "notes", intent="Botanical garden")
    plan = find(conn, Selector(app="org.gnome.Calculator"))
    pieces = forgetting.needles(conn, plan)
    assert pieces == [b"org.gnome.Calculator:open", b"org.gnome.Calculator"]
    forgetting.delete(conn, plan, 5.0)
    assert forgetting.kept_elsewhere(conn, pieces) == {b"org.gnome.Calculator"}
    plan = find(conn, Selector(app="maps"))
    pieces = forgetting.needles(conn, plan)
    forgetting.delete(conn, plan, 5.0)
    assert forgetting.kept_elsewhere(conn, pieces) == {b"Botanical garden"}


name = st.sampled_from(["cafe", "Cafe noir", "bus", "buster", "home"])
row = st.tuples(st.integers(0, 9), name, name, st.sampled_from(["", "bus stop"]), st.sampled_from(["", "a", "b"]))


@given(
    st.lists(row, max_size=12),
    st.dictionaries(name, name, max_size=3),
    st.sampled_from(
        [Selector(search="CAFE"), Selector(search="bus"), Selector(app="a"), Selector(since=3.0, until=7.0)]
    ),
)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_there_was_nothing_that_was_named_is_left(
    rows: list[tuple[int, str, str, str, str]], mapping: dict[str, str], selector: Selector
) -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    migrations.migrate(conn)
    for at, event, intent, context, app in rows:
        told(conn, float(at), event, app, intent, context)
    for event, intent in mapping.items():
        events.map_event(conn, event, intent, at=5.0)
    stored = events.as_sent(conn, 0, 99)
    forget(conn, selector)

    def is_named(each: events.Stored) -> bool:
        if selector.search is not None:
            return selector.search.lower() in f"{each.event}\0{each.intent}\0{each.context}".lower()
        return each.app == "a" if selector.app else 3.0 <= each.at < 7.0

    assert events.as_sent(conn, 0, 99) == [each for each in stored if not is_named(each)]
    if selector.search is not None:
        kept = {
            event: intent
            for event, intent in mapping.items()
            if selector.search.lower() not in f"{event} {intent}".lower()
        }
        gone = {each.event for each in stored} - {each.event for each in stored if not is_named(each)}
        assert events.known(conn) == {event: intent for event, intent in kept.items() if event not in gone}
    assert find(conn, selector).counts["events"] == 0
    conn.close()


@pytest.mark.parametrize("instead", ["a walk", None])
def test_a_model_that_was_tuned_with_an_intent_which_left_the_map_goes_with_it(
    conn: sqlite3.Connection, instead: str | None
) -> None:
    seq = told(conn, 20.0, "cafe")
    events.map_event(conn, "cafe", "a secret meeting")
    number = student(conn, seq, "active")
    assert students.saw_any(conn, None, gone=True) == []
    if instead is None:
        events.remove_map(conn, "cafe")
    else:
        events.map_event(conn, "cafe", instead)
    forget(conn, Selector(search="secret"))
    assert students.get(conn, number).state == "stale"


def test_a_new_event_on_the_map_takes_nothing_from_a_model(conn: sqlite3.Connection) -> None:
    number = student(conn, told(conn, 20.0, "cafe"), "active")
    events.map_event(conn, "train", "travel")
    assert students.saw_any(conn, None, gone=True) == []
    assert students.get(conn, number).state == "active"
