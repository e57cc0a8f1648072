"""How good predictions of the next intent are: over all events, for each intent, and for each user.

The idea: an arm of a comparison is one matrix of probabilities, a row for each event to predict; all numbers come from
it, so arms differ in nothing but their rows. The invariants: among equal probabilities the class with the lower number
comes first, in every number alike; a class counts for the macro averages if it occurs in the truth.
What this does not do: judge whether probabilities are calibrated, or know what a class is: numbers of classes mean the
same for every user here (slots of a vocabulary of one user do not).

The paper (PITuning, appendix D) errs twice. Equations 12 and 13 weigh precision by what was predicted and recall by
support; both are then the accuracy, which contradicts its table 2. Here both are weighted by support, as scikit-learn
does. In equation 16 the denominator lacks a power of two; with one right class it is 1, and N@k is 1 / log2(1 + rank).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Metric = Literal["recall_weighted", "recall_macro", "ndcg_3", "ndcg_5"]


@dataclass(frozen=True)
class Scores:
    """The paper's metrics, each between 0 and 1; recall_weighted is the accuracy."""

    precision_weighted: float
    recall_weighted: float
    precision_macro: float
    recall_macro: float
    f1_macro: float
    ndcg_3: float
    ndcg_5: float
    class_recall: tuple[float, ...]  # of each class; not a number if it does not occur
    class_support: tuple[int, ...]  # how often each class occurs


def score(truth: Ints, probabilities: npt.NDArray[np.floating]) -> Scores:
    """Return the metrics of N predictions over C classes; truth is (N), probabilities (N, C).

    The same as scikit-learn's precision_recall_fscore_support with average "weighted", and with average "macro" and
    labels=np.unique(truth); zero_division=0 in both. Without `labels`, scikit-learn also averages over classes that
    were predicted but never occur, whose recall it takes as 0: a stricter number for a rare class in a small test.
    https://scikit-learn.org/stable/modules/generated/sklearn.metrics.precision_recall_fscore_support.html
    Raises ValueError for shapes that do not fit, no rows, classes out of range, or numbers that are not finite.
    """
    classes = _checked(truth, probabilities)
    predicted = probabilities.argmax(axis=1)
    hits = np.bincount(truth[predicted == truth], minlength=classes).astype(np.float64)
    support = np.bincount(truth, minlength=classes)
    chosen = np.bincount(predicted, minlength=classes)
    precision = np.divide(hits, chosen, out=np.zeros(classes), where=chosen > 0)
    recall = np.divide(hits, support, out=np.full(classes, np.nan), where=support > 0)
    f1 = 2 * hits / np.maximum(chosen + support, 1)  # = 2pr / (p + r), and 0 where that is 0 / 0
    occurs = support > 0
    ranks = ranks_of(truth, probabilities)
    return Scores(
        precision_weighted=float(precision @ support / truth.size),
        recall_weighted=float(hits.sum() / truth.size),
        precision_macro=float(precision[occurs].mean()),
        recall_macro=float(recall[occurs].mean()),
        f1_macro=float(f1[occurs].mean()),
        ndcg_3=float(_gain(ranks, 3).mean()),
        ndcg_5=float(_gain(ranks, 5).mean()),
        class_recall=tuple(recall.tolist()),
        class_support=tuple(support.tolist()),
    )


def ranks_of(truth: Ints, probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Return the rank of the true class in each row, 1 for the most probable; (N)."""
    of_truth = np.take_along_axis(probabilities, truth[:, None], axis=1)  # (N, 1)
    lower = np.arange(probabilities.shape[1]) < truth[:, None]  # (N, C)
    ahead = (probabilities > of_truth) | ((probabilities == of_truth) & lower)
    ranks: npt.NDArray[np.int64] = ahead.sum(axis=1, dtype=np.int64) + 1
    return ranks


def rarest(counts: Sequence[int] | Ints, k: int = 3) -> tuple[int, ...]:
    """Return the k classes that occur least often in these counts, the rarest first; those with 0 do not occur.

    Take the counts of the population, before anything is judged: rare in the test alone would be chosen by the test.
    """
    numbers = np.asarray(counts)
    order = np.argsort(numbers, kind="stable")
    return tuple(int(number) for number in order if numbers[number] > 0)[:k]


def recall_of(scores: Scores, classes: Sequence[int]) -> float:
    """Return the mean recall of those of these classes that occur in the truth; not a number if none does."""
    found = [scores.class_recall[number] for number in classes if scores.class_support[number]]
    return float(np.mean(found)) if found else float("nan")


@dataclass(frozen=True)
class PerUser:
    """How evenly an arm serves its users: accuracy per user, each user counted once.

    Schneider and Vlachos, "Personalization of Deep Learning", section 2: besides the mean, tell spread and the worst.
    """

    mean: float
    sd: float
    minimum: float
    maximum: float
    worst_decile: float  # mean of the tenth of users (rounded up) whom it serves worst
    users: int


def per_user(truth: Ints, probabilities: npt.NDArray[np.floating], users: Ints) -> PerUser:
    """Return the spread of the accuracy over users; `users` (N) says whose event each row is."""
    _checked(truth, probabilities, users)
    _, place = np.unique(users, return_inverse=True)
    right = np.bincount(place, weights=probabilities.argmax(axis=1) == truth)
    accuracy = np.sort(right / np.bincount(place))
    worst = accuracy[: -(-accuracy.size // 10)]
    mean, sd = spread(accuracy.tolist())
    return PerUser(mean, sd, float(accuracy[0]), float(accuracy[-1]), float(worst.mean()), accuracy.size)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (n - 1), such as over seeds; the latter is 0 for one value."""
    if not values:
        raise ValueError("there are no values")
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Interval:
    """A difference between two arms, ours less theirs, and the interval in which it lies in `level` of the draws."""

    difference: float
    low: float
    high: float
    level: float


def paired_bootstrap(
    truth: Ints,
    ours: npt.NDArray[np.floating],
    theirs: npt.NDArray[np.floating],
    users: Ints,
    metric: Metric,
    seed: int = 0,
    rounds: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Return the difference of two arms in a metric, with a percentile interval from draws of users.

    Users are drawn with replacement, each with all its events and with both arms: events of one user are alike, and
    both arms see the same ones. A class that no drawn user has does not count in that draw.
    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
    """
    _checked(truth, ours, users)
    _checked(truth, theirs, users)
    people, place = np.unique(users, return_inverse=True)
    weights = np.random.default_rng(seed).multinomial(people.size, np.full(people.size, 1 / people.size), rounds)
    every = np.vstack([np.ones((1, people.size)), weights])  # (1 + rounds, U); the first is the data itself
    one, other = (_weighted(every, *_parts(truth, arm, place, people.size, metric)) for arm in (ours, theirs))
    differences = one - other
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(differences[1:], tails)
    return Interval(float(differences[0]), float(low), float(high), level)


def _parts(
    truth: Ints, probabilities: npt.NDArray[np.floating], place: Ints, people: int, metric: Metric
) -> tuple[Floats, Floats]:
    """Return numerators and denominators (U, K); the metric is the mean over K of sums over users of both."""
    if metric == "recall_macro":
        values = (probabilities.argmax(axis=1) == truth).astype(np.float64)
        columns, width = truth, probabilities.shape[1]
    else:
        ranks = ranks_of(truth, probabilities)
        values = _gain(ranks, {"recall_weighted": 1, "ndcg_3": 3, "ndcg_5": 5}[metric])
        columns, width = np.zeros_like(truth), 1
    cells = place * width + columns
    numerators = np.bincount(cells, weights=values, minlength=people * width).astype(np.float64)
    denominators = np.bincount(cells, minlength=people * width).astype(np.float64)
    return numerators.reshape(people, width), denominators.reshape(people, width)


def _weighted(weights: Floats, numerators: Floats, denominators: Floats) -> Floats:
    """Return the metric for each row of weights of users; (R)."""
    above, below = weights @ numerators, weights @ denominators  # (R, K)
    ratios = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    means: Floats = ratios.sum(axis=1) / (below > 0).sum(axis=1)
    return means


def _gain(ranks: npt.NDArray[np.int64], k: int) -> Floats:
    """Return N@k of each prediction; at k = 1, whether it is right."""
    gains: Floats = np.where(ranks <= k, 1 / np.log2(1.0 + ranks), 0.0)
    return gains


def _checked(truth: Ints, probabilities: npt.NDArray[np.floating], users: Ints | None = None) -> int:
    """Return the number of classes; ValueError if the arrays do not fit together."""
    if truth.ndim != 1 or probabilities.ndim != 2 or len(truth) != len(probabilities) or truth.size == 0:
        raise ValueError(f"truth {truth.shape} and probabilities {probabilities.shape} are not (N) and (N, C), N > 0")
    if users is not None and users.shape != truth.shape:
        raise ValueError(f"users {users.shape} and truth {truth.shape} differ in shape")
    if truth.min() < 0 or truth.max() >= probabilities.shape[1]:
        raise ValueError(f"truth has the classes {truth.min()} to {truth.max()} of {probabilities.shape[1]}")
    if not np.isfinite(probabilities).all():
        raise ValueError("a probability is not finite")
    return int(probabilities.shape[1])
