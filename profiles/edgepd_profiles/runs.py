"""Training runs: what was tried, when, with which result.

The idea: a run is judged (`promoted`, `rejected`), it saved its state and ended, to go on in a run of its own later
(`parked`), or it came to nothing (`failed` by itself, `interrupted` from outside).
The invariant: at most one run is in state `running`; an ended run never changes.
What this does not do: start or stop the trainer, or hold a generation (see registry.py).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from edgepd.errors import ConflictError, NotFoundError
from edgepd_profiles.rows import canonical_json, fetch, finite

KINDS = ("live", "baked", "intent")
FINAL_STATES = ("promoted", "rejected", "failed", "interrupted", "parked")
STOPPERS = ("user", "edgepd")
ASKED = "asked"  # among the numbers of a parked run: the user waits for it

_OF_KIND = "kind IN (SELECT value FROM json_each(:kinds))"
_JUDGED = f"SELECT max(id) FROM runs WHERE state IN ('promoted', 'rejected') AND {_OF_KIND}"  # noqa: S608 - ours
_FAILURES = f"""
    FROM runs WHERE id > coalesce(({_JUDGED}), 0) AND {_OF_KIND}
        AND (state = 'failed' OR state = 'interrupted' AND stopped_by IS NULL)
"""  # noqa: S608 - ours


@dataclass(frozen=True)
class Run:
    """One training run; `generation` is what it produced, if anything. Times are unix seconds.

    `stopped_by` says who stopped a run that was interrupted, if somebody meant to: one of STOPPERS.
    """

    id: int
    kind: str
    state: str
    started_at: float
    ended_at: float | None
    parent_generation: int | None
    generation: int | None
    reason: str
    numbers: dict[str, Any]
    stopped_by: str | None = None


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
    stopped_by: str | None = None,
    at: float | None = None,
) -> Run:
    """Give a running run its final state (one of FINAL_STATES).

    One that is interrupted without `stopped_by` counts as a failure, for then something killed it.
    Raises NotFoundError for an unknown run and ConflictError for one that has ended.
    """
    if state not in FINAL_STATES:
        raise ValueError(f"run state {state!r} is not final; use one of {', '.join(FINAL_STATES)}")
    if stopped_by is not None and (state != "interrupted" or stopped_by not in STOPPERS):
        raise ValueError(
            f"a run that is {state} cannot be stopped by {stopped_by!r}; only an interrupted one can be, and only by "
            f"one of {', '.join(STOPPERS)}"
        )
    changed = conn.execute(
        """
        UPDATE runs SET state = ?, ended_at = ?, generation = ?, reason = ?, numbers = ?, stopped_by = ?
        WHERE id = ? AND state = 'running'
        """,
        (
            state, time.time() if at is None else at, generation, reason,
            canonical_json(finite(dict(numbers or {}))), stopped_by, run_id,
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


def failures_in_a_row(conn: sqlite3.Connection, kinds: Collection[str] = KINDS) -> int:
    """Return how many runs of these kinds came to nothing since the last one of them that was judged.

    Those are the failed ones and the ones that something killed. Parked ones do not count, and neither do those that
    the user or edgepd stopped; nor do they end the row.
    """
    (count,) = conn.execute(f"SELECT count(*) {_FAILURES}", _named(kinds)).fetchone()
    return int(count)


def last_judged(conn: sqlite3.Connection, kinds: Collection[str] = KINDS) -> int:
    """Return the id of the newest run of these kinds that was judged, 0 if none was."""
    (found,) = conn.execute(_JUDGED, _named(kinds)).fetchone()
    return int(found or 0)


def last_failure(conn: sqlite3.Connection, kinds: Collection[str] = KINDS) -> float | None:
    """Return when the newest of `failures_in_a_row` ended, in unix seconds; None if there is none."""
    (found,) = conn.execute(f"SELECT max(ended_at) {_FAILURES}", _named(kinds)).fetchone()
    return None if found is None else float(found)


def parked(conn: sqlite3.Connection) -> str | None:
    """Return the kind of the run that was parked and has not gone on since, None if there is none."""
    row = conn.execute("SELECT kind, state FROM runs ORDER BY id DESC LIMIT 1").fetchone()
    return str(row[0]) if row is not None and row[1] == "parked" else None


def parked_as_asked(conn: sqlite3.Connection) -> bool:
    """Return whether that run is one that the user had asked for: it has the number ASKED."""
    newest = runs(conn, 1)
    return bool(newest) and newest[0].state == "parked" and bool(newest[0].numbers.get(ASKED))


def mark_interrupted_runs(conn: sqlite3.Connection, *, at: float | None = None) -> int:
    """Close what an earlier process left running; return how many runs there were.

    It counts as a failure: a daemon that ends by itself leaves none, so this one was killed, maybe by what was trained.

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


def _named(kinds: Collection[str]) -> dict[str, str]:
    return {"kinds": json.dumps(sorted(kinds))}


def _from_row(row: dict[str, Any]) -> Run:
    return Run(**row | {"numbers": json.loads(row["numbers"])})
