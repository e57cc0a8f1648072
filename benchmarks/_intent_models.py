"""The neural models of `make bench-intent`: encoded data, what is trained on a population, and what models predict.

The idea: everything neural goes through `edgepd.intent`, as in the product; only what is compared with is written here.
The invariant: a prediction of an event sees what its user did before it and its time, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from _intent_data import Protocol

from edgepd.intent.backbone import GGUFBlocks, GPTBlocks
from edgepd.intent.batches import batch_of, windows_of
from edgepd.intent.candidates import Past
from edgepd.intent.data import Split
from edgepd.intent.encode import Encoded, encode
from edgepd.intent.population import PopulationTraining, distilled, train_population
from edgepd.intent.predictor import Predictor
from edgepd.intent.schema import Event, Vocabulary
from edgepd.intent.scorer import scored
from edgepd.intent.shape import Shape
from edgepd.intent.weights_file import Floats
from edgepd_quant.reader import GGUFFile

Array = npt.NDArray[np.float64]

STRIDES = 4  # of a window: so many events more are predicted with the next one
LARGE_DROPOUT = 0.15


@dataclass(frozen=True)
class Sizes:
    """How much is trained."""

    width: int = 16
    layers: int = 4
    teacher_layers: int = 6
    window: int = 32  # events, as the paper has 30
    epochs: int = 6
    gguf_layers: int = 2  # blocks of the served model, which are 20 times as large as those of the student
    gguf_epochs: int = 2
    rate: float = 1e-3
    scorer_epochs: int = 5
    reconstruction: float = 0.2  # the paper's weight of 1 costs quality here; the table has both


@dataclass(frozen=True)
class Person:
    """One individual user, encoded as a whole; places before `validation` are for training, from `test` on for it."""

    encoded: Encoded
    validation: int
    test: int

    def past(self, *, whole: bool = True) -> Encoded:
        """Return what is learned from: train and validation, or train alone."""
        return self.encoded.part(0, self.test if whole else self.validation)


@dataclass(frozen=True)
class Data:
    """One draw of users as numbers; class numbers are those of the protocol."""

    drawn: Protocol
    names: Vocabulary
    population: list[Encoded]
    people: list[Person]

    @classmethod
    def of(cls, drawn: Protocol) -> Data:
        """Encode."""
        names = Vocabulary.empty(len(drawn.intents), len(drawn.intents), 0)
        for name in drawn.intents:
            names.events.learn(name)
            names.intents.learn(name)
        people = [_person(split, names) for split in drawn.individual.values()]
        return cls(drawn, names, [encode(events, names) for events in drawn.population.values()], people)

    def windows(self, length: int) -> list[Encoded]:
        """Return the population in windows."""
        return [window for encoded in self.population for window in windows_of(encoded, length)]

    def shape(self, sizes: Sizes) -> Shape:
        """Return the shape of a student."""
        room = len(self.drawn.intents)
        return Shape(room, room, 0, width=sizes.width, layers=sizes.layers, window=sizes.window)


def _person(split: Split, names: Vocabulary) -> Person:
    events: list[Event] = [*split.train, *split.validation, *split.test]
    return Person(encode(events, names), len(split.train), len(split.train) + len(split.validation))


@dataclass(frozen=True)
class Trained:
    """A predictor of the population, and the seconds that it took."""

    predictor: Predictor
    seconds: float

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return sum(p.numel() for p in self.predictor.parameters())


def train(
    data: Data,
    sizes: Sizes,
    *,
    layers: int | None = None,
    teacher: Predictor | None = None,
    attention: bool = True,
    moment: bool = True,
    reconstruction: float | None = None,
) -> Trained:
    """Train a predictor of the population from random weights, or on what a teacher says, without reconstruction."""
    began = time.monotonic()
    torch.manual_seed(data.drawn.seed)
    shape = replace(data.shape(sizes), layers=layers or sizes.layers)
    made = Predictor(shape, GPTBlocks, attention=attention, moment=moment, dropout=LARGE_DROPOUT)
    training = PopulationTraining(
        epochs=sizes.epochs,
        learning_rate=sizes.rate,
        reconstruction=sizes.reconstruction if reconstruction is None else reconstruction,
        seed=data.drawn.seed,
    )
    if teacher is None:
        train_population(made, data.windows(sizes.window), training)
    else:
        distilled(teacher, made, data.windows(sizes.window), training)
    return Trained(made.eval(), time.monotonic() - began)


def train_large(data: Data, sizes: Sizes, model: GGUFFile, *, pretrained: str) -> Trained:
    """Train over blocks of the served model's size: `pretrained` is "lora", "tuned", or "none" for random weights."""
    began = time.monotonic()
    torch.manual_seed(data.drawn.seed)
    hidden = int(model.metadata["llama.embedding_length"])
    shape = replace(data.shape(sizes), width=hidden // 4, layers=sizes.gguf_layers)

    def blocks(of: Shape) -> GGUFBlocks:
        made = GGUFBlocks(model, of, 8 if pretrained == "lora" else None)
        if pretrained == "none":
            for parameter in made.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.02)  # as GPT-2 begins
                else:
                    torch.nn.init.ones_(parameter)
        return made

    made = Predictor(shape, blocks)
    training = PopulationTraining(
        epochs=sizes.gguf_epochs, learning_rate=sizes.rate / 2, reconstruction=0.0, seed=data.drawn.seed
    )
    train_population(made, data.windows(sizes.window), training)
    return Trained(made.eval(), time.monotonic() - began)


def probabilities(predictor: Predictor, encoded: Encoded, start: int, stop: int, window: int) -> Array:
    """Return the probabilities (stop - start, C) of the places from `start`, each from at most `window` before it."""
    parts, stride = [], max(1, window // STRIDES)
    with torch.inference_mode():
        for first in range(start, stop, stride):
            last = min(first + stride, stop)
            logits = predictor(batch_of([encoded.part(max(0, last - window), last)]))[0]
            parts.append(logits[-(last - first) :].double().softmax(-1).numpy())
    return np.concatenate(parts)


def of_everybody(
    data: Data, predictor_of: Callable[[Person], Predictor], window: int, *, validation: bool = False
) -> Array:
    """Return the probabilities (N, C) of all test events, in the order of `Protocol.truth`, or of validation events."""
    rows = []
    for person in data.people:
        start, stop = (person.validation, person.test) if validation else (person.test, len(person.encoded))
        rows.append(probabilities(predictor_of(person), person.encoded, start, stop, window))
    return np.concatenate(rows)


def scored_by(data: Data, weights: Mapping[str, Floats], *, validation: bool = False) -> Array:
    """Return what a scorer says of all test events, or of validation events, each from what came before it: (N, C)."""
    names, rows = data.drawn.intents, []
    codes = {name: code for code, name in enumerate(names)}
    for person, split in zip(data.people, data.drawn.individual.values(), strict=True):
        events = [*split.train, *split.validation, *split.test]
        past = Past.of(events, codes)
        for place in range(*((person.validation, person.test) if validation else (person.test, len(events)))):
            at, offset_s = events[place].at, events[place].utc_offset_s
            rows.append(scored(weights, past.before(place), names, data.names.intents, at, offset_s))
    return np.array(rows, dtype=np.float64)


def truth_of_validation(data: Data) -> npt.NDArray[np.int64]:
    """Return the classes of all validation events."""
    return np.concatenate([p.encoded.target[p.validation : p.test] for p in data.people])


def output_shares(predictor: Predictor, windows: Iterable[Encoded], classes: int) -> list[float]:
    """Return how often each class is put first on the population: P_out of PITuning, eq. 8."""
    counts = np.zeros(classes)
    with torch.inference_mode():
        for window in windows:
            first = predictor(batch_of([window]))[0].argmax(-1).numpy()
            counts += np.bincount(first, minlength=classes)
    return list(counts / counts.sum())


def inference_ms(run: Callable[[], Any], times: int = 50) -> float:
    """Return the median time of one call, in milliseconds, after a few that are not counted."""
    for _ in range(5):
        run()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken) * 1e3)


def shares(targets: Sequence[int] | npt.NDArray[np.int64], classes: int) -> list[float]:
    """Return the share of each class."""
    counts = np.bincount(np.asarray(targets), minlength=classes).astype(float)
    return list(counts / max(1.0, counts.sum()))
