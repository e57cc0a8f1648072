"""Run: python -m pytest tests/adapt/gate/test_evidence.py

The bound of an improvement is right as often as it says, and never says more than so few differences can.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd.adapt.gate.evidence import by_group, fewest, improvement

DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(0, 1, n),
    "laplace": lambda rng, n: rng.laplace(0, 1, n),
    "two heaps": lambda rng, n: rng.choice([-1.0, 1.0], n) + rng.normal(0, 0.1, n),
    "different spreads": lambda rng, n: rng.normal(0, 1, n) * np.linspace(0.1, 3, n),
    "student t": lambda rng, n: rng.standard_t(2, n),
}
EVEN = st.floats(-100, 100, allow_subnormal=False)
FEW = st.lists(EVEN, min_size=5, max_size=9)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("n", "times"), [(5, 1500), (8, 1500), (20, 200)])
def test_the_bound_is_wrong_as_seldom_as_it_says(name: str, n: int, times: int) -> None:
    """For differences that are as likely above their centre as below it, whatever their distribution."""
    rng = np.random.default_rng([n, len(name)])
    confidence, centre = 0.95, 0.3
    wrong = sum(
        improvement((centre + DISTRIBUTIONS[name](rng, n)).tolist(), confidence).lower > centre for _ in range(times)
    )
    error = math.sqrt(confidence * (1 - confidence) / times)
    assert wrong / times <= 1 - confidence + 3 * error
    # The smallest of five is wrong when all are above, 1 in 32; more differences come nearer to 1 in 20.
    assert wrong / times >= 1 / 32 - 3 * error, "a bound that is never wrong is of no use"


def test_of_five_the_bound_is_the_smallest() -> None:
    found = improvement([0.4, 0.1, 0.5, 0.2, 0.3], 0.95)
    assert (found.lower, found.n, found.confidence) == (0.1, 5, 0.95)
    assert found.mean == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("confidence", "lower"),
    [
        (0.96875, 1.0),  # 1 - 1/32: the smallest of the 31 means
        (0.97, -math.inf),
        (0.93, 1.5),  # the second: of 1 and 2
        (0.9, 2.0),  # the third: 2 alone, 1 and 3, or 1, 2 and 3
        (0.5, 3.0),  # the one in the middle
    ],
)
def test_the_bound_is_the_kth_smallest_mean_of_a_subset(confidence: float, lower: float) -> None:
    assert improvement([5, 3, 1, 4, 2], confidence).lower == lower


def test_too_few_give_no_bound() -> None:
    found = improvement([1.0, 1.0, 1.0, 1.0], 0.95)
    assert (found.mean, found.lower, found.n) == (1.0, -math.inf, 4)


def test_numbers_that_are_none_give_no_bound() -> None:
    found = improvement([1.0, 1.0, 1.0, 1.0, math.nan], 0.95)
    assert math.isnan(found.mean)
    assert found.lower == -math.inf
    assert improvement([1.0, 1.0, 1.0, 1.0, math.inf], 0.95).lower == -math.inf


@pytest.mark.parametrize(("differences", "confidence"), [([], 0.95), ([1.0], 0.0), ([1.0], 1.0), ([1.0], math.nan)])
def test_nothing_or_an_odd_confidence_is_an_error(differences: list[float], confidence: float) -> None:
    with pytest.raises(ValueError, match="have no bound"):
        improvement(differences, confidence)


@pytest.mark.parametrize(
    ("confidence", "n"), [(0.5, 1), (0.75, 2), (0.9, 4), (0.95, 5), (0.96875, 5), (0.97, 6), (0.99, 7), (0.999, 10)]
)
def test_the_fewest_that_give_a_bound(confidence: float, n: int) -> None:
    assert fewest(confidence) == n
    assert improvement([1.0] * n, confidence).lower == 1.0
    if n > 1:
        assert improvement([1.0] * (n - 1), confidence).lower == -math.inf


@given(FEW, EVEN)
def test_the_bound_moves_with_the_differences(differences: list[float], shift: float) -> None:
    moved = improvement([d + shift for d in differences], 0.9).lower
    assert moved == pytest.approx(improvement(differences, 0.9).lower + shift, abs=1e-9)


@given(FEW, st.floats(0.5, 0.99), st.floats(0.5, 0.99))
def test_more_confidence_promises_less(differences: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert improvement(differences, high).lower <= improvement(differences, low).lower


@given(FEW)
def test_the_bound_lies_between_the_smallest_and_the_mean(differences: list[float]) -> None:
    found = improvement(differences, 0.95)
    assert min(differences) - 1e-9 <= found.lower <= found.mean + 1e-9
    assert improvement(sorted(differences), 0.95).lower == pytest.approx(found.lower, abs=1e-9)


def test_random_subsets_agree_with_all_of_them() -> None:
    """From 13 differences on; the exact bound is computed here from all 2^13 - 1 subsets."""
    differences = np.random.default_rng(3).normal(0.2, 1, 13)
    masks = (np.arange(1, 2**13)[:, np.newaxis] >> np.arange(13)) & 1
    means = np.sort((masks @ differences) / masks.sum(axis=1))
    exact = means[math.floor(0.05 * 2**13) - 1]
    found = improvement(differences.tolist(), 0.95)
    assert found.lower == pytest.approx(exact, abs=0.02)
    assert found == improvement(differences.tolist(), 0.95)
    assert found.lower != exact  # else it was not what is tested here


def test_answers_of_one_conversation_count_once() -> None:
    differences, groups = [1.0, 2.0, 3.0, 10.0], ["a", "b", "a", "c"]
    assert by_group(differences, groups, 3) == [2.0, 2.0, 10.0]
    assert by_group(differences, groups, 1) == [2.0, 2.0, 10.0]
    assert by_group(differences, groups, 4) == differences  # too few conversations to judge by
    assert by_group(differences, ["a"] * 4, 2) == differences
