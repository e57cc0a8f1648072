"""What came since a pool was looked at last.

The idea: pool `questions` follows the order of arrival of the exchanges (interactions.seq). Pool `examples` follows
feedback, by two marks: the row number, which finds what is new however late its time is, and the time, which finds
rows that were changed (a rating of 3 that became 5). The latter is kept in microseconds in the row `examples.changed`
of `pools`.
The invariant: every call reads at most `limit` rows beyond a mark by an index, however long the history is; a mark
moves past an exchange only when it was handed out, cannot be a candidate, or was waited for long enough.
What this does not do: choose. An exchange whose feedback was changed is handed out again; if it is kept, nothing comes
of it. Missed is only feedback that takes the row number of a removed one with a time that is earlier.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepd_profiles.rows import fetch
from edgepd_profiles.selection.kept import check

WAIT_FOR = 500  # rows that may pile up behind an exchange that has no embedding or has not ended
REFILL = 10  # times the slots: what is gone through again after a change of policy
CHANGED = "examples.changed"

# Conditions on interactions AS i.
MAY_TEACH = "NOT EXISTS (SELECT 1 FROM apps AS a WHERE a.name = i.app AND a.teaches = 0)"
TEACHING = "(f.kind IN ('edit', 'thumb', 'preferred') OR f.kind = 'rating' AND f.value != 3)"
_JUDGED = f"EXISTS (SELECT 1 FROM feedback AS f WHERE f.interaction = i.id AND {TEACHING})"  # noqa: S608
_EDITED = "EXISTS (SELECT 1 FROM feedback AS f WHERE f.interaction = i.id AND f.kind = 'edit')"
_COMPLETE = "i.state = 'done' AND i.finish_reason IS NOT 'length' AND trim(i.response) != ''"
_SETTLED = "EXISTS (SELECT 1 FROM questions AS q WHERE q.interaction = i.id AND q.outcome IS NOT NULL)"
CANDIDATE = {
    "examples": f"i.kind = 'chat' AND {MAY_TEACH} AND {_JUDGED} AND ({_COMPLETE} OR {_EDITED})",
    "questions": f"i.kind = 'chat' AND {MAY_TEACH} AND {_COMPLETE} AND NOT {_JUDGED} AND NOT {_SETTLED}",
}


@dataclass(frozen=True)
class Arrived:
    """The ids that came, in order and each once, how many rows were passed, and the marks after them."""

    ids: list[str]
    passed: int
    seen: int
    changed: int


def seen(conn: sqlite3.Connection, pool: str) -> int:
    """Return the mark of a row of `pools`, 0 if there is none."""
    row = conn.execute("SELECT seen FROM pools WHERE pool = ?", (pool,)).fetchone()
    return int(row[0]) if row else 0


def changed_since(conn: sqlite3.Connection) -> float:
    """Return the time (unix seconds) up to which changed feedback was handed out."""
    return seen(conn, CHANGED) / 1e6


def set_mark(conn: sqlite3.Connection, name: str, mark: int) -> None:
    """Set the mark of a row of `pools`, which is made if there is none."""
    conn.execute(
        """
        INSERT INTO pools (pool, policy, seen) VALUES (?, '', ?)
        ON CONFLICT (pool) DO UPDATE SET seen = excluded.seen WHERE seen != excluded.seen
        """,
        (name, mark),
    )


def start_over(conn: sqlite3.Connection, pool: str, policy: str, slots: int) -> None:
    """Empty a pool and set its marks so that the newest REFILL * slots rows come again."""
    check(pool)
    conn.execute("DELETE FROM bins WHERE pool = ?", (pool,))
    conn.execute(
        "INSERT OR REPLACE INTO pools (pool, policy, seen, offered) VALUES (?, ?, ?, 0)",
        (pool, policy, max(0, _newest(conn, pool) - REFILL * slots)),
    )
    if pool == "examples":
        latest = conn.execute("SELECT max(at) FROM feedback").fetchone()[0]
        set_mark(conn, CHANGED, 0 if latest is None else _microseconds(latest))


def arrived(conn: sqlite3.Connection, pool: str, limit: int, model: str | None, *, embedded: bool) -> Arrived:
    """Return what came since the marks of a pool, at most `limit` rows of it (and those of the same time).

    If `embedded` is set, an exchange waits for its vector of this `model`, and what came later waits behind it, until
    WAIT_FOR rows have come; then it is passed over. What is still streaming is waited for in the same way.
    """
    mark, newest, changed = seen(conn, pool), _newest(conn, pool), seen(conn, CHANGED)
    if mark > newest:  # the newest were deleted, and their numbers are given out again
        mark = max(0, newest - WAIT_FOR)
    bound = {"limit": limit, "mark": mark, "since": changed / 1e6, "model": model}
    if pool == "questions":
        rows = fetch(conn, _rows(pool, "interactions AS i", "i.seq", "i.seq > :mark ORDER BY i.seq"), bound)
        taken = _prefix(rows, embedded, lambda row: newest - row["mark"])
        return Arrived(_ids(taken), len(taken), taken[-1]["mark"] if taken else mark, changed)
    source = "feedback AS g {} JOIN interactions AS i ON i.id = g.interaction"
    late = _changed_rows(conn, source.format("INDEXED BY feedback_by_time"), bound)
    again = _prefix(late, embedded, lambda row: _later(conn, row["at"]))
    fresh: list[dict[str, Any]] = []
    if len(again) == len(late) < limit:  # or the time of a new row would hide a changed one that is still to come
        sql = _rows(pool, source.format(""), "g.rowid", "g.rowid > :mark ORDER BY g.rowid")
        fresh = _prefix(fetch(conn, sql, bound | {"limit": limit - len(late)}), embedded, lambda r: newest - r["mark"])
    taken = again + fresh
    return Arrived(
        _ids(taken),
        len(taken),
        fresh[-1]["mark"] if fresh else mark,
        max([changed, *(_microseconds(row["at"]) for row in taken)]),
    )


def _rows(pool: str, source: str, mark: str, condition: str) -> str:
    at = "i.created_at" if pool == "questions" else "g.at"
    return f"""
        SELECT {mark} AS mark, {at} AS at, i.id, i.state = 'streaming' AS open, ({CANDIDATE[pool]}) AS candidate,
            EXISTS (SELECT 1 FROM embeddings AS e WHERE e.interaction = i.id AND e.model_sha256 = :model) AS embedded
        FROM {source} WHERE {condition} LIMIT :limit
    """  # noqa: S608 - constants of ours


def _changed_rows(conn: sqlite3.Connection, source: str, bound: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return the rows that were handed out before and changed since, with all that have the time of the last one."""
    beyond = "g.at > :since AND g.rowid <= :mark ORDER BY g.at, g.rowid"
    rows = fetch(conn, _rows("examples", source, "g.rowid", beyond), bound)
    if rows and len(rows) == bound["limit"]:
        tied = "g.at = :at AND g.rowid > :last AND g.rowid <= :mark ORDER BY g.rowid"
        last = {"at": rows[-1]["at"], "last": rows[-1]["mark"], "limit": -1}
        rows += fetch(conn, _rows("examples", source, "g.rowid", tied), {**bound, **last})
    return rows


def _prefix(
    rows: Sequence[dict[str, Any]], embedded: bool, behind: Callable[[dict[str, Any]], int]
) -> list[dict[str, Any]]:
    """Return the rows up to the first one that is waited for; `behind` says how many came after a row."""
    for n, row in enumerate(rows):
        waits = row["open"] or (embedded and row["candidate"] and not row["embedded"])
        if waits and behind(row) < WAIT_FOR:
            return list(rows[:n])
    return list(rows)


def _ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["id"] for row in rows if row["candidate"]))


def _newest(conn: sqlite3.Connection, pool: str) -> int:
    sql = "SELECT max(seq) FROM interactions" if pool == "questions" else "SELECT max(rowid) FROM feedback"
    return int(conn.execute(sql).fetchone()[0] or 0)


def _later(conn: sqlite3.Connection, at: float) -> int:
    """Return how many pieces of feedback have a later time, but not more than are waited for."""
    counted = "SELECT count(*) FROM (SELECT 1 FROM feedback WHERE at > ? LIMIT ?)"
    return int(conn.execute(counted, (at, WAIT_FOR)).fetchone()[0])


def _microseconds(at: float) -> int:
    """Return a mark that is above the time, whatever the rounding, so that its row is not found again."""
    return math.floor(at * 1e6) + 1
