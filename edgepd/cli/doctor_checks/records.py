"""What the profile tells of the past: the clock, training runs, and whether generations have their files.

The idea: a few reads of the file itself, as edgepd_profiles.integrity does, so that no daemon is needed. The invariant:
nothing is written, and no text of an exchange is read.
What this does not do: check the file (integrity.py does), or judge generations.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepd.cli.doctor_checks.model import HASHED_BYTES
from edgepd.cli.doctor_checks.situation import Situation
from edgepd.cli.output import duration, moment
from edgepd_profiles import rescue
from edgepd_profiles.generation import Generation, from_row
from edgepd_profiles.integrity import Finding
from edgepd_profiles.profile_file import applied_steps, known_steps, reading
from edgepd_profiles.rows import fetch
from edgepd_profiles.runs import failures_in_a_row, runs

AHEAD_S = 120.0  # clocks are set by less than that all the time
FAILURES = 2  # in a row; one may be an accident
WITH_FILES = ("active", "retired", "candidate")

# The newest of everything that the clock was asked for, as far as an index or the last row tells it at once.
NEWEST = """
    SELECT max(at) FROM (
        SELECT max(created_at) AS at FROM interactions UNION ALL SELECT max(at) FROM feedback
        UNION ALL SELECT started_at FROM (SELECT started_at FROM runs ORDER BY id DESC LIMIT 1)
        UNION ALL SELECT at FROM (SELECT at FROM decisions ORDER BY id DESC LIMIT 1)
    )
"""


@contextmanager
def current(path: Path) -> Iterator[sqlite3.Connection | None]:
    """Yield a connection to the profile, None if there is none whose tables are those of this edgepd.

    Raises StoreError for a file that cannot be read.
    """
    if not path.exists():
        yield None
        return
    with reading(path) as conn:
        yield conn if applied_steps(conn) == known_steps() else None


def clock(situation: Situation) -> list[Finding]:
    """Check that nothing in the profile is from the future: then the clock was set back."""
    now = time.time()
    with current(situation.paths.profile) as conn:
        newest = conn.execute(NEWEST).fetchone()[0] if conn else None
    if newest is not None and newest > now + AHEAD_S:
        problem = (
            f"the clock was set back: it is {moment(now)}, and the newest row of the profile is of {moment(newest)}; "
            "days and waiting times of training may be wrong until then"
        )
        return [Finding("clock", problem, "timedatectl set-ntp true")]
    return [Finding("clock", detail=moment(now))]


def training_runs(situation: Situation) -> list[Finding]:
    """Check that the last training runs did not fail one after the other."""
    with current(situation.paths.profile) as conn:
        if conn is None:
            return []
        failed, last = failures_in_a_row(conn), runs(conn, 1)
    if not last:
        return [Finding("training runs", detail="none yet")]
    run = last[0]
    told = f"the last one ({run.id}, {run.kind}) {run.state}" + (f": {run.reason}" if run.reason else "")
    if failed >= FAILURES:
        return [
            Finding(
                "training runs", f"{failed} failed in a row; {told}", "edgepd train --plan, which says what it lacks"
            )
        ]
    took = f", in {duration(run.ended_at - run.started_at)}" if run.ended_at and run.ended_at > run.started_at else ""
    return [Finding("training runs", detail=told + took)]


def generations(situation: Situation) -> list[Finding]:
    """Check that the files of generations are there, and that of the active one is as it was made."""
    with current(situation.paths.profile) as conn:
        if conn is None:
            return []
        found = [from_row(row) for row in fetch(conn, "SELECT * FROM generations ORDER BY id")]
    folder = situation.paths.generations_dir
    kept = [each for each in found if each.state in WITH_FILES]
    lost = [(each, gone) for each in kept if (gone := _gone(each, folder))]
    findings = [
        Finding("generations", f"generation {each.id} ({each.state}) lacks its file {gone}", _without(each))
        for each, gone in lost
    ]
    findings += [
        Finding("generations", f"generation {each.id}, which serves, has another file than was made", _without(each))
        for each in kept
        if each.state == "active" and not _gone(each, folder) and not _as_made(each, folder, deep=situation.deep)
    ]
    return findings or [Finding("generations", detail=f"{len(found)}, of which {len(kept)} have files")]


def rescued(situation: Situation) -> list[Finding]:
    """Say that the profile was damaged and brought back, as long as the user should know."""
    told = rescue.to_be_told(situation.paths.profile, time.time())
    return [Finding("rescue", detail=told)] if told else []


def _gone(generation: Generation, folder: Path) -> Path | None:
    """Return the first file of a generation that is not there."""
    names = [name for name in (generation.model_file, generation.adapter_file) if name]
    return next((folder / name for name in names if not (folder / name).is_file()), None)


def _as_made(generation: Generation, folder: Path, *, deep: bool) -> bool:
    """Compare the file that a generation added with its SHA-256; one that is large counts as good unless `deep`."""
    name = generation.adapter_file if generation.kind == "live" else generation.model_file
    if name is None or generation.file_sha256 is None or ((folder / name).stat().st_size > HASHED_BYTES and not deep):
        return True
    with (folder / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == generation.file_sha256


def _without(generation: Generation) -> str:
    if generation.state == "active":
        return "edgepd adapters rollback"
    return f"edgepd adapters delete {generation.id}"
