"""Whether the profile is in order, found out without the daemon and without changing it, and what mends it.

The idea: each check is a function that returns one finding, with the one command that mends what it found.
The invariant: `examine` writes nothing and raises nothing for a damaged file; `repair` changes modes, the search index
and the WAL, all of which can be made anew, and never what the user wrote.
What this does not do: rescue a corrupt file (a backup is the way), or look at models and generations.

The words of the search index are compared with the exchanges only in a copy in memory, and only of a small profile:
FTS5 does that with a command that needs to write. Of a large one the row numbers are compared, which finds an exchange
that cannot be found or an entry without an exchange, but not one that is listed under wrong words.
"""

from __future__ import annotations

import shlex
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edgepd.errors import StoreError
from edgepd_profiles.backup import RESERVE_BYTES, directory_of, listing
from edgepd_profiles.connections import beside, explain
from edgepd_profiles.profile_file import applied_steps, known_steps, reading

SMALL_BYTES = 64 * 2**20  # up to this size everything is compared; beyond it that would take minutes or much memory
WAL_LIMIT_BYTES = 64 * 2**20  # SQLite empties it every 4 MiB or so, unless a reader stays open
FREE_BYTES = 256 * 2**20
BACKUPS_MISSED = 3  # that many in a row are no accident
DAY_S = 86400.0
REPAIR = "edgepd doctor --repair"

# As rows of the index that are no exchange's, and ended exchanges that are in no row of it.
STRAY = "SELECT count(*) FROM interaction_search_docsize WHERE id NOT IN (SELECT seq FROM interactions)"
UNLISTED = (
    "SELECT count(*) FROM interactions WHERE seq NOT IN (SELECT id FROM interaction_search_docsize) "
    "AND seq NOT IN (SELECT seq FROM interactions WHERE state = 'streaming')"
)
COMPARE = "INSERT INTO interaction_search (interaction_search, rank) VALUES ('integrity-check', 1)"


@dataclass(frozen=True)
class Finding:
    """The result of one check: what was looked at, and what is wrong with it, if anything.

    `advice` is the command that mends it, or a sentence if none can; `detail` tells what was seen.
    """

    what: str
    problem: str | None = None
    advice: str | None = None
    detail: str = ""


def examine(path: Path, *, backup_days: float = 1.0, now: float | None = None) -> list[Finding]:
    """Return one finding for each check of the profile at `path`, in an order for people.

    `backup_days` is the setting keep.backup_days; 0 means that none are wanted. The daemon may run, but must not start
    or stop meanwhile.
    """
    path = path.absolute()
    if not path.exists():
        return [_missing(path)]
    findings = [_modes(path)]
    created = 0.0
    try:
        with reading(path) as conn:
            created = _created(conn)
            findings += [_guarded(check, conn, path) for check in (_structure, _schema, _references, _index)]
    except StoreError as error:
        findings.append(Finding("file", str(error), _restore(path)))
    at = time.time() if now is None else now
    return [*findings, _wal(path), _disk(path, backup_days), _backups(path, backup_days, created, at)]


def repair(path: Path) -> list[str]:
    """Mend what can be made anew and return a sentence for each thing done. Nobody may have the profile open.

    Raises StoreError if the file is damaged or of a newer edgepd.
    """
    path = path.absolute()
    if not path.exists():
        return []
    done = []
    for each in _wide(path):
        each.chmod(stat.S_IMODE(each.stat().st_mode) & 0o700)
        done.append(f"{each} is readable for you alone now")
    with reading(path) as conn:
        for finding in (_guarded(_structure, conn, path), _guarded(_schema, conn, path)):
            if finding.problem:
                raise StoreError(f"{finding.problem}; {finding.advice}")
        listed = _guarded(_index, conn, path).problem is None
    wal_bytes = _size(beside(path, "-wal"))
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            conn.execute("PRAGMA secure_delete = ON")
            if not listed:
                _rebuild(conn)
                done.append("the search index was made anew")
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise explain(error, path) or error from error
    if wal_bytes:
        done.append(f"{wal_bytes / 2**20:.1f} MiB of changes were moved from the WAL into the file")
    return done


def _rebuild(conn: sqlite3.Connection) -> None:
    """Index every exchange once. What a killed daemon left streaming would be indexed again when that is noticed."""
    conn.execute("BEGIN IMMEDIATE")
    conn.execute("INSERT INTO interaction_search (interaction_search) VALUES ('delete-all')")
    conn.execute("UPDATE interactions SET state = 'interrupted' WHERE state = 'streaming'")
    conn.execute("INSERT INTO interaction_search (interaction_search) VALUES ('rebuild')")
    conn.execute("COMMIT")


def _guarded(check: Callable[[sqlite3.Connection, Path], Finding], conn: sqlite3.Connection, path: Path) -> Finding:
    """Run one check; a file that cannot be read any further is a finding, not an error."""
    try:
        return check(conn, path)
    except sqlite3.DatabaseError as error:
        problem = explain(error, path) or f"{path}: cannot be read: {error}"
        return Finding(check.__name__.removeprefix("_"), str(problem), _restore(path))


def _missing(path: Path) -> Finding:
    if listing(directory_of(path)):
        return Finding("file", f"{path} is gone, but there are backups of it", _restore(path))
    return Finding("file", detail="there is no profile yet")


def _restore(path: Path) -> str:
    """Return the command that brings back the newest backup, or makes room for an empty profile."""
    backups = listing(directory_of(path))
    if backups:
        return f"edgepd restore {shlex.quote(str(backups[0].path))}"
    return f"mv {shlex.quote(str(path))} {shlex.quote(str(beside(path, '.damaged')))}"


def _wide(path: Path) -> list[Path]:
    """Return the files and folders of the profile that others than its owner may read or write."""
    folder = directory_of(path)
    candidates = [path.parent, path, beside(path, "-wal"), beside(path, "-shm"), folder, *folder.glob("*.db*")]
    return [each for each in candidates if each.exists() and each.stat().st_mode & 0o077]


def _modes(path: Path) -> Finding:
    wide = _wide(path)
    if not wide:
        return Finding("modes")
    more = f" and {len(wide) - 1} more" if len(wide) > 1 else ""
    return Finding("modes", f"other users of this machine have rights on {wide[0]}{more}", REPAIR)


def _structure(conn: sqlite3.Connection, path: Path) -> Finding:
    """Check the pages; in a small file also that every index agrees with its table."""
    size = path.stat().st_size
    pragma = "integrity_check" if size <= SMALL_BYTES else "quick_check"
    found = [str(row[0]) for row in conn.execute(f"PRAGMA {pragma}(3)")]
    if found != ["ok"]:
        return Finding("structure", f"{path}: the database is corrupt: {'; '.join(found)}", _restore(path))
    return Finding("structure", detail=f"{pragma} of {size / 2**20:.1f} MiB")


def _schema(conn: sqlite3.Connection, path: Path) -> Finding:
    steps = applied_steps(conn)
    if not steps:
        if path.stat().st_size == 0 or not conn.execute("SELECT 1 FROM sqlite_schema").fetchone():
            return Finding("schema", detail="empty; the daemon will make the tables")
        return Finding("schema", f"{path}: this SQLite file is not a profile of edgepd", _restore(path))
    if unknown := steps - known_steps():
        problem = f"{path}: written by a newer edgepd (schema step {max(unknown)})"
        return Finding("schema", problem, "pip install --upgrade edgepd")
    waiting = known_steps() - steps
    return Finding("schema", detail=f"{len(waiting)} steps wait for the next start" if waiting else max(steps))


def _references(conn: sqlite3.Connection, path: Path) -> Finding:
    """Check that no row refers to one that is gone."""
    counts: dict[tuple[str, str], int] = {}
    for table, _rowid, parent, _key in conn.execute("PRAGMA foreign_key_check"):
        counts[table, parent] = counts.get((table, parent), 0) + 1
    if not counts:
        return Finding("references")
    told = ", ".join(f"{n} of {table} to {parent}" for (table, parent), n in sorted(counts.items()))
    return Finding("references", f"{path}: rows refer to others that are gone: {told}", _restore(path))


def _index(conn: sqlite3.Connection, path: Path) -> Finding:
    """Check that the search index agrees with the exchanges that have ended; see the module's docstring."""
    if not conn.execute("SELECT 1 FROM sqlite_schema WHERE name = 'interaction_search'").fetchone():
        return Finding("search index", detail="not made yet; the next start of the daemon makes it")
    unlisted, stray = (int(conn.execute(sql).fetchone()[0]) for sql in (UNLISTED, STRAY))
    if unlisted or stray:
        problem = f"the search index lacks {unlisted} exchanges and has {stray} that are gone"
        return Finding("search index", problem, REPAIR)
    if path.stat().st_size > SMALL_BYTES:
        return Finding("search index", detail="its row numbers are those of the exchanges")
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
        conn.backup(copy)
        copy.execute("DELETE FROM interactions WHERE state = 'streaming'")  # not in the index until they end
        try:
            copy.execute(COMPARE)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_CORRUPT_VTAB:
                raise
            return Finding("search index", "the search index has other words than the exchanges", REPAIR)
    return Finding("search index", detail="its words are those of the exchanges")


def _wal(path: Path) -> Finding:
    size = _size(beside(path, "-wal"))
    if size > WAL_LIMIT_BYTES:
        problem = f"{size // 2**20} MiB of changes wait in {beside(path, '-wal')} for being moved into the file"
        return Finding("WAL", problem, REPAIR)
    return Finding("WAL", detail=f"{size / 2**20:.1f} MiB")


def _disk(path: Path, backup_days: float) -> Finding:
    free = shutil.disk_usage(path.parent).free
    wanted = max(FREE_BYTES, _size(path) + RESERVE_BYTES if backup_days else 0)
    if free < wanted:
        problem = (
            f"{path.parent} has {free // 2**20} MiB free, which is less than the {wanted // 2**20} MiB it may need"
        )
        return Finding("free disk", problem, "edgepd adapters list (then `edgepd adapters delete ID` for old ones)")
    return Finding("free disk", detail=f"{free / 2**30:.1f} GiB")


def _backups(path: Path, backup_days: float, created: float, now: float) -> Finding:
    """Check that the newest backup is not much older than it should be; a young profile may have none yet."""
    backups = listing(directory_of(path))
    if backup_days == 0:
        return Finding("backups", detail="switched off by keep.backup_days = 0")
    limit = backup_days * BACKUPS_MISSED * DAY_S
    newest = backups[0].at if backups else None
    if now - (created if newest is None else newest) <= limit:
        days = "none yet" if newest is None else f"the newest is {max(0.0, now - newest) / DAY_S:.1f} days old"
        return Finding("backups", detail=f"{len(backups)}, {days}" if backups else days)
    age = "there is no backup" if newest is None else f"the newest backup is {(now - newest) / DAY_S:.0f} days old"
    return Finding("backups", f"{age}, but one is due every {backup_days:g} days", "edgepd backup")


def _created(conn: sqlite3.Connection) -> float:
    """Return when the profile was made, in seconds since 1970; 0 if that is not known."""
    if not applied_steps(conn):
        return 0.0
    try:
        first = conn.execute("SELECT min(applied_at) FROM _sqlite_migrations").fetchone()[0]
        return datetime.fromisoformat(str(first)).timestamp()
    except (ValueError, sqlite3.DatabaseError):
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
