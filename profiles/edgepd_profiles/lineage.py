"""The past of a generation: which one was active before it, and which examples shaped what it serves.

The idea: every activation records the generation before it, so that following those records from the active one leads
over all earlier ones to the base. What a generation was taught is its own examples and those of everything that it goes
on from. The invariant: the way back has no cycle (`registry.activate` sees to it) and follows the order of the records,
never a clock, which may have been set back.
What this does not do: switch (see registry.py), decide when to fall back (see health.py), or what is forgotten.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from edgepd.errors import ConflictError, NotFoundError
from edgepd_profiles.generation import Generation, find_active, find_base, from_row, get
from edgepd_profiles.rows import fetch


@dataclass(frozen=True)
class Switch:
    """Another generation of a base model that has to serve, because the present one must not any more."""

    base_sha256: str
    from_id: int
    to_id: int


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


def target(conn: sqlite3.Connection, base_sha256: str, touched: Collection[int]) -> Generation:
    """Return what serves instead, if what was taught to the generations `touched` is to be forgotten.

    That is the last confirmed one before the active one that is not among them, else the base. Raises NotFoundError
    if nothing is active.
    """
    return _first_servable(conn, active(conn, base_sha256), confirmed=True, without=touched)


def switches(conn: sqlite3.Connection, touched: Collection[int]) -> list[Switch]:
    """Return the switches, one for each base model whose active generation is `touched`."""
    rows = fetch(conn, "SELECT id, base_sha256 FROM generations WHERE state = 'active' ORDER BY id")
    return [
        Switch(row["base_sha256"], row["id"], target(conn, row["base_sha256"], touched).id)
        for row in rows
        if row["id"] in touched
    ]


def taught_to(generation: Generation, listing: Sequence[Generation]) -> set[str]:
    """Return the ids of all examples that shaped what a generation serves: its own, and those of what it goes on from.

    `listing` has all generations of its base model.
    """
    before_it = _goes_on_from(listing)
    by_id = {each.id: each for each in listing}
    taught: set[str] = set(generation.example_ids)
    steps, seen = before_it(generation), {generation.id}
    while steps:
        number = steps.pop()
        if number not in seen:
            seen.add(number)
            taught.update(by_id[number].example_ids)
            steps += before_it(by_id[number])
    return taught


def taught_any(conn: sqlite3.Connection, interactions: Collection[str]) -> set[int]:
    """Return the ids of all generations, in any state and of any base model, that were taught one of these exchanges.

    An example "x#2" was made from exchange "x", and counts as it.
    """
    listing = [from_row(row) for row in fetch(conn, "SELECT * FROM generations ORDER BY id")]
    wanted = set(interactions)
    before_it = _goes_on_from(listing)
    after: dict[int, list[int]] = {}
    for each in listing:
        for number in before_it(each):
            after.setdefault(number, []).append(each.id)
    steps = [g.id for g in listing if not wanted.isdisjoint(interaction_of(example) for example in g.example_ids)]
    found: set[int] = set()
    while steps:
        number = steps.pop()
        if number not in found:
            found.add(number)
            steps += after.get(number, [])
    return found


def interaction_of(example_id: str) -> str:
    """Return the id of the exchange that an example is, or was made from."""
    return example_id.partition("#")[0]


def _goes_on_from(listing: Iterable[Generation]) -> Callable[[Generation], list[int]]:
    """Return a function that gives the ids of the generations that one goes on from, those that are in the listing.

    A consolidation begins at the base; a live generation goes on from the live one before it and stands on a baked
    file, which an import may have brought it without being its child; a merged one goes on from all its parts.
    """
    rows = list(listing)
    known = {each.id for each in rows}
    baked: dict[str, list[int]] = {}
    for each in rows:
        if each.kind == "baked" and each.model_file is not None:
            baked.setdefault(each.model_file, []).append(each.id)

    def before_it(generation: Generation) -> list[int]:
        parts = list(generation.config.get("merged") or ())
        if generation.kind == "live":
            parts += [] if parts else [generation.parent]
            parts += baked.get(generation.model_file or "", [])
        return [number for number in parts if number in known]

    return before_it


def _first_servable(
    conn: sqlite3.Connection, generation: Generation, *, confirmed: bool, without: Collection[int] = ()
) -> Generation:
    """Return the first retired one (and confirmed one, if asked) on the way back that is not `without`, or the base."""
    for generation_id in way_back(conn, generation.id):
        found = get(conn, generation_id)
        if found.id not in without and found.state == "retired" and (found.confirmed_at is not None or not confirmed):
            return found
    base = find_base(conn, generation.base_sha256)
    if base is None:
        raise NotFoundError(f"base model {generation.base_sha256[:12]} has no generation; start the daemon with it")
    return base
