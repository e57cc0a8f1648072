"""The scorer: a small perceptron that weighs what the history says of each intent, the same one for all of them.

The idea: it is given the features of one candidate (candidates.py) and says how likely that one is next, so it serves
any number of intents with any names. Where slots have names of their own, three tables add what a population knows of
them: of the intent, and of what comes after the last and the last but one. The invariants: probabilities sum to 1; no
feature counts for more or less than it ever was in training.
What this does not do: train (scorer_training.py), or see single events (network.py does).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgepd.intent.candidates import FEATURES, Past, features
from edgepd.intent.network import gelu, softmax
from edgepd.intent.schema import Names
from edgepd.intent.shape import Shape
from edgepd.intent.weights_file import Floats

HIDDEN = 64
TABLES = ("scorer.intent", "scorer.last", "scorer.last_but_one")  # rows by slot; row 0 is for what has none


def scorer_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every array of a scorer; tables only where slots have names of their own."""
    found: dict[str, tuple[int, ...]] = {
        "scorer.least": (FEATURES,),
        "scorer.most": (FEATURES,),
        "scorer.in.weight": (HIDDEN, FEATURES),
        "scorer.in.bias": (HIDDEN,),
        "scorer.middle.weight": (HIDDEN, HIDDEN),
        "scorer.middle.bias": (HIDDEN,),
        "scorer.out.weight": (1, HIDDEN),
    }
    if not shape.open_names:
        found |= {name: (shape.intents + 1, HIDDEN) for name in TABLES}
    return found


def scored(
    weights: Mapping[str, Floats], past: Past, candidates: Sequence[str], names: Names, at: float, utc_offset_s: int
) -> Floats:
    """Return the probability of each candidate for being next at `at`, (candidates,), in unix seconds.

    The codes of `past` are places in `candidates`; `names` gives them the slots of the tables.
    """
    found = features(past, len(candidates), at, utc_offset_s)
    x = np.clip(found, weights["scorer.least"], weights["scorer.most"])
    inner = x @ weights["scorer.in.weight"].T + weights["scorer.in.bias"]
    if TABLES[0] in weights:
        own, last, last_but_one = (weights[name] for name in TABLES)
        slots = [*(names.slot(name) for name in candidates), 0]  # what was never there: place -1, slot 0
        inner = inner + own[slots[:-1]] + last[slots[past.last(1)]] + last_but_one[slots[past.last(2)]]
    inner = gelu(gelu(inner) @ weights["scorer.middle.weight"].T + weights["scorer.middle.bias"])
    return softmax(inner @ weights["scorer.out.weight"][0])
