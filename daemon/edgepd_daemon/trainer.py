"""Supervision of training: one child process at a time, from the choice of examples to the switch.

The idea: `start` picks the examples, starts the child and returns; a task follows the child's events and, when it
reports a candidate that passed the gate, makes it the active generation. A live one is then reviewed by the same child
while it serves already; if that finds abilities lost, the generation is withdrawn. `park` has the child save its state
and end, so that the same run goes on later; `shrink` starts it again within less memory. `plan` asks a child what a run
would cost. Invariants: at most one child is there, and it is held by the throttle; one that dies, however it dies,
leaves the profile with a finished run, and the old generation serving unless the new one had passed; one that is told
to end is gone within STOP_SECONDS. A run that the user asks for comes before one that nobody waits for.
What this does not do: choose examples (see training_jobs.py), record results (results.py), or decide when to train or
to make way (supervisor.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from edgepd.adapt.job import Job, JobKind, Progress
from edgepd.errors import ConflictError, EdgepdError
from edgepd.intent.job import TuneJob
from edgepd.settings import Settings
from edgepd_daemon.generations import Generations
from edgepd_daemon.going_on import GoingOn, ToldToEnd
from edgepd_daemon.planning import ask_for_plan
from edgepd_daemon.preparing import Preparation
from edgepd_daemon.results import Results
from edgepd_daemon.scheduler.constraints import ASKED_RESUME_S, RESUME_S
from edgepd_daemon.scheduler.decide import hard_limit_mb
from edgepd_daemon.scheduler.types import Running
from edgepd_daemon.scope import Limits
from edgepd_daemon.throttle import Throttle
from edgepd_daemon.training_child import ask_to_park, end, kill, spawn, worker
from edgepd_daemon.tuned_students import TunedStudents
from edgepd_profiles import runs
from edgepd_profiles.runs import Run
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0  # what a child gets to save its state and end before it is killed
CLOSE_SECONDS = 20.0  # what a start or a request to forget that has begun gets to end when the daemon does


class Trainer:
    """Starts training runs and carries their results into the registry. Lives on the event loop."""

    def __init__(
        self,
        store: Store,
        generations: Generations,
        settings: Settings,
        runs_dir: Path,
        throttle: Throttle,
        command: Callable[[JobKind], Sequence[str]] = worker,
    ) -> None:
        """Checkpoints go below `runs_dir`, general examples and tuned students next to it.

        `command` returns the command line of the child for a kind of run.
        """
        self._store = store
        self._generations = generations
        self.settings = settings  # read at the start of each run; a reload replaces them
        self.throttle = throttle
        self.students = TunedStudents(store, runs_dir.with_name("students"))
        self._preparation = Preparation(store, generations, self.students, runs_dir)
        self._command = command
        self._results = Results(store, generations, self.students)
        self._running: GoingOn | None = None
        self._planning: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._starts: set[asyncio.Task[Run]] = set()  # so that none is collected before its end
        self._closed = False
        self.asked = False  # whether the run that goes on, or else the last one, was asked for
        # Called when a run begins, and with who stopped it, if anybody did, when it has ended.
        self.changed: Callable[[str | None], None] = lambda _: None

    @property
    def run(self) -> Run | None:
        """The run that is going on, if any."""
        return self._running.run if self._running else None

    @property
    def progress(self) -> Progress | None:
        """Where the run that is going on is."""
        running = self._running
        if running is None or running.progress is None:
            return None
        return dataclasses.replace(running.progress, paused=self.throttle.paused)

    @property
    def pid(self) -> int | None:
        """The process id of the child, if one is there."""
        return self._running.process.pid if self._running else None

    @property
    def curve(self) -> list[tuple[int, float]]:
        """The loss after each optimiser step of the run that is going on, in nats per supervised token."""
        return list(self._running.curve) if self._running else []

    @property
    def changing(self) -> bool:
        """Whether the child that is there has been told to end, or to begin again."""
        return self._running is not None and self._running.changing

    def running(self) -> Running | None:
        """Describe the run that is going on, if any, as the scheduler wants to know it."""
        return self._running.described() if self._running else None

    async def plan(self, kind: JobKind) -> dict[str, Any]:
        """Return what a run would do and cost, as the planner says, without doing any of it.

        Raises ConflictError if a run is going on, TrainingError if there is too little to learn or no plan fits.
        """
        async with self._starting:
            self._refuse_second()
            ready = await self._preparation.ready(kind, self.settings)
            job = await self._preparation.job(ready, self.settings, "plan", plan_only=True)
            process = self._planning = await spawn(self._command(kind))
            try:
                return await ask_for_plan(process, job)
            finally:
                self._planning = None
                await end(process)

    async def start(self, kind: JobKind, *, asked: bool = True) -> Run:
        """Start a run. Raises ConflictError if one is going on, TrainingError if there is too little to learn.

        `asked` says that the user waits for it: a run that nobody waited for becomes this one if it is of the same
        kind, and is parked if not. The review of the run before is broken off: what is newer will be reviewed in its
        turn. What has begun is carried to its end, even if the caller is cancelled: no child is left without a run.
        """
        self._starts.add(task := asyncio.create_task(self._start(kind, asked)))
        task.add_done_callback(self._starts.discard)
        return await asyncio.shield(task)

    async def _start(self, kind: JobKind, asked: bool) -> Run:
        async with self._starting:
            if self._closed:
                raise ConflictError("the daemon is ending; start the run again when it is back")
            if asked and (taken := await self._take_over(kind)) is not None:
                return taken
            self._refuse_second()
            settings = self.settings
            ready = await self._preparation.ready(kind, settings)
            if self._running is not None:
                await self.stop(self._running.run.id, by="edgepd")
            # A run whose end could not be stored, because the disk was full, is not going on any more.
            await asyncio.wrap_future(self._store.write(runs.mark_interrupted_runs))
            run = await asyncio.wrap_future(self._store.write(lambda c: runs.start_run(c, kind, ready.parent)))
            try:
                job = await self._preparation.job(ready, settings, f"{kind}-{run.id}", patient=not asked)
                process = await self._spawn(job, asked)
            except Exception as error:
                await self._results.finish(run, "failed", str(error))
                raise
            log.info("training run %d (%s) on %d examples, pid %d", run.id, kind, ready.size, process.pid)
            self.asked = asked
            running = self._running = GoingOn(run, job, asked, ready.seq, process)
            running.follower = asyncio.create_task(self._follow(running), name=f"training-{run.id}")
            self.changed(None)
            return run

    async def _take_over(self, kind: JobKind) -> Run | None:
        """Return the run that goes on, from now on as one that was asked for, if nobody waited for it; or park it."""
        running = self._running
        if running is None or running.asked or running.promoted is not None:
            return None
        if running.job.kind != kind or running.concluded or running.changing:
            await self.park("it makes way for the run that you asked for")
            return None
        self.asked = running.asked = True
        self.hold_to_budget()
        self.changed(None)
        return running.run

    def hold_to_budget(self) -> None:
        """Hold the child that is there, if any, to the CPU budget that the settings have now."""
        if (running := self._running) is not None:
            self.throttle.limit(*self._share(running.asked))

    def _share(self, asked: bool) -> tuple[float, int, float]:
        """Return the CPU percent, of how many cores, and the seconds after a request before it goes on."""
        budget, cores = self.settings.budget, len(os.sched_getaffinity(0))
        return (budget.asked_cpu_percent, cores, ASKED_RESUME_S) if asked else (budget.cpu_percent, cores, RESUME_S)

    async def stop(self, run_id: int | None = None, *, by: Literal["user", "edgepd"] = "user") -> None:
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
        await self._end(running, ToldToEnd("it was stopped", by=by))

    async def park(self, reason: str) -> None:
        """Have the run that is going on, if any, save its state and end; the next one on the same data goes on."""
        if (running := self._running) is not None:
            await self._end(running, ToldToEnd(reason, "parked"))

    async def give_up(self, reason: str) -> None:
        """End the run that is going on, if any, as failed: the same again would come to the same."""
        if (running := self._running) is not None:
            await self._end(running, ToldToEnd(reason, "failed"))

    def shrink(self, memory_mb: int) -> None:
        """Start the child again, where it was, within so much memory."""
        running = self._running
        if running is None or running.concluded or running.changing or running.process.returncode is not None:
            return
        log.info("training run %d is planned again within %d MiB", running.run.id, memory_mb)
        running.smaller_mb = memory_mb
        running.shrinks += 1
        self._ask_to_park(running)

    async def close(self, reason: str) -> None:
        """Park the run that is going on, and start none any more."""
        self._closed = True
        if self._planning is not None:
            kill(self._planning)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS), self._starting:
                pass
        await self.park(reason)

    @property
    def shrinks(self) -> int:
        """How often the run that goes on was started again with less memory."""
        return self._running.shrinks if self._running else 0

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[JobKind | None]:
        """Stop what is going on, and start nothing until the block ends; the block is told what was being trained."""
        if self._planning is not None:
            kill(self._planning)
        async with self._starting:
            running = self._running
            await self.stop(by="edgepd")
            yield running.job.kind if running is not None and running.promoted is None else None

    def _refuse_second(self) -> None:
        if self._running is not None and self._running.promoted is None:
            raise ConflictError(f"training run {self._running.run.id} is going on; wait for its end")

    async def _spawn(self, job: Job | TuneJob, asked: bool) -> asyncio.subprocess.Process:
        """Start a child and hold it to the budget."""
        budget = self.settings.budget
        percent, cores, resume_after_s = self._share(asked)
        hard_mb = int(hard_limit_mb(Running(job.kind, asked, False, float(job.memory_mb), 0.0), budget))
        # Nothing can raise the limit of the scope later, so it is that of a run that comes to be asked for meanwhile.
        most = max(budget.cpu_percent, budget.asked_cpu_percent)
        process = await spawn(self._command(job.kind), limits=Limits(most, cores, job.memory_mb, hard_mb))
        self.throttle.attach(process.pid, percent, cores, resume_after_s)
        return process

    async def _end(self, running: GoingOn, told: ToldToEnd) -> None:
        """Have a child end, by force if it takes long, and wait until that is recorded."""
        running.tell_to_end(told)
        self._ask_to_park(running)
        if running.follower is not None:
            await asyncio.wait([running.follower])

    def _ask_to_park(self, running: GoingOn) -> None:
        """Have the child save and end, which nobody holds it from any more; by force, whoever waits for it or not."""
        self.throttle.detach()
        ask_to_park(running.process)
        asyncio.get_running_loop().call_later(STOP_SECONDS, kill, running.process)

    async def _follow(self, running: GoingOn) -> None:
        """Follow one child after the other to the end of the run, and record what came of it."""
        try:
            await self._results.listen(running)
            while running.smaller_mb is not None and not running.concluded:
                running.job = dataclasses.replace(running.job, memory_mb=running.smaller_mb)
                running.smaller_mb = None
                await end(running.process)
                running.process = await self._spawn(running.job, running.asked)
                if running.told_to_end is not None:  # meanwhile, and this child does not know
                    break
                await self._results.listen(running)
            if not running.concluded:
                await self._results.broke_off(running)
        except EdgepdError as error:
            await self._results.fail(running.run, str(error))
        except Exception:  # noqa: BLE001 - the edge of the task: the run must not look as if it went on
            log.exception("training run %d", running.run.id)
            await self._results.fail(running.run, "unexpected failure; the daemon's log has the details")
        finally:
            self.throttle.detach()
            await end(running.process)
            self._running = None
            self.changed(running.told_to_end.by if running.told_to_end else None)
