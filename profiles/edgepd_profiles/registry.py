"""Generations: which adapters and baked models exist, what became of them, and which one serves.

The idea: a generation is a model file plus at most one live adapter (see generation.py). States:
training -> candidate -> active -> retired -> stale | deleted, or rejected, also for one that failed after it went live.
The invariant: per base model there is one base generation and at most one active generation, and the active
one changes only by compare-and-swap, in one transaction with the record in `activations`. What is active, pinned or
needed by another one that may still serve is never deleted. What is stale was taught something that was forgotten: it
never serves again and has no claim to its files, not even by a pin.
What this does not do: touch the files that it names, or keep training runs (see runs.py). It is the one module that
code outside imports for generations; lineage.py and retention.py answer its questions about the past and about space.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgepd.errors import ConflictError
from edgepd_profiles.generation import (
    KINDS,
    TRANSITIONS,
    Generation,
    check_files,
    find_active,
    find_base,
    get,
    listing,
)
from edgepd_profiles.lineage import (
    Switch,
    active,
    before,
    last_confirmed,
    previous,
    switches,
    target,
    taught_any,
    way_back,
)
from edgepd_profiles.retention import expendable, file_names, needed_by, why_kept
from edgepd_profiles.rows import canonical_json, finite

__all__ = [
    "KINDS",
    "TRANSITIONS",
    "Generation",
    "Switch",
    "activate",
    "active",
    "add",
    "delete",
    "ensure_base",
    "expendable",
    "file_names",
    "get",
    "last_confirmed",
    "listing",
    "merge_scores",
    "needed_by",
    "pin",
    "previous",
    "retire_stale",
    "set_files",
    "set_state",
    "switches",
    "target",
    "taught_any",
]


def ensure_base(conn: sqlite3.Connection, base_sha256: str, *, at: float | None = None) -> Generation:
    """Return the generation that is the base model itself; the first call creates it as the active one."""
    found = find_base(conn, base_sha256)
    if found is not None:
        return found
    base = add(conn, parent=None, kind="base", base_sha256=base_sha256, state="candidate", at=at)
    # It is what everything else falls back to, so it has nothing to show first.
    conn.execute("UPDATE generations SET confirmed_at = created_at WHERE id = ?", (base.id,))
    return activate(conn, base_sha256, base.id, None, at=at)


def add(
    conn: sqlite3.Connection,
    *,
    parent: int | None,
    kind: str,
    base_sha256: str,
    state: str = "training",
    adapter_file: str | None = None,
    model_file: str | None = None,
    file_sha256: str | None = None,
    example_ids: Sequence[str] = (),
    data_hash: str = "",
    config: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
    reason: str = "",
    at: float | None = None,
) -> Generation:
    """Store a new generation in state `training`, `candidate` or `rejected`. A candidate must have its files.

    Raises RequestError for an unusable file name or a candidate without files, NotFoundError for an unknown
    parent.
    """
    if kind not in KINDS or state not in ("training", "candidate", "rejected"):
        raise ValueError(f"a generation cannot be added with kind {kind!r} and state {state!r}")
    if parent is not None and get(conn, parent).base_sha256 != base_sha256:
        raise ConflictError(f"generation {parent} belongs to another base model and cannot be the parent")
    created = time.time() if at is None else at
    generation = Generation(
        0, parent, kind, state, base_sha256, file_sha256, adapter_file, model_file, created, None,
        list(example_ids), data_hash, dict(config or {}), dict(scores or {}), reason,
    )  # fmt: skip
    check_files(generation)
    cursor = conn.execute(
        """
        INSERT INTO generations (parent, kind, state, base_sha256, file_sha256, adapter_file, model_file,
            created_at, example_ids, data_hash, config, scores, reason)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        """,
        (
            parent, kind, state, base_sha256, file_sha256, adapter_file, model_file, created,
            canonical_json(generation.example_ids), data_hash, canonical_json(finite(generation.config)),
            canonical_json(finite(generation.scores)), reason,
        ),
    )  # fmt: skip
    assert cursor.lastrowid is not None  # noqa: S101 - an INSERT into a rowid table always sets it
    return get(conn, cursor.lastrowid)


def set_files(
    conn: sqlite3.Connection,
    generation_id: int,
    *,
    file_sha256: str,
    adapter_file: str | None = None,
    model_file: str | None = None,
) -> Generation:
    """Name the files of a generation that is still in training, once they are written.

    Raises NotFoundError, RequestError for an unusable name, ConflictError when training is over.
    """
    generation = get(conn, generation_id)
    if generation.state != "training":
        raise ConflictError(f"generation {generation_id} is {generation.state}; its files cannot change any more")
    check_files(replace(generation, adapter_file=adapter_file, model_file=model_file))
    conn.execute(
        "UPDATE generations SET adapter_file = ?, model_file = ?, file_sha256 = ? WHERE id = ?",
        (adapter_file, model_file, file_sha256, generation_id),
    )
    return get(conn, generation_id)


def set_state(
    conn: sqlite3.Connection,
    generation_id: int,
    state: str,
    scores: Mapping[str, Any] | None = None,
    reason: str | None = None,
) -> Generation:
    """Move a generation to another state, or keep its state and record scores or a reason.

    Use `activate` for `active`. Raises NotFoundError, ConflictError for a step that TRANSITIONS does not
    have or a generation that must be kept, RequestError for a candidate without files. What becomes stale loses its
    pin.
    """
    generation = get(conn, generation_id)
    why = why_kept(conn, generation) if state == "deleted" else None
    if why:
        raise ConflictError(f"generation {generation_id} cannot become deleted: {why}")
    allowed = () if generation.kind == "base" else TRANSITIONS[generation.state]
    if state != generation.state and state not in allowed:
        possible = f"only {', '.join(allowed)}" if allowed else "only what `activate` does"
        raise ConflictError(
            f"generation {generation_id} ({generation.kind}) is {generation.state} and cannot become "
            f"{state}; {possible} can follow"
        )
    if state == "candidate":
        check_files(replace(generation, state=state))
    conn.execute(
        """
        UPDATE generations SET state = :state, scores = coalesce(:scores, scores), reason = coalesce(:reason, reason),
            pinned = pinned AND :state != 'stale'
        WHERE id = :id
        """,
        {
            "state": state,
            "scores": None if scores is None else canonical_json(finite(dict(scores))),
            "reason": reason,
            "id": generation_id,
        },
    )
    return get(conn, generation_id)


def retire_stale(
    conn: sqlite3.Connection,
    generation_ids: Collection[int],
    switching: Sequence[Switch],
    reason: str,
    *,
    at: float | None = None,
) -> list[Generation]:
    """Take generations out of service for good, whatever their state, and return those that could have served.

    What is active needs a switch to a generation that is not among them, as `switches` proposes it. What is in training
    becomes rejected; what was rejected stays so, for its own reason; neither those nor stale ones keep a pin. Rows,
    with the ids of examples and the scores, stay. Raises NotFoundError, and ConflictError, with some of it done, if
    another one is active than a switch says or an active one is left: call it in a transaction.
    """
    for switch in switching:
        if switch.to_id in generation_ids:
            raise ConflictError(f"generation {switch.to_id} was taught what is forgotten and cannot serve instead")
        activate(conn, switch.base_sha256, switch.to_id, switch.from_id, at=at)
    gone = []
    for generation_id in sorted(generation_ids):
        state = get(conn, generation_id).state
        if state == "active":
            raise ConflictError(f"generation {generation_id} serves now and cannot become stale; try again")
        if state in ("training", "candidate", "retired"):
            gone.append(set_state(conn, generation_id, "rejected" if state == "training" else "stale", reason=reason))
        conn.execute("UPDATE generations SET pinned = 0 WHERE id = ?", (generation_id,))
    return [get(conn, generation.id) for generation in gone]


def delete(conn: sqlite3.Connection, generation_id: int) -> Generation:
    """Give a generation up; its files may be removed then, but not those that `file_names` still has.

    Raises NotFoundError, and ConflictError with the reason for the base, the active one, a pinned one, one whose
    model file another one that may still serve needs, one that is being trained on, and one that is deleted already.
    """
    if get(conn, generation_id).state == "deleted":
        raise ConflictError(f"generation {generation_id} is deleted already")
    return set_state(conn, generation_id, "deleted")


def pin(conn: sqlite3.Connection, generation_id: int, pinned: bool) -> Generation:
    """Protect a generation and its files from being deleted, or stop protecting it.

    Raises NotFoundError, and ConflictError for pinning a rejected, stale or deleted one, whose files may be gone.
    """
    generation = get(conn, generation_id)
    if pinned and generation.state in ("rejected", "stale", "deleted"):
        raise ConflictError(f"generation {generation_id} is {generation.state} and its files may be gone; pin another")
    conn.execute("UPDATE generations SET pinned = ? WHERE id = ?", (int(pinned), generation_id))
    return get(conn, generation_id)


def merge_scores(
    conn: sqlite3.Connection, generation_id: int, scores: Mapping[str, Any], reason: str | None = None
) -> Generation:
    """Add keys to the scores of a generation in any state, replacing those of the same name. Raises NotFoundError."""
    merged = get(conn, generation_id).scores | dict(scores)
    conn.execute(
        "UPDATE generations SET scores = ?, reason = coalesce(?, reason) WHERE id = ?",
        (canonical_json(finite(merged)), reason, generation_id),
    )
    return get(conn, generation_id)


def activate(
    conn: sqlite3.Connection,
    base_sha256: str,
    generation_id: int,
    expected: int | None,
    *,
    at: float | None = None,
) -> Generation:
    """Make a generation the active one if `expected` still is (None: if none is), and retire that one.

    Going to one that lies on the way back (see `previous`) continues the way from there; any other one
    remembers the present one as the step before it. It starts without strikes, and is pending unless it was
    confirmed once. Raises NotFoundError, and ConflictError if another generation is active than expected, or this
    one is of another base model or neither candidate nor retired.
    """
    current = find_active(conn, base_sha256)
    if (current.id if current else None) != expected:
        raise ConflictError(
            f"generation {current.id if current else 'none'} is active, not {expected or 'none'} as "
            "expected; look at `edgepd adapters list` and try again"
        )
    generation = get(conn, generation_id)
    if generation.base_sha256 != base_sha256:
        raise ConflictError(f"generation {generation_id} belongs to another base model; switch to that model first")
    if generation.state == "active":
        return generation
    if generation.state not in ("candidate", "retired"):
        raise ConflictError(
            f"generation {generation_id} is {generation.state} and cannot become active; "
            "only a candidate or retired one can"
        )
    now = time.time() if at is None else at
    step_before = None
    if current:
        on_way = generation_id in way_back(conn, current.id)
        step_before = before(conn, generation_id) if on_way else current.id
        conn.execute("UPDATE generations SET state = 'retired' WHERE id = ?", (current.id,))
    conn.execute(
        """
        UPDATE generations SET state = 'active', activated_at = ?, strikes = 0,
            healthy = CASE WHEN confirmed_at IS NULL THEN 0 ELSE healthy END
        WHERE id = ?
        """,
        (now, generation_id),
    )
    conn.execute(
        "INSERT INTO activations (base_sha256, generation, previous, at) VALUES (?, ?, ?, ?)",
        (base_sha256, generation_id, step_before, now),
    )
    # If the daemon dies from now on, it is this one that was serving (see health.py).
    conn.execute(
        "UPDATE boots SET generation = ?, loaded = 1, answered = 0 WHERE base_sha256 = ? AND state = 'running'",
        (generation_id, base_sha256),
    )
    return get(conn, generation_id)
