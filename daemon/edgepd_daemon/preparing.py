"""What a training run needs before its child can be started: what serves now, what to learn, and the job made of both.

The idea: a run gets its number after it is known what it learns, and its job after that, because the number is in the
name of its file; `Ready` is what is known in between, alike for every kind of run.
What this does not do: choose (see training_jobs.py and tuning_jobs.py), or start anything (see trainer.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from edgepd.adapt.job import FREE_SHARE, Job, JobKind
from edgepd.intent.job import TuneJob
from edgepd.settings import Settings
from edgepd_daemon.generations import Generations
from edgepd_daemon.training_jobs import Places, choose, find_examples, make_job, with_similar_pairs
from edgepd_daemon.tuned_students import TunedStudents
from edgepd_daemon.tuning_jobs import find_events, make_tune_job
from edgepd_profiles import demand
from edgepd_profiles.lineage import taught_to
from edgepd_profiles.store import Store

MIB = 1 << 20


@dataclass(frozen=True)
class Ready:
    """What a run is to learn. `seq`: of feedback, or events, that come in from now on all numbers are larger."""

    seq: int
    size: int  # examples, or events
    parent: int | None  # generation that it goes on from, or is compared with
    make: Callable[[str], Job | TuneJob]  # of the name of the output file, without its ending; blocks shortly


class Preparation:
    """Prepares runs; what blocks is done on other threads."""

    def __init__(self, store: Store, generations: Generations, students: TunedStudents, runs_dir: Path) -> None:
        """Checkpoints go below `runs_dir`, general examples next to it."""
        self._store = store
        self._generations = generations
        self._students = students
        self._places = Places(runs_dir, runs_dir.with_name("replay"))

    async def ready(self, kind: JobKind, settings: Settings) -> Ready:
        """Return what a run of this kind would learn now. Raises TrainingError if that is too little."""
        prepare = self._to_tune if kind == "intent" else self._to_train
        return await asyncio.to_thread(prepare, kind, settings)

    async def job(
        self, ready: Ready, settings: Settings, name: str, *, plan_only: bool = False, patient: bool = False
    ) -> Job | TuneJob:
        """Return the job, within the memory in the settings or a share of what is free now."""
        job = await asyncio.to_thread(ready.make, name)
        free_mb = int(psutil.virtual_memory().available * FREE_SHARE) // MIB
        memory_mb = settings.train.memory_mb or free_mb
        return dataclasses.replace(job, memory_mb=memory_mb, plan_only=plan_only, patient=patient)

    def _to_train(self, kind: JobKind, settings: Settings) -> Ready:
        # Before the examples are chosen: feedback that comes in meanwhile is new to this run.
        with self._store.read() as conn:
            seq = demand.newest(conn)
        active = self._generations.active()
        taught = taught_to(active, self._generations.listing())
        found = find_examples(self._store, settings.train, settings.select)
        chosen = with_similar_pairs(self._store, choose(found, active, taught, kind, settings))

        def make(name: str) -> Job:
            return make_job(self._generations, active, chosen, settings, self._places, name)

        return Ready(seq, len(chosen.train), active.id, make)

    def _to_tune(self, kind: JobKind, settings: Settings) -> Ready:
        del kind
        found, seq = find_events(self._store, settings.intent)

        def make(name: str) -> TuneJob:
            serving = self._students.serving()
            return make_tune_job(found, serving, self._students.directory, name, settings)

        return Ready(seq, len(found), None, make)
