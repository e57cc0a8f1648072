"""What comes of a training run: a row in the registry, a switch, and the end of the run in the profile.

The idea: what a child says is taken in here, and the last of it becomes one of the states of a run here and nowhere
else. The invariants: a run is finished once; that it was judged, what it was judged on, and that what forgetting had
made necessary is done are one transaction.
What this does not do: start or end a child (see trainer.py), or keep tuned students (see tuned_students.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepd.adapt.job import Job, Outcome, Parked, Progress, Refused, Reviewed
from edgepd.errors import EdgepdError, TrainingError
from edgepd.intent.job import TuneJob
from edgepd_daemon.generations import Generations
from edgepd_daemon.going_on import GoingOn
from edgepd_daemon.training_child import events, how_it_ended, killed_for_memory
from edgepd_daemon.training_progress import continued, note_loss
from edgepd_daemon.tuned_students import TunedStudents
from edgepd_profiles import demand, forgetting, registry, runs
from edgepd_profiles.registry import Generation
from edgepd_profiles.rows import canonical_json, finite
from edgepd_profiles.runs import Run
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)


class Results:
    """Carries results into the registry. Lives on the event loop."""

    def __init__(self, store: Store, generations: Generations, students: TunedStudents) -> None:
        """Nothing is read or written yet."""
        self._store = store
        self._generations = generations
        self._students = students

    async def listen(self, running: GoingOn) -> None:
        """Send the job to the child that is there now, and take in what it says until it has ended."""
        async for event in events(running.process, running.job):
            if isinstance(event, Progress):
                running.progress = continued(running.progress, event)
                note_loss(running.curve, event)
            elif isinstance(event, Reviewed):
                await self.reviewed(running.promoted, event)
            elif isinstance(event, Outcome | Refused) and not running.concluded:
                running.concluded = True  # whatever comes of it: a run is finished once
                if isinstance(event, Outcome):
                    running.promoted = await self.conclude(running.run, running.job, event, running.seq)
                else:
                    Path(running.job.output).unlink(missing_ok=True)
                    await self.finish(running.run, "failed", event.reason)
            elif isinstance(event, Parked):
                log.info("training run %d has saved its state after step %d", running.run.id, event.step)

    async def conclude(self, run: Run, job: Job | TuneJob, outcome: Outcome, seq: int) -> Generation | None:
        """Record what the gate has said of a run that knew feedback, or events, up to `seq`.

        Return the generation that became active, if one did: what comes of tuning is none.
        """
        if isinstance(job, TuneJob):
            keep = self._generations.keep_retired
            state = await asyncio.to_thread(self._students.conclude, run, job, outcome, seq, keep)
            log.info("training run %d: %s: %s", run.id, state, outcome.reason)
            return None
        return await self._conclude_adapter(run, job, outcome, seq)

    async def _conclude_adapter(self, run: Run, job: Job, outcome: Outcome, seq: int) -> Generation | None:
        generation = await asyncio.to_thread(self._register, run, job, outcome)
        numbers = dict(outcome.scores)
        if outcome.promoted:
            await asyncio.to_thread(self._generations.note_probed, generation)  # the gate has opened it
            switched = await asyncio.to_thread(self._generations.activate, generation.id, job.parent)
            numbers["prepare_ms"] = switched.prepare_ms
        else:
            Path(job.output).unlink(missing_ok=True)
        state = "promoted" if outcome.promoted else "rejected"

        def judge(conn: sqlite3.Connection) -> None:
            runs.finish_run(conn, run.id, state, generation=generation.id, reason=outcome.reason, numbers=numbers)
            demand.judged(conn, job.kind, seq)
            forgetting.settled(conn, job.kind)

        log.info("training run %d: %s: %s", run.id, state, outcome.reason)
        await asyncio.wrap_future(self._store.write(judge))
        return generation if outcome.promoted else None

    async def reviewed(self, promoted: Generation | None, review: Reviewed) -> None:
        """Add what was measured of a generation that serves already, and withdraw it if it must not."""
        if promoted is None:
            raise TrainingError("the trainer reviewed a candidate that was not promoted")
        await asyncio.to_thread(self._generations.note_scores, promoted.id, dict(finite(review.scores)))
        if review.kept:
            log.info("generation %d was reviewed: %s", promoted.id, review.reason)
        else:
            log.warning("generation %d is withdrawn: %s", promoted.id, review.reason)
            await asyncio.to_thread(self._generations.withdraw, promoted.id, review.reason)

    async def broke_off(self, running: GoingOn) -> None:
        """Record the end of a child that came to no result."""
        run, told, code = running.run, running.told_to_end, running.process.returncode
        Path(running.job.output).unlink(missing_ok=True)
        if told is not None:
            asked = running.asked and told.state == "parked"  # so that it goes on as such
            numbers = {runs.ASKED: True} if asked else {}
            await self.finish(run, told.state, told.reason, stopped_by=told.by, numbers=numbers)
            return
        reason = f"the trainer {how_it_ended(running.process)} before it had a result"
        if killed_for_memory(running.process, asked_to_end=False):
            reason += "; the system may have been out of memory: set train.memory_mb to less than it was"
        await self.finish(run, "interrupted" if (code or 0) < 0 else "failed", reason)

    async def finish(
        self,
        run: Run,
        state: str,
        reason: str,
        *,
        stopped_by: str | None = None,
        numbers: Mapping[str, Any] | None = None,
    ) -> None:
        """Give a run that was not judged its end."""
        log.info("training run %d: %s: %s", run.id, state, reason)

        def write(conn: sqlite3.Connection) -> None:
            runs.finish_run(conn, run.id, state, reason=reason, numbers=numbers, stopped_by=stopped_by)

        await asyncio.wrap_future(self._store.write(write))

    async def fail(self, run: Run, reason: str) -> None:
        """Record a failure, unless the run has its result and only what came after it failed.

        A profile that cannot be written is logged: the start of the next run closes this one.
        """
        log.error("training run %d: %s", run.id, reason)
        try:
            if (await asyncio.to_thread(self._stored, run)).state == "running":
                await self.finish(run, "failed", reason)
        except EdgepdError as error:
            log.error("the end of training run %d could not be stored: %s", run.id, error)

    def _stored(self, run: Run) -> Run:
        with self._store.read() as conn:
            return runs.get_run(conn, run.id)

    def _register(self, run: Run, job: Job, outcome: Outcome) -> Generation:
        """Add the result to the registry as a candidate, or as rejected with its numbers."""
        name = Path(job.output).name
        parent = self._generations.get(job.parent) if job.parent is not None else None
        model_file = (parent.model_file if parent else None) if job.kind == "live" else name
        return self._store.write(
            lambda conn: registry.add(
                conn,
                parent=job.parent,
                kind=run.kind,
                base_sha256=self._generations.base.sha256,
                state="candidate" if outcome.promoted else "rejected",
                adapter_file=name if job.kind == "live" else None,
                model_file=model_file,
                file_sha256=outcome.file_sha256,
                example_ids=[e.id for e in job.train if e.id not in outcome.skipped],
                data_hash=job.data_hash,
                config=configuration(job) | {"plan": outcome.scores.get("plan")},
                scores=outcome.scores,
                reason=outcome.reason,
            )
        ).result()


def configuration(job: Job) -> dict[str, Any]:
    """Return what a run was told to do, with a hash by which two generations can be seen to have been told the same."""
    told = {"settings": job.settings, "gate": job.gate}
    return told | {"sha256": hashlib.sha256(canonical_json(finite(told)).encode()).hexdigest()}
