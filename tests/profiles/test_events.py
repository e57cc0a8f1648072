"""Events: their order, that they are stored once, what may be stored, who sees them, the map, and chats as events."""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepd.errors import ConflictError, NotFoundError, RequestError
from edgepd_profiles import apps, demand, events, migrations
from edgepd_profiles.events import New, Stored
from edgepd_profiles.interactions import Interaction

NOW = 1_750_000_000.0
HOUR = 3600
Log = Callable[..., Interaction]


def new(at: float, event: str = "cafe", app: str = "", **fields: Any) -> New:
    values: dict[str, Any] = {"intent": "food", "context": "", "utc_offset_s": 0}
    return New(at=at, event=event, app=app, **(values | fields))


def add(conn: sqlite3.Connection, *wanted: New) -> list[int]:
    return events.add(conn, wanted, now=NOW)


def names(conn: sqlite3.Connection, viewer: str | None = None, **options: Any) -> list[str]:
    return [each.event for each in events.history(conn, viewer=viewer, **options)]


def test_what_was_added_comes_back_in_the_order_of_time(conn: sqlite3.Connection) -> None:
    late, early = new(20.0, "bus", "maps", context="rain", utc_offset_s=-HOUR), new(10.0)
    assert add(conn, late, early) == [1, 2]
    assert events.history(conn) == [
        Stored(10.0, "cafe", "food", "", 0, "", None, 2),
        Stored(20.0, "bus", "food", "rain", -HOUR, "maps", None, 1),
    ]
    assert [each.event for each in events.history(conn, 1)] == ["bus"]
    assert (events.newest_seq(conn), events.count_after(conn, 0), events.count_after(conn, 1)) == (2, 2, 1)


def test_what_is_stored_already_keeps_its_number_and_all_else(conn: sqlite3.Connection) -> None:
    assert add(conn, new(10.0), new(10.0), new(10.0, app="maps"), new(10.0, "bus")) == [1, 1, 2, 3]
    before = conn.total_changes
    assert add(conn, new(10.0, intent="work", context="rain", utc_offset_s=HOUR)) == [1]
    assert conn.total_changes == before
    assert [each.intent for each in events.history(conn)] == ["food"] * 3


def test_no_number_is_given_twice(conn: sqlite3.Connection) -> None:
    add(conn, new(1.0), new(2.0))
    conn.execute("DELETE FROM events")
    assert (events.newest_seq(conn), events.count_after(conn, 0)) == (2, 0)
    assert add(conn, new(1.0)) == [3]


word = st.text("abc é👩", min_size=1, max_size=6).filter(str.strip)
kept = st.builds(
    New,
    at=st.integers(0, 20).map(float),
    event=word,
    intent=word,
    context=st.just("") | word,
    utc_offset_s=st.integers(-18 * HOUR, 18 * HOUR),
    app=st.sampled_from(["", "maps", "mail"]),
)


@given(st.lists(st.lists(kept, max_size=6), max_size=6), st.integers(0, 12))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_order_of_adding_gives_each_event_once_in_the_order_of_time(batches: list[list[New]], limit: int) -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    migrations.migrate(conn)
    first: dict[tuple[str, float, str], New] = {}
    for batch in batches:
        for each in batch:
            first.setdefault((each.app, each.at, each.event), each)
        seqs = events.add(conn, batch, now=NOW)
        again = events.add(conn, batch, now=NOW)
        assert again == seqs
    found = events.history(conn, 1000)
    assert [(each.at, each.seq) for each in found] == sorted((each.at, each.seq) for each in found)
    assert {(each.app, each.at, each.event): replace(each, seq=0) for each in found} == {
        key: Stored(**vars(each)) for key, each in first.items()
    }
    assert events.newest_seq(conn) == events.count_after(conn, 0) == len(first)
    assert events.history(conn, limit) == found[len(found) - min(limit, len(found)) :]
    assert sorted(events.as_sent(conn, 0, 1000), key=lambda each: (each.at, each.seq)) == found
    conn.close()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"event": ""}, "the event is empty"),
        ({"event": " "}, "the event is empty"),
        ({"event": "x" * 201}, "the event has 201 characters, but at most 200 are allowed"),
        ({"intent": ""}, "the intent is empty"),
        ({"intent": "a\nb"}, r"the intent has the character U\+000A at position 1"),
        ({"context": "\x1b[2J"}, r"the context has the character U\+001B at position 0"),
        ({"context": "\ud800"}, r"the context has the character U\+D800"),
        ({"event": "my password is hunter2!X"}, "the event seems to have a secret in it"),
        ({"context": "4111 1111 1111 1111"}, r"the context seems to have a secret in it \(payment card\)"),
        ({"app": "a\nb"}, "the name of the app"),
        ({"at": math.nan}, "the time of the event is nan"),
        ({"at": math.inf}, "the time of the event is inf"),
        ({"at": -1.0}, "the time of the event is -1.0"),
        ({"at": NOW + 25 * HOUR}, "the event happened 25 hours from now"),
        ({"utc_offset_s": 18 * HOUR + 1}, "the UTC offset is 64801 s, but must be between -64800 and 64800"),
        ({"utc_offset_s": 1.5}, "the UTC offset is 1.5, not a whole number"),
        ({"utc_offset_s": True}, "the UTC offset is True, not a whole number"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_a_reason_that_does_not_repeat_it(
    conn: sqlite3.Connection, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        add(conn, replace(new(1.0), **fields))
    assert "hunter2" not in str(refused.value)
    assert names(conn) == []


def test_the_ends_of_what_can_be_stored(conn: sqlite3.Connection) -> None:
    add(
        conn,
        new(0.0, "x" * 200, utc_offset_s=18 * HOUR),
        new(NOW + 24 * HOUR, "Caf\u00e9\u00a0Roma \U0001f469\u200d\U0001f4bb"),
    )
    assert len(names(conn)) == 2


def test_nothing_is_stored_for_an_app_that_is_not_stored(conn: sqlite3.Connection) -> None:
    apps.change(conn, "maps", stored=False)
    with pytest.raises(ConflictError, match="nothing of app 'maps' is stored"):
        add(conn, new(1.0, app="mail"), new(2.0, app="maps"))
    assert names(conn) == []


def test_an_app_sees_its_own_events_and_what_is_shared(conn: sqlite3.Connection) -> None:
    add(conn, new(1.0, "a"), new(2.0, "b", "maps"), new(3.0, "c", "mail"), new(4.0, "d", "notes"))
    apps.change(conn, "notes", shared=True)
    assert [names(conn, viewer) for viewer in ("maps", "", None)] == [["a", "b", "d"], ["a", "d"], ["a", "b", "c", "d"]]
    assert [each.event for each in events.as_sent(conn, 1, 9, "maps")] == ["b", "d"]
    assert [app.name for app in apps.listing(conn)] == ["", "mail", "maps", "notes"]


def test_only_events_of_apps_that_teach_count_and_are_learned_from(conn: sqlite3.Connection) -> None:
    add(conn, *(new(float(n), app="maps" if n % 2 else "mail") for n in range(10)))
    apps.change(conn, "mail", teaches=False)
    assert (demand.intent_events(conn), demand.all_events(conn), demand.intent_events(conn, enough=3)) == (5, 5, 3)
    assert {each.app for each in events.history(conn, teaching=True)} == {"maps"}
    before = demand.events_version(conn)
    demand.judged(conn, "intent", 6)
    assert (demand.intent_events(conn), demand.all_events(conn)) == (2, 5)
    apps.change(conn, "mail", teaches=True)
    assert (demand.intent_events(conn), demand.all_events(conn)) == (4, 10)
    assert len({before, demand.events_version(conn), (add(conn, new(99.0)), demand.events_version(conn))[1]}) == 3


# The map


def test_the_map_holds_for_what_is_stored_until_it_is_taken_back(conn: sqlite3.Connection) -> None:
    add(conn, new(1.0, "bus"), new(2.0, "cafe"))
    versions = [events.version(conn)]
    changes: tuple[Callable[[], None], ...] = (
        lambda: events.map_event(conn, "bus", "commute", at=5.0),
        lambda: events.map_event(conn, "bus", "travel", at=4.0),
        lambda: events.remove_map(conn, "bus"),
    )
    for change in changes:
        change()
        versions.append(events.version(conn))
    assert len(set(versions)) == 4
    events.map_event(conn, "bus", "commute", at=5.0)
    add(conn, new(3.0, "bus"))
    assert [each.intent for each in events.history(conn)] == ["commute", "food", "commute"]
    assert [each.intent for each in events.as_sent(conn, 0, 9)] == ["food"] * 3
    assert (events.known(conn), events.mapped(conn)) == ({"bus": "commute"}, [("bus", "commute", 5.0)])
    before = conn.total_changes
    events.map_event(conn, "bus", "commute", at=9.0)
    assert conn.total_changes == before
    events.remove_map(conn, "bus")
    assert [each.intent for each in events.history(conn)] == ["food"] * 3
    with pytest.raises(NotFoundError, match="event 'bus' is not on the map"):
        events.remove_map(conn, "bus")


def test_the_map_is_bounded_and_takes_names_as_events_do(
    conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_MAPPED", 1)
    for event, intent in (("", "food"), ("cafe", " "), ("cafe", "my password is hunter2!X")):
        with pytest.raises(RequestError):
            events.map_event(conn, event, intent)
    events.map_event(conn, "cafe", "food")
    events.map_event(conn, "cafe", "work")
    with pytest.raises(RequestError, match="the map has 1 events, which is all that are kept"):
        events.map_event(conn, "bus", "commute")
    assert events.known(conn) == {"cafe": "work"}


# Chats


def test_a_chat_is_an_event_of_its_topic_for_the_app_that_asked(conn: sqlite3.Connection, log: Log) -> None:
    asked = [{"role": "user", "content": "Please repair the zeppelin, the old zeppelin."}]
    chat = log("i_1", app="mail", created_at=50.0, messages=asked)
    assert events.of_chat(chat, 7200) == New(50.0, "chat:zeppelin", "mail", "", 7200, "mail", "i_1")
    bare = replace(chat, app="", messages=[{"role": "user", "content": "What is it?"}])
    assert events.of_chat(bare, 0) == New(50.0, "chat:", "chat", "", 0, "", "i_1")
    assert events.of_chat(replace(chat, kind="tools"), 0) is None
    assert events.of_chat(replace(chat, kind="completion"), 0) is None
    assert events.note_chat(conn, chat) == events.note_chat(conn, chat) == 1
    log("i_2", app="mail", created_at=50.0, messages=asked)
    assert events.note_chat(conn, replace(chat, id="i_2")) == 1, "two answers to one question are one event"
    assert events.history(conn)[0].interaction == "i_1"
    conn.execute("DELETE FROM interactions WHERE id = 'i_1'")
    assert names(conn) == []


def test_a_chat_is_not_noted_if_it_must_not_be(conn: sqlite3.Connection, log: Log) -> None:
    apps.change(conn, "mail", stored=False)
    assert events.note_chat(conn, log("i_1", app="mail")) is None
    assert events.note_chat(conn, log("i_2", app="pin 4111 1111 1111 1111")) is None
    assert events.note_chat(conn, replace(log("i_3"), id="i_forgotten")) is None
    assert names(conn) == []


def test_the_offset_is_that_of_the_machine_at_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.environ.get("TZ")
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        assert (events.local_offset(1_736_000_000.0), events.local_offset(1_750_000_000.0)) == (HOUR, 2 * HOUR)
        assert events.local_offset(1e300) == 0
    finally:
        monkeypatch.setenv("TZ", before) if before is not None else monkeypatch.delenv("TZ")
        time.tzset()
