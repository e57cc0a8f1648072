"""A damaged profile is put aside and the newest good backup takes its place, so that the daemon gets up again.

The idea: `open_profile` opens the profile as `Store.open` does; if SQLite finds it damaged, a replacement is made
beside it (the newest backup that passes the check, else an empty profile), what can be read of the newer exchanges is
carried over, and the files change places. The note of it is on the disk before the first rename, and says what the next
start has to finish if this one is killed in between.
The invariants: a damaged file is never deleted and never written to, it only gets another name (0600, its WAL with it);
at every moment the disk has the damaged file, and from the first rename on the whole replacement too; a file that
SQLite can read but that is not ours, or of a newer edgepd, is refused and not touched.
What this does not do: decide when a running daemon restarts because of damage (see edgepd_daemon.recovery), or make
backups. Generations that were trained after the backup are not known to it: their files go at the next start, because
without their rows nobody could say what they have learned, and forgetting would not reach them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgepd.atomic import replacing, sync_directory
from edgepd.errors import StoreError
from edgepd_profiles import backup, migrations
from edgepd_profiles.backup import Backup, directory_of
from edgepd_profiles.connections import CHECKED_AT_ONCE, beside, connect, has_content
from edgepd_profiles.damage import GuardedStore, damage, damage_in, examined, noted, quick_check
from edgepd_profiles.profile_file import applied_steps, check, explained, reading
from edgepd_profiles.salvage import carry_over
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

TOLD_DAYS = 7.0  # how long the user is told of a rescue
DAY_S = 86_400.0
STAMP = "%Y%m%d-%H%M%S"  # UTC


@dataclass(frozen=True)
class Rescue:
    """What was done about a damaged profile. Times are unix seconds.

    `damaged` is where the file is kept; `backup_at` is when the backup that took its place was made, None if there was
    none that is good; `salvaged` counts the newer exchanges that were carried over, `unreadable` those that were not.
    """

    at: float
    problem: str
    damaged: str
    backup_at: float | None
    salvaged: int
    unreadable: int
    finished: bool = False

    def told(self) -> str:
        """Return what happened, what is missing, and what to do, for the user."""
        if self.backup_at is None:
            instead = "there was no good backup, so an empty profile took its place"
        else:
            instead = f"the backup of {_moment(self.backup_at)} took its place"
        saved = f"{self.salvaged} exchanges that are newer were carried over from the damaged file"
        lost = f", and at least {self.unreadable} could not be read" if self.unreadable else ""
        return (
            f"on {_moment(self.at)} the profile was found damaged ({self.problem}); {instead}; {saved}{lost}. Feedback "
            f"on older exchanges and generations from after that are gone. The damaged file is kept as {self.damaged}; "
            "delete it when you do not need it any more, and this message goes too"
        )


@dataclass(frozen=True)
class Opened:
    """The open profile. `unchecked` says that it was not closed cleanly and is too large to be checked at the start."""

    store: GuardedStore
    unchecked: bool


def open_profile(path: Path, *, now: float | None = None) -> Opened:
    """Open the profile; if it is damaged, put it aside and open what takes its place. Hold the daemon's lock.

    Raises StoreError, with nothing changed, if it cannot be opened for another reason, is another program's database,
    is of a newer edgepd, or there is no room for a replacement.
    """
    path = path.absolute()
    _finish(path)
    _refuse_foreign(path)
    if not path.exists() and backup.listing(directory_of(path)):
        log.warning("%s is gone, so an empty profile is made; `edgepd backups` lists what can be restored", path)
    suspect = noted(path)
    unclean = has_content(beside(path, "-wal"))
    found = _lost_content(path) or (examined(path, suspect) if suspect is not None else None)
    if found is None and unclean and has_content(path) and _bytes(path) <= CHECKED_AT_ONCE:
        found = damage(path)  # before it is opened for writing, because SQLite then moves the WAL into a damaged file
    store = None if found else _opened(path)
    if store is not None and not unclean:
        unclean = _ended_badly(store)  # killed, and the WAL is gone, which may have taken half of a change with it
        found = _quick_check_of(store) if unclean and _bytes(path) <= CHECKED_AT_ONCE else None
    if store is None or found is not None:
        if store is not None:
            store.close()
        _replace(path, found or damage(path) or "it cannot be read", time.time() if now is None else now)
        store = _opened(path)
        if store is None:
            raise StoreError(f"{path}: what took the place of the damaged profile is damaged too; check the disk")
        unclean = False
    return Opened(store, unchecked=unclean and _bytes(path) > CHECKED_AT_ONCE)


def last(path: Path) -> Rescue | None:
    """Return the last rescue of the profile, None if there was none."""
    try:
        return Rescue(**json.loads(_note_path(path).read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be read: %s", _note_path(path), error)
        return None


def to_be_told(path: Path, now: float) -> str | None:
    """Return what the user is to be told of the last rescue: for TOLD_DAYS, or until the damaged file is deleted."""
    rescue = last(path.absolute())
    if rescue is None or abs(now - rescue.at) > TOLD_DAYS * DAY_S or not Path(rescue.damaged).exists():
        return None
    return rescue.told()


def damaged_files(path: Path) -> list[Path]:
    """Return the damaged profiles that are kept beside the profile at `path`, with their WALs."""
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


def backup_due(backups: list[Backup], days: float, now: float) -> bool:
    """Say whether it is time for a backup. One from the future, before the clock was set back, does not count."""
    newest = max((each.at for each in backups if each.at <= now), default=0.0)
    return days > 0 and now - newest >= days * DAY_S


def _opened(path: Path) -> GuardedStore | None:
    """Open the store; return None if it is damaged. Raises StoreError if it cannot be opened for another reason."""
    try:
        store = GuardedStore.open(path)
    except StoreError as error:
        if damage_in(error) is None and (not path.exists() or damage(path) is None):
            raise
        return None
    if not isinstance(store, GuardedStore):
        raise TypeError("Store.open makes an instance of the class that it is called on")
    return store


def _quick_check_of(store: Store) -> str | None:
    try:
        with store.read() as conn:
            return quick_check(conn)
    except StoreError as error:
        return damage_in(error)


def _ended_badly(store: Store) -> bool:
    """Say whether the daemon that had the profile open before was killed."""
    with store.read() as conn:
        return conn.execute("SELECT 1 FROM boots WHERE state = 'running' LIMIT 1").fetchone() is not None


def _refuse_foreign(path: Path) -> None:
    """Raise StoreError for another program's database: migrating it would write our tables into it."""
    if not has_content(path) or beside(path, "-wal").exists():
        return
    try:
        with reading(path) as conn:
            foreign = not applied_steps(conn) and conn.execute("SELECT 1 FROM sqlite_schema").fetchone() is not None
    except StoreError:
        return  # damaged, or not to be opened: opening it for good tells
    if foreign:
        raise StoreError(
            f"{path}: this SQLite file is not a profile of edgepd; move it away, then start edgepd again; "
            "`edgepd backups` lists what `edgepd restore` can bring back"
        )


def _lost_content(path: Path) -> str | None:
    """Return why an empty or missing file is a loss, None if it is a new profile, or what somebody deleted on purpose.

    SQLite would take an empty file for a new database, and throw away the WAL beside it.
    """
    if has_content(path):
        return None
    if has_content(beside(path, "-wal")):
        return "the file is empty or gone, but its WAL is there"
    return "the file is empty" if path.exists() and backup.listing(directory_of(path)) else None


def _replace(path: Path, problem: str, now: float) -> None:
    """Make a replacement, note what is going to happen, and let the files change places."""
    log.error("%s is damaged: %s", path, problem)
    replacement = _replacement(path)
    with explained(path):
        replacement.unlink(missing_ok=True)
        source = _good_backup(path, now)
        salvaged, unreadable = _prepare(path, replacement, source)
    name = f"{path.name}.damaged-{time.strftime(STAMP, time.gmtime(now))}"
    damaged = path.with_name(name)
    count = 1
    while damaged.exists() or beside(damaged, "-wal").exists():
        damaged, count = path.with_name(f"{name}-{count}"), count + 1
    rescue = Rescue(now, problem, str(damaged), source.at if source else None, salvaged, unreadable)
    _write(_note_path(path), asdict(rescue))
    _finish(path)
    log.error("%s", rescue.told())


def _finish(path: Path) -> None:
    """Carry out what the note says, wherever a killed process has left it. Without a note there is nothing to do."""
    rescue, replacement = last(path), _replacement(path)
    if rescue is None or rescue.finished:
        with contextlib.suppress(FileNotFoundError):
            replacement.unlink()  # a killed process had not come to its note yet
        return
    with explained(path):
        if replacement.exists():
            for suffix in ("-wal", "-shm", ""):  # the file last: as long as it has its name, this is not done
                source, target = beside(path, suffix), beside(Path(rescue.damaged), suffix)
                if source.exists():
                    source.chmod(0o600)
                    source.replace(target)
            replacement.replace(path)
            sync_directory(path.parent)
    try:
        _write(_note_path(path), asdict(replace(rescue, finished=True)))
    except StoreError as error:  # the profile is in its place; the next start notes it
        log.warning("%s", error)


def _good_backup(path: Path, now: float) -> Backup | None:
    """Return the newest backup that passes the check. Those from the future come last: the clock was wrong then."""
    for each in sorted(backup.listing(directory_of(path)), key=lambda each: (each.at > now, -each.at)):
        try:
            check(each.path)
        except StoreError as error:
            log.warning("%s cannot take the place of the profile: %s", each.path, error)
        else:
            return each
    return None


def _prepare(path: Path, replacement: Path, source: Backup | None) -> tuple[int, int]:
    """Write the replacement; return how many exchanges were carried over, and how many could not be read."""
    needed = (source.bytes if source else 0) + backup.RESERVE_BYTES
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise StoreError(
            f"{path} is damaged, and {path.parent} has {free // 2**20} MiB free, but a replacement needs "
            f"{needed // 2**20 + 1} MiB; make room, then start edgepd again"
        )
    os.close(os.open(replacement, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    if source is not None:
        shutil.copyfile(source.path, replacement)
    with closing(connect(replacement)) as conn:
        migrations.migrate(conn)
        # The backup was made by a running daemon, whose end it could not know: that was no crash.
        conn.execute("UPDATE boots SET state = 'ended' WHERE state = 'running'")
        counts = carry_over(path, conn) if has_content(path) else (0, 0)
        conn.execute("PRAGMA journal_mode = DELETE")  # a single file, which is renamed as a whole
    check(replacement)
    descriptor = os.open(replacement, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return counts


def _write(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(value).encode())


def _note_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.rescue")


def _replacement(path: Path) -> Path:
    return path.with_name(f"{path.name}.rescue.tmp")


def _bytes(path: Path) -> int:
    return path.stat().st_size + (beside(path, "-wal").stat().st_size if beside(path, "-wal").exists() else 0)


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
