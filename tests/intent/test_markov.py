"""Counts with priors: closed forms, nothing from the future, and concentrations that fit what people do."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd.intent import markov
from edgepd.intent.markov import Chain, Majority, Markov1, Markov2, UserMajority, UserMarkov, UserMarkovByHour
from edgepd.intent.schema import DAY_S, Event

ARMS = [Majority, UserMajority, Markov1, Markov2, UserMarkov, UserMarkovByHour]
MONDAY = 1_514_764_800.0  # 2018-01-01 00:00 UTC


def events(names: Sequence[str], start: float = MONDAY, apart_s: float = 3600.0) -> list[Event]:
    return [Event(start + number * apart_s, name, name) for number, name in enumerate(names)]


def test_the_population_is_smoothed_towards_all_alike() -> None:
    fitted = Majority(concentrations=(2.0,)).fit([events("aaab")])
    assert fitted.probabilities([], 0) == pytest.approx({"a": (3 + 2 / 2) / 6, "b": (1 + 2 / 2) / 6})


def test_a_transition_is_smoothed_towards_the_population() -> None:
    fitted = Markov1(concentrations=(2.0, 4.0)).fit([events("abab")])
    half = (2 + 1) / 6  # two of each
    assert fitted.probabilities(events("a"), 0) == pytest.approx({"b": (2 + 4 * half) / 6, "a": 4 * half / 6})
    # Nothing was counted after the start but a.
    assert fitted.probabilities([], 0) == pytest.approx({"a": (1 + 4 * half) / 5, "b": 4 * half / 5})


def test_two_intents_back_count_in_order_two_only() -> None:
    population = [events("axbyaxb" * 6), events("cxdcxd" * 6)]
    first = Markov1(concentrations=(1.0, 1.0)).fit(population).probabilities(events("cx"), 0)
    second = Markov2(concentrations=(1.0, 1.0, 1.0)).fit(population).probabilities(events("cx"), 0)
    assert first["d"] == pytest.approx(first["b"], abs=0.01)
    assert second["d"] > 0.85
    assert next(iter(second)) == "d"


def test_the_user_comes_on_top_of_everybody() -> None:
    fitted = UserMarkov(concentrations=(1.0, 1.0, 2.0, 3.0)).fit([events("ab" * 20)])
    # Population: a after b for sure, nearly. The user did c after b, twice, and nothing else that often.
    adapted = fitted.adapt(events("bcbc"))
    widest = {"a": (20 + 1 / 3) / 41, "b": (20 + 1 / 3) / 41, "c": (1 / 3) / 41}
    after = {"a": (19 + widest["a"]) / 20, "b": widest["b"] / 20, "c": widest["c"] / 20}
    own = {"a": 2 * after["a"] / 6, "b": (2 + 2 * after["b"]) / 6, "c": (2 + 2 * after["c"]) / 6}
    expected = {"a": 3 * own["a"] / 5, "b": 3 * own["b"] / 5, "c": (2 + 3 * own["c"]) / 5}
    assert adapted.probabilities(events("b"), 0) == pytest.approx(expected)
    assert next(iter(fitted.probabilities(events("b"), 0))) == "a"
    assert fitted.adapt([]).probabilities(events("b"), 0) == fitted.probabilities(events("b"), 0)


def test_frozen_counts_end_with_training_and_online_ones_do_not() -> None:
    train, later = events("ab" * 10), events("cb" * 30, start=MONDAY + DAY_S)
    frozen = UserMarkov().adapt(train)
    online = UserMarkov(online=True).adapt(train)
    assert next(iter(frozen.probabilities([*train, *later], 0))) == "a"
    assert next(iter(online.probabilities([*train, *later], 0))) == "c"
    assert online.probabilities(train, 0) == frozen.probabilities(train, 0)


def test_the_majority_is_that_of_the_user_and_everybody_decides_between_equals() -> None:
    fitted = UserMajority().fit([events("aaaab")])
    assert list(fitted.adapt(events("ccb")).probabilities([], 0)) == ["c", "b", "a"]
    assert list(fitted.adapt(events("bc")).probabilities([], 0))[0] == "b"


def test_the_part_of_the_day_counts_in_local_time() -> None:
    # Breakfast at 8 and dinner at 20 local time, day after day, five hours behind UTC.
    days = [
        Event(MONDAY + day * DAY_S + (hour + 5) * 3600, name, name, utc_offset_s=-5 * 3600)
        for day in range(5)
        for hour, name in ((8, "breakfast"), (20, "dinner"))
    ]
    model = UserMarkovByHour().fit([days, days]).adapt(days)
    at_eight = MONDAY + 4 * DAY_S + 13 * 3600
    assert next(iter(model.probabilities([], at_eight, -5 * 3600))) == "breakfast"
    assert next(iter(model.probabilities([], at_eight + 12 * 3600, -5 * 3600))) == "dinner"
    assert next(iter(model.probabilities([], at_eight, 7 * 3600))) == "dinner"  # it is 20:00 there


def test_working_days_and_weekends_are_told_apart() -> None:
    days = [
        Event(MONDAY + day * DAY_S + 36_000, name, name)
        for day in range(28)
        for name in ["work" if day % 7 < 5 else "sport"]
    ]
    model = UserMarkovByHour().fit([days, days])
    friday, saturday = MONDAY + 32 * DAY_S + 36_000, MONDAY + 33 * DAY_S + 36_000
    assert next(iter(model.probabilities([], friday))) == "work"
    assert next(iter(model.probabilities([], saturday))) == "sport"


@pytest.mark.parametrize("arm", ARMS)
def test_with_nothing_known_it_says_nothing_and_with_one_name_it_is_sure(arm: type[Chain]) -> None:
    assert arm().probabilities([], 0) == {}
    assert arm().fit([]).adapt([]).probabilities([], MONDAY, 3600) == {}
    assert arm().fit([[]]).probabilities(events("a"), 0) == {"a": 1.0}


NAMES = st.lists(st.sampled_from("abcde"), max_size=12)


@settings(deadline=None, max_examples=40)
@given(
    arm=st.sampled_from(ARMS),
    online=st.booleans(),
    population=st.lists(NAMES, max_size=4),
    train=NAMES,
    history=st.lists(st.sampled_from("aefg"), max_size=8),
    at=st.floats(-1e10, 1e10),
)
def test_probabilities_are_of_all_that_is_known_and_add_up(
    arm: type[Chain],
    online: bool,
    population: list[list[str]],
    train: list[str],
    history: list[str],
    at: float,
) -> None:
    model = arm(online=online).fit([events(names) for names in population]).adapt(events(train))
    chances = model.probabilities(events(history), at, -3600)
    assert set(chances) == {*train, *history, *(name for names in population for name in names)}
    assert all(chance > 0 for chance in chances.values())
    assert not chances or sum(chances.values()) == pytest.approx(1)
    assert list(chances.values()) == sorted(chances.values(), reverse=True)


@settings(deadline=None, max_examples=40)
@given(arm=st.sampled_from(ARMS), online=st.booleans(), train=NAMES, test=NAMES)
def test_one_by_one_is_the_same_as_each_from_its_past_alone(
    arm: type[Chain], online: bool, train: list[str], test: list[str]
) -> None:
    population = [events(names) for names in ("abcab", "bcdee", "abab")]
    model = arm(online=online).fit(population).adapt(events(train))
    past, future = events(train), events(test, start=MONDAY + 2 * DAY_S)
    each = [
        model.probabilities([*past, *future[:number]], event.at, event.utc_offset_s)
        for number, event in enumerate(future)
    ]
    assert list(model.one_by_one(past, future)) == each
    # A second pass gives the same: the first one has left nothing in the model.
    assert list(model.one_by_one(past, future)) == each


def people(habit: float, seed: int) -> list[list[Event]]:
    """Return 40 people of 30 events; each has one favourite of six, done with this probability, else any."""
    rng = random.Random(seed)
    found = []
    for _ in range(40):
        favourite = rng.choice("abcdef")
        found.append(events([favourite if rng.random() < habit else rng.choice("abcdef") for _ in range(30)]))
    return found


def test_the_user_weighs_more_where_people_differ_more() -> None:
    alike, different = UserMarkov().fit(people(0.0, 1)), UserMarkov().fit(people(0.8, 1))
    place = list(UserMarkov.LEVELS).index(markov.USER)
    assert alike.concentrations[place] >= 64 * different.concentrations[place]
    assert UserMarkov().fit(people(0.8, 1)) == different


def test_fitted_concentrations_predict_new_people_no_worse_than_others() -> None:
    fitted = UserMarkov(online=True).fit(people(0.6, 2))

    def loss(model: UserMarkov) -> float:
        return sum(
            -math.log(chances[event.intent])
            for new in people(0.6, 3)
            for chances, event in zip(model.adapt([]).one_by_one([], new), new, strict=True)
        )

    for factors in ((1, 1, 16, 1), (1, 1, 1 / 16, 1), (1, 1, 1, 1 / 64)):
        other = tuple(factor * c for factor, c in zip(factors, fitted.concentrations, strict=True))
        worse = UserMarkov(online=True, concentrations=other).fit(people(0.6, 2))
        assert loss(fitted) < loss(worse)
