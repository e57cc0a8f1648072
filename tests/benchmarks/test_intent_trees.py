"""A baseline is worth comparing with only if it knows the past, all that the paper gives it, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd.intent.data import Split
from edgepd.intent.schema import Event

pytest.importorskip("lightgbm")  # only in the extra for benchmarks

import _intent_rows  # noqa: E402 - there is nothing to test without it
import _intent_trees as trees  # noqa: E402
from _intent_rows import Rows, Scheme  # noqa: E402

HOUR = 3600.0
INTENTS = ("eat", "read", "walk")
SCHEME = Scheme(INTENTS, places=("home", "work"), shares=True)


def event(hours: float, intent: str, context: str = "") -> Event:
    return Event(hours * HOUR, intent, intent, context)


def column(events: Sequence[Event], name: str, scheme: Scheme = SCHEME) -> list[float]:
    return [float(value) for value in _intent_rows.rows(events, scheme)[:, scheme.columns.index(name)]]


HISTORIES = st.lists(
    st.tuples(
        st.integers(0, 72), st.sampled_from([*INTENTS, "unknown"]), st.sampled_from(["", "home", "work", "elsewhere"])
    ),
    min_size=1,
    max_size=12,
).map(lambda parts: [event(*part) for part in sorted(parts, key=lambda part: part[0])])


@given(history=HISTORIES, future=HISTORIES, at=st.integers(0, 11), intent=st.sampled_from([*INTENTS, "unknown"]))
def test_neither_the_label_nor_the_future_changes_a_row(
    history: list[Event], future: list[Event], at: int, intent: str
) -> None:
    at %= len(history)
    now = history[at].at
    later = [Event(now + e.at, e.event, e.intent, e.context) for e in future]
    other = [*history[:at], Event(now, intent, intent, "elsewhere"), *later]

    np.testing.assert_array_equal(
        _intent_rows.rows(history, SCHEME)[: at + 1], _intent_rows.rows(other, SCHEME)[: at + 1]
    )


@given(history=HISTORIES)
def test_time_differences_are_those_of_equations_17_and_18(history: list[Event]) -> None:
    for number, intent in enumerate(INTENTS):
        since, between = [], []
        for i, present in enumerate(history):
            times = [e.at / HOUR for e in history[:i] if e.intent == intent]
            since.append(present.at / HOUR - times[-1] if times else math.nan)
            between.append(times[-1] - times[-2] if len(times) > 1 else math.nan)
        np.testing.assert_allclose(column(history, f"t0_{number}"), since)
        np.testing.assert_allclose(column(history, f"t1_{number}"), between)


def test_a_row_says_what_was_before_it() -> None:
    history = [event(0, "eat", "home"), event(1, "walk", "elsewhere"), event(5, "unknown"), event(6, "eat", "work")]

    assert column(history, "previous_1")[1:3] == [0, 2]
    assert math.isnan(column(history, "previous_1")[0])
    assert math.isnan(column(history, "previous_1")[3])  # unknown is no class
    assert column(history, "previous_2")[2:] == [0, 2]
    assert column(history, "place")[1] == 0
    assert column(history, "frequent_place") == [0, 1, 0, 0]
    assert column(history, "share_0") == [0, 1, 0.5, pytest.approx(1 / 3)]
    assert column(history, "events") == [0, 1, 2, 3]


def test_the_clock_is_the_local_one() -> None:
    # 1970-01-01 was a Thursday (3); 23:30 UTC is 01:30 on Friday two hours to the east.
    events = [
        Event(23.5 * HOUR, "eat", "eat", utc_offset_s=7200),
        Event(23.5 * HOUR, "eat", "eat"),
        event(48 + 7, "eat"),
    ]

    assert column(events, "hour") == [1, 23, 7]
    assert column(events, "weekday") == [4, 3, 5]
    assert column(events, "weekend") == [0, 0, 1]
    assert column(events, "morning") == [0, 0, 1]
    assert column(events, "evening") == [0, 1, 0]
    assert column(events, "timestamp") == [23.5, 23.5, 55]


def test_places_are_the_ten_most_frequent() -> None:
    events = [event(n, "eat", f"place {n % 12}") for n in range(12 + 9)] + [event(30, "eat")]

    assert Scheme.of([events], INTENTS).places == tuple(
        f"place {n}" for n in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10)
    )  # 0 to 8 twice; of those that occur once, the first by name


def test_what_a_neural_model_says_becomes_columns() -> None:
    outputs = np.array([[0.25, 0.75], [0.5, 0.5]])

    found = _intent_rows.rows([event(0, "eat"), event(1, "eat")], SCHEME, outputs)

    assert found.shape == (2, len(SCHEME.columns) + 2)
    np.testing.assert_array_equal(found[:, -2:], outputs)


def test_the_parts_of_a_user_know_what_came_before_them() -> None:
    split = Split([event(0, "eat")], [event(1, "walk")], [event(3, "eat"), event(4, "read")])

    train, validation, test = _intent_rows.of_split(split, SCHEME)

    assert [list(side.labels) for side in (train, validation, test)] == [[0], [2], [0, 1]]
    first = SCHEME.columns.index("t0_0")
    assert list(test.features[:, first]) == [3, 1]
    assert validation.features[0, first] == 1


def alternating(count: int, start: float = 0.0) -> list[Event]:
    """Eat, walk, eat, walk, one an hour: the event before says what comes."""
    return [event(start + n, INTENTS[2 * (n % 2)]) for n in range(count)]


@pytest.fixture(scope="module")
def population() -> trees.Trees:
    return trees.fit(*rows_of_the_population(), SCHEME)


def rows_of_the_population() -> tuple[Rows, Rows]:
    """Return what to train on, and to stop by: four users who read instead of every sixth meal, and one who eats."""
    users = [alternating(60, start) for start in (0, 7, 24, 30)]
    for user in users:
        user[::12] = [event(e.at / HOUR, "read") for e in user[::12]]
    return Rows.of(users, SCHEME), Rows.of([alternating(40, 3)], SCHEME)


def test_trees_learn_what_follows_what() -> None:
    train = Rows.of([alternating(60, start) for start in (0, 7, 24, 30)], SCHEME)
    found = trees.fit(train, Rows.of([alternating(40, 3)], SCHEME), SCHEME)
    events = alternating(12, start=100)
    users = {"nothing to predict": Split(events[:6], events[6:8], []), "a": Split(events[:4], events[4:6], events[6:])}

    said = trees.predictions(users, SCHEME, lambda train, validation: found)

    assert said.shape == (6, 3)
    assert list(said.argmax(axis=1)) == [0, 2, 0, 2, 0, 2]
    np.testing.assert_allclose(said.sum(axis=1), 1)
    assert found.parameters > 0


def test_going_on_adds_to_the_population(population: trees.Trees) -> None:
    other = [event(n, "read" if n % 2 else "walk") for n in range(80)]  # where all others eat after a walk
    train, validation, test = _intent_rows.of_split(Split(other[:60], other[60:70], other[70:]), SCHEME)

    own = trees.go_on(population, train, validation, SCHEME)

    before, after = (model.probabilities(test.features)[:, 1].mean() for model in (population, own))
    assert after > before
    # What stays behind is the population's: without the own trees the scores are the same.
    np.testing.assert_allclose(
        own.raw(test.features) - own.booster.predict(test.features, raw_score=True), population.raw(test.features)
    )


def test_the_same_rows_give_the_same_trees(population: trees.Trees) -> None:
    again = trees.fit(*rows_of_the_population(), SCHEME)

    assert again.booster.model_to_string() == population.booster.model_to_string()


def test_few_rows_give_simple_trees() -> None:
    train = Rows.of([alternating(150)], SCHEME)

    found = trees.fit(train, Rows.of([], SCHEME), SCHEME)

    leaves = [int(line[11:]) for line in found.booster.model_to_string().splitlines() if line.startswith("num_leaves=")]
    assert max(leaves) <= 3


def test_balance_makes_a_rare_class_likelier() -> None:
    # Nothing but the hour tells anything, and that little: a quarter reads at 9, nobody at 10.
    events = [event(24.0 * n + 9 + n % 2, "read" if n % 8 == 0 else "eat") for n in range(400)]
    train, none = Rows.of([[e] for e in events], SCHEME), Rows.of([], SCHEME)

    plain, balanced = (trees.fit(train, none, SCHEME, balance=balance) for balance in (0.0, 1.0))

    first = train.features[:1]
    assert plain.probabilities(first)[0].argmax() == 0
    assert balanced.probabilities(first)[0].argmax() == 1


def test_rows_without_a_class_are_refused() -> None:
    nothing = Rows.of([[event(0, "unknown")]], SCHEME)
    with pytest.raises(ValueError, match="no row to train on"):
        trees.fit(nothing, nothing, SCHEME)


def test_each_arm_predicts_every_test_event() -> None:
    users = {f"u{n}": alternating(60, 5 * n) for n in range(8)}
    individual = {"me": Split(users["u0"][:36], users["u0"][36:42], users["u0"][42:])}

    found = {arm.name: arm for arm in trees.arms(users, individual, INTENTS, seed=0)}

    assert all(arm.probabilities.shape == (18, 3) for arm in found.values())
    assert {name for name, arm in found.items() if arm.tune_s > 0} == {
        *("LightGBM, going on", "LightGBM, user alone", "LightGBM + shares, going on")
    }
    assert {name for name, arm in found.items() if arm.train_s == 0} == {"LightGBM, user alone"}
