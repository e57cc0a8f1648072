"""What training took of the machine, day by day.

The idea: seconds are added to the row of a local day as they pass, so that a budget of minutes a day holds across
restarts of the daemon. What was asked for by the user is kept apart, because it does not count against it.
The invariants: seconds of a day never become fewer; the newest DAYS days are kept, and the day that is added to, even
if the clock was set back by years.
What this does not do: know the time, or measure anything. Which day it is says the caller.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from datetime import date

DAYS = 400


@dataclass(frozen=True)
class Usage:
    """What training took on one local day ('YYYY-MM-DD'), in seconds.

    `at_work_s` is the time that unasked training was at work, `asked_s` that of runs which the user started, `cpu_s`
    the processor time of both.
    """

    day: str
    at_work_s: float = 0.0
    cpu_s: float = 0.0
    asked_s: float = 0.0


def add(conn: sqlite3.Connection, day: str, at_work_s: float, cpu_s: float, asked_s: float) -> None:
    """Add seconds to a day. Raises ValueError for another form of day, and for a number that is negative or not finite.

    A day on which nothing was taken gets no row.
    """
    if date.fromisoformat(day).isoformat() != day:
        raise ValueError(f"the day is {day!r}, but must have the form YYYY-MM-DD")
    for name, seconds in (("at_work_s", at_work_s), ("cpu_s", cpu_s), ("asked_s", asked_s)):
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"{name} is {seconds}, but must be a number of seconds, at least 0")
    if at_work_s == cpu_s == asked_s == 0:
        return
    added = conn.execute(
        """
        UPDATE training_days SET at_work_s = at_work_s + ?, cpu_s = cpu_s + ?, asked_s = asked_s + ? WHERE day = ?
        """,
        (at_work_s, cpu_s, asked_s, day),
    ).rowcount
    if not added:
        conn.execute(
            "INSERT INTO training_days (day, at_work_s, cpu_s, asked_s) VALUES (?, ?, ?, ?)",
            (day, at_work_s, cpu_s, asked_s),
        )
        conn.execute(
            """
            DELETE FROM training_days
            WHERE day NOT IN (SELECT day FROM training_days ORDER BY day DESC LIMIT ?) AND day != ?
            """,
            (DAYS, day),
        )


def today(conn: sqlite3.Connection, day: str) -> Usage:
    """Return what was taken on a day; nothing if it has no row."""
    row = conn.execute("SELECT day, at_work_s, cpu_s, asked_s FROM training_days WHERE day = ?", (day,)).fetchone()
    return Usage(*row) if row else Usage(day)
