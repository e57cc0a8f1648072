"""Adaptive unlearning: which intents a user's model forgets, and how (PITuning, section 3.3.1).

The idea: an intent that a population hardly shows, or much less than this user does, is learned with the population's
bias; the bias is taken out before the user's own data is learned. The invariants: unlearning is bounded (losses.py) and
stops at chance, within a fixed number of steps, so that it cannot diverge; the same data and settings give the same.
What this does not do: make anybody's data be forgotten; that is what forgetting in the profile is for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edgepd.adapt.adamw import AdamW
from edgepd.intent.batches import Batch
from edgepd.intent.losses import bounded_unlearning
from edgepd.intent.predictor import Predictor

MAX_NORM = 1.0


@dataclass(frozen=True)
class Unlearning:
    """How intents are forgotten. The paper gives the weight only: neither threshold, nor rate, nor number of steps."""

    threshold: float = 0.01  # epsilon of eq. 8; share of an intent among all that the population's model puts first
    weight: float = 1.0  # lambda of eq. 11
    learning_rate: float = 3e-4  # at 1e-3 what is forgotten cannot be learned again in a few steps
    max_steps: int = 60


@dataclass(frozen=True)
class Unlearned:
    """What came of it; recalls and losses (nats) are means over the places whose intent was to be forgotten."""

    steps: int
    recall_before: float
    recall_after: float
    loss_before: float
    loss_after: float


def forget_set(
    output_share: Sequence[float], population_share: Sequence[float], own_share: Sequence[float], threshold: float
) -> set[int]:
    """Return the classes to forget: static (eq. 8) or dynamic (eq. 9), eq. 10; of those, the ones that the user shows.

    Each sequence has one share for each class. A class that the user never showed cannot be learned anew, and there is
    no data of the user to forget it with: the paper does not say what it does then.
    """
    average = 1 / len(output_share)
    static = {i for i, share in enumerate(output_share) if share < threshold}
    pairs = enumerate(zip(population_share, own_share, strict=True))
    dynamic = {i for i, (population, own) in pairs if population < average < own}
    return {i for i in static | dynamic if own_share[i] > 0}


def unlearn(predictor: Predictor, batch: Batch, forget: set[int], settings: Unlearning) -> Unlearned:
    """Change the predictor in place until it knows no more of these classes than chance on this batch.

    It stops when their recall is at most 1 / classes and their mean loss at least log(classes), or after `max_steps`.
    """
    batch = predictor.targets(batch)
    where = batch.counted
    target = batch.target[where]
    classes = predictor.shape.intents
    marked = torch.zeros(classes, dtype=torch.bool)
    marked[sorted(forget)] = True
    gone = marked[target]
    predictor.eval()
    with torch.no_grad():
        original = predictor(batch)[where]
    before = after = _measured(original, target, gone)
    steps = 0
    trained = [p for p in predictor.parameters() if p.requires_grad]
    optimiser = fresh(trained)
    while steps < settings.max_steps and not _at_chance(after, classes):
        loss = bounded_unlearning(predictor(batch)[where], target, marked, original, settings.weight)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, MAX_NORM)
        optimiser.step(settings.learning_rate)
        steps += 1
        with torch.no_grad():
            after = _measured(predictor(batch)[where], target, gone)
    return Unlearned(steps, before[0], after[0], before[1], after[1])


def fresh(parameters: Sequence[nn.Parameter]) -> AdamW:
    """Return Adam for these parameters, which have no gradients then: no decay, the same rate for all."""
    for parameter in parameters:
        parameter.grad = None
    return AdamW(parameters, [1.0] * len(parameters), weight_decay=0.0)


def _measured(logits: Tensor, target: Tensor, gone: Tensor) -> tuple[float, float]:
    """Return the recall and the mean loss where `gone`; as at chance if that is nowhere."""
    if not bool(gone.any()):
        return 0.0, math.inf
    logits, target = logits[gone], target[gone]
    recall = (logits.argmax(-1) == target).float().mean().item()
    return recall, cross_entropy(logits, target).item()


def _at_chance(measured: tuple[float, float], classes: int) -> bool:
    return measured[0] <= 1 / classes and measured[1] >= math.log(classes)
