"""How the file of a profile is made and opened, and what its errors mean to the user.

The invariant: a file is private before SQLite opens it, and no connection leaves this module without its settings.
What this does not do: keep connections, or decide who writes (see store.py).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepd.errors import StoreError

BUSY_TIMEOUT_S = 5.0
CHECKED_AT_ONCE = 256 * 2**20  # bytes; a larger file is checked while the daemon serves already (see rescue.py)
LARGE_WAL = 64 * 2**20  # bytes, beyond which it does not grow without being moved: a few transactions may write as much

# By primary SQLite result code; anything else is a programming error and keeps its own class.
PROBLEMS = {
    sqlite3.SQLITE_FULL: "the disk is full, so this was not stored; free some space and try again",
    sqlite3.SQLITE_IOERR: "the disk reported an error; check its free space and the system log",
    sqlite3.SQLITE_READONLY: "the file is read-only; make it and its directory writable for you",
    sqlite3.SQLITE_PERM: "access is denied; make the file and its directory readable and writable for you",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; check that you can write to its directory",
    sqlite3.SQLITE_CORRUPT: (
        "the database is corrupt; stop edgepd, keep a copy of the file, then restore a backup or move it "
        "away to start with an empty profile"
    ),
    sqlite3.SQLITE_NOTADB: "this is not an SQLite database; move it away to start with an empty profile",
    sqlite3.SQLITE_BUSY: "another program is writing to the profile; close it and try again",
    sqlite3.SQLITE_LOCKED: "another program is writing to the profile; close it and try again",
    sqlite3.SQLITE_PROTOCOL: "the locks of the file stayed contradictory; is it on a network file system?",
}


def explain(error: sqlite3.Error, path: Path) -> StoreError | None:
    """Return what the user must know about an SQLite error, or None if it is a programming error."""
    code = getattr(error, "sqlite_errorcode", None)
    problem = PROBLEMS.get(code & 0xFF) if code is not None else None
    return StoreError(f"{path}: {problem} ({error.sqlite_errorname})") if problem else None


@contextmanager
def explained_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        problem = explain(error, path)
        if problem is None:
            raise
        raise problem from error


def beside(path: Path, suffix: str) -> Path:
    """Return the name of a file that SQLite keeps beside a database: -wal, -shm or -journal."""
    return path.with_name(path.name + suffix)


def has_content(path: Path) -> bool:
    """Whether a file is there and not empty."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def create(path: Path) -> None:
    """Make directory and file private before SQLite opens them; -wal and -shm get the mode of the file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # a file that was copied here may have come with a wider mode
    finally:
        os.close(descriptor)
    for sidecar in (beside(path, "-wal"), beside(path, "-shm")):
        if sidecar.exists():
            sidecar.chmod(0o600)
    for directory in (
        path.parent,
        path.parent.parent,
    ):  # both names may be new: make them survive a power cut
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def connect(path: Path) -> sqlite3.Connection:
    """Open the connection that writes."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        _configure(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that reads."""
    connection = sqlite3.connect(
        path.as_uri() + "?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    # Large sorts go to memory: a temporary file would be readable text outside of the profile.
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def _configure(conn: sqlite3.Connection, path: Path) -> None:
    mode = conn.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"{path}: this file system does not support SQLite's WAL; put the profile on a local disk")
    conn.execute("PRAGMA synchronous = FULL")
    conn.execute("PRAGMA wal_autocheckpoint = 0")  # the store does it between transactions
    conn.execute(f"PRAGMA journal_size_limit = {LARGE_WAL}")  # what a large transaction needed is given back
    conn.execute("PRAGMA secure_delete = ON")
    conn.execute("PRAGMA foreign_keys = ON")
    conn.execute("PRAGMA temp_store = MEMORY")


def quick_check(conn: sqlite3.Connection, path: Path) -> None:
    """Raise StoreError if the file is damaged."""
    found = conn.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreError(f"{path}: {PROBLEMS[sqlite3.SQLITE_CORRUPT]} ({found})")
