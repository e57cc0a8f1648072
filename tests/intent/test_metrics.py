"""The metrics are those of scikit-learn where it has them, and closed forms where it has not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, precision_recall_fscore_support  # type: ignore[import-untyped, unused-ignore]

from edgepd.intent.metrics import (
    Metric,
    paired_bootstrap,
    per_user,
    ranks_of,
    rarest,
    recall_of,
    score,
    spread,
)

# Four events, three classes: predicted 0, 1, 0, 2.
TRUTH = np.array([0, 1, 1, 2])
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])


def test_a_case_by_hand() -> None:
    scores = score(TRUTH, PROBABILITIES)
    assert scores.recall_weighted == pytest.approx(3 / 4)
    assert scores.precision_weighted == pytest.approx((1 * 0.5 + 2 * 1 + 1 * 1) / 4)
    assert scores.recall_macro == pytest.approx((1 + 0.5 + 1) / 3)
    assert scores.precision_macro == pytest.approx((0.5 + 1 + 1) / 3)
    assert scores.f1_macro == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert scores.ndcg_3 == scores.ndcg_5 == pytest.approx((3 + 1 / math.log2(3)) / 4)
    assert scores.class_recall == (1, 0.5, 1)
    assert scores.class_support == (1, 2, 1)


def test_a_rank_beyond_k_earns_nothing() -> None:
    probabilities = np.array([[0.4, 0.3, 0.15, 0.1, 0.04, 0.01]])
    by_rank = [score(np.array([true]), probabilities) for true in range(6)]
    assert [s.ndcg_3 for s in by_rank] == pytest.approx([1, 1 / math.log2(3), 0.5, 0, 0, 0])
    assert [s.ndcg_5 for s in by_rank] == pytest.approx(
        [1, 1 / math.log2(3), 0.5, 1 / math.log2(5), 1 / math.log2(6), 0]
    )


def test_among_equals_the_lower_class_comes_first() -> None:
    equal = np.full((3, 3), 1 / 3)
    assert ranks_of(np.array([0, 1, 2]), equal).tolist() == [1, 2, 3]
    assert score(np.array([0, 1, 2]), equal).recall_weighted == pytest.approx(1 / 3)


def drawn(seed: int, rows: int, classes: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    present = rng.choice(classes, size=rng.integers(1, classes + 1), replace=False)  # some classes never occur
    return rng.choice(present, size=rows), rng.dirichlet(np.full(classes, 0.5), size=rows)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 60), classes=st.integers(2, 9))
def test_it_says_what_scikit_learn_says(seed: int, rows: int, classes: int) -> None:
    truth, probabilities = drawn(seed, rows, classes)
    predicted = probabilities.argmax(axis=1)
    ours = score(truth, probabilities)
    weighted = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)
    macro = precision_recall_fscore_support(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    assert (ours.precision_weighted, ours.recall_weighted) == pytest.approx(weighted[:2])
    assert (ours.precision_macro, ours.recall_macro, ours.f1_macro) == pytest.approx(macro[:3])
    one_hot = np.eye(classes)[truth]
    assert ours.ndcg_3 == pytest.approx(ndcg_score(one_hot, probabilities, k=3))
    assert ours.ndcg_5 == pytest.approx(ndcg_score(one_hot, probabilities, k=5))


def test_rarest_are_counted_where_they_occur() -> None:
    assert rarest([5, 0, 2, 9, 2, 1]) == (5, 2, 4)
    assert rarest([0, 3], k=3) == (1,)
    scores = score(TRUTH, PROBABILITIES)
    assert recall_of(scores, [1, 2]) == pytest.approx(0.75)
    four = score(TRUTH, np.hstack([PROBABILITIES, np.zeros((4, 1))]))
    assert recall_of(four, [1, 3]) == 0.5
    assert math.isnan(recall_of(four, [3]))


def test_users_are_counted_once_each() -> None:
    # User 10 has one event, right; user 20 has three, one of them right.
    truth = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    users = np.array([10, 20, 20, 20])
    spread_of = per_user(truth, probabilities, users)
    assert (spread_of.mean, spread_of.minimum, spread_of.maximum) == pytest.approx((2 / 3, 1 / 3, 1))
    assert spread_of.worst_decile == pytest.approx(1 / 3)
    assert spread_of.sd == pytest.approx(math.sqrt(2) / 3)
    assert spread_of.users == 2


def test_the_worst_decile_is_a_tenth_rounded_up() -> None:
    # Of 11 users the first has nothing right, the second half, the others all: two are the worst decile.
    users = np.repeat(np.arange(11), 2)
    truth = np.array([1, 1, 1, 0] + [0] * 18)
    probabilities = np.tile([0.9, 0.1], (22, 1))
    assert per_user(truth, probabilities, users).worst_decile == pytest.approx(0.25)


def test_spread_is_the_sample_deviation() -> None:
    assert spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert spread([0.4]) == (0.4, 0.0)
    with pytest.raises(ValueError, match="no values"):
        spread([])


@pytest.mark.parametrize("metric", ["recall_weighted", "recall_macro", "ndcg_3", "ndcg_5"])
def test_the_difference_is_that_of_the_scores(metric: Metric) -> None:
    truth, ours = drawn(3, 80, 5)
    theirs = drawn(4, 80, 5)[1]
    users = np.arange(80) % 9 * 100
    interval = paired_bootstrap(truth, ours, theirs, users, metric, rounds=300)
    expected = getattr(score(truth, ours), metric) - getattr(score(truth, theirs), metric)
    assert interval.difference == pytest.approx(expected)
    assert interval.low < interval.difference < interval.high
    assert interval == paired_bootstrap(truth, ours, theirs, users, metric, rounds=300)
    assert interval != paired_bootstrap(truth, ours, theirs, users, metric, rounds=300, seed=1)
    same = paired_bootstrap(truth, ours, ours, users, metric, rounds=50)
    assert (same.difference, same.low, same.high) == (0, 0, 0)


def test_the_interval_has_the_width_of_the_users_and_not_of_the_events() -> None:
    # 100 users of 10 events; one arm is always right for half of the users, the other always wrong. The share of
    # users drawn from those is binomial (100, 1/2): its 95 % interval is 0.5 +- 0.1; by events it would be +- 0.03.
    users = np.repeat(np.arange(100), 10)
    truth = np.zeros(1000, dtype=np.int64)
    right, wrong = np.array([0.9, 0.1]), np.array([0.1, 0.9])
    ours = np.where((users % 2 == 0)[:, None], right, wrong)
    interval = paired_bootstrap(truth, ours, np.tile(wrong, (1000, 1)), users, "recall_weighted")
    assert interval.difference == 0.5
    assert interval.low == pytest.approx(0.4, abs=0.02)
    assert interval.high == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize(
    ("truth", "probabilities", "problem"),
    [
        ([], np.zeros((0, 2)), "N > 0"),
        ([0, 1], np.zeros((1, 2)), "are not"),
        ([2], np.zeros((1, 2)), "classes 2 to 2 of 2"),
        ([-1], np.zeros((1, 2)), "classes -1"),
        ([0], np.array([[math.nan, 1.0]]), "not finite"),
    ],
)
def test_what_does_not_fit_is_an_error(truth: list[int], probabilities: np.ndarray[Any, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        score(np.array(truth, dtype=np.int64), probabilities)
    with pytest.raises(ValueError, match="users"):
        per_user(TRUTH, PROBABILITIES, np.array([1]))
