"""Tuning the student to one person, on the device (PITuning, section 3.3 and algorithm 1).

The idea: bounded unlearning of what the population is biased about, if there is any; then a few steps of cross-entropy
on the person's own events, the newest window by window. The invariants: the same events, settings and seed give the
same student; the student that it starts from is not changed.
What this does not do: judge the result (gate.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edgepd.adapt.adamw import AdamW
from edgepd.intent.batches import Batch, batch_of
from edgepd.intent.encode import Encoded, encode
from edgepd.intent.predictor import Predictor
from edgepd.intent.schema import Event
from edgepd.intent.student import Student
from edgepd.intent.unlearn import MAX_NORM, Unlearning, forget_set, fresh, unlearn
from edgepd.settings import Intent

OnStep = Callable[[int, int, float], None]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Tuning:
    """How a predictor is tuned to a person; chosen on validation events of the benchmark (docs/intent-results.md)."""

    epochs: int = 15  # passes over all windows
    learning_rate: float = 1e-4
    rows: int = 8  # windows of a batch
    unlearning: Unlearning | None = Unlearning()


@dataclass(frozen=True)
class Tuned:
    """A tuned student, and what is known of the tuning."""

    student: Student
    report: dict[str, Any]


def tune(
    student: Student,
    events: Sequence[Event],
    settings: Intent,
    seed: int,
    on_step: OnStep,
    tuning: Tuning | None = None,
) -> Tuned:
    """Return a student tuned to these events, which are in order of time; its vocabulary knows their names."""
    tuning = tuning or Tuning()
    events = events[-settings.max_events :]
    names = student.known(events)
    torch.manual_seed(seed)
    predictor = Predictor(student.shape)
    predictor.load(dict(student.weights))
    encoded = encode(events, names)
    windows = overlapping(encoded, student.shape.window)
    forget = set[int]()
    if tuning.unlearning is not None and student.population.get("share"):
        forget = forget_set(
            student.population["output"],
            student.population["share"],
            shares(encoded, student),
            tuning.unlearning.threshold,
        )
    report = tune_predictor(predictor, windows, forget, tuning, on_step)
    provenance = dict(student.provenance) | {"tuned_on": len(events), "seed": seed}
    weights = {**student.weights, **predictor.exported()}
    tuned = replace(student, weights=weights, vocabulary=names, provenance=provenance)
    return Tuned(tuned, report | {"events": len(events), "windows": len(windows), "tuning": asdict(tuning)})


def tune_predictor(
    predictor: Predictor,
    windows: Sequence[Encoded],
    forget: set[int],
    tuning: Tuning,
    on_step: OnStep = lambda _step, _steps, _loss: None,
    loss_of: Loss = cross_entropy,
) -> dict[str, Any]:
    """Unlearn and tune in place; return what came of both. Dropout is off: there is too little data to waste any."""
    batches = [batch_of(windows[i : i + tuning.rows]) for i in range(0, len(windows), tuning.rows)]
    report: dict[str, Any] = {"forgotten": len(forget)}
    predictor.eval()
    if forget and tuning.unlearning is not None:
        report["unlearned"] = asdict(unlearn(predictor, batches[-1], forget, tuning.unlearning))
    trained = [p for p in predictor.parameters() if p.requires_grad]
    optimiser = fresh(trained)
    loss, steps = float("nan"), tuning.epochs * len(batches)
    for step in range(steps):
        found = _step(predictor, batches[step % len(batches)], optimiser, tuning.learning_rate, loss_of)
        loss = loss if found is None else found
        on_step(step + 1, steps, loss)
    return report | {"loss": loss, "steps": steps}


def _step(predictor: Predictor, batch: Batch, optimiser: AdamW, learning_rate: float, loss_of: Loss) -> float | None:
    batch = predictor.targets(batch)
    where = batch.counted
    if not bool(where.any()):
        return None
    loss = loss_of(predictor(batch)[where], batch.target[where])
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(optimiser.parameters, MAX_NORM)
    optimiser.step(learning_rate)
    return loss.item()


def overlapping(encoded: Encoded, length: int) -> list[Encoded]:
    """Return windows that end at the newest event, each half a window before the next; the oldest one may be short.

    So all but the first of them predict with some history, and the newest events are learned with the most.
    """
    stops = range(len(encoded), 0, -max(1, length // 2))
    found = [encoded.part(max(0, stop - length), stop) for stop in stops]
    return found[::-1] if len(encoded) > length else [encoded]


def shares(encoded: Encoded, student: Student) -> list[float]:
    """Return the share of each intent among the events, by slot minus 1."""
    counts = [0] * student.shape.intents
    for slot in encoded.target.tolist():
        if slot >= 0:
            counts[slot] += 1
    total = sum(counts) or 1
    return [count / total for count in counts]
