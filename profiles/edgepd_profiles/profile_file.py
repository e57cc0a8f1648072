"""A profile as a file on the disk: read without changing it, and whether it is one that this edgepd understands.

The idea: everything is asked of SQLite, never of the bytes, because closing any other descriptor of the file would drop
the locks that the whole process has on it.
What this does not do: write anything, or look into the tables of a profile; integrity.py does that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from edgepd.errors import StoreError
from edgepd_profiles import migrations
from edgepd_profiles.connections import beside, explained_errors


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open an SQLite file for reading alone, with its WAL if it has one. SQLite's failures arrive as StoreError.

    A file without a WAL is taken as immutable, because SQLite would make one to read it; so nobody may open it for
    writing meanwhile, as the daemon's lock sees to.
    """
    mode = "mode=ro" if beside(path, "-wal").exists() else "immutable=1"
    with (
        explained(path),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)) as conn,
    ):
        conn.execute("PRAGMA temp_store = MEMORY")  # a temporary file would be readable text outside of the profile
        yield conn


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise what the system or SQLite cannot do with a file as StoreError; errors of the program stay what they are."""
    try:
        with explained_errors(path):
            yield
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; check the folder, its rights and its free space") from error


def check(path: Path) -> None:
    """Raise StoreError unless the file is a whole profile that this edgepd understands."""
    with reading(path) as conn:
        found = conn.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise StoreError(f"{path}: the database is corrupt ({found}); take another backup")
        steps = applied_steps(conn)
    if not steps:
        raise StoreError(f"{path}: this SQLite file is not a profile of edgepd; take another one")
    if unknown := steps - known_steps():
        raise StoreError(f"{path}: written by a newer edgepd (schema step {max(unknown)}); upgrade edgepd")


def known_steps() -> set[str]:
    """Return the names of the schema steps that this edgepd knows."""
    return {step.__name__ for step in migrations.STEPS}


def applied_steps(conn: sqlite3.Connection) -> set[str]:
    """Return the names of the schema steps that a file has; none if it is not a profile."""
    if not conn.execute("SELECT 1 FROM sqlite_schema WHERE name = '_sqlite_migrations'").fetchone():
        return set()
    rows = conn.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = ?", (migrations.MIGRATION_SET,))
    return {str(name) for (name,) in rows}
