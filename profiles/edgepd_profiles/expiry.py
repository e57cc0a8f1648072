"""Old exchanges and events go when there are too many of them, or when they are too old.

The idea: small batches, the oldest first, called again and again while nothing else is to be done.
The invariant: what the user said something about stays, and so does what it was compared with and what is kept as
an example; what an exchange added to the profile goes with it, and so does the event that it is. An event that is too
old goes, even if its exchange stays.
What this does not do: forget. Later turns of a conversation may repeat what went, and backups still have it; for that
there is forgetting.py. The file does not shrink: its free pages are used again.
"""

from __future__ import annotations

import math
import sqlite3

from edgepd_profiles import profile

DAY_S = 86_400.0
KEPT_EVENTS = 100_000  # the newest, which is as much as `intent.max_events` can ask for


def expire(conn: sqlite3.Connection, keep: int, days: float, now: float, limit: int = 500) -> int:
    """Delete at most `limit` exchanges, and then as many events; return how many of both went.

    0 means that nothing is left to do. The oldest exchanges go until there are `keep`, and those that are more than
    `days` old; 0 stands for no such bound. `now` is in unix seconds. What stays for its feedback counts, so there may
    be more than `keep` in the end. Of events those go that are as old, and the oldest until there are KEPT_EVENTS.
    """
    before = now - days * DAY_S if days > 0 else -math.inf
    return _expire_exchanges(conn, keep, before, limit) + _expire_events(conn, before, limit)


def _expire_exchanges(conn: sqlite3.Connection, keep: int, before: float, limit: int) -> int:
    excess = _excess(conn, "interactions", keep)
    if excess <= 0 and before == -math.inf:
        return 0
    oldest = conn.execute(
        """
        SELECT i.id, i.created_at FROM interactions AS i
        WHERE i.created_at < ? AND i.state != 'streaming'
            AND NOT EXISTS (SELECT 1 FROM feedback AS f WHERE f.interaction = i.id)
            AND i.id NOT IN (SELECT interaction FROM bins WHERE pool = 'examples')
            AND i.id NOT IN (SELECT text FROM feedback WHERE kind = 'preferred' AND text IS NOT NULL)
        ORDER BY i.created_at LIMIT ?
        """,
        (math.inf if excess > 0 else before, limit),
    ).fetchall()
    gone = [interaction for n, (interaction, at) in enumerate(oldest) if n < excess or at < before]
    for interaction in gone:
        with profile.refolded(conn, interaction):
            conn.execute("DELETE FROM interactions WHERE id = ?", (interaction,))
    return len(gone)


def _expire_events(conn: sqlite3.Connection, before: float, limit: int) -> int:
    excess = _excess(conn, "events", KEPT_EVENTS)
    return conn.execute(
        """
        DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE at < :before ORDER BY at, seq LIMIT :limit)
            OR seq IN (SELECT seq FROM events ORDER BY at, seq LIMIT :excess)
        """,
        {"before": before, "limit": limit, "excess": min(excess, limit)},
    ).rowcount


def _excess(conn: sqlite3.Connection, table: str, keep: int) -> int:
    """Return by how many rows there are more than `keep`, or 0."""
    if keep <= 0:
        return 0
    # There cannot be more rows than places; counting them reads an index, asking for the two ends does not.
    ends = f"SELECT (SELECT min(seq) FROM {table}), (SELECT max(seq) FROM {table})"  # noqa: S608 - our own names
    first, last = conn.execute(ends).fetchone()
    if last is None or last - first + 1 <= keep:
        return 0
    return max(0, int(conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0]) - keep)  # noqa: S608 - our own names
