from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from edgepd.errors import ConflictError, NotFoundError
from edgepd_profiles import apps, interactions
from edgepd_profiles.interactions import Interaction

Log = Callable[..., Interaction]


def test_new_ids_are_ulids_that_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1469918176.385)  # the example in the ULID specification
    early = interactions.new_id()
    monkeypatch.setattr(time, "time", lambda: 1469918176.386)
    late = interactions.new_id()
    assert early[:12] == "i_01ARYZ6S41"
    assert len(early) == 28
    assert set(early[2:]) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")
    assert early < late


def test_new_ids_differ() -> None:
    assert len({interactions.new_id() for _ in range(1000)}) == 1000


def test_an_interaction_comes_back_as_it_was_stored(conn: sqlite3.Connection) -> None:
    stored = Interaction(
        id="i_1",
        conversation="c1",
        created_at=1700000000.25,
        app="editor",
        model="smollm2",
        generation=3,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße \ud800 \x00?"}],
        response="Grüße!",
        state="done",
        finish_reason="stop",
        prompt_tokens=12,
        completion_tokens=4,
        ttft_ms=31.5,
        duration_ms=99.0,
        personal={"profile": True, "facts": [3], "shots": []},
    )
    interactions.begin(conn, stored)
    assert interactions.get(conn, "i_1") == replace(stored, prompt="Grüße ? \x00?")  # a column holds no half character


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}], "One"),
        ([{"role": "user", "content": "One"}, {"role": "user", "content": [{"type": "text", "text": "Two"}]}], "Two"),
        ([{"role": "prompt", "content": "Once upon"}], "Once upon"),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": None}], ""),
        ([], ""),
    ],
)
def test_the_prompt_is_what_the_user_said_last(
    conn: sqlite3.Connection, log: Log, messages: list[dict[str, object]], prompt: str
) -> None:
    log("i_1", messages=messages, prompt="something else")
    assert interactions.get(conn, "i_1").prompt == prompt


def test_an_id_cannot_be_used_twice(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        log("i_1")


def test_streaming_updates_then_the_end(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", state="streaming", response="")
    interactions.update(conn, "i_1", "Bl", 1)
    partial = interactions.get(conn, "i_1")
    assert (partial.response, partial.completion_tokens, partial.state) == ("Bl", 1, "streaming")
    interactions.finish(
        conn, "i_1", "Blue.", "done", "stop",
        prompt_tokens=9, completion_tokens=3, ttft_ms=20.0, duration_ms=55.0,
    )  # fmt: skip
    ended = interactions.get(conn, "i_1")
    assert (ended.response, ended.state, ended.finish_reason) == ("Blue.", "done", "stop")
    assert (ended.prompt_tokens, ended.completion_tokens, ended.ttft_ms, ended.duration_ms) == (9, 3, 20.0, 55.0)


@pytest.mark.parametrize("state", ["done", "cancelled", "failed", "interrupted"])
def test_an_ended_interaction_never_changes(conn: sqlite3.Connection, log: Log, state: str) -> None:
    log("i_1", state=state)
    stored = interactions.get(conn, "i_1")
    with pytest.raises(ConflictError, match=f"'i_1' is already {state}"):
        interactions.update(conn, "i_1", "other", 9)
    with pytest.raises(ConflictError, match=f"'i_1' is already {state}"):
        interactions.finish(
            conn, "i_1", "other", "done", None,
            prompt_tokens=0, completion_tokens=0, ttft_ms=None, duration_ms=None,
        )  # fmt: skip
    assert interactions.get(conn, "i_1") == stored


def test_streaming_is_not_an_end(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", state="streaming")
    with pytest.raises(ValueError, match="'streaming' is not final"):
        interactions.finish(
            conn, "i_1", "x", "streaming", None,
            prompt_tokens=0, completion_tokens=0, ttft_ms=None, duration_ms=None,
        )  # fmt: skip


def test_unknown_ids_are_named(conn: sqlite3.Connection) -> None:
    with pytest.raises(NotFoundError, match="'i_nope' is not known; .*interactions.* lists"):
        interactions.get(conn, "i_nope")
    with pytest.raises(NotFoundError, match="i_nope"):
        interactions.update(conn, "i_nope", "x", 1)


def test_latest_is_the_last_to_begin_and_not_failed(conn: sqlite3.Connection, log: Log) -> None:
    with pytest.raises(NotFoundError, match="no interaction yet"):
        interactions.latest(conn)
    log("i_a", created_at=2000.0)
    log("i_b", created_at=1000.0)  # the clock was set back in between
    log("i_c", created_at=3000.0, state="failed")
    assert interactions.latest(conn).id == "i_b"


def test_recent_is_newest_first_and_limited(conn: sqlite3.Connection, log: Log) -> None:
    for name in ("i_a", "i_b", "i_c"):
        log(name)
    assert [i.id for i in interactions.recent(conn, 2)] == ["i_c", "i_b"]


def test_recent_goes_on_before_a_place(conn: sqlite3.Connection, log: Log) -> None:
    for name in ("i_a", "i_b", "i_c", "i_d"):
        log(name, app="mail" if name in "i_a i_c" else "cli")
    place = interactions.seq_of(conn, "i_c")
    assert [i.id for i in interactions.recent(conn, 5, before_seq=place)] == ["i_b", "i_a"]
    assert [i.id for i in interactions.recent(conn, 1, before_seq=place)] == ["i_b"]
    assert [i.id for i in interactions.recent(conn, 5, "mail", before_seq=place)] == ["i_a"]


def test_a_viewer_gets_only_what_it_may_see(conn: sqlite3.Connection, log: Log) -> None:
    for n, name in enumerate(["", "mail", "editor", "notes", "mail", "editor"]):
        log(f"i_{n}", app=name)
    apps.change(conn, "notes", shared=True)
    assert [i.id for i in interactions.recent(conn, 9, "mail")] == ["i_4", "i_3", "i_1", "i_0"]
    assert [i.id for i in interactions.recent(conn, 2, "mail")] == ["i_4", "i_3"]
    assert [i.id for i in interactions.recent(conn, 9, "")] == ["i_3", "i_0"]
    assert [interactions.latest(conn, viewer).id for viewer in (None, "mail", "", "unheard of")] == [
        "i_5", "i_4", "i_3", "i_3",
    ]  # fmt: skip
    assert interactions.get(conn, "i_3", "mail").app == "notes"
    for look in (interactions.get, interactions.seq_of):
        with pytest.raises(NotFoundError, match="'i_2' is not known"):  # as if it were not there
            look(conn, "i_2", "mail")
        look(conn, "i_2", "editor")


def test_latest_of_a_viewer_without_any_is_not_that_of_another(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", app="mail")
    with pytest.raises(NotFoundError, match="no interaction yet"):
        interactions.latest(conn, "editor")


def test_a_conversation_comes_in_its_order(conn: sqlite3.Connection, log: Log) -> None:
    for name, conversation in (("i_b", "c1"), ("i_x", "c2"), ("i_a", "c1")):
        log(name, conversation=conversation)
    assert [i.id for i in interactions.in_conversation(conn, "c1")] == ["i_b", "i_a"]
    assert interactions.in_conversation(conn, "c3") == []


def test_what_is_gone_is_left_out(conn: sqlite3.Connection, log: Log) -> None:
    log("i_a")
    log("i_b")
    places = [interactions.seq_of(conn, name) for name in ("i_a", "i_b")]
    conn.execute("DELETE FROM interactions WHERE id = 'i_a'")
    assert {seq: i.id for seq, i in interactions.by_seq(conn, places).items()} == {places[1]: "i_b"}


def test_what_an_earlier_process_left_streaming_is_interrupted(conn: sqlite3.Connection, log: Log) -> None:
    log("i_a", state="streaming", response="half an ans")
    log("i_b", state="streaming", response="")
    log("i_c")
    done = interactions.get(conn, "i_c")
    assert interactions.mark_interrupted(conn) == 2
    assert interactions.get(conn, "i_a").state == "interrupted"
    assert interactions.get(conn, "i_a").response == "half an ans"
    assert interactions.get(conn, "i_c") == done
    assert interactions.mark_interrupted(conn) == 0
