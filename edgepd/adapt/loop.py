"""The training loop: from batch to step to report to checkpoint, whatever the objective.

The idea: a few epochs of AdamW over a few dozen examples, stopped when a held-out part stops improving, and
the best state kept. The invariant: with the same inputs, settings and number of threads the result is the
same, bit by bit, whether or not the run was killed, or parked, and resumed on the way. A run that is parked saves the
state after its last whole step; what had been computed of the next one is dropped.
What this does not do: choose what an epoch holds (see shaping.py) or what it costs (see planner.py), judge whether the
result may be served (the gate does, in llama.cpp, on examples never seen here), or pause (that is done from outside).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, parameters_to_vector

from edgepd.adapt.checkpoint import Checkpoint, Progress, load, save
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Batch, Encoded
from edgepd.adapt.hyperparameters import TrainConfig, adapt, learning_rate, optimizer
from edgepd.adapt.objectives import SFT, Objective
from edgepd.adapt.parking import Parking, ParkNow
from edgepd.errors import StoreError, TrainingError
from edgepd_quant.adapter_file import Adapter

log = logging.getLogger(__name__)

CHECKPOINT_NAME = "checkpoint.npz"


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    Losses are the objective's on held-out examples (nats per supervised token for SFT); best_epoch 0 means that nothing
    beat the start.
    """

    steps: int
    best_epoch: int
    held_out: tuple[float, ...]  # before training, then after each epoch; empty without a held-out set
    stopped_early: bool
    resumed_at_step: int
    seconds: float
    tokens_per_second: float  # real tokens, prompt and answer, over the time spent in steps
    ignored_checkpoint: str | None  # why a checkpoint that was there was not used


class Report(Protocol):
    """Receives progress; both methods are called between optimiser steps."""

    def on_step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
        """After each optimiser step; loss as the objective defines it, of this batch."""

    def on_eval(self, epoch: int, held_out_loss: float) -> None:
        """After each evaluation; epoch 0 is before training."""


def train(
    decoder: Decoder,
    epochs: Sequence[Sequence[Batch]],
    held_out: Sequence[Encoded],
    objective: Objective,
    config: TrainConfig,
    report: Report,
    *,
    checkpoint_dir: Path | None = None,
    start: Adapter | None = None,
    parking: Parking | None = None,
) -> TrainResult:
    """Train deltas on the batches of each epoch and leave the decoder with the best state.

    The deltas are fresh, or those of the adapter `start`. Best is judged on held_out (without one, the last state is
    kept). With a checkpoint_dir the run goes on from a checkpoint of the very same run found there. Raises
    TrainingError if there is nothing to train on or the loss is not finite, and ParkNow when `parking` is asked to park
    and the state is saved.
    """
    parking = parking or Parking()
    run = _Run(decoder, epochs, held_out, objective, config, checkpoint_dir, start, parking)
    started, first_step = time.monotonic(), run.progress.step
    try:
        tokens_per_second = _go(run, report)
    except ParkNow:
        run.park()
        raise
    run.restore_best()
    return TrainResult(
        steps=run.progress.step,
        best_epoch=run.progress.best_epoch,
        held_out=run.progress.held_out,
        stopped_early=run.progress.step < run.total_steps,
        resumed_at_step=first_step,
        seconds=time.monotonic() - started,
        tokens_per_second=tokens_per_second,
        ignored_checkpoint=run.ignored_checkpoint,
    )


def _go(run: _Run, report: Report) -> float:
    """Go through what is left of the epochs; return the tokens per second of the steps."""
    tokens_seen, seconds_stepping, saved_at = 0, 0.0, time.monotonic()
    if run.is_judged and not run.progress.held_out:
        run.end_epoch(0, report)
    for epoch in range(run.progress.epoch, len(run.epochs) + 1):
        # A run that was killed after its last step has yet to judge the epoch that the step ended.
        if run.out_of_patience or (run.progress.step >= run.total_steps and run.progress.batch == 0):
            break
        for batch in run.epochs[epoch - 1][run.progress.batch :]:
            if run.progress.step >= run.total_steps:
                break
            began = time.monotonic()
            loss = run.step(batch)
            seconds = time.monotonic() - began
            tokens = sum(len(tokens) for e in batch.examples for tokens, _ in run.objective_of(batch).sequences(e))
            tokens_seen, seconds_stepping = tokens_seen + tokens, seconds_stepping + seconds
            report.on_step(run.progress.step, run.total_steps, loss, tokens / seconds)
            if time.monotonic() - saved_at >= run.checkpoint_seconds:
                run.save()
                saved_at = time.monotonic()
        run.end_epoch(epoch, report)
        run.save()
        saved_at = time.monotonic()
    return tokens_seen / seconds_stepping if seconds_stepping else 0.0


class _Run:
    """The mutable state of a run: parameters, optimiser, progress and best state, and how they are saved."""

    def __init__(
        self,
        decoder: Decoder,
        epochs: Sequence[Sequence[Batch]],
        held_out: Sequence[Encoded],
        objective: Objective,
        config: TrainConfig,
        checkpoint_dir: Path | None,
        start: Adapter | None,
        parking: Parking,
    ) -> None:
        self.epochs = [_useful(epoch, objective) for epoch in epochs]
        if not any(self.epochs):
            raise TrainingError("there is no example with a positive weight to train on; collect some feedback first")
        self._decoder, self._objective, self._config, self._held_out = decoder, objective, config, held_out
        self._parking, self._imitation = parking, SFT()
        self.is_judged, self.checkpoint_seconds = bool(held_out), config.checkpoint_seconds
        count = sum(len(epoch) for epoch in self.epochs)
        self.total_steps = count if config.max_steps is None else min(count, config.max_steps)
        adapt(decoder, config)
        if start is not None:
            decoder.load(start)
        self._parameters = decoder.parameters
        self._optimizer = optimizer(decoder, config)
        self.progress = Progress()
        self._best = parameters_to_vector(self._parameters).detach()
        self.ignored_checkpoint: str | None = None
        self._path = None
        if checkpoint_dir is not None:
            self._path = checkpoint_dir / CHECKPOINT_NAME
            first = hashlib.sha256(self._best.numpy().tobytes()).hexdigest()
            settings = dataclasses.asdict(config) | {"checkpoint_seconds": None}
            facts = (decoder.model.sha256(), first, settings, objective.identity())
            self._fingerprint = fingerprint(facts, self.epochs, held_out)
            if self._path.exists():
                self._resume(self._path)
        self._saved_step = parking.step = self.progress.step
        personal = {e.id: e for epoch in self.epochs for b in epoch if not b.general for e in b.examples}
        objective.prepare(decoder, [*personal.values(), *held_out], config.micro_tokens)

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` epochs brought nothing better."""
        return len(self.progress.held_out) - 1 - self.progress.best_epoch >= self._config.patience

    def objective_of(self, batch: Batch) -> Objective:
        """General examples are imitated, whatever the objective."""
        return self._imitation if batch.general else self._objective

    def step(self, batch: Batch) -> float:
        """Make one optimiser step on a batch and return its loss."""
        rate = learning_rate(self._config, self.progress.step, self.total_steps)
        objective, loss = self.objective_of(batch), 0.0
        for part in objective.parts(self._decoder, batch.examples, self.progress.step, self._config.micro_tokens):
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        norm = clip_grad_norm_(self._parameters, self._config.clip_norm)
        step = self.progress.step + 1
        if not math.isfinite(loss) or not torch.isfinite(norm):
            raise TrainingError(
                f"step {step}: loss {loss} with gradient norm {norm.item()} is not finite; lower the learning rate"
            )
        with self._parking.whole():
            self._optimizer.step(rate)
            self.progress = dataclasses.replace(self.progress, batch=self.progress.batch + 1, step=step)
            self._parking.step = step
        return loss

    def end_epoch(self, epoch: int, report: Report) -> None:
        """Evaluate if there is something to judge by, keep the state if it is the best so far, begin the next epoch."""
        if not self.is_judged:
            with self._parking.whole():
                self._best = parameters_to_vector(self._parameters).detach()
                self.progress = dataclasses.replace(self.progress, best_epoch=epoch, epoch=epoch + 1, batch=0)
            return
        loss, before = self._objective.evaluate(self._decoder, self._held_out, self._config.micro_tokens), self.progress
        with self._parking.whole():
            best_epoch = before.best_epoch
            if not before.held_out or loss < min(before.held_out):
                self._best, best_epoch = parameters_to_vector(self._parameters).detach(), epoch
            held_out = (*before.held_out, loss)
            self.progress = dataclasses.replace(
                before, epoch=epoch + 1, batch=0, held_out=held_out, best_epoch=best_epoch
            )
        report.on_eval(epoch, loss)

    def restore_best(self) -> None:
        """Put the best state back into the deltas."""
        self._set_parameters(self._best)

    def save(self) -> None:
        """Write the checkpoint, if there is a place for it."""
        if self._path is None:
            return
        moments = (parameters_to_vector(m) for m in (self._optimizer.exp_avg, self._optimizer.exp_avg_sq))
        vectors = (parameters_to_vector(self._parameters).detach(), *moments, self._best)
        with self._parking.whole():
            save(self._path, Checkpoint(self._fingerprint, self.progress, *(vector.numpy() for vector in vectors)))
            self._saved_step = self.progress.step

    def park(self) -> None:
        """Save once more; on a disk that is full, the checkpoint before is still there."""
        try:
            self.save()
        except StoreError as error:
            log.warning("parked with the checkpoint of step %d: %s", self._saved_step, error)
        self._parking.step = self._saved_step

    def _resume(self, path: Path) -> None:
        try:
            checkpoint = load(path, self._fingerprint, len(self._best))
        except TrainingError as error:
            self.ignored_checkpoint = str(error)
            return
        self.progress = checkpoint.progress
        self._best = torch.from_numpy(checkpoint.best)
        self._set_parameters(torch.from_numpy(checkpoint.parameters))
        self._optimizer.steps = checkpoint.progress.step
        _fill(self._optimizer.exp_avg, torch.from_numpy(checkpoint.exp_avg))
        _fill(self._optimizer.exp_avg_sq, torch.from_numpy(checkpoint.exp_avg_sq))

    def _set_parameters(self, vector: Tensor) -> None:
        _fill(self._parameters, vector)


@torch.no_grad()
def _fill(tensors: Sequence[Tensor], vector: Tensor) -> None:
    """Copy the vector into the tensors, one after the other.

    In place: as views of the vector they would lie elsewhere in memory, and how a matrix is aligned decides in which
    order a product adds up.
    """
    for tensor, part in zip(tensors, torch.split(vector, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def fingerprint(facts: object, epochs: Sequence[Sequence[Batch]], held_out: Sequence[Encoded]) -> str:
    """Return a SHA-256 over everything that decides the outcome of a run; `facts` must fit into JSON."""
    content = [facts, [[dataclasses.asdict(b) for b in e] for e in epochs], [dataclasses.asdict(e) for e in held_out]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _useful(epoch: Sequence[Batch], objective: Objective) -> list[Batch]:
    """Leave out what has no weight."""
    imitation = SFT()
    found = []
    for batch in epoch:
        weight = (imitation if batch.general else objective).weight
        found.append(Batch(tuple(e for e in batch.examples if weight(e) > 0), batch.general))
    return [batch for batch in found if batch.examples]
