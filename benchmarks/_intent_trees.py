"""LightGBM with the features of PITuning's appendix E: what trees make of the next intent.

The idea: hyper-parameters are those of table 5; where the paper names none, LightGBM's own stand (learning rate 0.1).
Trees of the population serve everyone; a user's own are trained on that user alone, as on a device without a
population, or are added to those of the population. The invariant: the same rows give the same trees (one thread).
Two things are ours, and named so in the table: shares of intents among the features, which let the trees of the
population adapt to a user, and weights by which rare intents count more.
What this does not do: make features (_intent_rows.py), split events (edgepd.intent.data), or score (metrics).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightgbm
import numpy as np
from _intent_rows import Array, Codes, Rows, Scheme, of_split, rows
from _report import median_seconds

from edgepd.intent.data import Split, split_users
from edgepd.intent.schema import Event

ITERATIONS, STOP_AFTER = 2000, 75  # of table 5
SMALL = 200  # rows below which the paper makes the trees simpler
UNCHECKED_ITERATIONS = 100  # where there is nothing to stop early by
TABLE_5: Mapping[str, Any] = {
    "objective": "multiclass",
    "boosting": "gbdt",
    "num_leaves": 32,
    "max_depth": -1,
    "min_data_in_leaf": 20,
    "feature_fraction": 1.0,
    "lambda_l1": 0.0,
    "lambda_l2": 0.0,
    "seed": 42,
}
SMALL_DATA: Mapping[str, Any] = {"max_depth": 3, "num_leaves": 3, "lambda_l1": 1.0, "lambda_l2": 1.0}
# Ours, for going on from a population: few rows must be able to make a leaf. Stopping 20 iterations after the best, not
# 75 with steps half as long, predicts as well and takes a quarter of the time.
GOING_ON: Mapping[str, Any] = {"min_data_in_leaf": 5, "lambda_l2": 1.0}
GOING_ON_STOP = 20
HELD_OUT_USERS = 0.1  # share of the population that decides when to stop
BALANCE = 0.5
EXACT: Mapping[str, Any] = {"num_threads": 1, "deterministic": True, "force_row_wise": True, "verbosity": -1}


@dataclass(frozen=True)
class Trees:
    """Trained trees, and the wall time that training took. Those that went on from a base add to its scores."""

    booster: lightgbm.Booster
    seconds: float
    base: Trees | None = None

    def raw(self, features: Array) -> Array:
        """Return the scores before the softmax, (N, C)."""
        scores = np.asarray(self.booster.predict(features, raw_score=True, num_threads=1), dtype=float)
        return scores if self.base is None else scores + self.base.raw(features)

    def probabilities(self, features: Array) -> Array:
        """Return the probability of each class, (N, C)."""
        return softmax(self.raw(features)) if len(features) else np.empty((0, self.booster.num_model_per_iteration()))

    @property
    def parameters(self) -> int:
        """Count the numbers of the trees: column and threshold of each split, value of each leaf."""
        lines = self.booster.model_to_string().splitlines()
        leaves = [int(line.partition("=")[2]) for line in lines if line.startswith("num_leaves=")]
        return sum(3 * count - 2 for count in leaves) + (0 if self.base is None else self.base.parameters)


def softmax(scores: Array) -> Array:
    """Return e**score over its sum, by row."""
    exponents: Array = np.exp(scores - scores.max(axis=1, keepdims=True))
    exponents /= exponents.sum(axis=1, keepdims=True)
    return exponents


def fit(
    train: Rows,
    validation: Rows,
    scheme: Scheme,
    *,
    balance: float = 0.0,
    base: Trees | None = None,
    stop_after: int = STOP_AFTER,
    **other: Any,
) -> Trees:
    """Train on rows, and stop so many iterations after the validation rows were predicted best, at the latest at 2000.

    `balance` weighs a row by its class's frequency to the power of minus that: 0 as in the paper, 1 all classes alike.
    With a base, trees are added to what it says. `other` replaces parameters of LightGBM. Without validation rows there
    are 100 iterations. Raises ValueError without a training row that has a class.
    https://lightgbm.readthedocs.io/en/latest/Parameters.html
    """
    began = time.perf_counter()
    train, validation = train.known(), validation.known()
    if not len(train.labels):
        raise ValueError("no row to train on has an intent that is a class; give the events that name the classes")
    own = {**TABLE_5, **(SMALL_DATA if len(train.labels) < SMALL else {}), **EXACT, "num_class": len(scheme.intents)}
    known = _dataset(train, scheme, balance, base)
    iterations, watched = UNCHECKED_ITERATIONS, []
    calls: list[Callable[..., Any]] = []
    if len(validation.labels):
        iterations, watched = ITERATIONS, [_dataset(validation, scheme, balance, base, known)]
        calls.append(lightgbm.early_stopping(stop_after, verbose=False))
    booster = lightgbm.train({**own, **other}, known, iterations, valid_sets=watched, callbacks=calls)
    booster.free_dataset()  # hundreds of users' boosters would keep their rows
    return Trees(booster, time.perf_counter() - began, base)


def go_on(base: Trees, train: Rows, validation: Rows, scheme: Scheme) -> Trees:
    """Add a user's own trees to those of the population."""
    return fit(train, validation, scheme, base=base, stop_after=GOING_ON_STOP, **GOING_ON)


def _dataset(
    labelled: Rows, scheme: Scheme, balance: float, base: Trees | None, reference: lightgbm.Dataset | None = None
) -> lightgbm.Dataset:
    columns = scheme.columns
    columns += [f"output_{n}" for n in range(labelled.features.shape[1] - len(columns))]
    return lightgbm.Dataset(
        labelled.features,
        labelled.labels,
        reference=reference,
        weight=_weights(labelled.labels, len(scheme.intents), balance),
        init_score=None if base is None else base.raw(labelled.features),
        feature_name=columns,
        categorical_feature=scheme.categorical,
    )


def _weights(labels: Codes, classes: int, balance: float) -> Array | None:
    """Return weights of mean 1, or none where all are alike."""
    if balance == 0:
        return None
    weights: Array = np.bincount(labels, minlength=classes)[labels].astype(float) ** -balance
    weights /= weights.mean()
    return weights


def predictions(
    individual: Mapping[str, Split],
    scheme: Scheme,
    trees_of: Callable[[Rows, Rows], Trees],
    outputs: Mapping[str, Array] | None = None,
) -> Array:
    """Return the probabilities at the moments of all test events, user after user, (N, C).

    `trees_of` gets a user's training and validation rows; it returns the same trees for all, or some of their own.
    `outputs` are what a neural model says of all events of each user (the appendix's feature 1).
    """
    found = []
    for user, split in individual.items():
        train, validation, test = of_split(split, scheme, None if outputs is None else outputs[user])
        found.append(trees_of(train, validation).probabilities(test.features))
    return np.concatenate(found)


@dataclass(frozen=True)
class Arm:
    """One row of the comparison: what it predicts, and what it costs."""

    name: str
    probabilities: Array  # (N, C), as `predictions` orders them
    parameters: int
    inference_ms: float  # one prediction, with its features
    train_s: float  # on the population
    tune_s: float  # on one user, the median; 0 if nothing is tuned


def arms(
    population: Mapping[str, Sequence[Event]], individual: Mapping[str, Split], intents: Sequence[str], seed: int
) -> Iterator[Arm]:
    """Yield the arms of trees, on one core; the seed draws the users of the population that decide when to stop."""
    drawn = split_users(population, HELD_OUT_USERS, seed)
    learn, stop = ([population[user] for user in users] for users in (drawn.population, drawn.individual))
    for shares, suffix in ((False, ""), (True, " + shares")):
        scheme = Scheme.of(learn, intents, shares=shares)
        train, validation = Rows.of(learn, scheme), Rows.of(stop, scheme)
        everyone = fit(train, validation, scheme)
        yield _arm(f"LightGBM{suffix}", individual, scheme, everyone, None)
        yield _arm(f"LightGBM{suffix}, going on", individual, scheme, everyone, go_on)
        if shares:
            balanced = fit(train, validation, scheme, balance=BALANCE)
            yield _arm(f"LightGBM{suffix}, balanced", individual, scheme, balanced, None)
        else:
            yield _arm("LightGBM, user alone", individual, scheme, None, None)


def _arm(
    name: str,
    individual: Mapping[str, Split],
    scheme: Scheme,
    base: Trees | None,
    tuned: Callable[[Trees, Rows, Rows, Scheme], Trees] | None,
) -> Arm:
    """Predict with what the population taught, with that and one's own, or with one's own alone."""
    used: list[Trees] = []

    def trees_of(train: Rows, validation: Rows) -> Trees:
        if base is None:
            used.append(fit(train, validation, scheme))
        else:
            used.append(base if tuned is None else tuned(base, train, validation, scheme))
        return used[-1]

    probabilities = predictions(individual, scheme, trees_of)
    longest = max(individual.values(), key=lambda split: len(split.train))
    history = [*longest.train, *longest.validation, *longest.test][-100:]
    return Arm(
        name,
        probabilities,
        round(statistics.median(trees.parameters for trees in used[:20])),
        1000 * median_seconds(lambda: used[0].probabilities(rows(history, scheme)[-1:]), 50),
        0.0 if base is None else base.seconds,
        0.0 if base is not None and tuned is None else statistics.median(trees.seconds for trees in used),
    )
