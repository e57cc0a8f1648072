"""The gate: what is held out is the newest, every model is asked the same, and the reason says both numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd.intent.gate import LEAST_PROBABILITY, MIN_HELD_OUT, Split, judge, measured, split, too_few
from edgepd.intent.schema import Event

HOUR = 3600.0


def days(count: int) -> list[Event]:
    """Return so many events, of which every second is one or the other."""
    return [Event(n * HOUR, "ab"[n % 2], "ab"[n % 2], utc_offset_s=60 * n) for n in range(count)]


class Says:
    """Says the same each time, and remembers what it was asked."""

    def __init__(self, *ranked: tuple[str, float]) -> None:
        self.ranking = list(ranked)
        self.asked: list[tuple[int, float, int]] = []

    def ranked(self, events: Sequence[Event], at: float, utc_offset_s: int) -> list[tuple[str, float]]:
        self.asked.append((len(events), at, utc_offset_s))
        assert all(event.at < at for event in events)
        return self.ranking


SURE = Says(("a", 0.5), ("b", 0.5))
UNSURE = Says(("c", 0.6), ("a", 0.2), ("b", 0.2))
PARTS = Split(days(20)[:10], days(20)[10:])


@given(st.integers(0, 500), st.floats(0.05, 0.5))
def test_the_newest_are_held_out_and_nothing_is_on_both_sides(count: int, share: float) -> None:
    events = days(count)
    parts = split(events, share)
    if parts is None:
        assert count < max(2 * MIN_HELD_OUT, MIN_HELD_OUT + round(share * count))
        assert str(count) in too_few(count)
        return
    assert [*parts.learn, *parts.held_out] == events
    assert len(parts.held_out) == max(MIN_HELD_OUT, round(share * count))
    assert len(parts.learn) >= MIN_HELD_OUT
    assert parts.learn[-1].at < parts.held_out[0].at


def test_the_bounds_of_a_split() -> None:
    assert split(days(15), 0.2) is None
    smallest = split(days(16), 0.2)
    assert smallest is not None
    assert (len(smallest.learn), len(smallest.held_out)) == (8, 8)
    usual = split(days(200), 0.2)
    assert usual is not None
    assert (len(usual.learn), len(usual.held_out)) == (160, 40)


def test_each_event_is_predicted_from_all_before_it_at_its_own_time() -> None:
    model, told = Says(("a", 1.0)), list[int]()
    measured(model, Split(days(5)[:2], days(5)[2:]), told.append)
    assert model.asked == [(2, 2 * HOUR, 120), (3, 3 * HOUR, 180), (4, 4 * HOUR, 240)]
    assert told == [0, 1, 2]


def test_the_numbers_are_those_of_the_definition() -> None:
    found = measured(UNSURE, PARTS)  # a is second and b third, each five times
    assert found.nll == pytest.approx(-math.log(0.2))
    assert found.ndcg_3 == pytest.approx((1 / math.log2(3) + 1 / math.log2(4)) / 2)
    unknown = measured(Says(), PARTS)
    assert unknown.nll == pytest.approx(-math.log(LEAST_PROBABILITY))
    assert unknown.ndcg_3 == 0.0
    assert measured(Says(("x", 0.1), ("y", 0.1), ("z", 0.1), ("a", 0.7)), PARTS).ndcg_3 == 0.0  # fourth is too late


def test_what_foresees_better_than_both_passes() -> None:
    serving = Says(("a", 0.3), ("b", 0.3), ("c", 0.4))
    told: list[tuple[int, int]] = []
    verdict = judge(SURE, serving, UNSURE, PARTS, lambda done, total: told.append((done, total)))
    assert verdict.passed
    assert verdict.reason == (
        "it foresees 10 events that it was not tuned on better (0.693 nats/event) than the tuned model that serves "
        "(1.204 nats/event) and the shipped model (1.609 nats/event)"
    )
    scores = verdict.scores
    assert (scores["nll_before"], scores["nll_after"], scores["nll_shipped"]) == (1.204, 0.6931, 1.6094)
    assert (scores["learned_events"], scores["held_out_events"]) == (10, 10)
    assert scores["nll_markov"] < scores["nll_shipped"]
    assert scores["ndcg_3_after"] == pytest.approx((1 + 1 / math.log2(3)) / 2, abs=1e-4)
    assert told == [(n, 30) for n in range(30)]


def test_where_the_shipped_model_serves_it_is_compared_with_that_alone() -> None:
    verdict = judge(SURE, None, UNSURE, PARTS)
    assert verdict.passed
    assert verdict.reason.endswith("than the shipped model, which serves (1.609 nats/event)")
    assert verdict.scores["nll_before"] == verdict.scores["nll_shipped"] == 1.6094


def test_what_surprises_as_much_as_what_serves_does_not_pass() -> None:
    verdict = judge(SURE, Says(("a", 0.5), ("b", 0.5)), UNSURE, PARTS)
    assert not verdict.passed
    assert verdict.reason == (
        "it surprises more than the tuned model that serves: 0.693 nats/event, not less than 0.693 nats/event"
    )


def test_what_is_better_than_what_serves_but_not_than_the_shipped_one_does_not_pass() -> None:
    verdict = judge(SURE, UNSURE, Says(("a", 0.55), ("b", 0.55)), PARTS)
    assert not verdict.passed
    assert "the shipped model: 0.693 nats/event, not less than 0.598" in verdict.reason


def test_what_ranks_worse_does_not_pass_whatever_it_believes() -> None:
    bold, meek = Says(("c", 0.34), ("a", 0.33), ("b", 0.33)), Says(("a", 0.1), ("b", 0.1))
    verdict = judge(bold, None, meek, PARTS)
    assert verdict.scores["nll_after"] < verdict.scores["nll_before"]
    assert not verdict.passed
    assert verdict.reason == "it ranks worse than the shipped model, which serves: N@3 0.565, 0.815 before"


def test_a_model_that_broke_does_not_pass() -> None:
    verdict = judge(Says(("a", math.nan), ("b", math.nan)), None, UNSURE, PARTS)
    assert not verdict.passed
