"""Small populations for the tests of the intent model: users who go round in a circle, each at an own pace."""

from __future__ import annotations

import random

import numpy as np
import torch

from edgepd.intent.candidates import FEATURES
from edgepd.intent.encode import Encoded, encode
from edgepd.intent.predictor import Predictor
from edgepd.intent.schema import Event, Vocabulary
from edgepd.intent.scorer import scorer_shapes
from edgepd.intent.scorer_training import Scorer
from edgepd.intent.shape import Shape
from edgepd.intent.weights_file import Floats

NAMES = ["mail", "code", "music", "news", "map"]
MONDAY = 4 * 86_400.0  # 1970-01-05, 00:00 UTC
TINY = Shape(len(NAMES), len(NAMES), 2, width=4, layers=2, heads=2, window=16, rank=4)


def circle(length: int, seed: int, noise: float = 0.1) -> list[Event]:
    """Return events that mostly follow the order of NAMES, a few hours apart."""
    rng, at, place, events = random.Random(seed), MONDAY + seed, seed % len(NAMES), []
    for _ in range(length):
        at += rng.choice([0.5, 2, 6]) * 3600
        place = (place + 1) % len(NAMES) if rng.random() > noise else rng.randrange(len(NAMES))
        events.append(Event(at, NAMES[place], NAMES[place]))
    return events


def names() -> Vocabulary:
    """Return the vocabulary of NAMES in that order."""
    found = Vocabulary.empty(TINY.events, TINY.intents, TINY.contexts)
    for name in NAMES:
        found.events.learn(name)
        found.intents.learn(name)
    return found


def windows(users: int, length: int = 16) -> list[Encoded]:
    """Return one window of each user."""
    return [encode(circle(length, seed), names()) for seed in range(users)]


def scorer_of(shape: Shape, seed: int = 0) -> Scorer:
    """Return a scorer with random weights."""
    torch.manual_seed(seed)
    examples = torch.rand(20, shape.intents, FEATURES) * 8 - 2
    return Scorer(shape, examples, torch.ones(examples.shape[:2], dtype=torch.bool)).eval()


def weights_of(made: Predictor, scorer: Scorer | None = None) -> dict[str, Floats]:
    """Return the arrays of a student; without a scorer, those of one to which all candidates are alike."""
    neutral = {name: np.zeros(sizes, np.float32) for name, sizes in scorer_shapes(made.shape).items()}
    return {**made.exported(), **(neutral if scorer is None else scorer.exported())}
