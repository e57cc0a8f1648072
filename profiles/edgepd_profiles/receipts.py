"""Receipts for what was forgotten, and the training runs that are wanted because of it.

The idea: a receipt says in numbers what went, so that the user can look it up later without a word of it being kept.
The invariant: no text of an exchange is in either table. A receipt is `begun` in the transaction that deletes the
rows and `done` when nothing is left in any file; one that is still `begun` at a start was interrupted.
What this does not do: forget (see forgetting.py), or train.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgepd.errors import NotFoundError
from edgepd_profiles.interactions import new_id
from edgepd_profiles.rows import canonical_json, fetch

NUMBERS = ("counts", "generations", "retraining", "verified")  # what the JSON column `counts` holds


@dataclass(frozen=True)
class Receipt:
    """What was forgotten: `what` is in words without its text, `generations` are those that never serve again.

    `verified` is what the search of all files found, None as long as there was none. `at` is unix seconds.
    """

    id: str
    at: float
    what: str
    counts: dict[str, int]
    generations: list[int] = field(default_factory=list)
    retraining: bool = False
    verified: dict[str, int] | None = None
    state: str = "begun"


@dataclass(frozen=True)
class Wanted:
    """A training run that has to take the place of what was forgotten."""

    kind: str
    reason: str
    at: float


def new_receipt(
    what: str, counts: Mapping[str, int], generations: Sequence[int], retraining: bool, at: float
) -> Receipt:
    """Return a receipt with an id of its own ("r_" and a ULID)."""
    return Receipt("r" + new_id()[1:], at, what, dict(counts), list(generations), retraining)


def put(conn: sqlite3.Connection, new: Receipt) -> Receipt:
    """Store a new receipt."""
    conn.execute(
        "INSERT INTO receipts (id, at, what, counts, state) VALUES (?, ?, ?, ?, ?)",
        (new.id, new.at, new.what, _numbers(new), new.state),
    )
    return new


def receipt(conn: sqlite3.Connection, receipt_id: str) -> Receipt:
    """Return one receipt. Raises NotFoundError."""
    rows = fetch(conn, "SELECT * FROM receipts WHERE id = ?", (receipt_id,))
    if not rows:
        raise NotFoundError(f"receipt '{receipt_id}' is not known; `edgepd receipts` lists all")
    return _from_row(rows[0])


def receipts(conn: sqlite3.Connection, limit: int = 100) -> list[Receipt]:
    """Return at most `limit` receipts, the newest first."""
    return [_from_row(row) for row in fetch(conn, "SELECT * FROM receipts ORDER BY rowid DESC LIMIT ?", (limit,))]


def unfinished(conn: sqlite3.Connection) -> list[Receipt]:
    """Return the receipts of what is gone from the tables but perhaps not from all files, the oldest first."""
    return [_from_row(row) for row in fetch(conn, "SELECT * FROM receipts WHERE state = 'begun' ORDER BY rowid")]


def finished(
    conn: sqlite3.Connection,
    receipt_id: str,
    counts: Mapping[str, int],
    verified: Mapping[str, int] | None,
) -> Receipt:
    """Mark a receipt as done, with what was removed besides rows (added to its counts) and what the search found.

    Raises NotFoundError.
    """
    found = receipt(conn, receipt_id)
    done = replace(
        found,
        counts=found.counts | dict(counts),
        verified=found.verified if verified is None else dict(verified),
        state="done",
    )
    conn.execute("UPDATE receipts SET counts = ?, state = ? WHERE id = ?", (_numbers(done), done.state, done.id))
    return done


def want(conn: sqlite3.Connection, kind: str, reason: str, *, at: float | None = None) -> None:
    """Note that a training run of this kind is wanted; the reason holds no text. Wanting it again changes nothing."""
    conn.execute(
        "INSERT OR IGNORE INTO wanted_runs (kind, reason, at) VALUES (?, ?, ?)",
        (kind, reason, time.time() if at is None else at),
    )


def wanted(conn: sqlite3.Connection) -> list[Wanted]:
    """Return the training runs that are wanted, the one that was wanted first first."""
    return [Wanted(**row) for row in fetch(conn, "SELECT kind, reason, at FROM wanted_runs ORDER BY at, rowid")]


def settled(conn: sqlite3.Connection, kind: str) -> bool:
    """Note that a run of this kind was judged (promoted or rejected), or cannot be made; return whether it was wanted.

    Not when it starts: a run that is killed leaves the wish as it was.
    """
    return conn.execute("DELETE FROM wanted_runs WHERE kind = ?", (kind,)).rowcount > 0


def _numbers(of: Receipt) -> str:
    return canonical_json({name: getattr(of, name) for name in NUMBERS})


def _from_row(row: dict[str, Any]) -> Receipt:
    numbers = json.loads(row["counts"])
    return Receipt(row["id"], row["at"], row["what"], **numbers, state=row["state"])
