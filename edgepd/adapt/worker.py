"""The training child: `python -m edgepd.adapt.worker` reads a job from stdin and writes events to stdout.

The idea: train, write the file, gate it, in this order and in one process that can be killed at any moment; the
daemon alone decides what becomes of the result. SIGTERM parks the run: it saves, says so, and ends with exit code 0;
the same job goes on from there. Invariants: the output file appears under its name only when it is complete; an event
is sent as a whole; as long as there is no outcome, what the run could go on from is kept.
What this does not do: touch the profile or the running model, or talk to the network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edgepd.adapt import planner
from edgepd.adapt.cpu import compute_dtype
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.gate.verdict import Verdict
from edgepd.adapt.job import Event, Job, Outcome, Parked, Planned, Progress, Refused, Reviewed, write_event
from edgepd.adapt.laps import Laps
from edgepd.adapt.loop import TrainResult, train
from edgepd.adapt.parking import Parking, ParkNow
from edgepd.adapt.planner import MIB, Plan
from edgepd.adapt.priority import become_background, end_with_parent
from edgepd.adapt.proof import check_baked, prove
from edgepd.adapt.recipe import Data, Recipe, make_recipe, prepare_data, read_settings, stopping_set
from edgepd.adapt.run_plan import peak_bytes, plan_run, rss_bytes
from edgepd.errors import EdgepdError, TrainingError
from edgepd.llama.memory import trim
from edgepd_quant.adapter_file import Adapter, LowRank, read_adapter, write_adapter
from edgepd_quant.bake import bake
from edgepd_quant.merge import recompress, scaled
from edgepd_quant.reader import GGUFFile

log = logging.getLogger(__name__)

# Of the learning rate, for an adapter that goes on. Most of what it is shown it knows: after a first run on a strong
# style, a second one raised general perplexity from +1.8 % to +6.5 % at the full rate, and to +2.7 % at 0.3 of it.
CONTINUED_RATE = 0.1
SMOOTHING = 0.3  # weight of the newest step in the estimate of the time that is left


def main() -> int:
    """Run the job on stdin; exit code 0 if it came to an outcome or was parked, the error's own code otherwise."""
    parking = Parking()
    parking.listen()
    try:
        return _work(parking)
    except BrokenPipeError:
        return 1  # the daemon is gone, and with it whoever wanted the result


def _work(parking: Parking) -> int:
    """Carry out the job on stdin, and say how it ended."""
    concluded = False
    try:
        refused = end_with_parent()
        job = Job.from_json(sys.stdin.read())
        refused += become_background(job.threads)
        log.debug("; ".join(refused))
        for event in run(job, parking):
            concluded = concluded or isinstance(event, Outcome)
            with parking.whole():
                emit(event)
    except ParkNow:
        parking.ignore()
        if not concluded:  # else only the review is broken off
            emit(Parked(parking.step))
    except EdgepdError as error:
        parking.ignore()
        emit(Refused(str(error)))
        return error.exit_code
    return 0


def emit(event: Event) -> None:
    """Send one event to the daemon."""
    print(write_event(event), flush=True)


class PipeReport:
    """Sends progress to the daemon, that of the training loop with what is known of it."""

    def __init__(self, parking: Parking) -> None:
        self._parking = parking
        self._held_out: float | None = None
        self._seconds_per_step: float | None = None
        self.begin()

    def begin(self) -> None:
        """What took its time until now is no part of a step."""
        self._last = time.monotonic()

    def tell(self, progress: Progress) -> None:
        """Send it."""
        with self._parking.whole():
            emit(progress)

    def on_step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
        """Report one optimiser step."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        before = self._seconds_per_step
        self._seconds_per_step = seconds if before is None else before + SMOOTHING * (seconds - before)
        left = self._seconds_per_step * (total - step)
        rss_mb = rss_bytes() / MIB
        self.tell(Progress("train", step, total, loss, self._held_out, tokens_per_second, left, rss_mb))

    def on_eval(self, epoch: int, held_out_loss: float) -> None:
        """Remember the loss for the next step's report."""
        del epoch
        self._held_out = held_out_loss
        self.begin()


def run(job: Job, parking: Parking | None = None) -> Iterator[Planned | Outcome | Reviewed]:
    """Carry out one job: yield its outcome and then, of a live adapter that passed, the review; or what it would cost.

    Raises EdgepdError with the reason if it cannot be carried out, and ParkNow when `parking` is asked to park.
    """
    parking = parking or Parking()
    report, clock = PipeReport(parking), Laps()
    report.tell(Progress("load"))
    torch.set_num_threads(job.threads)
    settings = read_settings(job)
    data = prepare_data(job, settings, lambda done, total: report.tell(Progress("replay", done, total)))
    with GGUFFile.open(Path(job.base)) as model:
        if (found := model.sha256()) != job.base_sha256:
            raise TrainingError(
                f"{job.base} has SHA-256 {found[:12]}…, not {job.base_sha256[:12]}… as when it was opened"
            )
        decoder = Decoder(model, dtype=compute_dtype())
        recipe = make_recipe(job, settings, data, decoder)
        plan = plan_run(job, recipe, data, decoder)
        if job.plan_only:
            yield Planned(planner.as_dict(plan))
            return
        clock.lap("load_s")
        trained = _train(job, decoder, recipe, data, plan, report, parking)
        delta = _delta(job, decoder)
        clock.lap("train_s")
        peak = peak_bytes()
    del decoder, model  # with it goes the mapping of the base
    trim()
    scores = {
        "epochs": trained.best_epoch,
        "steps": trained.steps,
        "train_tokens_per_second": trained.tokens_per_second,
        "train_peak_rss_mb": round(peak / MIB),
        "plan": planner.as_dict(plan),
    }
    yield from _prove(job, data, delta, scores, clock, report, parking)


def _prove(
    job: Job, data: Data, delta: Adapter, scores: dict[str, Any], clock: Laps, report: PipeReport, parking: Parking
) -> Iterator[Outcome | Reviewed]:
    """Write the file, judge it, and review it: a live adapter when it is live already, anything else before."""
    report.tell(Progress("write"))
    written = _write(job, delta)
    clock.lap("write_s")
    proof = prove(job, data, lambda done, total: report.tell(Progress("gate", done, total)))

    def weaken(strength: float) -> None:
        written.update(_write(job, scaled(delta, strength)))

    report.tell(Progress("gate"))
    verdict = proof.judge(weaken)
    if verdict.passed and job.kind == "baked":
        verdict = _checked(job, scaled(delta, verdict.scores["strength"]), data, verdict)
    clock.lap("gate_s")
    scores |= verdict.scores | written
    passed, reason = verdict.passed, verdict.reason
    later = passed and job.kind == "live"
    if not later:
        report.tell(Progress("review"))
        found = proof.review(verdict.scores, abilities=passed)
        scores |= found.scores
        if passed and not found.kept:
            passed, reason = False, found.reason
        clock.lap("review_s")
    scores |= clock.laps | {"peak_rss_mb": round(peak_bytes() / MIB)}
    skipped = {s.id: s.reason for s in data.skipped}
    outcome = Outcome(passed, reason, scores, _sha256(Path(job.output)), skipped)
    with parking.whole():  # a run has an outcome, or can go on; never both, and never neither
        yield outcome
        _remove_checkpoints(Path(job.checkpoint_dir))
    if later:
        report.tell(Progress("review"))
        found = proof.review(verdict.scores)
        clock.lap("review_s")
        yield Reviewed(found.kept, found.reason, found.scores | clock.laps)


def _checked(job: Job, delta: Adapter, data: Data, verdict: Verdict) -> Verdict:
    """Return the verdict, if the baked file is what the delta says it is."""
    try:
        found = check_baked(job, delta, data.held_out, verdict.scores["held_out_after"])
    except TrainingError as error:
        return dataclasses.replace(verdict, passed=False, reason=str(error))
    return dataclasses.replace(verdict, scores=verdict.scores | found)


def _train(
    job: Job, decoder: Decoder, recipe: Recipe, data: Data, plan: Plan, report: PipeReport, parking: Parking
) -> TrainResult:
    """Run the loop as planned, on from the active live adapter if there is one that fits."""
    planner.carry_out(plan, decoder)
    start = _start(job, decoder, recipe.config.rank)
    rate = recipe.config.learning_rate * (1.0 if start is None else CONTINUED_RATE)
    config = dataclasses.replace(
        recipe.config, learning_rate=rate, micro_tokens=plan.micro_tokens, max_steps=plan.steps
    )
    report.begin()
    return train(
        decoder,
        recipe.epochs,
        stopping_set(recipe, data),
        recipe.objective,
        config,
        report,
        checkpoint_dir=Path(job.checkpoint_dir),
        start=start,
        parking=parking,
    )


def _start(job: Job, decoder: Decoder, rank: int) -> Adapter | None:
    """Return the active live adapter if training can go on from it, of a higher rank the nearest of this rank.

    It cannot if layers were taken out of training since: what it holds of them would be lost.
    """
    if job.start_adapter is None:
        return None
    adapter = read_adapter(Path(job.start_adapter))
    trained = {delta.name for delta in decoder.deltas}
    if not set(adapter.tensors) <= trained:
        return None
    ranks = [len(factors.a) for factors in adapter.tensors.values() if isinstance(factors, LowRank)]
    return recompress(adapter, rank) if max(ranks, default=0) > rank else adapter


def _delta(job: Job, decoder: Decoder) -> Adapter:
    """Return what was trained, with what it is known by later."""
    return decoder.export({"base_sha256": job.base_sha256, "data_hash": job.data_hash, "parent": str(job.parent)})


def _write(job: Job, delta: Adapter) -> dict[str, Any]:
    """Write the adapter, or bake the delta into a copy of the base; return what baking measured."""
    if job.kind == "live":
        write_adapter(Path(job.output), delta)
        return {}
    report = bake(Path(job.base), delta, Path(job.output))
    return {
        "baked_tensors": report.tensors,
        "baked_changed_bytes": report.changed_bytes,
        "baked_max_relative_rounding": report.max_relative_rounding,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_checkpoints(directory: Path) -> None:
    """The run has come to its end; what it could have resumed from is of no more use."""
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


if __name__ == "__main__":
    sys.exit(main())
