"""Every arm of the benchmark sees the same people, and of each only the past."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks._intent_data import MONDAY, Ranker, counted, foursquare, predictions, protocol, to_predict
from edgepd.errors import RequestError
from edgepd.intent.markov import UserMarkov
from edgepd.intent.schema import Event, moment


def test_hours_become_minutes_of_a_month_that_starts_on_a_monday(tmp_path: Path) -> None:
    path = tmp_path / "people.json"
    path.write_text(json.dumps([[[0.0333, "Food"], [130.5, "Office"]], []]))
    users = foursquare(path)
    assert users == {
        "u00000": [Event(MONDAY + 120, "Food", "Food"), Event(MONDAY + 469_800, "Office", "Office")],
        "u00001": [],
    }
    saturday = moment(users["u00000"][1].at, 0)
    assert (saturday.weekday, saturday.slot) == (5, 21)


@pytest.mark.parametrize("text", ["{}", "[[[1]]]", '[[["1", "Food"]]]', '[[[-1, "Food"]]]', '[[[1, ""]]]', "[1]", "["])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "people.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"people\.json"):
        foursquare(path)


def people(number: int) -> dict[str, list[Event]]:
    """Return so many users; every second one has 40 events, the others 10."""
    rng = np.random.default_rng(5)
    return {
        f"u{user}": [
            Event(MONDAY + 3600.0 * hour, name, name)
            for hour, name in enumerate(rng.choice(["a", "b", "c"], size=size))
        ]
        for user, size in enumerate([40, 10] * (number // 2))
    }


def test_individual_users_have_enough_events_and_are_not_in_the_population() -> None:
    drawn = protocol(people(20), seed=1, individual=4)
    assert len(drawn.individual) == 4
    assert len(drawn.population) == 16
    assert not set(drawn.individual) & set(drawn.population)
    for split in drawn.individual.values():
        assert [len(part) for part in (split.train, split.validation, split.test)] == [24, 4, 12]
    assert sum(drawn.population_counts) == 10 * 10 + 6 * 40
    assert len(protocol(people(20), seed=1, individual=11).individual) == 5  # there are ten with enough


def test_each_test_event_is_predicted_from_all_before_it_and_nothing_else() -> None:
    drawn = protocol(people(4), seed=1, individual=1)
    (split,) = drawn.individual.values()
    whole = [*split.train, *split.validation, *split.test]
    seen = list(to_predict(split))
    assert [event for _, event in seen] == split.test
    assert [history for history, _ in seen] == [whole[:number] for number in range(28, 40)]


def test_the_rows_of_an_arm_are_those_of_the_truth() -> None:
    drawn = protocol(people(8), seed=2, individual=3)

    def oracle(train: Sequence[Event], validation: Sequence[Event]) -> Ranker:
        """Return one that knows the user's future."""
        split = next(s for s in drawn.individual.values() if s.train == train and s.validation == validation)
        future = {event.at: event.intent for event in split.test}
        return lambda history, at, utc_offset_s: {future[at]: 1.0, "not a class": 0.0}

    truth, users = drawn.truth()
    assert predictions(drawn, oracle).argmax(axis=1).tolist() == truth.tolist()
    assert users.tolist() == [0] * 12 + [1] * 12 + [2] * 12


def test_counts_in_one_pass_are_those_of_each_prediction() -> None:
    drawn = protocol(people(8), seed=2, individual=3)
    fitted = UserMarkov(online=True).fit(list(drawn.population.values()))
    each = predictions(drawn, lambda train, validation: fitted.adapt([*train, *validation]).probabilities)
    assert np.array_equal(counted(drawn, fitted), each)
