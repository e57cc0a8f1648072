"""Which generations and which of their files must be kept.

The idea: a generation may go once nobody can need it any more: not to serve, not to go back to, not as the model file
below a live adapter, not as the parent of a running training run. The invariant: the files of everything that may
still serve are among `file_names`, and `expendable` lists nothing that `registry.delete` would refuse.
What this does not do: delete rows or files, or count bytes.
"""

from __future__ import annotations

import sqlite3

from edgepd_profiles.generation import Generation, find_active, from_row
from edgepd_profiles.lineage import last_confirmed, previous
from edgepd_profiles.rows import fetch


def file_names(conn: sqlite3.Connection) -> set[str]:
    """Return the names of all files that generations of any base model have and that are to be kept.

    A rejected generation has no claim to its files, unless the user has pinned it. A stale one never has.
    """
    rows = conn.execute(
        """
        SELECT adapter_file, model_file FROM generations
        WHERE state NOT IN ('stale', 'deleted') AND (state != 'rejected' OR pinned)
        """
    )
    return {name for row in rows for name in row if name is not None}


def needed_by(conn: sqlite3.Connection, generation: Generation) -> list[int]:
    """Return the ids of other generations that may still serve and stand on this one's baked model file."""
    if generation.kind != "baked" or generation.model_file is None:
        return []
    rows = conn.execute(
        """
        SELECT id FROM generations
        WHERE model_file = ? AND id != ? AND state IN ('training', 'candidate', 'active', 'retired') ORDER BY id
        """,
        (generation.model_file, generation.id),
    )
    return [generation_id for (generation_id,) in rows]


def why_kept(conn: sqlite3.Connection, generation: Generation) -> str | None:
    """Return why a generation cannot be deleted now and what to do about it, or None if it can be."""
    if generation.kind == "base":
        return "it is the base model itself"
    if generation.state == "active":
        return "it serves now; go to another one first with `edgepd adapters use` or `edgepd adapters rollback`"
    if generation.pinned:
        return f"it is pinned; unpin it first with `edgepd adapters unpin {generation.id}`"
    dependants = needed_by(conn, generation)
    if dependants:
        names = ", ".join(str(dependant) for dependant in dependants)
        return f"its model file is needed by generation {names}; delete what needs it first"
    run = conn.execute(
        "SELECT id FROM runs WHERE state = 'running' AND parent_generation = ?", (generation.id,)
    ).fetchone()
    if run:
        return f"training run {run[0]} goes on from it; wait for its end (`edgepd status`)"
    return None


def expendable(conn: sqlite3.Connection, base_sha256: str, keep: int) -> list[Generation]:
    """Return the retired generations that may be deleted to save space, those that served longest ago first.

    Spared are pinned ones, what a rollback goes to, what an automatic fallback goes to, whatever another one needs,
    and besides all those the `keep` retired ones that served last (by the record of activations, not by the clock).
    A baked one that only expendable ones need is listed once those are deleted.
    """
    if keep < 0:
        raise ValueError(f"cannot keep {keep} generations; keep at least 0")
    current = find_active(conn, base_sha256)
    spared = set()
    if current is not None and current.kind != "base":
        spared = {previous(conn, base_sha256).id, last_confirmed(conn, current).id}
    rows = fetch(
        conn,
        """
        SELECT * FROM generations AS g WHERE base_sha256 = ? AND state = 'retired'
        ORDER BY (SELECT max(id) FROM activations WHERE generation = g.id) DESC
        """,
        (base_sha256,),
    )
    retired = [from_row(row) for row in rows]
    free = [g for g in retired if g.id not in spared and why_kept(conn, g) is None]
    return free[keep:][::-1]
