"""How damage of the profile is noticed: when SQLite meets it, or by looking at every page after a bad end.

The idea: `GuardedStore` remembers the first error that says so; `suspect` leaves a note, because of which the next
start examines the file even though it was closed well. A damaged search index is no damage: it is made anew.
The invariant: a file is examined for the same reason once a day at most, so that damage which no check finds does not
restart the daemon again and again.
What this does not do: mend anything else (see rescue.py).

Damage is SQLITE_CORRUPT, SQLITE_NOTADB, or what `PRAGMA quick_check` finds (sqlite.org/pragma.html,
sqlite.org/howtocorrupt.html).
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from edgepd.atomic import replacing
from edgepd.errors import StoreError
from edgepd_profiles import interactions
from edgepd_profiles.connections import connect
from edgepd_profiles.profile_file import explained, reading
from edgepd_profiles.store import Store

T = TypeVar("T")

log = logging.getLogger(__name__)

DAY_S = 86_400.0
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
CORRUPT_INDEX = "SQLITE_CORRUPT_VTAB"  # the words of the search index, which can be made anew


class GuardedStore(Store):
    """A store that remembers when SQLite found its file damaged, in `damage`: what it said."""

    damage: str | None = None

    def write(self, job: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Queue a job, as `Store.write`."""
        future = super().write(job)
        future.add_done_callback(self._look_at)
        return future

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection, as `Store.read`."""
        try:
            with super().read() as conn:
                yield conn
        except StoreError as error:
            self._note(error)
            raise

    def check(self) -> None:
        """Look at every page, which takes seconds for each gigabyte; what is found is noted as damage."""
        with self.read() as conn:
            found = quick_check(conn)
        if found is not None:
            self.damage = found

    def _look_at(self, done: Future[T]) -> None:
        if not done.cancelled():
            self._note(done.exception())

    def _note(self, error: BaseException | None) -> None:
        found = damage_in(error) if isinstance(error, StoreError) else None
        if found is not None and self.damage is None:
            self.damage = found


def damage(path: Path) -> str | None:
    """Return what is wrong with the pages of a profile that nobody has open, None if nothing is."""
    try:
        with reading(path) as conn:
            return quick_check(conn)
    except StoreError as error:
        return damage_in(error)


def suspect(path: Path, reason: str, now: float) -> bool:
    """Have the next start examine the profile, because damage was met while it was open.

    Returns False if a start has examined it for such a reason within the last day already: then another restart would
    not help. Raises StoreError if that cannot be noted.
    """
    path = path.absolute()
    before = noted(path)
    if before is not None and before.get("examined") and abs(now - float(before["at"])) < DAY_S:
        return False
    _write(path, {"at": now, "reason": reason, "examined": False})
    return True


def examined(path: Path, note: dict[str, Any]) -> str | None:
    """Look at a profile in which damage was met; make the search index anew if that was it."""
    if note.get("examined") or not path.exists():
        return None
    found = damage(path)
    if found is None and CORRUPT_INDEX in str(note.get("reason")):
        with explained(path), closing(connect(path)) as conn:
            _renew_index(conn)
        log.warning("%s: the search index was damaged and was made anew", path)
    _write(path, note | {"examined": True})
    return found


def _renew_index(conn: sqlite3.Connection) -> None:
    """Index every exchange once; what a killed daemon left streaming has ended."""
    conn.execute("BEGIN IMMEDIATE")
    conn.execute("INSERT INTO interaction_search (interaction_search) VALUES ('delete-all')")
    interactions.mark_interrupted(conn)
    conn.execute("INSERT INTO interaction_search (interaction_search) VALUES ('rebuild')")
    conn.execute("COMMIT")


def damage_in(error: StoreError) -> str | None:
    """Return what SQLite said, if that was the reason."""
    cause = error.__cause__
    if not isinstance(cause, sqlite3.Error) or (getattr(cause, "sqlite_errorcode", 0) & 0xFF) not in DAMAGE:
        return None
    return f"{cause}, {cause.sqlite_errorname}"


def quick_check(conn: sqlite3.Connection) -> str | None:
    """Return what SQLite finds wrong with the pages, None if nothing is."""
    found = [str(row[0]) for row in conn.execute("PRAGMA quick_check(3)")]
    return None if found == ["ok"] else " ".join("; ".join(found).split())


def noted(path: Path) -> dict[str, Any] | None:
    """Return the note that `suspect` left, None if there is none."""
    try:
        found = json.loads(_suspect_path(path).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "at" in found else None


def _suspect_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.suspect")


def _write(path: Path, note: dict[str, Any]) -> None:
    with replacing(_suspect_path(path)) as file:
        file.write(json.dumps(note).encode())
