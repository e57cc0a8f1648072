"""Make SQLite let go of deleted text: in the full-text index, on free pages, and in the WAL.

The idea: three places keep text after its row is gone. An FTS5 index marks entries as deleted and drops the words only
when its segments are merged (SQLite before 3.42 has no secure-delete for it); pages may keep old content in their
slack; the WAL keeps earlier versions of pages until it is emptied. So: merge the index, empty the WAL into the file,
write the file anew (VACUUM), and empty the WAL again.
The invariant: when `scrub` returns, the file and its WAL hold the rows that there are and no others.
What this does not do: delete rows, or overwrite the blocks that the file system has freed.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from edgepd.errors import StoreError

READERS_WAIT_S = 10.0  # how long a reader may keep an old snapshot, and with it the WAL
PAUSE_S = 0.05
# A larger profile is written anew by way of a temporary file beside it, not in memory; edge devices have little.
IN_MEMORY_BYTES = 64 * 1024 * 1024


def scrub(conn: sqlite3.Connection, path: Path, *, patience_s: float = READERS_WAIT_S) -> None:
    """Do all of it, outside of a transaction; it takes time and room in proportion to the size of the file.

    Raises StoreError if a reader keeps an old snapshot for longer than `patience_s`, and sqlite3.Error.
    """
    conn.execute("BEGIN IMMEDIATE")
    try:
        purge_index(conn)
        conn.execute("COMMIT")
    finally:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
    # Before VACUUM: what it cuts off the end of the file has been overwritten then.
    empty_wal(conn, path, patience_s)
    _vacuum(conn, path)
    empty_wal(conn, path, patience_s)
    conn.execute("PRAGMA shrink_memory")


def purge_index(conn: sqlite3.Connection) -> None:
    """Merge every full-text index into one segment, which has no words of deleted rows."""
    tables = conn.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE 'CREATE VIRTUAL TABLE%fts5%'"
    )
    for (name,) in tables.fetchall():
        # noqa: S608 below, because the names are those of our own schema
        empty = conn.execute(f'SELECT NOT EXISTS (SELECT 1 FROM "{name}_docsize")').fetchone()[0]  # noqa: S608
        # An index with a single segment is not merged, even if that holds nothing but deletions.
        command = "delete-all" if empty else "optimize"
        conn.execute(f'INSERT INTO "{name}" ("{name}") VALUES (?)', (command,))  # noqa: S608


def empty_wal(conn: sqlite3.Connection, path: Path, patience_s: float = READERS_WAIT_S) -> None:
    """Move the WAL into the file and cut it to nothing. Raises StoreError if readers do not let go of it in time."""
    end = time.monotonic() + patience_s
    timeout_ms = conn.execute("PRAGMA busy_timeout").fetchone()[0]
    conn.execute("PRAGMA busy_timeout = 0")  # the patience is ours, not that of one attempt
    try:
        while conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() >= end:
                raise StoreError(
                    f"{path}: something has been reading the profile for more than {patience_s:g} s, so deleted text "
                    "cannot be overwritten; close other programs that have it open and try again"
                )
            time.sleep(PAUSE_S)
    finally:
        conn.execute(f"PRAGMA busy_timeout = {timeout_ms}")


def _vacuum(conn: sqlite3.Connection, path: Path) -> None:
    pages, page_bytes = (conn.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    if pages * page_bytes <= IN_MEMORY_BYTES:
        conn.execute("VACUUM")
        return
    # The temporary file is nameless and private, and must not lie where other users' files are. This setting is one of
    # the process; it stays, because changing it while another thread opens a temporary file is not safe.
    directory = str(path.parent).replace("'", "''")
    conn.execute(f"PRAGMA temp_store_directory = '{directory}'")
    conn.execute("PRAGMA temp_store = FILE")
    try:
        conn.execute("VACUUM")
    finally:
        conn.execute("PRAGMA temp_store = MEMORY")
