"""Supervision of training: one child process at a time, from the choice of examples to the switch.

The idea: `start` picks the examples, starts the child and returns; a task follows the child's events and, when it
reports a candidate that passed the gate, makes it the active generation. A live one is then reviewed by the same child
while it serves already; if that finds abilities lost, the generation is withdrawn. `plan` asks a child what a run would
cost. Invariants: at most one child is there; one that dies, however it dies, leaves the profile with a finished run,
and the old generation serving unless the new one had passed.
What this does not do: choose examples (see training_jobs.py), decide when to train, or limit what the child may use of
the machine.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgepd.adapt.job import Job, JobKind, Outcome, Planned, Progress, Refused, Reviewed
from edgepd.errors import ConflictError, EdgepdError, TrainingError
from edgepd.settings import Settings
from edgepd_daemon.generations import Generations
from edgepd_daemon.training_child import WORKER, end, events, how_it_ended, kill, spawn
from edgepd_daemon.training_jobs import Chosen, Places, choose, find_examples, make_job, with_similar_pairs
from edgepd_profiles import registry, runs
from edgepd_profiles.lineage import taught_to
from edgepd_profiles.registry import Generation
from edgepd_profiles.rows import canonical_json, finite
from edgepd_profiles.runs import Run
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0  # what a child gets to end by itself before it is killed
PLAN_SECONDS = 120.0  # within which a plan must be there; loading torch alone takes ten on a small board
KEPT = ("loss", "held_out_loss", "tokens_per_second", "rss_mb")  # numbers that hold until there are newer ones


@dataclass
class _Running:
    """The run that is going on."""

    run: Run
    job: Job
    process: asyncio.subprocess.Process
    follower: asyncio.Task[None]
    progress: Progress | None = None
    promoted: Generation | None = None  # the run has its result, and the child only reviews it


class Trainer:
    """Starts training runs and carries their results into the registry. Lives on the event loop."""

    def __init__(
        self, store: Store, generations: Generations, settings: Settings, runs_dir: Path, worker: Sequence[str] = WORKER
    ) -> None:
        """Checkpoints go below `runs_dir`, general examples next to it; `worker` is the command line of the child."""
        self._store = store
        self._generations = generations
        self.settings = settings  # read at the start of each run; a reload replaces them
        self._places = Places(runs_dir, runs_dir.with_name("replay"))
        self._worker = tuple(worker)
        self._running: _Running | None = None
        self._planning: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()

    @property
    def run(self) -> Run | None:
        """The run that is going on, if any."""
        return self._running.run if self._running else None

    @property
    def progress(self) -> Progress | None:
        """Where the run that is going on is."""
        return self._running.progress if self._running else None

    async def plan(self, kind: JobKind) -> dict[str, Any]:
        """Return what a run would do and cost, as the planner says, without doing any of it.

        Raises ConflictError if a run is going on, TrainingError if there is too little to learn or no plan fits.
        """
        async with self._starting:
            active, chosen = await self._prepare(kind)
            job = await self._job(active, chosen, "plan", plan_only=True)
            process = self._planning = await spawn(self._worker)
            try:
                async with asyncio.timeout(PLAN_SECONDS):
                    last = [event async for event in events(process, job) if not isinstance(event, Progress)]
            except TimeoutError as error:
                raise TrainingError(f"the trainer had no plan within {PLAN_SECONDS:.0f} s; try again later") from error
            finally:
                self._planning = None
                await end(process)
        if last and isinstance(last[-1], Planned):
            return dict(finite(last[-1].plan))
        if last and isinstance(last[-1], Refused):
            raise TrainingError(last[-1].reason)
        raise TrainingError(f"the trainer {how_it_ended(process)} before it had a plan")

    async def start(self, kind: JobKind) -> Run:
        """Start a run. Raises ConflictError if one is going on, TrainingError if there is too little to learn.

        The review of the run before is broken off: what is newer will be reviewed in its turn.
        """
        async with self._starting:
            active, chosen = await self._prepare(kind)
            if self._running is not None:
                await self.stop(self._running.run.id)
            run = await asyncio.wrap_future(self._store.write(lambda c: runs.start_run(c, kind, active.id)))
            try:
                job = await self._job(active, chosen, f"{kind}-{run.id}")
                process = await spawn(self._worker)
            except Exception as error:
                await self._finish(run, "failed", str(error))
                raise
            log.info("training run %d (%s) on %d examples, pid %d", run.id, kind, len(job.train), process.pid)
            follower = asyncio.create_task(self._follow(), name=f"training-{run.id}")
            self._running = _Running(run, job, process, follower)
            return run

    async def stop(self, run_id: int | None = None) -> None:
        """Stop that run, or whatever is going on, planning too. Raises ConflictError if `run_id` is another one."""
        if run_id is None and self._planning is not None:
            kill(self._planning)
            async with self._starting:  # which it holds to its end
                pass
        running = self._running
        if running is None or run_id not in (None, running.run.id):
            if run_id is not None:
                raise ConflictError(f"training run {run_id} is not going on")
            return
        if running.process.returncode is None:
            running.process.terminate()
        done, _ = await asyncio.wait([running.follower], timeout=STOP_SECONDS)
        if not done:
            kill(running.process)
            await running.follower

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[JobKind | None]:
        """Stop what is going on, and start nothing until the block ends; the block is told what was being trained."""
        if self._planning is not None:
            kill(self._planning)
        async with self._starting:
            running = self._running
            await self.stop()
            yield running.job.kind if running is not None and running.promoted is None else None

    async def _prepare(self, kind: JobKind) -> tuple[Generation, Chosen]:
        """Return what serves now and what to learn. Raises as `start`."""
        if self._running is not None and self._running.promoted is None:
            raise ConflictError(f"training run {self._running.run.id} is going on; wait for its end")
        settings = self.settings
        active = await asyncio.to_thread(self._generations.active)
        taught = taught_to(active, await asyncio.to_thread(self._generations.listing))
        found = await asyncio.to_thread(find_examples, self._store, settings.train, settings.select)
        chosen = await asyncio.to_thread(choose, found, active, taught, kind, settings)
        return active, await asyncio.to_thread(with_similar_pairs, self._store, chosen)

    async def _job(self, active: Generation, chosen: Chosen, name: str, *, plan_only: bool = False) -> Job:
        parts = (self._generations, active, chosen, self.settings, self._places)
        return await asyncio.to_thread(make_job, *parts, name, plan_only=plan_only)

    async def _follow(self) -> None:
        """Send the job, follow the child to its end, and record what came of it."""
        running = self._running
        if running is None:
            raise RuntimeError("there is no run to follow")
        concluded = False
        try:
            async for event in events(running.process, running.job):
                if isinstance(event, Progress):
                    running.progress = continued(running.progress, event)
                elif isinstance(event, Reviewed):
                    await self._reviewed(running, event)
                elif not isinstance(event, Planned) and not concluded:
                    concluded = True  # whatever comes of it: a run is finished once
                    await self._conclude(running, event)
            if not concluded:
                await self._broke_off(running)
        except EdgepdError as error:
            log.error("training run %d: %s", running.run.id, error)
            await self._fail(running.run, str(error))
        except Exception:  # noqa: BLE001 - the edge of the task: the run must not look as if it went on
            log.exception("training run %d", running.run.id)
            await self._fail(running.run, "unexpected failure; the daemon's log has the details")
        finally:
            await end(running.process)
            self._running = None

    async def _conclude(self, running: _Running, result: Outcome | Refused) -> None:
        """Record what a child has come to; what passed becomes active."""
        run, job = running.run, running.job
        output = Path(job.output)
        if isinstance(result, Refused):
            output.unlink(missing_ok=True)
            await self._finish(run, "failed", result.reason)
            return
        generation = await asyncio.to_thread(self._register, run, job, result)
        numbers = dict(result.scores)
        if result.promoted:
            await asyncio.to_thread(self._generations.note_probed, generation)  # the gate has opened it
            switched = await asyncio.to_thread(self._generations.activate, generation.id, job.parent)
            numbers["prepare_ms"] = switched.prepare_ms
            running.promoted = generation
        else:
            output.unlink(missing_ok=True)
        state = "promoted" if result.promoted else "rejected"
        await self._finish(run, state, result.reason, generation.id, numbers)

    async def _reviewed(self, running: _Running, review: Reviewed) -> None:
        """Add what was measured of a generation that serves already, and withdraw it if it must not."""
        if running.promoted is None:
            raise TrainingError("the trainer reviewed a candidate that was not promoted")
        generation = running.promoted.id
        await asyncio.to_thread(self._generations.note_scores, generation, dict(finite(review.scores)))
        if review.kept:
            log.info("generation %d was reviewed: %s", generation, review.reason)
        else:
            log.warning("generation %d is withdrawn: %s", generation, review.reason)
            await asyncio.to_thread(self._generations.withdraw, generation, review.reason)

    async def _broke_off(self, running: _Running) -> None:
        """Record the end of a child that came to no result."""
        Path(running.job.output).unlink(missing_ok=True)
        killed = (running.process.returncode or 0) < 0
        reason = f"the trainer {how_it_ended(running.process)} before it had a result"
        await self._finish(running.run, "interrupted" if killed else "failed", reason)

    async def _fail(self, run: Run, reason: str) -> None:
        """Record a failure, unless the run has its result and only what came after it failed."""
        if (await asyncio.to_thread(self._stored, run)).state == "running":
            await self._finish(run, "failed", reason)

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

    async def _finish(
        self, run: Run, state: str, reason: str, generation: int | None = None, numbers: dict[str, Any] | None = None
    ) -> None:
        log.info("training run %d: %s: %s", run.id, state, reason)
        await asyncio.wrap_future(
            self._store.write(
                lambda c: runs.finish_run(c, run.id, state, generation=generation, reason=reason, numbers=numbers)
            )
        )


def configuration(job: Job) -> dict[str, Any]:
    """Return what a run was told to do, with a hash by which two generations can be seen to have been told the same."""
    told = {"settings": job.settings, "gate": job.gate}
    return told | {"sha256": hashlib.sha256(canonical_json(finite(told)).encode()).hexdigest()}


def continued(before: Progress | None, now: Progress) -> Progress:
    """Return `now` with the numbers that it does not tell as they were, such as the loss when a stage begins."""
    missing = [name for name in KEPT if before is not None and getattr(now, name) is None]
    return dataclasses.replace(now, **{name: getattr(before, name) for name in missing})


def progress_fields(progress: Progress | None) -> dict[str, Any] | None:
    """Return progress as the API shows it. A loss that is not a number any more is null, as JSON has no other way."""
    return dict(finite(asdict(progress))) if progress else None
