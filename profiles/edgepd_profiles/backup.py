"""Backups of the profile: whole copies of its SQLite file, made while it is in use, and how one is brought back.

The idea: SQLite's online backup reads one snapshot in small steps with a pause after each, so that answers are served
meanwhile; writes that come in between wait in the WAL, which is why a backup should not be stretched over minutes.
The invariant: a name that `listing` returns is a complete copy that passed SQLite's check, in a file of mode 0600
without a WAL of its own; whatever fails leaves the profile and the older backups as they were.
What this does not do: decide when a backup is due, or stop the daemon. Whoever forgets something calls `remove_all`
after the commit, which also ends a backup that is being made from before it.

Copying the file byte by byte instead would lose what is in the WAL and could mix two states.
"""

from __future__ import annotations

import calendar
import fcntl
import itertools
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgepd.atomic import sync_directory
from edgepd.errors import ConflictError, NotFoundError, RequestError, StoreError
from edgepd_profiles.connections import beside
from edgepd_profiles.profile_file import check, explained, reading
from edgepd_profiles.store import Store

STEPS_A_SYNC = 8  # steps after which what was copied is brought to the disk
STEP_PAGES = 256  # 1 MiB, which takes a few milliseconds
PAUSE_S = 0.005
PATIENCE_S = 60.0  # how long a backup waits for another one to end
POLL_S = 0.02
RESERVE_BYTES = 64 * 2**20  # what must stay free beside the copy, so that the profile can still be written
STAMP = "%Y%m%d-%H%M%S"  # UTC, so that names sort by time
BACKUP, ASIDE = "profile-", "replaced-"
TEMPORARY, RESTORED = ".backup.tmp", ".restored.tmp"
LOCK = ".lock"
DAMAGED = "*.db.damaged-*"


@dataclass(frozen=True)
class Backup:
    """One backup. `at` is when it was made, in seconds since 1970."""

    path: Path
    at: float
    bytes: int


def directory_of(profile: Path) -> Path:
    """Return where the backups of a profile are kept."""
    return profile.parent / "backups"


def _pause() -> None:
    time.sleep(PAUSE_S)


def make(store: Store, directory: Path, keep: int, now: float, *, pause: Callable[[], object] = _pause) -> Path:
    """Make a backup, delete all but the newest `keep`, and return its path.

    `pause` is called after each step; it may raise to give up. Raises ConflictError if another backup is being made or
    `remove_all` came in between, StoreError if there is too little room or the profile turns out to be damaged.
    """
    temporary, target = directory / TEMPORARY, directory / f"{BACKUP}{_stamp(now)}.db"
    with explained(directory):
        _create_directory(directory)
        with _alone(directory):
            try:
                # Before the snapshot is taken: then `remove_all` finds the file, or the snapshot is later than it.
                _create_empty(temporary)
                _fill(store, temporary, target, pause)
            finally:
                _remove(temporary)
            others = [other for other in listing(directory) if other.path != target]
            for old in others[max(0, keep - 1) :]:
                old.path.unlink(missing_ok=True)
    return target


def _fill(store: Store, temporary: Path, target: Path, pause: Callable[[], object]) -> None:
    """Copy the profile into the temporary file, check it and give it its name."""

    steps = itertools.count(1)

    def step() -> None:
        if not temporary.exists():
            raise FileNotFoundError(temporary)  # so that whoever removed it need not wait for the rest
        if next(steps) % STEPS_A_SYNC == 0:
            _sync(temporary)  # little by little: the whole at once would hold up every commit of the profile meanwhile
        pause()

    try:
        with store.read() as conn:
            _copy(conn, temporary, step)
        try:
            check(temporary)
        except StoreError as error:
            raise StoreError(f"a copy of the profile is damaged, so it is no backup: {error}") from error
        _sync(temporary)
        temporary.replace(target)
    except (StoreError, OSError) as error:
        if temporary.exists():
            raise
        raise ConflictError(
            "something was forgotten while the backup was made, so it was given up and removed; make it again"
        ) from error
    sync_directory(target.parent)


def listing(directory: Path) -> list[Backup]:
    """Return the backups in a directory, newest first. Files with other names are not looked at."""
    found = []
    for path in sorted(directory.glob(f"{BACKUP}*.db"), reverse=True):
        try:
            at = calendar.timegm(time.strptime(path.stem.removeprefix(BACKUP), STAMP))
            found.append(Backup(path, float(at), path.stat().st_size))
        except (ValueError, FileNotFoundError):
            continue  # somebody else's name, or deleted since
    return found


def remove_all(directory: Path) -> list[Path]:
    """Delete every backup, every profile that was kept aside, and one that is being made. Returns what is gone.

    Damaged profiles that were put aside beside the profile (rescue.py) have the same text in them, and go too.
    """
    # In this order: a backup that is finished in between fails for want of its temporary file, or is found after it.
    _remove(directory / TEMPORARY)
    _remove(directory / RESTORED)  # what a restore that was killed has left
    gone = []
    for path in sorted(
        [*directory.glob(f"{BACKUP}*.db*"), *directory.glob(f"{ASIDE}*.db*"), *directory.parent.glob(DAMAGED)]
    ):
        path.unlink(missing_ok=True)
        gone.append(path)
    if gone:
        sync_directory(directory)
    return gone


def restore(backup: Path, profile: Path, *, now: float | None = None) -> Path | None:
    """Put a backup in the place of the profile. Returns where the present one is kept aside, None if there was none.

    Nobody may have the profile open: hold the daemon's lock. At every moment there is a whole profile under its name.
    Raises NotFoundError, RequestError if `backup` is the profile itself, and StoreError, with nothing changed, if it is
    damaged or of a newer edgepd, or there is no room.
    """
    backup, profile = backup.absolute(), profile.absolute()
    if not backup.is_file():
        raise NotFoundError(f"{backup} is not a file; `edgepd backups` lists the backups")
    if profile.exists() and backup.samefile(profile):
        raise RequestError(f"{backup} is the profile itself; name one of its backups")
    check(backup)
    temporary = directory_of(profile) / RESTORED
    with explained(profile):
        _create_directory(temporary.parent)
        try:
            _create_empty(temporary)
            with reading(backup) as conn:
                _copy(conn, temporary, pause=lambda: None)
            check(temporary)
            _sync(temporary)
            aside = _set_aside(profile, time.time() if now is None else now)
            temporary.replace(profile)
            sync_directory(profile.parent)
        finally:
            _remove(temporary)
    return aside


def _set_aside(profile: Path, now: float) -> Path | None:
    """Give the present file a second name among the backups, and its WAL, which nothing else may read from now on."""
    sidecars = [beside(profile, suffix) for suffix in ("-wal", "-shm")]
    aside = None
    if profile.exists():
        directory = directory_of(profile)
        aside = directory / f"{ASIDE}{_stamp(now)}.db"
        if aside.exists():
            raise ConflictError(f"{aside} exists; a profile was restored this very second, so wait for the next")
        # Links, so that the profile keeps its name until the new one takes it over. The -shm is made from the WAL.
        os.link(profile, aside)
        if sidecars[0].exists():
            os.link(sidecars[0], beside(aside, "-wal"))
        sync_directory(directory)
    for sidecar in sidecars:  # or SQLite would read the old WAL into the new file
        sidecar.unlink(missing_ok=True)
    sync_directory(profile.parent)
    return aside


def _copy(source: sqlite3.Connection, target: Path, pause: Callable[[], object]) -> None:
    """Copy the snapshot that `source` sees into an empty file. A transaction fixes it; else it is the whole file."""
    size = source.execute("PRAGMA page_count").fetchone()[0] * source.execute("PRAGMA page_size").fetchone()[0]
    source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    free = shutil.disk_usage(target.parent).free
    if free < size + RESERVE_BYTES:
        raise StoreError(
            f"{target.parent} has {free // 2**20} MiB free, but a copy of the profile needs "
            f"{(size + RESERVE_BYTES) // 2**20 + 1} MiB; make room first"
        )
    with explained(target), closing(sqlite3.connect(target, isolation_level=None)) as copy:
        # Nothing is lost if it fails half-way, and it is synced once when it is whole.
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        source.backup(copy, pages=STEP_PAGES, progress=lambda *_: pause())
        # The copy came as a file with a WAL; as one without, it is a single file for any tool.
        copy.execute("PRAGMA journal_mode = DELETE")


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep two backups from writing the same temporary file."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _locked(descriptor):
            if time.monotonic() >= deadline:
                raise ConflictError("another backup is being made; wait for it")
            time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _create_directory(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.mkdir(exist_ok=True, mode=0o700)
    sync_directory(directory.parent)


def _create_empty(path: Path) -> None:
    """Make the file private before SQLite opens it, in the place of one that a killed process has left."""
    _remove(path)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _remove(temporary: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        beside(temporary, suffix).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stamp(now: float) -> str:
    return time.strftime(STAMP, time.gmtime(now))
