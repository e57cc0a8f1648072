"""The tuned models of what comes next: their files, and what becomes of a run that tuned one.

The idea: the profile says which student predicts (edgepd_profiles.students), the files follow. A file is written before
its row and removed after it, so what a crash leaves in between has no row, and goes at the next start. The invariants:
that a run was judged, that its student predicts, which events it has seen, and that what forgetting had made necessary
is done are one transaction; whoever holds a student in memory is told of every change that takes it out of service.
What this does not do: tune (edgepd.intent.worker), load a student or predict (foresight.py).
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgepd.adapt.job import Outcome
from edgepd.intent.job import TuneJob
from edgepd_profiles import demand, forgetting, runs, students
from edgepd_profiles.runs import Run
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

KEEP_ALL = 2**31  # retired students, as good as without a bound


class TunedStudents:
    """The directory with the files of tuned students, and their rows. Methods block."""

    def __init__(self, store: Store, directory: Path) -> None:
        """Touch nothing yet."""
        self.directory = directory
        # Called, by any thread, when another student predicts or one was taken out of service.
        self.changed: Callable[[], object] = _nobody_is_told
        self._store = store

    def open(self) -> None:
        """Make the directory; remove what an interrupted daemon or child has left."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self.remove_unclaimed()
        except OSError as error:  # the next start tries again
            log.warning("%s cannot be removed: %s", error.filename, error.strerror)

    def serving(self) -> Path | None:
        """Return the file of the tuned student that predicts; None if the shipped one does, or the file is gone."""
        with self._store.read() as conn:
            active = students.active(conn)
        path = self.directory / active.file if active is not None else None
        return path if path is not None and path.is_file() else None

    def remove_unclaimed(self, keep: int = KEEP_ALL) -> int:
        """Remove all files but those that may still be needed, with the `keep` newest retired ones; return how many.

        Not while a run tunes. Raises OSError.
        """
        if not self.directory.is_dir():
            return 0
        with self._store.read() as conn:
            claimed = students.file_names(conn, keep)
        gone = [file for file in self.directory.iterdir() if file.name not in claimed]
        for file in gone:
            file.unlink(missing_ok=True)
        return len(gone)

    def conclude(self, run: Run, job: TuneJob, outcome: Outcome, seq: int, keep: int) -> str:
        """Record what the gate has said of a run that knew the events up to `seq`; return the state of the run.

        What passed predicts from then on; of those that did before, the files of the `keep` newest stay.
        """
        file, state = Path(job.output), "promoted" if outcome.promoted else "rejected"
        numbers = numbers_of(outcome.scores)
        if not outcome.promoted:
            file.unlink(missing_ok=True)

        def write(conn: sqlite3.Connection) -> None:
            made = students.add(
                conn,
                file=file.name,
                sha256=outcome.file_sha256,
                seq=seq,
                run=run.id,
                state="candidate" if outcome.promoted else "rejected",
                scores=numbers,
                reason=outcome.reason,
            )
            if outcome.promoted:
                students.activate(conn, made.id)
            runs.finish_run(conn, run.id, state, reason=outcome.reason, numbers=numbers)
            demand.judged(conn, job.kind, seq)
            forgetting.settled(conn, job.kind)

        self._store.write(write).result()
        if outcome.promoted:
            self.changed()
            try:
                self.remove_unclaimed(keep)
            except OSError as error:  # it must not look as if the run had failed
                log.warning("%s cannot be removed: %s", error.filename, error.strerror)
        return state


def numbers_of(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers among what was measured, those of a part as `part_name`.

    Texts stay behind: they may be names of events, and the numbers outlast forgetting.
    """
    found: dict[str, Any] = {}
    for name, value in scores.items():
        if isinstance(value, Mapping):
            found |= {f"{name}_{inner}": number for inner, number in numbers_of(value).items()}
        elif isinstance(value, int | float) and math.isfinite(value):
            found[name] = value
    return found


def _nobody_is_told() -> None:
    """Nobody holds a student."""
