"""What the scheduler decided, and why: the last thousand changes.

The idea: it decides every few seconds and mostly the same, so only what differs is kept. A reason has values in it,
such as a temperature, that differ each time; it is that of the moment at which the decision was new.
The invariants: no text of an exchange is in the table; there are at most KEPT rows; their order is that of writing,
whatever the clock does.
What this does not do: decide (the daemon's scheduler does), or log.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from edgepd_profiles.rows import fetch

KEPT = 1000


@dataclass(frozen=True)
class Noted:
    """One decision: `kind` is that of the run, if there is one, `constraint` what holds it, "" if nothing does.

    `at` is unix seconds.
    """

    id: int
    at: float
    action: str
    kind: str | None
    constraint: str
    reason: str


def note(conn: sqlite3.Connection, at: float, action: str, kind: str | None, constraint: str, reason: str) -> bool:
    """Keep a decision unless action, kind and constraint are those of the newest; return whether it was kept."""
    last = newest(conn, 1)
    if last and (last[0].action, last[0].kind, last[0].constraint) == (action, kind, constraint):
        return False
    added = conn.execute(
        "INSERT INTO decisions (at, action, kind, constraint_name, reason) VALUES (?, ?, ?, ?, ?)",
        # As plain text: `action` may be a StrEnum.
        (at, str(action), kind, constraint, reason),
    ).lastrowid
    assert added is not None  # noqa: S101 - an INSERT into a rowid table always sets it
    conn.execute("DELETE FROM decisions WHERE id <= ?", (added - KEPT,))
    return True


def newest(conn: sqlite3.Connection, limit: int) -> list[Noted]:
    """Return at most `limit` decisions, the newest first."""
    rows = fetch(
        conn,
        """
        SELECT id, at, action, kind, constraint_name AS "constraint", reason FROM decisions ORDER BY id DESC LIMIT ?
        """,
        (limit,),
    )
    return [Noted(**row) for row in rows]
