"""What a run that tunes the model of what comes next learns from, and the job that its child gets.

The idea: the newest events of all apps that may teach, in order of time, and the student that ships with edgepd to
begin with. The invariant: the same profile and settings give the same job.
What this does not do: start the child, hold events out (edgepd.intent.gate does), or decide when to tune.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from edgepd.errors import TrainingError
from edgepd.intent.job import TuneJob
from edgepd.intent.schema import Event
from edgepd.intent.shipping import shipped_student
from edgepd.settings import Intent, Settings
from edgepd_daemon.cores import physical_cores
from edgepd_profiles import events
from edgepd_profiles.store import Store


def find_events(store: Store, intent: Intent) -> tuple[list[Event], int]:
    """Return the events to learn from, oldest first, and a number that no event so far exceeds. Blocks shortly.

    Raises TrainingError if prediction is switched off, or if they are too few.
    """
    if not intent.enabled:
        raise TrainingError("prediction is switched off (intent.enabled)")
    with store.read() as conn:
        seq = events.newest_seq(conn)
        found = events.history(conn, limit=intent.max_events, teaching=True)
    if len(found) < (needed := min(intent.min_events, intent.max_events)):
        raise TrainingError(
            f"there are {len(found)} events, but tuning needs at least {needed}; chats are events, apps "
            "send more of them, and `edgepd events import` reads those of a file"
        )
    return [Event(e.at, e.event, e.intent, e.context, e.utc_offset_s) for e in found], seq


def make_tune_job(
    found: Sequence[Event], serving: Path | None, directory: Path, name: str, settings: Settings
) -> TuneJob:
    """Return the job that tunes on what was found; `name` is that of the output file, without its ending."""
    shipped = shipped_student()
    return TuneJob(
        shipped=str(shipped),
        current=None if serving is None else str(serving),
        output=str(directory / f"{name}{shipped.suffix}"),
        events=list(found),
        settings=asdict(settings.intent),
        threads=settings.train.threads or physical_cores(),
    )
