from __future__ import annotations

import sqlite3
from datetime import date, timedelta

import pytest

from edgepd_profiles import usage
from edgepd_profiles.usage import Usage


def days(conn: sqlite3.Connection) -> list[str]:
    return [day for (day,) in conn.execute("SELECT day FROM training_days ORDER BY day")]


def test_seconds_add_up_day_by_day(conn: sqlite3.Connection) -> None:
    usage.add(conn, "2026-03-28", 60.0, 30.0, 0.0)
    usage.add(conn, "2026-03-29", 1.5, 1.0, 0.25)
    usage.add(conn, "2026-03-28", 0.5, 0.25, 10.0)
    assert usage.today(conn, "2026-03-28") == Usage("2026-03-28", 60.5, 30.25, 10.0)
    assert usage.today(conn, "2026-03-29") == Usage("2026-03-29", 1.5, 1.0, 0.25)
    assert usage.today(conn, "2026-03-30") == Usage("2026-03-30", 0.0, 0.0, 0.0)


def test_a_day_without_training_has_no_row(conn: sqlite3.Connection) -> None:
    usage.add(conn, "2026-03-28", 0.0, 0.0, 0.0)
    assert days(conn) == []


def test_the_newest_days_are_kept(conn: sqlite3.Connection) -> None:
    first = date(2024, 1, 1)
    for n in range(450):
        usage.add(conn, str(first + timedelta(n)), 1.0, 1.0, 0.0)
    assert days(conn) == [str(first + timedelta(n)) for n in range(50, 450)]


def test_a_clock_that_begins_in_1970_cannot_have_the_budget_of_a_day_twice(conn: sqlite3.Connection) -> None:
    """A board without a clock of its own starts there, until the network tells the time."""
    for n in range(400):
        usage.add(conn, str(date(2024, 1, 1) + timedelta(n)), 1.0, 1.0, 0.0)
    for _ in range(3):
        usage.add(conn, "1970-01-01", 20.0, 10.0, 0.0)
    assert usage.today(conn, "1970-01-01").at_work_s == 60.0
    usage.add(conn, "2026-03-28", 5.0, 1.0, 0.0)
    assert len(days(conn)) == 400
    assert (days(conn)[0], days(conn)[-1]) == ("2024-01-02", "2026-03-28")


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_what_is_no_duration_is_refused(conn: sqlite3.Connection, bad: float) -> None:
    with pytest.raises(ValueError, match="cpu_s is .*, but must be a number of seconds"):
        usage.add(conn, "2026-03-28", 1.0, bad, 0.0)
    assert days(conn) == []


@pytest.mark.parametrize("bad", ["20260328", "2026-W13-6", "28.3.2026", "2026-02-30"])
def test_what_is_no_day_is_refused(conn: sqlite3.Connection, bad: str) -> None:
    with pytest.raises(ValueError, match="YYYY-MM-DD|isoformat|out of range"):
        usage.add(conn, bad, 1.0, 1.0, 1.0)
