"""Generations: which adapters and baked models exist, what became of them, and which one serves.

The idea: a generation is a model file (a baked one, or the base itself when `model_file` is None) plus at
most one live adapter. States: training -> candidate -> active -> retired -> stale | deleted, or rejected.
The invariant: per base model there is one base generation and at most one active generation, and the active
one changes only by compare-and-swap, in one transaction with the record in `activations`.
What this does not do: touch the files that it names, or keep training runs (see runs.py).
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgepd.errors import ConflictError, NotFoundError, RequestError
from edgepd_profiles.rows import canonical_json, fetch, finite

KINDS = ("base", "live", "baked")
# What set_state allows; `active` and the `retired` that comes with it are activate's business.
TRANSITIONS: Mapping[str, tuple[str, ...]] = {
    "training": ("candidate", "rejected", "deleted"),
    "candidate": ("rejected", "stale", "deleted"),
    "rejected": ("deleted",),
    "active": (),
    "retired": ("stale", "deleted"),
    "stale": ("deleted",),
    "deleted": (),
}
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Generation:
    """One generation. File names have no directory; `file_sha256` is of the file that it added."""

    id: int
    parent: int | None
    kind: str
    state: str
    base_sha256: str
    file_sha256: str | None
    adapter_file: str | None
    model_file: str | None
    created_at: float
    activated_at: float | None
    example_ids: list[str]
    data_hash: str
    config: dict[str, Any]
    scores: dict[str, Any]
    reason: str


def ensure_base(conn: sqlite3.Connection, base_sha256: str, *, at: float | None = None) -> Generation:
    """Return the generation that is the base model itself; the first call creates it as the active one."""
    rows = fetch(conn, "SELECT * FROM generations WHERE base_sha256 = ? AND kind = 'base'", (base_sha256,))
    if rows:
        return _from_row(rows[0])
    base = add(conn, parent=None, kind="base", base_sha256=base_sha256, state="candidate", at=at)
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
    _check_files(generation)
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
    _check_files(replace(generation, adapter_file=adapter_file, model_file=model_file))
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
    have, RequestError for a candidate without files.
    """
    generation = get(conn, generation_id)
    allowed = () if generation.kind == "base" else TRANSITIONS[generation.state]
    if state != generation.state and state not in allowed:
        possible = f"only {', '.join(allowed)}" if allowed else "only what `activate` does"
        raise ConflictError(
            f"generation {generation_id} ({generation.kind}) is {generation.state} and cannot become "
            f"{state}; {possible} can follow"
        )
    if state == "candidate":
        _check_files(replace(generation, state=state))
    conn.execute(
        """
        UPDATE generations SET state = ?, scores = coalesce(?, scores), reason = coalesce(?, reason)
        WHERE id = ?
        """,
        (state, None if scores is None else canonical_json(finite(dict(scores))), reason, generation_id),
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
    remembers the present one as the step before it. Raises NotFoundError, and ConflictError if another
    generation is active than expected, or this one is of another base model or neither candidate nor retired.
    """
    current = _find_active(conn, base_sha256)
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
    before = None
    if current:
        way_back = _way_back(conn, current.id)
        before = _before(conn, generation_id) if generation_id in way_back else current.id
        conn.execute("UPDATE generations SET state = 'retired' WHERE id = ?", (current.id,))
    conn.execute("UPDATE generations SET state = 'active', activated_at = ? WHERE id = ?", (now, generation_id))
    conn.execute(
        "INSERT INTO activations (base_sha256, generation, previous, at) VALUES (?, ?, ?, ?)",
        (base_sha256, generation_id, before, now),
    )
    return get(conn, generation_id)


def active(conn: sqlite3.Connection, base_sha256: str) -> Generation:
    """Return the generation that serves new requests. Raises NotFoundError if there is none."""
    found = _find_active(conn, base_sha256)
    if found is None:
        raise NotFoundError(f"no generation is active for base model {base_sha256[:12]}; start the daemon with it")
    return found


def previous(conn: sqlite3.Connection, base_sha256: str) -> Generation:
    """Return what a rollback goes to: what was active before the present one, in the end the base.

    After a rollback from 3 to 2 this is what was active before 2, never 3. Stale and deleted ones are
    passed over. Raises ConflictError when the base itself is active, NotFoundError when nothing is.
    """
    current = active(conn, base_sha256)
    if current.kind == "base":
        raise ConflictError("the base model itself is active; there is nothing to roll back to")
    for generation_id in _way_back(conn, current.id):
        generation = get(conn, generation_id)
        if generation.state == "retired":
            return generation
    return ensure_base(conn, base_sha256)


def get(conn: sqlite3.Connection, generation_id: int) -> Generation:
    """Return one generation. Raises NotFoundError."""
    rows = fetch(conn, "SELECT * FROM generations WHERE id = ?", (generation_id,))
    if not rows:
        raise NotFoundError(f"generation {generation_id} is not known; `edgepd adapters list` shows all")
    return _from_row(rows[0])


def listing(conn: sqlite3.Connection, base_sha256: str) -> list[Generation]:
    """Return all generations of a base model, the oldest first."""
    rows = fetch(conn, "SELECT * FROM generations WHERE base_sha256 = ? ORDER BY id", (base_sha256,))
    return [_from_row(row) for row in rows]


def file_names(conn: sqlite3.Connection) -> set[str]:
    """Return the names of all files that generations of any base model have."""
    rows = conn.execute("SELECT adapter_file, model_file FROM generations WHERE state NOT IN ('rejected', 'deleted')")
    return {name for row in rows for name in row if name is not None}


def _find_active(conn: sqlite3.Connection, base_sha256: str) -> Generation | None:
    rows = fetch(conn, "SELECT * FROM generations WHERE base_sha256 = ? AND state = 'active'", (base_sha256,))
    return _from_row(rows[0]) if rows else None


def _before(conn: sqlite3.Connection, generation_id: int) -> int | None:
    row = conn.execute(
        "SELECT previous FROM activations WHERE generation = ? ORDER BY id DESC LIMIT 1", (generation_id,)
    ).fetchone()
    return row[0] if row else None


def _way_back(conn: sqlite3.Connection, generation_id: int) -> list[int]:
    """Follow each generation's last activation to the one before it. `activate` keeps out cycles."""
    way: list[int] = []
    step = _before(conn, generation_id)
    while step is not None:
        way.append(step)
        step = _before(conn, step)
    return way


def _check_files(generation: Generation) -> None:
    """Refuse names that could leave their directory, and a candidate that lacks its file."""
    for name in (generation.adapter_file, generation.model_file):
        if name is not None and not FILE_NAME.fullmatch(name):
            raise RequestError(
                f"file name {name!r} is not allowed; use letters, digits, '.', '_' and '-', "
                "starting with a letter or digit"
            )
    has = (generation.model_file is not None, generation.adapter_file is not None)
    complete = {"base": has == (False, False), "live": has[1], "baked": has == (True, False)}[generation.kind]
    if generation.state == "candidate" and not complete:
        raise RequestError(
            f"a {generation.kind} generation with model file {generation.model_file} and adapter file "
            f"{generation.adapter_file} cannot be a candidate; live needs an adapter "
            "file, baked only a model file"
        )


def _from_row(row: dict[str, Any]) -> Generation:
    parsed = {name: json.loads(row[name]) for name in ("example_ids", "config", "scores")}
    return Generation(**row | parsed)
