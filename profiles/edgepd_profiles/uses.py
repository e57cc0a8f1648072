"""When the user did anything: the times of events and of exchanges, without a word of what it was.

The invariant: what is returned is complete from its oldest time on, so that a gap in it is a time without use.
What this does not do: know time zones beyond those that came with the events, or tell who used what.
"""

from __future__ import annotations

import sqlite3

# By the indexes events_by_time and interactions_by_time.
NEWEST_EVENTS = "SELECT at, utc_offset_s FROM events ORDER BY at DESC LIMIT ?"
NEWEST_EXCHANGES = "SELECT created_at, NULL FROM interactions ORDER BY created_at DESC LIMIT ?"


def times(conn: sqlite3.Connection, since: float, limit: int) -> list[tuple[float, int | None]]:
    """Return the times from `since` on, in unix seconds, oldest first, each with the UTC offset there was, if known.

    Of events and of exchanges the newest `limit` are read each; where there are more of the one, the time that they do
    not reach back to is left out of the other. Of two at the same time the one with an offset comes first.
    """
    found: list[tuple[float, int | None]] = []
    for query in (NEWEST_EVENTS, NEWEST_EXCHANGES):
        rows = conn.execute(query, (limit,)).fetchall()
        if len(rows) == limit:
            since = max(since, min(at for at, _ in rows))
        found.extend(rows)
    return sorted((row for row in found if row[0] >= since), key=lambda row: (row[0], row[1] is None))
