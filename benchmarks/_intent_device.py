"""What the predictor costs on a device: a ranking as the daemon makes it, and tuning in the child that it starts.

The invariant: the longest history of a draw is measured, in a process of its own for tuning, so that its memory is not
that of whoever trained a teacher before.
What this does not do: judge quality.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from _intent_data import Protocol
from _intent_models import inference_ms

from edgepd.adapt.job import Outcome, read_event
from edgepd.intent.job import TuneJob
from edgepd.intent.schema import Event
from edgepd.intent.student import Student
from edgepd.settings import Intent

WORKER = (sys.executable, "-m", "edgepd.intent.worker")


def longest(drawn: Protocol) -> list[Event]:
    """Return the events of the individual user with the most of them."""
    split = max(drawn.individual.values(), key=lambda each: len(each.train))
    return [*split.train, *split.validation, *split.test]


def ranking_ms(student: Student, events: Sequence[Event]) -> float:
    """Return the median time of a ranking an hour after these events, in milliseconds; names, network and scorer."""
    then = events[-1].at + 3600.0
    return inference_ms(lambda: student.ranked(events, then, 0))


def tuned_in_a_child(student: Student, events: Sequence[Event], worker: Sequence[str] = WORKER) -> tuple[float, float]:
    """Tune in the child that the daemon starts, from its start to its end; return seconds and peak memory in MiB.

    Raises RuntimeError with what it said if it comes to no outcome.
    """
    with TemporaryDirectory() as directory:
        shipped = Path(directory, "student.npz")
        student.save(shipped)
        job = TuneJob(str(shipped), None, str(Path(directory, "tuned.npz")), list(events), asdict(Intent()), threads=1)
        began = time.monotonic()
        child = subprocess.run(
            worker,
            input=job.to_json(),
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
    said = [read_event(line) for line in child.stdout.splitlines()]
    for event in said:
        if isinstance(event, Outcome):
            return seconds, float(event.scores["peak_rss_mb"])
    raise RuntimeError(f"the child that tunes ended with {child.returncode}: {child.stderr[-500:]}")
