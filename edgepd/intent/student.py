"""The small predictor that edgepd runs: which intent is next, given what happened and the present moment.

The idea: a network looks at the newest events in their order, a scorer at what the whole history says of each intent,
and the ranking is what both say as one; numpy alone, a few milliseconds and a few megabytes. Names that the file does
not know get the next free slots in the order of first appearance, so that it works from the first event on.
The invariants: probabilities sum to 1; the same history gives the same ranking; a file is checked before it is used.
What this does not do: train (individual.py does, in a child process), or know where events are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgepd.errors import ModelError
from edgepd.intent import weights_file
from edgepd.intent.blend import blended
from edgepd.intent.candidates import NEWEST, Past
from edgepd.intent.encode import encode
from edgepd.intent.network import Network, network_shapes, softmax
from edgepd.intent.schema import Event, Names, Vocabulary
from edgepd.intent.scorer import scored, scorer_shapes
from edgepd.intent.shape import Shape
from edgepd.intent.weights_file import Floats

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

    @cached_property
    def _network(self) -> Network:
        return Network(self.shape, self.weights)

    def known(self, events: Sequence[Event]) -> Vocabulary:
        """Return the vocabulary with slots for the names of these events, as far as there is room."""
        return self.vocabulary.copy().learn(events)

    def ranked(self, events: Sequence[Event], at: float, utc_offset_s: int) -> list[tuple[str, float]]:
        """Return the intents that can be next at that moment (unix seconds) with their probabilities, best first.

        What the network and the scorer say, as one (blend.py). `events` are in order of time. With none there is
        nothing to rank, unless the file itself knows intents. Of an intent that found no slot free only the scorer can
        tell, and it has the probability that the scorer gives it.
        """
        names = self.known(events)
        network = self.probabilities(events, at, utc_offset_s, names)[: len(names.intents.names)].astype(np.float64)
        said = self.scored(events, at, utc_offset_s, names)
        if said and names.intents.names:
            network = blended(network, np.array([said.get(name, 0.0) for name in names.intents.names]))
        slotless = {name: p for name, p in said.items() if not names.intents.slot(name)}
        rest = 1.0 - sum(slotless.values())
        ranked = [*zip(names.intents.names, (rest * network).tolist(), strict=True), *slotless.items()]
        return sorted(((n, p) for n, p in ranked if p > 0), key=lambda pair: (-pair[1], pair[0]))

    def scored(self, events: Sequence[Event], at: float, utc_offset_s: int, names: Vocabulary) -> dict[str, float]:
        """Return what the scorer says of each intent; empty if there is none that it can speak of."""
        newest = [event for event in events[-NEWEST:] if event.intent]
        seen = dict.fromkeys(event.intent for event in newest)
        candidates = list(seen if self.shape.open_names else dict.fromkeys([*names.intents.names, *seen]))
        if not candidates:
            return {}
        past = Past.of(newest, {name: code for code, name in enumerate(candidates)})
        found = scored(self.weights, past, candidates, names.intents, at, utc_offset_s)
        return dict(zip(candidates, found.tolist(), strict=True))

    def probabilities(self, events: Sequence[Event], at: float, utc_offset_s: int, names: Vocabulary) -> Floats:
        """Return what the network says of each slot of an intent, (intents,), which sums to 1; 0 for free slots."""
        window = events[-(self.shape.window - 1) :]
        known = len(names.intents.names)
        if not known:
            return np.zeros(self.shape.intents, np.float32)
        logits = self._network.last_logits(encode(window, names, then=(at, utc_offset_s)))
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


def parameter_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every array in the file of a predictor of this shape."""
    return network_shapes(shape) | scorer_shapes(shape)


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
