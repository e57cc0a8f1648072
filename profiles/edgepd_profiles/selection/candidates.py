"""What the policies choose among, and what they answer.

The idea: plain values without a database, so that a policy can be tested by itself.
What this does not do: compute scores (scores.py) or decide (policies.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

POLICIES = ("qin", "reward", "recency", "kcenter", "fifo", "random")
NEED_VECTORS = frozenset({"qin", "kcenter"})
NO_DOMAIN = 0  # of a text that has no word of any lexicon


@dataclass(frozen=True, eq=False)
class Candidate:
    """One exchange that may be kept.

    `at` is unix seconds, `reward` in [-1, 1], `vector` a unit vector (d,) or None if there is none yet, `order` the
    order of arrival, and `dissimilarity` what is known of it where there is no vector to compute it from.
    """

    id: str
    at: float
    reward: float = 0.0
    entropy: float = 0.0
    domain_score: float = 0.0
    domain: int = NO_DOMAIN
    vector: Vector | None = None
    words: frozenset[str] = frozenset()
    order: int = 0
    dissimilarity: float = 0.0


@dataclass(frozen=True)
class Chosen:
    """One of the selected, and why. The text `{domain}` in a reason stands for the name of its domain."""

    id: str
    reason: str


@dataclass(frozen=True)
class Offer:
    """What became of a newcomer: whether it is kept, whose place it took, and why."""

    kept: bool
    replaced: str | None
    reason: str
