"""The small predictor that edgepd runs: which intent is next, given what happened and the present moment.

The idea: one pass of numpy over the newest events, no torch; a few milliseconds and a few megabytes. Names that the
file does not know get the next free slots in the order of first appearance, so that it works from the first event on.
The invariants: the numbers are those of predictor.py (tested); probabilities sum to 1; the same history gives the same
ranking.
What this does not do: train (individual.py does, in a child process), or know where events are stored.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgepd.errors import ModelError
from edgepd.intent import weights_file
from edgepd.intent.blend import blended
from edgepd.intent.encode import Encoded, encode, masked_row
from edgepd.intent.markov import UserMarkovByHour
from edgepd.intent.schema import Event, Names, Vocabulary
from edgepd.intent.shape import DAY_SLOTS, GAPS, WEEKDAYS, Shape
from edgepd.intent.weights_file import Floats

LAYER_NORM_EPS = 1e-5
ELSEWHERE = 0.05  # probability, at most, of known intents that the window does not hold; shared by their frequency
FORMAT = 1


@dataclass(frozen=True)
class Student:
    """Weights with the names they are for. `population` says what a population did, for the forget sets.

    `population["share"]` are the shares of the intents, and `population["output"]` those among what was predicted, each
    by slot minus 1; empty where slots have no meaning of their own.
    """

    shape: Shape
    weights: Mapping[str, Floats]
    vocabulary: Vocabulary
    population: Mapping[str, list[float]]
    provenance: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file. Raises ModelError naming what is wrong with it."""
        weights, about = weights_file.read(path)
        try:
            if about["format"] != FORMAT:
                raise ValueError(f"it is of format {about['format']!r}; this edgepd reads {FORMAT}")
            shape = Shape.checked(about["shape"])
            rooms = (shape.events, shape.intents, shape.contexts)
            kinds = ("events", "intents", "contexts")
            names = Vocabulary(*(Names(room, _texts(about["names"][k])) for room, k in zip(rooms, kinds, strict=True)))
            population = {k: [float(x) for x in v] for k, v in about["population"].items()}
            _check(weights, shape)
            return cls(shape, weights, names, population, dict(about["provenance"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{path}: not a predictor that fits: {error}") from error

    def save(self, path: Path) -> None:
        """Write a file under a temporary name and rename it; the same student is the same bytes."""
        names = {k: getattr(self.vocabulary, k).names for k in ("events", "intents", "contexts")}
        about = {
            "format": FORMAT,
            "shape": asdict(self.shape),
            "names": names,
            "population": dict(self.population),
            "provenance": dict(self.provenance),
        }
        weights_file.write(path, self.weights, about)

    def known(self, events: Sequence[Event]) -> Vocabulary:
        """Return the vocabulary with slots for the names of these events, as far as there is room."""
        return self.vocabulary.copy().learn(events)

    def ranked(self, events: Sequence[Event], at: float, utc_offset_s: int) -> list[tuple[str, float]]:
        """Return the intents that can be next at that moment (unix seconds) with their probabilities, best first.

        What the network says and what this person's own counts say, as one (blend.py). `events` are in order of time.
        With none there is nothing to rank, unless the file itself knows intents. Of an intent that found no slot free
        only the counts can tell, and it has the probability that they give it.
        """
        names = self.known(events)
        network = self.probabilities(events, at, utc_offset_s, names)[: len(names.intents.names)].astype(np.float64)
        counted = UserMarkovByHour(online=True).probabilities(events, at, utc_offset_s)
        if counted and names.intents.names:
            network = blended(network, np.array([counted.get(name, 0.0) for name in names.intents.names]))
        slotless = {name: p for name, p in counted.items() if name and not names.intents.slot(name)}
        rest = 1.0 - sum(slotless.values())
        ranked = [*zip(names.intents.names, (rest * network).tolist(), strict=True), *slotless.items()]
        return sorted(((n, p) for n, p in ranked if p > 0), key=lambda pair: (-pair[1], pair[0]))

    def probabilities(self, events: Sequence[Event], at: float, utc_offset_s: int, names: Vocabulary) -> Floats:
        """Return what the network says of each slot of an intent, (intents,), which sums to 1; 0 for free slots."""
        window = events[-(self.shape.window - 1) :]
        known = len(names.intents.names)
        if not known:
            return np.zeros(self.shape.intents, np.float32)
        logits = last_logits(self.shape, self.weights, encode(window, names, then=(at, utc_offset_s)))
        if not self.shape.open_names:
            logits[known:] = -np.inf
            return softmax(logits)
        slots = [names.intents.slot(event.intent) - 1 for event in window]
        seen = np.zeros(self.shape.intents, bool)
        seen[[slot for slot in slots if slot >= 0]] = True
        elsewhere = _elsewhere(events, names, seen)
        if not seen.any():
            return elsewhere
        inside = softmax(np.where(seen, logits, -np.inf))
        return inside if not elsewhere.any() else (1 - ELSEWHERE) * inside + ELSEWHERE * elsewhere


def last_logits(shape: Shape, weights: Mapping[str, Floats], places: Encoded) -> Floats:
    """Return the logits (intents,) at the last of at most `shape.window` places, as predictor.py computes them."""
    length, hidden = len(places), shape.hidden
    event = weights["embed.intent"][places.intent]
    if shape.offsets:
        event = event + weights["embed.event"][places.event]
    context, weekday = weights["embed.context"][places.context], weights["embed.weekday"]
    slot = weights["embed.slot"]
    x = np.concatenate([context, weekday[places.weekday], slot[places.slot], event], axis=1)  # (L, 4 d)
    gap = weights["embed.gap"][places.now_gap]
    now = np.concatenate([weekday[places.now_weekday], slot[places.now_slot], gap], axis=1)  # (L, 3 d)
    x = x + _linear(weights, "embed.now", now)
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    bias = np.where(distance >= 0, weights["relative"][:, np.maximum(distance, 0)], -np.inf)  # (heads, L, L)
    for layer in range(shape.layers):
        x = _block(weights, f"block.{layer}.", x, bias, shape.heads)
    h = _norm(weights, "norm", x)
    last, intents = h[-1], weights["attention.intents"]  # (D,), (I, D)
    query = _linear(weights, "attention.query", last) + intents @ weights["attention.intent_query.weight"].T  # (I, r)
    key = h @ weights["attention.key.weight"].T  # (L, r)
    score = query @ key.T / math.sqrt(shape.rank) + weights["attention.recency"][:, length - 1 - np.arange(length)]
    values = h @ weights["head.pooled.weight"].T  # (L, inner)
    inner = softmax(score) @ values + intents @ weights["head.intent.weight"].T  # eq. 3
    inner = inner + _linear(weights, "head.last", last)
    logits = gelu(inner) @ weights["head.out.weight"][0]  # eq. 4
    direct = intents @ (weights["head.direct.weight"] @ last) / math.sqrt(hidden)
    found: Floats = logits + direct + weights["head.bias"]
    return found


def softmax(x: Floats) -> Floats:
    """Return exp(x) / sum along the last axis; -inf becomes 0."""
    e = np.exp(x - x.max(-1, keepdims=True))
    found: Floats = e / e.sum(-1, keepdims=True)
    return found


def gelu(x: Floats) -> Floats:
    """Return the tanh form of GELU; arXiv 1606.08415, section 2."""
    found: Floats = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return found


def parameter_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every array that a predictor of this shape runs on."""
    d, hidden, rank = shape.width, shape.hidden, shape.rank
    found: dict[str, tuple[int, ...]] = {
        "embed.intent": (masked_row(shape.intents) + 2, d),
        "embed.context": (shape.contexts + 1, d),
        "embed.weekday": (WEEKDAYS + 1, d),
        "embed.slot": (DAY_SLOTS + 1, d),
        "embed.gap": (GAPS, d),
        "embed.now.weight": (hidden, 3 * d),
        "embed.now.bias": (hidden,),
        "relative": (shape.heads, shape.window),
        "norm.weight": (hidden,),
        "norm.bias": (hidden,),
        "attention.intents": (shape.intents, hidden),
        "attention.query.weight": (rank, hidden),
        "attention.query.bias": (rank,),
        "attention.intent_query.weight": (rank, hidden),
        "attention.key.weight": (rank, hidden),
        "attention.recency": (shape.intents, shape.window),
        "head.pooled.weight": (shape.inner, hidden),
        "head.intent.weight": (shape.inner, hidden),
        "head.last.weight": (shape.inner, hidden),
        "head.last.bias": (shape.inner,),
        "head.out.weight": (1, shape.inner),
        "head.direct.weight": (hidden, hidden),
        "head.bias": (shape.intents,),
    }
    if shape.offsets:
        found["embed.event"] = (shape.events + 1, d)
    sizes = {
        "qkv": (3 * hidden, hidden),
        "out": (hidden, hidden),
        "up": (4 * hidden, hidden),
        "down": (hidden, 4 * hidden),
    }
    for layer in range(shape.layers):
        for name, (rows, columns) in sizes.items():
            found[f"block.{layer}.{name}.weight"] = (rows, columns)
            found[f"block.{layer}.{name}.bias"] = (rows,)
        for name in ("norm1", "norm2"):
            found[f"block.{layer}.{name}.weight"] = found[f"block.{layer}.{name}.bias"] = (hidden,)
    return found


def _check(weights: Mapping[str, Floats], shape: Shape) -> None:
    wanted = parameter_shapes(shape)
    if missing := sorted(set(wanted) ^ set(weights)):
        raise ValueError(f"the array '{missing[0]}' is missing, or is one too many")
    for name, sizes in wanted.items():
        if weights[name].shape != sizes:
            raise ValueError(f"the array '{name}' is {weights[name].shape}, not {sizes}")


def _texts(names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the names are not a list of texts")
    return names


def _elsewhere(events: Sequence[Event], names: Vocabulary, seen: npt.NDArray[np.bool_]) -> Floats:
    """Return the shares, among known intents outside of the window, of each; all 0 if there are none."""
    counts = np.zeros(len(seen), np.float32)
    for intent, count in Counter(event.intent for event in events).items():
        if slot := names.intents.slot(intent):
            counts[slot - 1] = count
    counts[: len(names.intents.names)] += 1.0  # a name that a tuned file knows, and nothing here shows any more
    counts[seen] = 0.0
    total = counts.sum()
    return counts / total if total else counts


def _linear(weights: Mapping[str, Floats], name: str, x: Floats) -> Floats:
    found: Floats = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return found


def _norm(weights: Mapping[str, Floats], name: str, x: Floats) -> Floats:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + LAYER_NORM_EPS)
    found: Floats = scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return found


def _block(weights: Mapping[str, Floats], prefix: str, x: Floats, bias: Floats, heads: int) -> Floats:
    """One block as in GPT-2, with biases by distance instead of positions: x (L, D) -> (L, D)."""
    length, hidden = x.shape
    qkv = _linear(weights, f"{prefix}qkv", _norm(weights, f"{prefix}norm1", x))
    q, k, v = qkv.reshape(length, 3, heads, hidden // heads).transpose(1, 2, 0, 3)  # each (heads, L, D / heads)
    score = q @ k.transpose(0, 2, 1) / math.sqrt(hidden // heads) + bias
    mixed = (softmax(score) @ v).transpose(1, 0, 2).reshape(length, hidden)
    x = x + _linear(weights, f"{prefix}out", mixed)
    inner = gelu(_linear(weights, f"{prefix}up", _norm(weights, f"{prefix}norm2", x)))
    found: Floats = x + _linear(weights, f"{prefix}down", inner)
    return found
