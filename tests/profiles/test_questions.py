from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from edgepd.errors import NotFoundError, RequestError
from edgepd_profiles import questions
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.questions import left_today, next_question, settle

Log = Callable[..., Interaction]
Keep = Callable[..., None]
DAY = 86_400.0


@pytest.fixture
def keep(conn: sqlite3.Connection, log: Log) -> Keep:
    def keep_one(name: str, entropy: float, domain_score: float, dissimilarity: float, app: str = "cli") -> None:
        log(name, app=app)
        conn.execute(
            "INSERT INTO bins VALUES ('questions', ?, ?, ?, ?, 0, 'there was room for it ({domain})', 0)",
            (name, entropy, domain_score, dissimilarity),
        )

    return keep_one


def asked(conn: sqlite3.Connection, per_day: int, now: float, viewer: str | None = None) -> str | None:
    found = next_question(conn, per_day, now, viewer)
    return found.id if found else None


def judge(conn: sqlite3.Connection, name: str) -> None:
    conn.execute(
        "INSERT INTO feedback (interaction, kind, value, text, source, at) VALUES (?, 'thumb', 1, NULL, 'user', 5)",
        (name,),
    )


def test_the_highest_sum_of_ranks_comes_first(conn: sqlite3.Connection, keep: Keep) -> None:
    keep("extreme", 0.1, 0.0, 1.9)  # ranks 0 + 0 + 2
    keep("good", 0.3, 0.2, 0.2)  # ranks 2 + 1 + 1
    keep("dull", 0.2, 0.3, 0.1)  # ranks 1 + 2 + 0
    order = []
    while name := asked(conn, 10, 100.0):
        order.append(name)
        settle(conn, name, "skipped")
    assert order == ["good", "dull", "extreme"]


def test_of_equally_useful_ones_the_newest_comes_first(conn: sqlite3.Connection, keep: Keep) -> None:
    keep("a", 0.5, 0.5, 0.5)
    keep("b", 0.5, 0.5, 0.5)
    assert asked(conn, 1, 100.0) == "b"


def test_the_open_question_comes_again_and_counts_once(conn: sqlite3.Connection, keep: Keep) -> None:
    keep("a", 0.5, 0.5, 0.5)
    keep("b", 0.1, 0.1, 0.1)
    assert [asked(conn, 1, 100.0 + n) for n in range(3)] == ["a", "a", "a"]
    assert left_today(conn, 1, 110.0) == 0
    conn.execute("DELETE FROM bins WHERE interaction = 'a'")  # the policy may replace it meanwhile
    assert asked(conn, 1, 110.0) == "a"


def test_no_more_than_so_many_a_day(conn: sqlite3.Connection, keep: Keep) -> None:
    for n in range(4):
        keep(f"i{n}", n, n, n)
    for now in (100.0, 200.0):
        settle(conn, str(asked(conn, 2, now)), "accepted")
    assert asked(conn, 2, 300.0) is None
    assert asked(conn, 2, 100.0 + DAY) == "i1"
    assert left_today(conn, 2, 101.0 + DAY) == 0


def test_zero_a_day_asks_nothing_not_even_what_is_open(conn: sqlite3.Connection, keep: Keep) -> None:
    keep("a", 0.5, 0.5, 0.5)
    assert asked(conn, 1, 100.0) == "a"
    assert asked(conn, 0, 101.0) is None


def test_what_is_not_answered_in_a_day_is_not_asked_again(conn: sqlite3.Connection, keep: Keep) -> None:
    keep("a", 0.5, 0.5, 0.5)
    assert asked(conn, 1, 100.0) == "a"
    assert asked(conn, 1, 101.0 + DAY) is None
    assert conn.execute("SELECT outcome FROM questions").fetchall() == [("skipped",)]


def test_what_was_judged_otherwise_is_not_asked_about(conn: sqlite3.Connection, keep: Keep) -> None:
    keep("a", 0.5, 0.5, 0.5)
    keep("b", 0.1, 0.1, 0.1)
    assert asked(conn, 2, 100.0) == "a"
    judge(conn, "a")
    assert asked(conn, 2, 101.0) == "b"


def test_an_app_is_asked_about_what_it_sees_only(conn: sqlite3.Connection, keep: Keep) -> None:
    keep("editor", 0.9, 0.9, 0.9, app="editor")
    keep("mail", 0.1, 0.1, 0.1, app="mail")
    assert asked(conn, 5, 100.0, "mail") == "mail"


def test_settling_frees_the_place_and_can_be_repeated(conn: sqlite3.Connection, keep: Keep) -> None:
    keep("a", 0.5, 0.5, 0.5)
    next_question(conn, 1, 100.0)
    settle(conn, "a", "bad")
    settle(conn, "a", "corrected")
    assert conn.execute("SELECT * FROM questions").fetchall() == [("a", 100.0, "corrected")]
    assert conn.execute("SELECT count(*) FROM bins").fetchone() == (0,)


def test_what_was_not_asked_cannot_be_settled(conn: sqlite3.Connection, keep: Keep) -> None:
    keep("a", 0.5, 0.5, 0.5)
    with pytest.raises(NotFoundError, match="nothing was asked about interaction 'a'"):
        settle(conn, "a", "bad")
    with pytest.raises(RequestError, match="'maybe', but must be one of accepted, corrected, bad, skipped"):
        settle(conn, "a", "maybe")


def test_the_reason_is_a_sentence(conn: sqlite3.Connection, keep: Keep) -> None:
    keep("a", 0.5, 0.5, 0.5)
    assert questions.reason(conn, "a") == (
        "nothing was said about it yet, and it was chosen for this: there was room for it (no domain yet)"
    )
    assert questions.reason(conn, "b") == "nothing was said about it yet"
