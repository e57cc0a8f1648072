"""The plan of a run, and of one that was interrupted and goes on.

The idea: a run is planned into what memory and time there is. What decides its result, the steps and how they are cut,
is noted beside the checkpoint, so that an interrupted run comes to the result that it would have come to; everything
else is planned anew. What this does not do: measure or predict (see planner.py).
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from pathlib import Path
from typing import Any

import psutil

from edgepd.adapt import planner
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.hyperparameters import adapt
from edgepd.adapt.job import FREE_SHARE, Job
from edgepd.adapt.loop import CHECKPOINT_NAME
from edgepd.adapt.planner import MIB, Plan
from edgepd.adapt.recipe import Data, Recipe, stopping_set
from edgepd.atomic import replacing
from edgepd.errors import TrainingError
from edgepd.llama.memory import trim

PLAN_NAME = "plan.json"
BOUNDS = ("memory_mb", "fast_seconds", "threads")  # settings that say what a run may take, not what it learns


def plan_run(job: Job, recipe: Recipe, data: Data, decoder: Decoder) -> Plan:
    """Plan the run. One that was interrupted keeps what decides its result: the steps and how they are cut."""
    config, live = recipe.config, job.kind == "live"
    adapt(decoder, config)
    trim()
    budget_mb = job.memory_mb or recipe.settings["memory_mb"]
    rss = rss_bytes()
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
        seconds=recipe.settings["fast_seconds"] if live and not job.patient else None,
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


def rss_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far.

    Linux hands ru_maxrss on to a child: where the daemon is larger than its trainer, it would be the daemon's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
