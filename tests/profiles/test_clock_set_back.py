"""What happens once a clock that was a year ahead is set right: questions come again, and no more than they should."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from edgepd_profiles import questions, surveys
from edgepd_profiles.interactions import Interaction

DAY = 86_400.0
NOW = 1_750_000_000.0
AHEAD = NOW + 365 * DAY


def test_a_question_that_a_wrong_clock_asked_does_not_count(
    conn: sqlite3.Connection, log: Callable[..., Interaction]
) -> None:
    for name, at in (("i_1", AHEAD), ("i_2", AHEAD), ("i_3", NOW - 10)):
        log(name)
        conn.execute("INSERT INTO questions (interaction, asked_at) VALUES (?, ?)", (name, at))
    assert questions.left_today(conn, 3, AHEAD + 1) == 1
    assert questions.left_today(conn, 3, NOW) == 2


def test_a_survey_that_a_wrong_clock_asked_does_not_stop_the_others(
    conn: sqlite3.Connection, log: Callable[..., Interaction]
) -> None:
    for n in range(5):
        log(f"i_{n}", created_at=1000.0 + n)
    first = surveys.next_question(conn, None, AHEAD, True)
    assert first is not None
    second = surveys.next_question(conn, None, NOW, True)
    assert second is not None
    assert second.id != first.id
    assert surveys.get(conn, first.id).outcome == "expired"
    assert surveys.next_question(conn, None, NOW + 10, True) == second  # and still one a day
    assert conn.execute("SELECT count(*) FROM surveys").fetchone() == (2,)
