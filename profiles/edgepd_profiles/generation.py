"""What a generation is, and how one is read from its row.

The idea: a generation is a model file (a baked one, or the base itself when `model_file` is None) plus at most one
live adapter. The invariant: a row that can be read is a whole Generation; its file names cannot leave their directory.
What this does not do: change anything (see registry.py, which most code should import instead of this module).
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepd.errors import NotFoundError, RequestError
from edgepd_profiles.rows import fetch

KINDS = ("base", "live", "baked")
# What set_state allows; `active` and the `retired` that comes with it are activate's business. A stale one was taught
# what was forgotten since; registry.retire_stale makes several of them so at once.
TRANSITIONS: Mapping[str, tuple[str, ...]] = {
    "training": ("candidate", "rejected", "deleted"),
    "candidate": ("rejected", "stale", "deleted"),
    "rejected": ("deleted",),
    "active": (),
    "retired": ("rejected", "stale", "deleted"),  # rejected: it failed only after it went live
    "stale": ("deleted",),
    "deleted": (),
}
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Generation:
    """One generation. File names have no directory; `file_sha256` is of the file that it added.

    `healthy` counts answers that came to their end since it was activated, until it is confirmed; `strikes` counts
    unclean exits since the last such answer (see health.py). Times are unix seconds.
    """

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
    pinned: bool = False
    confirmed_at: float | None = None
    healthy: int = 0
    strikes: int = 0

    @property
    def pending(self) -> bool:
        """Whether it serves without having shown that it does so in good health. The base never has to."""
        return self.state == "active" and self.confirmed_at is None and self.kind != "base"


def get(conn: sqlite3.Connection, generation_id: int) -> Generation:
    """Return one generation. Raises NotFoundError."""
    rows = fetch(conn, "SELECT * FROM generations WHERE id = ?", (generation_id,))
    if not rows:
        raise NotFoundError(f"generation {generation_id} is not known; `edgepd adapters list` shows all")
    return from_row(rows[0])


def listing(conn: sqlite3.Connection, base_sha256: str) -> list[Generation]:
    """Return all generations of a base model, the oldest first."""
    rows = fetch(conn, "SELECT * FROM generations WHERE base_sha256 = ? ORDER BY id", (base_sha256,))
    return [from_row(row) for row in rows]


def find_active(conn: sqlite3.Connection, base_sha256: str) -> Generation | None:
    """Return the generation that serves new requests, or None before the base is known."""
    rows = fetch(conn, "SELECT * FROM generations WHERE base_sha256 = ? AND state = 'active'", (base_sha256,))
    return from_row(rows[0]) if rows else None


def find_base(conn: sqlite3.Connection, base_sha256: str) -> Generation | None:
    """Return the generation that is the base model itself, or None before it is known."""
    rows = fetch(conn, "SELECT * FROM generations WHERE base_sha256 = ? AND kind = 'base'", (base_sha256,))
    return from_row(rows[0]) if rows else None


def check_files(generation: Generation) -> None:
    """Refuse names that could leave their directory, and a candidate that lacks its file. Raises RequestError."""
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


def from_row(row: dict[str, Any]) -> Generation:
    """Turn a row of the table `generations`, all columns by name, into a Generation."""
    parsed = {name: json.loads(row[name]) for name in ("example_ids", "config", "scores")}
    return Generation(**row | parsed | {"pinned": bool(row["pinned"])})
