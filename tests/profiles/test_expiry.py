from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from edgepd_profiles import events, expiry, feedback, interactions
from edgepd_profiles.interactions import Interaction

Log = Callable[..., Interaction]
DAY = 86_400.0
NOW = 1000 * DAY


@pytest.fixture
def ten(conn: sqlite3.Connection, log: Log) -> sqlite3.Connection:
    """Ten exchanges, i_0 to i_9, that are 10 days to 1 day old, in another order than that of their arrival."""
    for n in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7):
        log(f"i_{n}", created_at=NOW - (10 - n) * DAY)
    return conn


def left(conn: sqlite3.Connection) -> str:
    return "".join(name[2:] for (name,) in conn.execute("SELECT id FROM interactions ORDER BY id"))


def put_into_a_bin(conn: sqlite3.Connection, pool: str, interaction: str) -> None:
    conn.execute("INSERT INTO bins VALUES (?, ?, 0, 0, 0, 0, '', 0)", (pool, interaction))


def test_nothing_goes_without_a_bound_or_below_it(ten: sqlite3.Connection) -> None:
    assert expiry.expire(ten, 0, 0.0, NOW) == 0
    assert expiry.expire(ten, 10, 0.0, NOW) == 0
    assert expiry.expire(ten, 0, 10.0, NOW) == 0  # the oldest is exactly 10 days old
    assert left(ten) == "0123456789"


def test_the_oldest_go_until_so_many_are_left(ten: sqlite3.Connection) -> None:
    assert expiry.expire(ten, 7, 0.0, NOW) == 3
    assert left(ten) == "3456789"
    assert expiry.expire(ten, 7, 0.0, NOW) == 0


def test_what_is_too_old_goes(ten: sqlite3.Connection) -> None:
    assert expiry.expire(ten, 0, 4.0, NOW) == 6
    assert left(ten) == "6789"
    assert expiry.expire(ten, 0, 0.5, NOW) == 4


def test_of_both_bounds_the_narrower_one_counts(ten: sqlite3.Connection) -> None:
    assert expiry.expire(ten, 8, 5.5, NOW) == 5
    assert left(ten) == "56789"
    assert expiry.expire(ten, 2, 4.5, NOW) == 3
    assert left(ten) == "89"


def test_it_goes_in_small_batches(ten: sqlite3.Connection) -> None:
    assert [expiry.expire(ten, 3, 0.0, NOW, limit=3) for _ in range(4)] == [3, 3, 1, 0]
    assert left(ten) == "789"


def test_what_was_judged_or_selected_stays_and_counts(ten: sqlite3.Connection) -> None:
    feedback.set_thumb(ten, "i_0", -1)
    put_into_a_bin(ten, "examples", "i_2")
    put_into_a_bin(ten, "questions", "i_1")  # what the user may be asked about is as old as anything else
    assert expiry.expire(ten, 7, 0.0, NOW) == 3
    assert left(ten) == "0256789"
    assert expiry.expire(ten, 1, 0.5, NOW) == 5
    assert left(ten) == "02"


def test_what_another_answer_was_preferred_to_stays(ten: sqlite3.Connection) -> None:
    feedback.prefer(ten, "i_4", "i_1")
    assert expiry.expire(ten, 0, 0.5, NOW) == 8
    assert left(ten) == "14"


def test_an_answer_that_is_still_streaming_stays(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", created_at=0.0, state="streaming")
    assert expiry.expire(conn, 0, 1.0, NOW) == 0
    assert left(conn) == "1"


def test_what_went_is_not_found_any_more_and_leaves_no_rows(ten: sqlite3.Connection) -> None:
    ten.execute("INSERT INTO embeddings VALUES ('i_0', 'm', x'00', 0.5)")
    ten.execute("INSERT INTO questions VALUES ('i_0', 1.0, NULL)")
    assert expiry.expire(ten, 1, 0.0, NOW) == 9
    assert ten.execute(
        "SELECT count(*) FROM interaction_search WHERE interaction_search MATCH 'colour'"
    ).fetchone() == (1,)
    assert ten.execute("SELECT (SELECT count(*) FROM embeddings), (SELECT count(*) FROM questions)").fetchone() == (
        0,
        0,
    )
    ten.execute("INSERT INTO interaction_search (interaction_search, rank) VALUES ('integrity-check', 1)")


def test_an_empty_profile_has_nothing_to_expire(conn: sqlite3.Connection) -> None:
    assert expiry.expire(conn, 5, 1.0, NOW) == 0


def placed(conn: sqlite3.Connection) -> list[float]:
    return [(NOW - each.at) / DAY for each in events.history(conn)]


def test_old_events_go_with_their_exchanges_and_by_themselves(ten: sqlite3.Connection) -> None:
    for n in range(10):
        events.note_chat(ten, interactions.get(ten, f"i_{n}"))
    events.add(ten, [events.New(NOW - n * DAY, "walk", "dog", "", 0, "maps") for n in range(2, 12, 2)], now=NOW)
    feedback.set_thumb(ten, "i_0", 1)
    feedback.set_thumb(ten, "i_9", 1)
    events.map_event(ten, "walk", "sport", at=0.0)
    # The exchanges that are 9 to 6 days old, with their events, then the event of i_0 and two walks.
    assert [expiry.expire(ten, 0, 5.0, NOW, limit=3) for _ in range(4)] == [6, 2, 0, 0]
    assert placed(ten) == [5.0, 4.0, 4.0, 3.0, 2.0, 2.0, 1.0]
    assert events.known(ten) == {"walk": "sport"}
    assert left(ten) == "056789"


def test_of_too_many_events_the_oldest_go(conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "KEPT_EVENTS", 4)
    events.add(conn, [events.New(NOW - n * DAY, "walk", "dog", "", 0, "maps") for n in (3, 1, 0, 5, 2, 4, 6)], now=NOW)
    assert [expiry.expire(conn, 0, 0.0, NOW, limit=2) for _ in range(3)] == [2, 1, 0]
    assert placed(conn) == [3.0, 2.0, 1.0, 0.0]
