"""Supervised fine-tuning of a delta: one loop from batch to step to report.

The idea: a few epochs of AdamW over a few dozen examples, stopped when a held-out part stops improving, and
the best state kept. The invariant: with the same inputs, settings and number of threads the result is the
same, whether or not the run was killed and resumed on the way.
What this does not do: judge whether the result may be served (the gate does, in llama.cpp, on examples never
seen here), or pause (a callback may block between steps).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from edgepd.adapt.batches import batch_nll, epoch_batches, held_out_loss, micro_batches
from edgepd.adapt.checkpoint import Checkpoint, Progress, load, save
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded
from edgepd.errors import TrainingError
from edgepd_quant.adapter_file import Kind

CHECKPOINT_NAME = "checkpoint.npz"


@dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters of one run."""

    kind: Kind = "lora"
    rank: int = 8
    alpha: float = 16.0  # of 'lora': the delta counts alpha / rank times
    learning_rate: float = 1.75e-3  # peak; that of 'scale' is best about six times higher
    epochs: int = 3  # of a dozen short examples; at 2e-3 the held-out loss rises again after the third
    batch: int = 4  # sequences per optimiser step; LoRA dislikes large batches
    micro_tokens: int = 512  # padded tokens per backward pass; more is slower on CPUs, not faster
    weight_decay: float = 0.01
    warmup_fraction: float = 0.1
    clip_norm: float = 1.0
    patience: int = 2  # epochs without a better held-out loss before the run stops
    seed: int = 0
    checkpoint_seconds: float = 10.0


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    Losses are nats per supervised held-out token; best_epoch 0 means nothing beat the base.
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
    """Receives progress; both methods are called between optimiser steps and may block."""

    def on_step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
        """After each optimiser step; loss in nats per supervised token of the batch."""

    def on_eval(self, epoch: int, held_out_loss: float) -> None:
        """After each evaluation; epoch 0 is before training."""


def train(
    decoder: Decoder,
    train_set: Sequence[Encoded],
    held_out: Sequence[Encoded],
    config: TrainConfig,
    report: Report,
    checkpoint_dir: Path | None = None,
) -> TrainResult:
    """Train fresh deltas on train_set and leave the decoder with the best state.

    Best is judged on held_out (without one, the last state is kept). With a checkpoint_dir the run goes on
    from a checkpoint of the very same run found there. Raises TrainingError if there is nothing to train on
    or the loss is not finite.
    """
    train_set = [example for example in train_set if example.weight > 0]
    if not train_set:
        raise TrainingError("there is no example with a positive weight to train on; collect some feedback first")
    started = time.monotonic()
    run = _Run(decoder, train_set, held_out, config, checkpoint_dir)
    batches_per_epoch = math.ceil(len(train_set) / config.batch)
    total_steps = config.epochs * batches_per_epoch
    first_step = run.progress.step
    tokens_seen, seconds_stepping, saved_at = 0, 0.0, time.monotonic()
    if held_out and not run.progress.held_out:
        run.note_held_out(0, held_out_loss(decoder, held_out, config.micro_tokens), report)
    for epoch in range(run.progress.epoch, config.epochs + 1):
        if run.out_of_patience:
            break
        batches = epoch_batches(train_set, config.batch, config.seed, epoch)
        for batch in batches[run.progress.batch :]:
            began = time.monotonic()
            loss = run.step(batch, learning_rate(config, run.progress.step, total_steps))
            seconds, tokens = time.monotonic() - began, sum(len(example.tokens) for example in batch)
            tokens_seen, seconds_stepping = tokens_seen + tokens, seconds_stepping + seconds
            report.on_step(run.progress.step, total_steps, loss, tokens / seconds)
            if time.monotonic() - saved_at >= config.checkpoint_seconds:
                run.save()
                saved_at = time.monotonic()
        if held_out:
            run.note_held_out(epoch, held_out_loss(decoder, held_out, config.micro_tokens), report)
        else:
            run.keep_as_best(epoch)
        run.progress = dataclasses.replace(run.progress, epoch=epoch + 1, batch=0)
        run.save()
        saved_at = time.monotonic()
    run.restore_best()
    return TrainResult(
        steps=run.progress.step,
        best_epoch=run.progress.best_epoch,
        held_out=run.progress.held_out,
        stopped_early=run.progress.epoch <= config.epochs,
        resumed_at_step=first_step,
        seconds=time.monotonic() - started,
        tokens_per_second=tokens_seen / seconds_stepping if seconds_stepping else 0.0,
        ignored_checkpoint=run.ignored_checkpoint,
    )


class _Run:
    """The mutable state of a run: parameters, optimiser, progress and best state, and how they are saved."""

    def __init__(
        self,
        decoder: Decoder,
        train_set: Sequence[Encoded],
        held_out: Sequence[Encoded],
        config: TrainConfig,
        checkpoint_dir: Path | None,
    ) -> None:
        self._decoder = decoder
        self._config = config
        deltas = decoder.adapt(config.kind, rank=config.rank, alpha=config.alpha, seed=config.seed)
        self._parameters = [factor for delta in deltas for factor in (delta.a, delta.b)]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.progress = Progress()
        self._best = parameters_to_vector(self._parameters).detach()
        self.ignored_checkpoint: str | None = None
        self._path = None
        if checkpoint_dir is not None:
            self._path = checkpoint_dir / CHECKPOINT_NAME
            self._fingerprint = fingerprint(decoder.model.sha256(), train_set, held_out, config)
            if self._path.exists():
                self._resume(self._path)

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` epochs brought nothing better."""
        return len(self.progress.held_out) - 1 - self.progress.best_epoch >= self._config.patience

    def step(self, batch: Sequence[Encoded], rate: float) -> float:
        """Make one optimiser step on the weighted mean over the supervised tokens of the batch.

        Return that mean.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        normalizer = sum(example.weight * example.supervised for example in batch)
        loss = 0.0
        for micro in micro_batches(batch, self._config.micro_tokens):
            part = batch_nll(self._decoder, micro, [example.weight / normalizer for example in micro])
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        norm = clip_grad_norm_(self._parameters, self._config.clip_norm)
        step = self.progress.step + 1
        if not math.isfinite(loss) or not torch.isfinite(norm):
            raise TrainingError(
                f"step {step}: loss {loss} with gradient norm {norm.item()} is not finite; lower the learning rate"
            )
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.progress = dataclasses.replace(self.progress, batch=self.progress.batch + 1, step=step)
        return loss

    def note_held_out(self, epoch: int, loss: float, report: Report) -> None:
        """Record an evaluation, and keep the state if it is the best so far."""
        if not self.progress.held_out or loss < min(self.progress.held_out):
            self.keep_as_best(epoch)
        self.progress = dataclasses.replace(self.progress, held_out=(*self.progress.held_out, loss))
        report.on_eval(epoch, loss)

    def keep_as_best(self, epoch: int) -> None:
        """Copy the parameters aside."""
        self._best = parameters_to_vector(self._parameters).detach()
        self.progress = dataclasses.replace(self.progress, best_epoch=epoch)

    def restore_best(self) -> None:
        """Put the best state back into the deltas."""
        self._set_parameters(self._best)

    def save(self) -> None:
        """Write the checkpoint, if there is a place for it."""
        if self._path is None:
            return
        states = [self._optimizer.state[parameter] for parameter in self._parameters]
        zeros = torch.zeros_like(self._best)
        moments = (
            torch.cat([state[name].flatten() for state in states]) if all(states) else zeros
            for name in ("exp_avg", "exp_avg_sq")
        )
        vectors = (parameters_to_vector(self._parameters).detach(), *moments, self._best)
        save(self._path, Checkpoint(self._fingerprint, self.progress, *(vector.numpy() for vector in vectors)))

    def _resume(self, path: Path) -> None:
        try:
            checkpoint = load(path, self._fingerprint, len(self._best))
        except TrainingError as error:
            self.ignored_checkpoint = str(error)
            return
        self.progress = checkpoint.progress
        self._best = torch.from_numpy(checkpoint.best)
        self._set_parameters(torch.from_numpy(checkpoint.parameters))
        sizes = [parameter.numel() for parameter in self._parameters]
        first = torch.split(torch.from_numpy(checkpoint.exp_avg), sizes)
        second = torch.split(torch.from_numpy(checkpoint.exp_avg_sq), sizes)
        for parameter, mean, square in zip(self._parameters, first, second, strict=True):
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(checkpoint.progress.step)),
                "exp_avg": mean.view_as(parameter).clone(),
                "exp_avg_sq": square.view_as(parameter).clone(),
            }

    def _set_parameters(self, vector: Tensor) -> None:
        with torch.no_grad():
            vector_to_parameters(vector.clone(), self._parameters)


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Rate of the step after `step` steps: linear warm-up, then half a cosine down to zero after the last."""
    warmup = max(1, round(config.warmup_fraction * total_steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))


def fingerprint(
    base_sha256: str, train_set: Sequence[Encoded], held_out: Sequence[Encoded], config: TrainConfig
) -> str:
    """Return a SHA-256 over everything that decides the outcome of a run."""
    content = {
        "base": base_sha256,
        "config": dataclasses.asdict(config) | {"checkpoint_seconds": None},
        "sets": [[dataclasses.astuple(example) for example in part] for part in (train_set, held_out)],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
