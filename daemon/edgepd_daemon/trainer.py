"""Supervision of training: one child process at a time, from the choice of examples to the switch.

The idea: `start` picks the examples, starts the child and returns; a task follows the child's events and, when it
reports a candidate that passed the gate, makes it the active generation. Invariants: at most one child runs; a
child that dies, however it dies, leaves the profile with a finished run and the old generation serving.
What this does not do: decide when to train, or limit what the child may use of the machine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgepd.adapt.job import Job, JobExample, JobKind, Outcome, Progress, Refused, read_event
from edgepd.config import Settings
from edgepd.errors import ConflictError, EdgepdError, TrainingError
from edgepd_daemon.cores import physical_cores
from edgepd_daemon.generations import Generations
from edgepd_profiles import examples as example_rows
from edgepd_profiles import registry, runs
from edgepd_profiles.examples import Example
from edgepd_profiles.registry import Generation
from edgepd_profiles.runs import Run
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

EVENT_LIMIT_BYTES = 16 * 1024 * 1024  # longest line that a child may write
# How long a thread of torch or llama.cpp that waits for the others spins before it sleeps. By default that is 30 times
# longer, which on a busy machine wastes most of the time that nice 19 leaves; without any spinning (OMP_WAIT_POLICY
# PASSIVE) training on an idle machine takes 1.7 times as long.
CHILD_ENVIRONMENT = {"GOMP_SPINCOUNT": "10000"}
STOP_SECONDS = 5.0  # what a child gets to end by itself before it is killed


@dataclass
class _Running:
    """The run that is going on."""

    run: Run
    job: Job
    process: asyncio.subprocess.Process
    follower: asyncio.Task[None]
    progress: Progress | None = None


class Trainer:
    """Starts training runs and carries their results into the registry. Lives on the event loop."""

    def __init__(self, store: Store, generations: Generations, settings: Settings, runs_dir: Path) -> None:
        """Checkpoints go below `runs_dir`."""
        self._store = store
        self._generations = generations
        self.settings = settings  # read at the start of each run; a reload replaces them
        self._runs_dir = runs_dir
        self._running: _Running | None = None
        self._starting = asyncio.Lock()

    @property
    def run(self) -> Run | None:
        """The run that is going on, if any."""
        return self._running.run if self._running else None

    @property
    def progress(self) -> Progress | None:
        """Where the run that is going on is."""
        return self._running.progress if self._running else None

    async def start(self, kind: JobKind) -> Run:
        """Start a run. Raises ConflictError if one is going on, TrainingError if there is too little to learn."""
        async with self._starting:
            if self._running is not None:
                raise ConflictError(f"training run {self._running.run.id} is going on; wait for its end")
            train, held_out = await asyncio.to_thread(self._choose_examples, kind)
            parent = await asyncio.to_thread(self._generations.active)
            run = await asyncio.wrap_future(self._store.write(lambda c: runs.start_run(c, kind, parent.id)))
            try:
                job = await asyncio.to_thread(self._job, run, parent, train, held_out)
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # a json.py in the working directory must not be taken for the standard one
                    "-m",
                    "edgepd.adapt.worker",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=EVENT_LIMIT_BYTES,
                    env=os.environ | CHILD_ENVIRONMENT,
                )
            except Exception as error:
                await self._finish(run, "failed", f"the trainer could not be started: {error}")
                if isinstance(error, OSError):
                    raise TrainingError(f"the trainer could not be started: {error}") from error
                raise
            log.info("training run %d (%s) on %d examples, pid %d", run.id, kind, len(train), process.pid)
            follower = asyncio.create_task(self._follow(), name=f"training-{run.id}")
            self._running = _Running(run, job, process, follower)
            return run

    async def stop(self, run_id: int | None = None) -> None:
        """Stop the run that is going on. Raises ConflictError if `run_id` is another one."""
        running = self._running
        if running is None or run_id not in (None, running.run.id):
            if run_id is not None:
                raise ConflictError(f"training run {run_id} is not going on")
            return
        if running.process.returncode is None:
            running.process.terminate()
        done, _ = await asyncio.wait([running.follower], timeout=STOP_SECONDS)
        if not done:
            if running.process.returncode is None:
                running.process.kill()
            await running.follower

    def _choose_examples(self, kind: JobKind) -> tuple[list[Example], list[Example]]:
        """Return what to train on and what to hold out. Raises TrainingError if that is too little."""
        train = self.settings.train
        with self._store.read() as conn:
            found = example_rows.training_examples(conn, train.accepted_weight)
        limit = train.live_examples if kind == "live" else train.baked_examples
        chosen = found[-limit:]
        learn, held_out = example_rows.split(chosen, train.held_out_fraction)
        if len(chosen) < train.min_examples or not held_out:
            raise TrainingError(
                f"there are {len(chosen)} different examples, but training needs at least {train.min_examples}; "
                "correct more answers with `edgepd fix` or accept them with `edgepd good`"
            )
        return learn, held_out

    def _job(self, run: Run, parent: Generation, train: Sequence[Example], held_out: Sequence[Example]) -> Job:
        generations, settings = self._generations, self.settings
        live = run.kind == "live"
        base = generations.model_path(parent) if live else generations.base.path
        adapter = generations.directory / parent.adapter_file if parent.adapter_file else None
        return Job(
            kind="live" if live else "baked",
            base=str(base),
            base_sha256=generations.model_sha256(parent) if live else generations.base.sha256,
            original=str(generations.base.path),
            current_model=str(generations.model_path(parent)),
            current_adapter=str(adapter) if adapter else None,
            output=str(generations.directory / f"{run.kind}-{run.id}.gguf"),
            checkpoint_dir=str(self._runs_dir / run.kind),
            train=[_for_job(e) for e in train],
            held_out=[_for_job(e) for e in held_out],
            data_hash=example_rows.data_hash(train),
            rank=settings.train.rank,
            learning_rate=settings.train.live_learning_rate if live else settings.train.scale_learning_rate,
            epochs=settings.train.epochs,
            seed=settings.train.seed,
            threads=settings.train.threads or physical_cores(),
            max_perplexity_rise=settings.gate.max_perplexity_rise,
            min_kept_gain=settings.gate.min_kept_gain,
            max_tokens=settings.serve.context_tokens,
            parent=parent.id,
        )

    async def _follow(self) -> None:
        """Send the job, follow the child to its end, and record what came of it."""
        running = self._running
        if running is None:
            raise RuntimeError("there is no run to follow")
        try:
            last = await self._converse(running)
            await self._conclude(running, last)
        except EdgepdError as error:
            log.error("training run %d: %s", running.run.id, error)
            await self._finish(running.run, "failed", str(error))
        except Exception:  # noqa: BLE001 - the edge of the task: the run must not look as if it went on
            log.exception("training run %d", running.run.id)
            await self._finish(running.run, "failed", "unexpected failure; the daemon's log has the details")
        finally:
            if running.process.returncode is None:
                running.process.kill()
            self._running = None

    async def _converse(self, running: _Running) -> Outcome | Refused | None:
        """Return the child's last word, None if it died without one."""
        process = running.process
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the trainer was started without pipes")
        last: Outcome | Refused | None = None
        try:
            process.stdin.write(running.job.to_json().encode())
            await process.stdin.drain()
            process.stdin.close()
            async for line in process.stdout:
                event = read_event(line.decode())
                if isinstance(event, Progress):
                    running.progress = event
                else:
                    last = event
        except (BrokenPipeError, ConnectionResetError, ValueError) as error:
            log.warning("training run %d: lost the trainer: %s", running.run.id, error)
        await process.wait()
        return last

    async def _conclude(self, running: _Running, last: Outcome | Refused | None) -> None:
        run, job = running.run, running.job
        output = Path(job.output)
        if last is None:
            output.unlink(missing_ok=True)
            code = running.process.returncode
            how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
            state = "interrupted" if code is not None and code < 0 else "failed"
            await self._finish(run, state, f"the trainer {how} before it had a result")
        elif isinstance(last, Refused):
            output.unlink(missing_ok=True)
            await self._finish(run, "failed", last.reason)
        else:
            generation = await asyncio.to_thread(self._register, run, job, last)
            numbers = dict(last.scores)
            if last.promoted:
                switched = await asyncio.to_thread(self._generations.activate, generation.id, job.parent)
                numbers["prepare_ms"] = switched.prepare_ms
            else:
                output.unlink(missing_ok=True)
            state = "promoted" if last.promoted else "rejected"
            await self._finish(run, state, last.reason, generation.id, numbers)

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
                config={"rank": job.rank, "learning_rate": job.learning_rate, "epochs": job.epochs, "seed": job.seed},
                scores=outcome.scores,
                reason=outcome.reason,
            )
        ).result()

    async def _finish(
        self,
        run: Run,
        state: str,
        reason: str,
        generation: int | None = None,
        numbers: dict[str, Any] | None = None,
    ) -> None:
        log.info("training run %d: %s: %s", run.id, state, reason)
        await asyncio.wrap_future(
            self._store.write(
                lambda c: runs.finish_run(c, run.id, state, generation=generation, reason=reason, numbers=numbers)
            )
        )


def progress_fields(progress: Progress | None) -> dict[str, Any] | None:
    """Return progress as the API shows it."""
    return asdict(progress) if progress else None


def _for_job(example: Example) -> JobExample:
    return JobExample(example.id, example.messages, example.response, example.weight)
