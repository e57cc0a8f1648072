"""Training the scorer (scorer.py) on a population.

The idea: every event of everybody is one example: the features of all candidates just before it, and which of them it
was. The invariants: an example knows nothing but what came before it; the same people, settings and seed give the same
scorer. Where names are open, only what a person did before can be right, as in predictor.py.
What this does not do: tune to one person. The features follow a person by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, gelu

from edgepd.intent.candidates import FEATURES, Past, features
from edgepd.intent.schema import Event, Names
from edgepd.intent.scorer import HIDDEN, TABLES
from edgepd.intent.shape import Shape
from edgepd.intent.weights_file import Floats

OnEpoch = Callable[[int, float], None]


@dataclass(frozen=True)
class ScorerTraining:
    """How a scorer is trained; chosen on validation events of `make bench-intent`."""

    epochs: int = 5
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    rows: int = 256  # events of a batch
    dropout: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """N events: features (N, C, FEATURES), slots of the candidates (N, C + 1), places of the last two, and the truth.

    Rows of candidates that a person did not have yet are padding, and `there` is False for them. The last slot is 0,
    for place -1: nothing before.
    """

    features: Tensor
    there: Tensor
    slots: Tensor
    last: Tensor
    target: Tensor


class Scorer(nn.Module):
    """`forward` maps N examples to logits (N, C)."""

    def __init__(self, shape: Shape, examples: Tensor, there: Tensor, *, drop: float = 0.0) -> None:
        """Take the scale of the features from examples (N, C, FEATURES); weights are drawn from torch's generator."""
        super().__init__()
        known = examples[there]
        self.least: Tensor = known.amin(0)
        self.most: Tensor = known.amax(0)
        self.mean: Tensor = known.mean(0)
        self.scale: Tensor = known.std(0).clamp(min=1e-3)
        self.into, self.middle = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1, bias=False)
        rows = 0 if shape.open_names else shape.intents + 1
        self.tables = nn.ParameterList(nn.Parameter(0.1 * torch.randn(rows, HIDDEN)) for _ in TABLES if rows)
        self._drop = drop

    def forward(self, batch: Examples) -> Tensor:
        """Return the logits, -inf for padding."""
        inner = self.into((batch.features - self.mean) / self.scale)
        if len(self.tables):
            own, last, last_but_one = self.tables
            before = batch.slots.gather(1, batch.last)  # (N, 2)
            inner = inner + own[batch.slots[:, :-1]] + last[before[:, :1]] + last_but_one[before[:, 1:]]
        inner = dropout(gelu(inner, approximate="tanh"), self._drop, self.training)
        inner = dropout(gelu(self.middle(inner), approximate="tanh"), self._drop, self.training)
        logits: Tensor = self.out(inner)[..., 0]
        return logits.masked_fill(~batch.there, -math.inf)

    def exported(self) -> dict[str, Floats]:
        """Return the arrays that scorer.py runs on, with the scale of the features in the first layer."""
        weight = self.into.weight / self.scale
        found = {
            "scorer.least": self.least,
            "scorer.most": self.most,
            "scorer.in.weight": weight,
            "scorer.in.bias": self.into.bias - weight @ self.mean,
            "scorer.middle.weight": self.middle.weight,
            "scorer.middle.bias": self.middle.bias,
            "scorer.out.weight": self.out.weight,
        } | dict(zip(TABLES, self.tables, strict=False))
        return {name: value.detach().numpy().astype(np.float32) for name, value in found.items()}


def train_scorer(
    shape: Shape,
    people: Sequence[Sequence[Event]],
    names: Names,
    training: ScorerTraining | None = None,
    on_epoch: OnEpoch = lambda _epoch, _loss: None,
) -> dict[str, Floats]:
    """Return the arrays of a scorer trained on people, each with events in order of time.

    `names` are the slots where names are not open. `on_epoch` is told the number of the epoch and its mean loss in nats
    per event.
    """
    training = training or ScorerTraining()
    torch.manual_seed(training.seed)
    examples = examples_of(shape, people, names)
    scorer = Scorer(shape, examples.features, examples.there, drop=training.dropout)
    optimiser = torch.optim.AdamW(scorer.parameters(), training.learning_rate, weight_decay=training.weight_decay)
    count = len(examples.target)
    steps = training.epochs * math.ceil(count / training.rows)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    for epoch in range(training.epochs):
        total = 0.0
        order = torch.randperm(count)
        for start in range(0, count, training.rows):
            chosen = order[start : start + training.rows]
            batch = _part(examples, chosen)
            loss = cross_entropy(scorer(batch), batch.target)
            total += loss.item() * len(chosen)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        on_epoch(epoch, total / max(1, count))
    return scorer.eval().exported()


def examples_of(shape: Shape, people: Sequence[Sequence[Event]], names: Names) -> Examples:
    """Return an example for each event that a scorer can be right about. Raises ValueError if there is none."""
    found = [example for events in people for example in (_open if shape.open_names else _closed)(events, names.names)]
    if not found:
        raise ValueError("no event to learn from: each is the first of its intent, or of an unknown one")
    widest = max(len(rows) for rows, _, _ in found)
    table = np.zeros((len(found), widest, FEATURES), np.float32)
    there = np.zeros((len(found), widest), bool)
    for place, (rows, _, _) in enumerate(found):
        table[place, : len(rows)], there[place, : len(rows)] = rows, True
    last = torch.tensor([[widest if place < 0 else place for place in before] for _, before, _ in found])
    slots = torch.arange(1, widest + 2).repeat(len(found), 1)
    slots[:, -1] = 0
    target = torch.tensor([code for _, _, code in found])
    return Examples(torch.from_numpy(table), torch.from_numpy(there), slots, last, target)


_Example = tuple[Floats, tuple[int, int], int]  # features of the candidates, codes of the last two, code of the truth


def _open(events: Sequence[Event], _names: Sequence[str]) -> list[_Example]:
    """Candidates are what the person did before; their codes are in the order of first appearance."""
    codes: dict[str, int] = {}
    for event in events:
        codes.setdefault(event.intent, len(codes))
    past, seen, found = Past.of(events, codes), 0, []
    for place, event in enumerate(events):
        if codes[event.intent] < seen:
            found.append(_example(past.before(place), seen, event, codes))
        seen = max(seen, codes[event.intent] + 1)
    return found


def _closed(events: Sequence[Event], names: Sequence[str]) -> list[_Example]:
    """Candidates are all names; a code is the slot minus 1."""
    codes = {name: code for code, name in enumerate(names)}
    past = Past.of(events, codes)
    return [_example(past.before(place), len(names), event, codes) for place, event in enumerate(events)]


def _example(past: Past, candidates: int, event: Event, codes: dict[str, int]) -> _Example:
    rows = features(past, candidates, event.at, event.utc_offset_s)
    return rows, (past.last(1), past.last(2)), codes[event.intent]


def _part(examples: Examples, chosen: Tensor) -> Examples:
    return Examples(
        examples.features[chosen],
        examples.there[chosen],
        examples.slots[chosen],
        examples.last[chosen],
        examples.target[chosen],
    )
