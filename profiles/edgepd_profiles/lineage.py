"""The way back: which generation was active before which.

The idea: every activation records the generation before it, so that following those records from the active one leads
over all earlier ones to the base. The invariant: the way has no cycle (`registry.activate` sees to it) and follows the
order of the records, never a clock, which may have been set back.
What this does not do: switch (see registry.py), or decide when to fall back (see health.py).
"""

from __future__ import annotations

import sqlite3

from edgepd.errors import ConflictError, NotFoundError
from edgepd_profiles.generation import Generation, find_active, find_base, get


def active(conn: sqlite3.Connection, base_sha256: str) -> Generation:
    """Return the generation that serves new requests. Raises NotFoundError if there is none."""
    found = find_active(conn, base_sha256)
    if found is None:
        raise NotFoundError(f"no generation is active for base model {base_sha256[:12]}; start the daemon with it")
    return found


def previous(conn: sqlite3.Connection, base_sha256: str) -> Generation:
    """Return what a rollback goes to: what was active before the present one, in the end the base.

    After a rollback from 3 to 2 this is what was active before 2, never 3. Rejected, stale and deleted ones are
    passed over. Raises ConflictError when the base itself is active, NotFoundError when nothing is.
    """
    current = active(conn, base_sha256)
    if current.kind == "base":
        raise ConflictError("the base model itself is active; there is nothing to roll back to")
    return _first_servable(conn, current, confirmed=False)


def last_confirmed(conn: sqlite3.Connection, generation: Generation) -> Generation:
    """Return what serves if this generation turns out to crash: the last confirmed one before it, else the base.

    Raises NotFoundError if the base model has no generation.
    """
    return _first_servable(conn, generation, confirmed=True)


def before(conn: sqlite3.Connection, generation_id: int) -> int | None:
    """Return the id of the step before a generation's last activation, or None if there was no step before it."""
    row = conn.execute(
        "SELECT previous FROM activations WHERE generation = ? ORDER BY id DESC LIMIT 1", (generation_id,)
    ).fetchone()
    return row[0] if row else None


def way_back(conn: sqlite3.Connection, generation_id: int) -> list[int]:
    """Follow each generation's last activation to the one before it; return the ids, the latest first."""
    way: list[int] = []
    step = before(conn, generation_id)
    while step is not None:
        way.append(step)
        step = before(conn, step)
    return way


def _first_servable(conn: sqlite3.Connection, generation: Generation, *, confirmed: bool) -> Generation:
    """Return the first retired one (and confirmed one, if asked) on the way back, else the base."""
    for generation_id in way_back(conn, generation.id):
        found = get(conn, generation_id)
        if found.state == "retired" and (found.confirmed_at is not None or not confirmed):
            return found
    base = find_base(conn, generation.base_sha256)
    if base is None:
        raise NotFoundError(f"base model {generation.base_sha256[:12]} has no generation; start the daemon with it")
    return base
