"""The training child: `python -m edgepd.adapt.worker` reads a job from stdin and writes events to stdout.

The idea: train, write the file, gate it, in this order and in one process that can be killed at any moment; the
daemon alone decides what becomes of the result. The invariant: the output file appears under its name only when it
is complete.
What this does not do: touch the profile or the running model, or talk to the network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from edgepd.adapt import planner
from edgepd.adapt.batches import held_out_loss
from edgepd.adapt.cpu import compute_dtype
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.gate import Arm, Limits, judge
from edgepd.adapt.hyperparameters import adapt
from edgepd.adapt.job import Event, Job, Outcome, Planned, Progress, Refused, write_event
from edgepd.adapt.loop import CHECKPOINT_NAME, TrainResult, train
from edgepd.adapt.planner import MIB, Plan
from edgepd.adapt.recipe import Data, Recipe, make_recipe, prepare_data, read_settings, stopping_set
from edgepd.atomic import replacing
from edgepd.errors import EdgepdError, TrainingError
from edgepd.llama.memory import trim
from edgepd_quant.adapter_file import Adapter, LowRank, read_adapter, write_adapter
from edgepd_quant.bake import bake
from edgepd_quant.reader import GGUFFile

PLAN_NAME = "plan.json"
BOUNDS = ("memory_mb", "fast_seconds", "threads")  # settings that say what a run may take, not what it learns
FREE_SHARE = 0.5  # of the memory that is free, where no budget is set
# Of the learning rate, for an adapter that goes on. Most of what it is shown it knows: after a first run on a strong
# style, a second one raised general perplexity from +1.8 % to +6.5 % at the full rate, and to +2.7 % at 0.3 of it.
CONTINUED_RATE = 0.1
SMOOTHING = 0.3  # weight of the newest step in the estimate of the time that is left


def main() -> int:
    """Run the job on stdin; exit code 0 if it came to an outcome, the error's own code otherwise."""
    os.nice(19)  # the machine belongs to the user; training takes what is left
    try:
        emit(run(Job.from_json(sys.stdin.read())))
    except EdgepdError as error:
        emit(Refused(str(error)))
        return error.exit_code
    except BrokenPipeError:
        return 1  # the daemon is gone, and with it whoever wanted the result
    return 0


def emit(event: Event) -> None:
    """Send one event to the daemon."""
    print(write_event(event), flush=True)


class PipeReport:
    """Sends the progress of the training loop to the daemon."""

    def __init__(self) -> None:
        self._held_out: float | None = None
        self._last = time.monotonic()
        self._seconds_per_step: float | None = None

    def on_step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
        """Report one optimiser step."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        before = self._seconds_per_step
        self._seconds_per_step = seconds if before is None else before + SMOOTHING * (seconds - before)
        left = self._seconds_per_step * (total - step)
        emit(Progress("train", step, total, loss, self._held_out, tokens_per_second, left, _rss_bytes() / MIB))

    def on_eval(self, epoch: int, held_out_loss: float) -> None:
        """Remember the loss for the next step's report; what it took is no part of a step."""
        del epoch
        self._held_out = held_out_loss
        self._last = time.monotonic()


def run(job: Job) -> Outcome | Planned:
    """Carry out one job, or say what it would cost. Raises EdgepdError with the reason if it cannot be."""
    emit(Progress("load"))
    clock = _Clock()
    torch.set_num_threads(job.threads)
    base, output = Path(job.base), Path(job.output)
    settings = read_settings(job)
    data = prepare_data(job, settings, lambda done, total: emit(Progress("replay", done, total)))
    with GGUFFile.open(base) as model:
        if (found := model.sha256()) != job.base_sha256:
            raise TrainingError(f"{base} has SHA-256 {found[:12]}…, not {job.base_sha256[:12]}… as when it was opened")
        decoder = Decoder(model, dtype=compute_dtype())
        recipe = make_recipe(job, settings, data, decoder)
        plan = _plan(job, recipe, data, decoder)
        if job.plan_only:
            return Planned(planner.as_dict(plan))
        clock.lap("load_s")
        result = _train(job, decoder, recipe, data, plan)
        torch_loss = held_out_loss(decoder, data.held_out, plan.micro_tokens)
        clock.lap("train_s")
        emit(Progress("write"))
        baking = _write(job, decoder, output)
        clock.lap("write_s")
        trained_peak = _peak_bytes()
    del decoder, model  # with it goes the mapping of the base
    trim()
    emit(Progress("gate"))
    verdict = judge(
        original=Arm(Path(job.original)),
        current=Arm(Path(job.current_model), Path(job.current_adapter) if job.current_adapter else None),
        candidate=Arm(base, output) if job.kind == "live" else Arm(output),
        held_out=data.held_out,
        limits=Limits(job.max_perplexity_rise, job.min_kept_gain),
        threads=job.threads,
    )
    clock.lap("gate_s")
    scores = {
        **verdict.scores,
        "held_out_torch": torch_loss,
        "epochs": result.best_epoch,
        "steps": result.steps,
        "train_tokens_per_second": result.tokens_per_second,
        "train_peak_rss_mb": round(trained_peak / MIB),
        "peak_rss_mb": round(_peak_bytes() / MIB),
        "plan": planner.as_dict(plan),
        **baking,
        **clock.laps,
    }
    sha256 = _sha256(output)
    _remove_checkpoints(Path(job.checkpoint_dir))
    skipped = {s.id: s.reason for s in data.skipped}
    return Outcome(verdict.passed, verdict.reason, scores, sha256, skipped)


def _plan(job: Job, recipe: Recipe, data: Data, decoder: Decoder) -> Plan:
    """Plan the run. One that was interrupted keeps what decides its result: the steps and how they are cut."""
    config, live = recipe.config, job.kind == "live"
    adapt(decoder, config)
    trim()
    budget_mb = recipe.settings["memory_mb"]
    rss = _rss_bytes()
    free = rss + int(psutil.virtual_memory().available * FREE_SHARE)
    directory = Path(job.checkpoint_dir)
    learned = {name: value for name, value in recipe.settings.items() if name not in BOUNDS}
    run = {"data_hash": job.data_hash, "base": job.base_sha256, "start": job.start_adapter, "settings": learned}
    noted = None if job.plan_only else _noted(directory, run)
    request = planner.Request(
        decoder=decoder,
        rank=config.rank,
        epochs=recipe.epochs,
        held_out=stopping_set(recipe, data),
        judged=data.held_out,
        sequences=recipe.objective.sequences,
        threads=job.threads,
        rss_bytes=rss,
        budget_bytes=budget_mb * MIB if budget_mb else free,
        gemm_flops=planner.probe_gemm(),
        used=planner.CAUTIOUS,
        residencies=planner.residencies(recipe.settings["residency"]),
        seconds=recipe.settings["fast_seconds"] if live else None,
    )
    if noted is not None:
        try:
            return _continued(request, noted)
        except TrainingError as error:  # there is less memory than there was: the run begins anew
            print(f"the interrupted run cannot go on: {error}", file=sys.stderr)
    plan = planner.plan(request)
    if not job.plan_only:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        noted = {"run": run, "steps": plan.steps, "micro_tokens": plan.micro_tokens, "residency": plan.residency}
        with replacing(directory / PLAN_NAME) as file:
            file.write(json.dumps(noted).encode())
    return plan


def _noted(directory: Path, run: dict[str, Any]) -> dict[str, Any] | None:
    """Return what was noted of the plan of an interrupted run that learns the same, if there is one."""
    path = directory / PLAN_NAME
    if not (directory / CHECKPOINT_NAME).exists() or not path.exists():
        return None
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        found = {"steps": int(noted["steps"]), "micro_tokens": int(noted["micro_tokens"])}
        return {**found, "residency": str(noted["residency"])} if noted["run"] == run else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{path} is ignored: {error}", file=sys.stderr)
        return None


def _continued(request: planner.Request, noted: dict[str, Any]) -> Plan:
    """Plan what is left to choose: all that gives the same numbers. Raises TrainingError if it does not fit."""
    # fp16 rounds the weights; the others give the same numbers.
    same = ("fp16",) if noted["residency"] == "fp16" else planner.EXACT
    request = dataclasses.replace(request, seconds=None, micro_choices=(noted["micro_tokens"],), residencies=same)
    plan = planner.plan(request)
    steps = min(noted["steps"], plan.steps)
    seconds = plan.predicted_seconds * steps / max(1, plan.steps)
    reasons = (*plan.reasons, "an interrupted run goes on")
    return dataclasses.replace(plan, steps=steps, predicted_seconds=seconds, reasons=reasons)


def _train(job: Job, decoder: Decoder, recipe: Recipe, data: Data, plan: Plan) -> TrainResult:
    """Run the loop as planned, on from the active live adapter if there is one that fits."""
    planner.carry_out(plan, decoder)
    start = _start(job, decoder, recipe.config.rank)
    rate = recipe.config.learning_rate * (1.0 if start is None else CONTINUED_RATE)
    config = dataclasses.replace(
        recipe.config, learning_rate=rate, micro_tokens=plan.micro_tokens, max_steps=plan.steps
    )
    return train(
        decoder,
        recipe.epochs,
        stopping_set(recipe, data),
        recipe.objective,
        config,
        PipeReport(),
        checkpoint_dir=Path(job.checkpoint_dir),
        start=start,
    )


def _start(job: Job, decoder: Decoder, rank: int) -> Adapter | None:
    """Return the active live adapter if training can go on from it.

    It cannot if rank or layers were lowered since: what it holds of the rest would be lost.
    """
    if job.start_adapter is None:
        return None
    adapter = read_adapter(Path(job.start_adapter))
    trained = {delta.name for delta in decoder.deltas}
    ranks = [len(factors.a) for factors in adapter.tensors.values() if isinstance(factors, LowRank)]
    return adapter if set(adapter.tensors) <= trained and max(ranks, default=0) <= rank else None


def _write(job: Job, decoder: Decoder, output: Path) -> dict[str, Any]:
    """Write the adapter, or bake the delta into a copy of the base; return what baking measured."""
    adapter = decoder.export({"base_sha256": job.base_sha256, "data_hash": job.data_hash, "parent": str(job.parent)})
    if job.kind == "live":
        write_adapter(output, adapter)
        return {}
    report = bake(Path(job.base), adapter, output)
    return {
        "baked_tensors": report.tensors,
        "baked_changed_bytes": report.changed_bytes,
        "baked_max_relative_rounding": report.max_relative_rounding,
    }


def _rss_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _peak_bytes() -> int:
    """Return the largest resident memory of this process so far.

    Linux hands ru_maxrss on to a child: where the daemon is larger than its trainer, it would be the daemon's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_checkpoints(directory: Path) -> None:
    """The run has come to its end; what it could have resumed from is of no more use."""
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


class _Clock:
    """Takes lap times in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


if __name__ == "__main__":
    sys.exit(main())
