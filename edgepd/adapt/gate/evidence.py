"""How sure an improvement is: an exact interval for the mean of paired differences, from few of them.

The idea: if differences are as likely to lie above their centre as below it (the assumption of sign-flip tests), the
means of all their subsets are "typical values" of that centre (Hartigan, JASA 64, 1969, theorem 1): of the 2^n
intervals that the 2^n - 1 subset means cut the line into, it lies in each with the same probability. So the k-th
smallest subset mean is a lower bound that is wrong with probability k / 2^n, whatever the distribution; of five
differences already the smallest is one at 97 %. With many differences random subsets do as well, and are as exact.
The invariant: too few differences give no bound at all, which is minus infinity and never a wrong one.
What this does not do: ask where the differences come from. Those of one conversation are not independent; `by_group`
makes one of them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

EXACT_UP_TO = 12  # differences; 4095 subsets
RANDOM_SUBSETS = 9_999
SEED = 0


@dataclass(frozen=True)
class Improvement:
    """The mean of n paired differences, and what it is at least with this confidence. -inf: n is too small to say."""

    mean: float
    lower: float
    confidence: float
    n: int


def improvement(differences: Sequence[float], confidence: float) -> Improvement:
    """Return the mean and its one-sided lower bound. Raises ValueError for no differences or an odd confidence."""
    if not differences or not 0 < confidence < 1:
        raise ValueError(f"{len(differences)} differences at confidence {confidence} have no bound")
    values = np.asarray(differences, dtype=np.float64)
    lower = -math.inf
    if np.isfinite(values).all():
        means = _subset_means(values)
        rank = math.floor((1 - confidence) * (len(means) + 1))
        if rank >= 1:
            lower = float(np.partition(means, rank - 1)[rank - 1])
    return Improvement(float(values.mean()), lower, confidence, len(values))


def fewest(confidence: float) -> int:
    """Return how many differences are needed at least for a bound of this confidence."""
    return math.ceil(-math.log2(1 - confidence))


def by_group(differences: Sequence[float], groups: Sequence[Hashable], at_least: int) -> list[float]:
    """Return one mean difference for each group, in order of appearance.

    If that leaves fewer than `at_least`, as when all comes from one long conversation, each counts by itself.
    """
    found: dict[Hashable, list[float]] = {}
    for difference, group in zip(differences, groups, strict=True):
        found.setdefault(group, []).append(difference)
    if len(found) < at_least:
        return list(differences)
    return [sum(members) / len(members) for members in found.values()]


def _subset_means(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the means of all subsets that are not empty, or of RANDOM_SUBSETS drawn evenly among them."""
    n = len(values)
    if n <= EXACT_UP_TO:
        masks = (np.arange(1, 2**n)[:, np.newaxis] >> np.arange(n)) & 1
    else:
        masks = np.random.default_rng(SEED).integers(0, 2, (RANDOM_SUBSETS, n))
        masks[~masks.any(axis=1), 0] = 1  # an empty one has a chance of 2^-13 at most
    means: npt.NDArray[np.float64] = (masks @ values) / masks.sum(axis=1)
    return means
