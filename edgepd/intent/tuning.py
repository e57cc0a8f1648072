"""One tuning run, from the job to the outcome: split, tune, judge, and write what passed.

The idea: the order of things is here, and what needs torch is handed in, so that the order can be tested without it.
The invariant: a file appears under its name only if it passed, complete, and its SHA-256 is in the outcome.
What this does not do: read the job or send events (worker.py), tune (individual.py), or choose the events.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgepd.adapt.job import Outcome, Planned, Progress
from edgepd.adapt.laps import Laps
from edgepd.errors import ModelError
from edgepd.intent.gate import Ranker, judge, split, too_few
from edgepd.intent.job import TuneJob
from edgepd.intent.schema import Event
from edgepd.settings import Intent

log = logging.getLogger(__name__)

TELL_S = 0.1  # between two pieces of news


class Model(Ranker, Protocol):
    """A student (student.py)."""

    def save(self, path: Path) -> None:
        """Write a file so that a crash leaves all of it or nothing."""


class Tuned(Protocol):
    """What tuning comes to (individual.py): the student, and what was measured on the way."""

    @property
    def student(self) -> Model:
        """The tuned one."""

    @property
    def report(self) -> Mapping[str, Any]:
        """Numbers: the forget set, its recall before and after, and so on."""


@dataclass(frozen=True)
class Means:
    """What a run needs of others. `tell` sends progress, `rss_mb` is the resident memory of this process in MiB."""

    load: Callable[[Path], Any]  # of a student; raises ModelError
    tune: Callable[[Any, Sequence[Event], Intent, int, Callable[[int, int, float], None]], Tuned]
    tell: Callable[[Progress], None]
    rss_mb: Callable[[], float]
    peak_mb: Callable[[], float]


def carry_out(job: TuneJob, means: Means) -> Outcome | Planned:
    """Carry out one job. Raises EdgepdError with the reason if that cannot be done."""
    parts = split(job.events, job.wanted.held_out_share)
    if job.plan_only:
        learn, held_out = (len(parts.learn), len(parts.held_out)) if parts else (len(job.events), 0)
        return Planned({"learned_events": learn, "held_out_events": held_out})
    if parts is None:
        return Outcome(False, too_few(len(job.events)))
    news, clock = _News(means), Laps()
    news.tell(Progress("load"))
    shipped = means.load(Path(job.shipped))
    serving = _serving(job, means)
    clock.lap("load_s")
    tuned = means.tune(shipped, parts.learn, job.wanted, job.wanted.seed, news.on_step)
    clock.lap("train_s")
    news.tell(Progress("gate"))
    verdict = judge(tuned.student, serving, shipped, parts, news.on_event)
    clock.lap("gate_s")
    sha256 = ""
    if verdict.passed:
        news.tell(Progress("write"))
        tuned.student.save(Path(job.output))
        sha256 = hashlib.sha256(Path(job.output).read_bytes()).hexdigest()
        clock.lap("write_s")
    scores = {**tuned.report, **verdict.scores, **clock.laps, "peak_rss_mb": round(means.peak_mb())}
    return Outcome(verdict.passed, verdict.reason, scores, sha256)


def _serving(job: TuneJob, means: Means) -> Model | None:
    """Return the tuned student that serves; None if none does, also because its file is damaged."""
    if job.current is None:
        return None
    try:
        model: Model = means.load(Path(job.current))
    except ModelError as error:
        log.warning("the tuned model of what comes next cannot be read, so the shipped one serves: %s", error)
        return None
    return model


class _News:
    """Tells how far the run has come, not more often than anybody would read."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._told = self._begun = time.monotonic()

    def tell(self, progress: Progress) -> None:
        """A stage begins."""
        self._begun = self._told = time.monotonic()
        self._means.tell(progress)

    def on_step(self, step: int, total: int, loss: float) -> None:
        """Tell of one step of tuning."""
        if self._due(step == total):
            left = (time.monotonic() - self._begun) / max(1, step) * (total - step)
            news = Progress("train", step, total, loss, seconds_left=left, rss_mb=self._means.rss_mb())
            self._means.tell(news)

    def on_event(self, done: int, total: int) -> None:
        """Tell of one prediction of the gate."""
        if self._due(last=False):
            self._means.tell(Progress("gate", done, total))

    def _due(self, last: bool) -> bool:
        now = time.monotonic()
        if not last and now - self._told < TELL_S:
            return False
        self._told = now
        return True
