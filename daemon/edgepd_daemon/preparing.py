"""What a training run needs before its child can be started: what serves now, what to learn, and the job made of both.

What this does not do: choose (see training_jobs.py), or start anything (see trainer.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import psutil

from edgepd.adapt.job import FREE_SHARE, Job, JobKind
from edgepd.settings import Settings
from edgepd_daemon.generations import Generations
from edgepd_daemon.training_jobs import Chosen, Places, choose, find_examples, make_job, with_similar_pairs
from edgepd_profiles import demand
from edgepd_profiles.lineage import taught_to
from edgepd_profiles.registry import Generation
from edgepd_profiles.store import Store

MIB = 1 << 20


class Preparation:
    """Prepares runs; what blocks is done on other threads."""

    def __init__(self, store: Store, generations: Generations, runs_dir: Path) -> None:
        """Checkpoints go below `runs_dir`, general examples next to it."""
        self._store = store
        self._generations = generations
        self._places = Places(runs_dir, runs_dir.with_name("replay"))

    async def newest_feedback(self) -> int:
        """Return the number that no feedback so far exceeds."""

        def read() -> int:
            with self._store.read() as conn:
                return demand.newest(conn)

        return await asyncio.to_thread(read)

    async def choose(self, kind: JobKind, settings: Settings) -> tuple[Generation, Chosen]:
        """Return what serves now and what to learn. Raises TrainingError if that is too little."""
        active = await asyncio.to_thread(self._generations.active)
        taught = taught_to(active, await asyncio.to_thread(self._generations.listing))
        found = await asyncio.to_thread(find_examples, self._store, settings.train, settings.select)
        chosen = await asyncio.to_thread(choose, found, active, taught, kind, settings)
        return active, await asyncio.to_thread(with_similar_pairs, self._store, chosen)

    async def job(
        self,
        active: Generation,
        chosen: Chosen,
        settings: Settings,
        name: str,
        *,
        plan_only: bool = False,
        patient: bool = False,
    ) -> Job:
        """Return the job, within the memory in the settings or a share of what is free now."""
        parts = (self._generations, active, chosen, settings, self._places)
        job = await asyncio.to_thread(make_job, *parts, name, plan_only=plan_only)
        free_mb = int(psutil.virtual_memory().available * FREE_SHARE) // MIB
        return dataclasses.replace(job, memory_mb=settings.train.memory_mb or free_mb, patient=patient)
