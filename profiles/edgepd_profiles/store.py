"""The one SQLite file of the profile, and who may write to it.

The idea: one thread owns the only writing connection and takes jobs from a queue; each job is one
transaction. Readers use read-only connections of their own and see one snapshot each.
The invariant: when the future of a write has a result, the change is on the disk (WAL, synchronous=FULL);
when it has an exception, nothing of the job is in the file. Files are 0600, deleted text is overwritten
(secure_delete).
What this does not do: know any table (see interactions.py, feedback.py, registry.py), or keep two programs
from opening the same profile: the daemon's lock does that, and SQLite's own locks keep the file whole.
"""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from edgepd.errors import StoreError
from edgepd_profiles import migrations

T = TypeVar("T")

log = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 5.0
MAX_IDLE_READERS = 8

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
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        explained = explain(error, path)
        if explained is None:
            raise
        raise explained from error


class Store:
    """The open profile. Safe to use from any thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Take over the writing connection; use `Store.open`."""
        self.path = path
        self._writer = connection
        self._jobs: queue.SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], Future[Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._idle_readers: list[sqlite3.Connection] = []
        self._lock = threading.Lock()  # guards _closed, _idle_readers, and that no job follows the last one
        self._closed = False
        # A daemon thread, so that a program that forgets to close can end. What was acknowledged is safe.
        self._thread = threading.Thread(target=self._run_jobs, name="profile-writer", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open the profile, creating it (0600, its directory 0700) or migrating it as needed.

        After an unclean exit the file is checked first. Raises StoreError if it cannot be opened, is corrupt,
        or was written by a newer edgepd.
        """
        path = path.absolute()
        unclean = _has_content(_beside(path, "-wal"))
        try:
            _create(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be created: {error.strerror}; check its directory") from error
        with _explained(path):
            connection = _connect(path)
            try:
                if unclean:
                    _quick_check(connection, path)
                migrations.migrate(connection)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection)

    def __enter__(self) -> Store:
        """Return the store itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()

    def write(self, job: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Queue a job that runs as exactly one transaction; the future resolves after the commit.

        If the job raises, its changes are rolled back and the future gets the exception; SQLite's own
        failures arrive as StoreError. A job must not wait for another write. Raises StoreError if the store
        is closed.
        """
        future: Future[T] = Future()
        with self._lock:
            self._refuse_if_closed()
            self._jobs.put((job, future))
        return future

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Yield a read-only connection that sees one snapshot.

        Keep it short: it holds back the checkpoint of the WAL. Raises StoreError if the store is closed
        or the file cannot be read.
        """
        with _explained(self.path):
            connection = self._borrow_reader()
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                self._return_reader(connection)

    def close(self) -> None:
        """Finish all queued writes, then close the file. Closing twice is allowed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
            readers, self._idle_readers = self._idle_readers, []
        self._thread.join()
        for reader in readers:
            reader.close()
        # Last, because the last connection to close empties the WAL, and only one that may write can do so.
        self._writer.close()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path}: the profile is closed because edgepd is stopping; start it again")

    def _run_jobs(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = self._run_in_transaction(job)
            except BaseException as error:  # noqa: BLE001 - the edge of the thread: whoever waits gets it
                future.set_exception(error)
            else:
                future.set_result(result)
            del item, job, future  # or the last job's text would stay in memory until the next one

    def _run_in_transaction(self, job: Callable[[sqlite3.Connection], T]) -> T:
        with _explained(self.path):
            conn = self._begin()
            try:
                result = job(conn)
                if not conn.in_transaction:
                    raise RuntimeError(f"the write job {job!r} ended its own transaction; leave that to the store")
                conn.execute("COMMIT")
            finally:
                # SQLite may have rolled back by itself (disk full), so ask before doing it.
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
        return result

    def _begin(self) -> sqlite3.Connection:
        """Begin a transaction, with new connections if SQLite finds that the locks of the WAL contradict each other.

        It gives up on that (SQLITE_PROTOCOL) after ten seconds. Nothing is written by then, so beginning again is safe.
        """
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_PROTOCOL:
                raise
            log.warning("%s: %s; the file is opened again", self.path, error)
            with self._lock:
                readers, self._idle_readers = self._idle_readers, []
            for connection in (*readers, self._writer):
                connection.close()
            self._writer = _connect(self.path)
            self._writer.execute("BEGIN IMMEDIATE")
        return self._writer

    def _borrow_reader(self) -> sqlite3.Connection:
        with self._lock:
            self._refuse_if_closed()
            if self._idle_readers:
                return self._idle_readers.pop()
        connection = sqlite3.connect(
            self.path.as_uri() + "?mode=ro",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        # Large sorts go to memory: a temporary file would be readable text outside of the profile.
        connection.execute("PRAGMA temp_store = MEMORY")
        return connection

    def _return_reader(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        with self._lock:
            if not self._closed and len(self._idle_readers) < MAX_IDLE_READERS:
                self._idle_readers.append(connection)
                return
        connection.close()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _create(path: Path) -> None:
    """Make directory and file private before SQLite opens them; -wal and -shm get the mode of the file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # a file that was copied here may have come with a wider mode
    finally:
        os.close(descriptor)
    for sidecar in (_beside(path, "-wal"), _beside(path, "-shm")):
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


def _connect(path: Path) -> sqlite3.Connection:
    """Open the connection that writes."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        _configure(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _configure(conn: sqlite3.Connection, path: Path) -> None:
    mode = conn.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"{path}: this file system does not support SQLite's WAL; put the profile on a local disk")
    conn.execute("PRAGMA synchronous = FULL")
    conn.execute("PRAGMA secure_delete = ON")
    conn.execute("PRAGMA foreign_keys = ON")
    conn.execute("PRAGMA temp_store = MEMORY")


def _quick_check(conn: sqlite3.Connection, path: Path) -> None:
    found = conn.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreError(f"{path}: {PROBLEMS[sqlite3.SQLITE_CORRUPT]} ({found})")
