"""The newest generations and the newest feedback, for those who look all the time.

The idea: `edgepd watch` asks twice a second, so every query here goes down an index from its newest end, and reads a
handful of rows however long the history is. The invariant: none of it is a text that the user or the model wrote.
What this does not do: page through anything; history.py and registry.listing do.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from edgepd_profiles.rows import fetch

GENERATIONS = 5
FEEDBACK = 8

# By the index generations_of_base. The scores are read in SQL: the rest of the row can name a thousand examples.
NEWEST_GENERATIONS = """
    SELECT id, kind, state, state = 'active' AS active, created_at,
        json_extract(scores, '$.held_out_before') AS held_out_before,
        json_extract(scores, '$.held_out_after') AS held_out_after
    FROM generations WHERE base_sha256 = ? ORDER BY id DESC LIMIT ?
"""
# By the index feedback_by_time; CROSS JOIN keeps SQLite from beginning with the other table.
NEWEST_FEEDBACK = """
    SELECT feedback.at, feedback.kind, feedback.value, interactions.app
    FROM feedback CROSS JOIN interactions ON interactions.id = feedback.interaction
    ORDER BY feedback.at DESC LIMIT ?
"""


def generations(conn: sqlite3.Connection, base_sha256: str, limit: int = GENERATIONS) -> list[dict[str, Any]]:
    """Return the newest generations of a base model, newest first; losses in nats per token, None if not measured."""
    rows = fetch(conn, NEWEST_GENERATIONS, (base_sha256, limit))
    return [row | {"active": bool(row["active"])} for row in rows]


def feedback(conn: sqlite3.Connection, limit: int = FEEDBACK) -> list[dict[str, Any]]:
    """Return the newest feedback of all kinds, newest first, each with the app that the answer was given to."""
    return fetch(conn, NEWEST_FEEDBACK, (limit,))
