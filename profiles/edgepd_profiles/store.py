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
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from edgepd.errors import StoreError
from edgepd_profiles import migrations, scrubbing
from edgepd_profiles.connections import (
    CHECKED_AT_ONCE,
    LARGE_WAL,
    beside,
    connect,
    connect_reader,
    create,
    explained_errors,
    has_content,
    quick_check,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_IDLE_READERS = 8
# Transactions after which the WAL, which has about 34 kB of each, is moved into the file: between jobs, so that nobody
# waits for it, and at the latest when there are this many. SQLite itself would do it within a commit.
UNCHECKED = 500
MAX_UNCHECKED = 2000


class Store:
    """The open profile. Safe to use from any thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Take over the writing connection; use `Store.open`."""
        self.path = path
        self.changes = 0  # rows that jobs have changed; the same as before: nothing is new
        self._writer = connection
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._idle_readers: list[sqlite3.Connection] = []
        self._lock = threading.Lock()  # guards _closed, _idle_readers, and that no job follows the last one
        self._closed = False
        # A daemon thread, so that a program that forgets to close can end. What was acknowledged is safe.
        self._thread = threading.Thread(target=self._run_jobs, name="profile-writer", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open the profile, creating it (0600, its directory 0700) or migrating it as needed.

        After an unclean exit the file is checked first, unless it is so large that this takes long. Raises StoreError
        if it cannot be opened, is corrupt, or was written by a newer edgepd.
        """
        path = path.absolute()
        unclean = has_content(beside(path, "-wal"))
        try:
            create(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be created: {error.strerror}; check its directory") from error
        with explained_errors(path):
            connection = connect(path)
            try:
                if unclean and path.stat().st_size <= CHECKED_AT_ONCE:
                    quick_check(connection, path)
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
        return self._queued(partial(self._run_in_transaction, job))

    def scrub(self) -> Future[None]:
        """Queue the removal of all text whose rows are gone: see scrubbing.py. Jobs behind it wait for its end.

        It takes seconds for each gigabyte, and room for a second copy of the file. The future gets a StoreError if
        there is no such room, or if a reader keeps an old snapshot for more than ten seconds; it can be tried again.
        """
        return self._queued(self._scrub)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Yield a read-only connection that sees one snapshot.

        Keep it short: it holds back the checkpoint of the WAL. Raises StoreError if the store is closed
        or the file cannot be read.
        """
        with explained_errors(self.path):
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

    def _queued(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            self._refuse_if_closed()
            self._jobs.put((work, future))
        return future

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path}: the profile is closed because edgepd is stopping; start it again")

    def _run_jobs(self) -> None:
        unchecked, size = 0, LARGE_WAL  # transactions since the last checkpoint, and bytes of the WAL then
        while (item := self._jobs.get()) is not None:
            work, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - the edge of the thread: whoever waits gets it
                future.set_exception(error)
            else:
                future.set_result(result)
            self.changes = self._writer.total_changes
            del item, work, future  # or the last job's text would stay in memory until the next one
            unchecked += 1
            many = unchecked >= (UNCHECKED if self._jobs.empty() else MAX_UNCHECKED)
            if many or self._wal_bytes() > size:
                self._checkpoint()
                unchecked, size = 0, max(LARGE_WAL, self._wal_bytes())

    def _wal_bytes(self) -> int:
        try:
            return beside(self.path, "-wal").stat().st_size
        except OSError:  # there is none just now
            return 0

    def _checkpoint(self) -> None:
        """Move what is in the WAL into the file, as far as no reader needs it there."""
        try:
            self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:  # of a full disk, for example, the next job tells as well; nothing is lost
            log.warning("%s: the WAL could not be moved into the file: %s", self.path, error)

    def _run_in_transaction(self, job: Callable[[sqlite3.Connection], T]) -> T:
        with explained_errors(self.path):
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

    def _scrub(self) -> None:
        with self._lock:
            readers, self._idle_readers = self._idle_readers, []
        for reader in readers:  # their page caches hold old text
            reader.close()
        with explained_errors(self.path):
            scrubbing.scrub(self._writer, self.path)

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
            self._writer = connect(self.path)
            self._writer.execute("BEGIN IMMEDIATE")
        return self._writer

    def _borrow_reader(self) -> sqlite3.Connection:
        with self._lock:
            self._refuse_if_closed()
            if self._idle_readers:
                return self._idle_readers.pop()
        return connect_reader(self.path)

    def _return_reader(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        with self._lock:
            if not self._closed and len(self._idle_readers) < MAX_IDLE_READERS:
                self._idle_readers.append(connection)
                return
        connection.close()
