"""Training runs: what was tried, when, with which result.

The invariant: at most one run is in state `running`; an ended run never changes.
What this does not do: start or stop the trainer, or hold a generation (see registry.py).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepd.errors import ConflictError, NotFoundError
from edgepd_profiles.rows import canonical_json, fetch, finite

KINDS = ("live", "baked")
FINAL_STATES = ("promoted", "rejected", "failed", "interrupted")


@dataclass(frozen=True)
class Run:
    """One training run; `generation` is what it produced, if anything. Times are unix seconds."""

    id: int
    kind: str
    state: str
    started_at: float
    ended_at: float | None
    parent_generation: int | None
    generation: int | None
    reason: str
    numbers: dict[str, Any]


def start_run(conn: sqlite3.Connection, kind: str, parent_generation: int | None, *, at: float | None = None) -> Run:
    """Record that training starts. Raises ConflictError if a run is going on already."""
    if kind not in KINDS:
        raise ValueError(f"a training run cannot be of kind {kind!r}; use one of {', '.join(KINDS)}")
    running = conn.execute("SELECT id FROM runs WHERE state = 'running'").fetchone()
    if running:
        raise ConflictError(f"training run {running[0]} is going on; wait for its end (`edgepd status`)")
    cursor = conn.execute(
        """
        INSERT INTO runs (kind, state, started_at, parent_generation, reason, numbers)
        VALUES (?, 'running', ?, ?, '', '{}')
        """,
        (kind, time.time() if at is None else at, parent_generation),
    )
    assert cursor.lastrowid is not None  # noqa: S101 - an INSERT into a rowid table always sets it
    return get_run(conn, cursor.lastrowid)


def finish_run(
    conn: sqlite3.Connection,
    run_id: int,
    state: str,
    *,
    generation: int | None = None,
    reason: str = "",
    numbers: Mapping[str, Any] | None = None,
    at: float | None = None,
) -> Run:
    """Give a running run its final state (one of FINAL_STATES).

    Raises NotFoundError for an unknown run and ConflictError for one that has ended.
    """
    if state not in FINAL_STATES:
        raise ValueError(f"run state {state!r} is not final; use one of {', '.join(FINAL_STATES)}")
    changed = conn.execute(
        """
        UPDATE runs SET state = ?, ended_at = ?, generation = ?, reason = ?, numbers = ?
        WHERE id = ? AND state = 'running'
        """,
        (
            state, time.time() if at is None else at, generation, reason,
            canonical_json(finite(dict(numbers or {}))), run_id,
        ),
    ).rowcount  # fmt: skip
    run = get_run(conn, run_id)
    if not changed:
        raise ConflictError(f"training run {run_id} is already {run.state} and cannot become {state}")
    return run


def get_run(conn: sqlite3.Connection, run_id: int) -> Run:
    """Return one run. Raises NotFoundError."""
    rows = fetch(conn, "SELECT * FROM runs WHERE id = ?", (run_id,))
    if not rows:
        raise NotFoundError(f"training run {run_id} is not known; `edgepd status` shows the last one")
    return _from_row(rows[0])


def runs(conn: sqlite3.Connection, limit: int) -> list[Run]:
    """Return at most `limit` runs, the newest first."""
    return [_from_row(row) for row in fetch(conn, "SELECT * FROM runs ORDER BY id DESC LIMIT ?", (limit,))]


def mark_interrupted_runs(conn: sqlite3.Connection, *, at: float | None = None) -> int:
    """Close what an earlier process left running; return how many runs there were.

    A generation that was still in training then has no file that can be trusted, and becomes rejected.
    """
    conn.execute(
        """
        UPDATE generations SET state = 'rejected', reason = 'the training run was interrupted'
        WHERE state = 'training'
        """
    )
    return conn.execute(
        """
        UPDATE runs SET state = 'interrupted', ended_at = ?, reason = 'edgepd stopped'
        WHERE state = 'running'
        """,
        (time.time() if at is None else at,),
    ).rowcount


def _from_row(row: dict[str, Any]) -> Run:
    return Run(**row | {"numbers": json.loads(row["numbers"])})
