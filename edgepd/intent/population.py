"""Training a predictor on a population (PITuning, section 3.2), with or without a teacher.

The idea: cross-entropy of the next intent, plus that of events that are masked and reconstructed (eq. 5); with a
teacher, its outputs as well (eq. 6 and 7). With `renamed`, each window has its intents in random slots, so that what is
learned holds for any names. The invariant: the same windows, settings and seed give the same predictor.
What this does not do: choose users or tune to one of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edgepd.intent.batches import Batch, shuffled
from edgepd.intent.encode import Encoded
from edgepd.intent.losses import distillation
from edgepd.intent.predictor import Predictor

WARM_UP_STEPS = 50
MAX_NORM = 1.0


@dataclass(frozen=True)
class PopulationTraining:
    """How a predictor is trained on a population; the paper's values where it gives them and they work."""

    epochs: int = 8
    learning_rate: float = 1e-3  # the paper's 0.01 does not converge with these blocks
    weight_decay: float = 0.01
    rows: int = 32  # windows of a batch
    reconstruction: float = 1.0  # weight of the masked reconstruction; 0 is the ablation
    masked_share: float = 0.15  # not stated in the paper
    alpha: float = 0.5  # of the teacher, where there is one
    temperature: float = 1.0
    renamed: bool = False
    seed: int = 0


OnEpoch = Callable[[int, float], None]


def train_population(
    predictor: Predictor,
    windows: Sequence[Encoded],
    training: PopulationTraining,
    teacher: Predictor | None = None,
    on_epoch: OnEpoch = lambda _epoch, _loss: None,
) -> None:
    """Train in place; `on_epoch` is told the number of the epoch and its mean loss in nats per place."""
    rng, generator = random.Random(training.seed), torch.Generator().manual_seed(training.seed)  # noqa: S311
    torch.manual_seed(training.seed)  # dropout has no generator of its own
    trained = [p for p in predictor.parameters() if p.requires_grad]
    reconstruct = _Reconstruction(predictor, training, generator)
    optimiser = torch.optim.AdamW(
        [*trained, *reconstruct.parameters()], lr=training.learning_rate, weight_decay=training.weight_decay
    )
    steps = training.epochs * math.ceil(len(windows) / training.rows)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    if teacher is not None:
        teacher.eval()
    for epoch in range(training.epochs):
        predictor.train()
        total, places = 0.0, 0
        for batch in shuffled(windows, training.rows, rng):
            if training.renamed:
                batch = batch.renamed(predictor.shape.intents, generator)
            batch = predictor.targets(batch)
            count = int(batch.counted.sum())
            if count == 0:
                continue
            loss = _prediction_loss(predictor, batch, training, teacher)
            total, places = total + loss.item() * count, places + count
            optimiser.zero_grad()
            (loss + reconstruct(batch)).backward()
            nn.utils.clip_grad_norm_([*trained, *reconstruct.parameters()], MAX_NORM)
            optimiser.step()
            schedule.step()
        on_epoch(epoch, total / max(1, places))
    predictor.eval()


def _prediction_loss(
    predictor: Predictor, batch: Batch, training: PopulationTraining, teacher: Predictor | None
) -> Tensor:
    where = batch.counted
    logits, target = predictor(batch)[where], batch.target[where]
    if teacher is None:
        return cross_entropy(logits, target)
    with torch.no_grad():
        taught = teacher(batch)[where]
    return distillation(logits, taught, target, training.alpha, training.temperature)


class _Reconstruction(nn.Module):
    """Masked event reconstruction: an MLP over H_m that tells the events that were masked (algorithm 1, l. 4 to 6).

    Line 6 of the algorithm as printed reads H_t, which was not masked; it has to be H_m.
    """

    def __init__(self, predictor: Predictor, training: PopulationTraining, generator: torch.Generator) -> None:
        super().__init__()
        shape = predictor.shape
        self._predictor = [predictor]  # not a submodule: its parameters are trained as its own
        self._training, self._generator = training, generator
        classes = shape.events + 1 if shape.offsets else shape.intents + 1
        self.layers = nn.Sequential(nn.Linear(shape.hidden, shape.hidden), nn.GELU(), nn.Linear(shape.hidden, classes))

    def forward(self, batch: Batch) -> Tensor:
        """Return the weighted loss; 0 if nothing is to be reconstructed."""
        (predictor,) = self._predictor
        if self._training.reconstruction == 0:
            return torch.zeros(())
        masked, where = batch.hidden_events(self._training.masked_share, predictor.shape.intents, self._generator)
        if not bool(where.any()):
            return torch.zeros(())
        wanted = batch.event if predictor.shape.offsets else batch.intent
        found = self.layers(predictor.hidden(masked)[where])
        return self._training.reconstruction * cross_entropy(found, wanted[where])


def _rate(step: int, steps: int) -> float:
    """Rise over the first steps, then fall as a cosine to 0."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))


def distilled(
    teacher: Predictor,
    student: Predictor,
    windows: Sequence[Encoded],
    training: PopulationTraining,
    on_epoch: OnEpoch = lambda _epoch, _loss: None,
) -> Predictor:
    """Train the student on what the teacher says and on what happened (PITuning, section 3.2.5), and return it."""
    train_population(student, windows, replace(training, reconstruction=0.0), teacher, on_epoch)
    return student
