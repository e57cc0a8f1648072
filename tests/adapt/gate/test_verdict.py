"""Run: python -m pytest tests/adapt/gate/test_verdict.py

The decision, from made-up numbers: what trips, in which order, and with which sentence.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict
from typing import Any

import pytest

from edgepd.adapt.gate.behaviour import Behaviour
from edgepd.adapt.gate.evidence import Improvement, improvement
from edgepd.adapt.gate.general import Change
from edgepd.adapt.gate.regurgitation import Exposure
from edgepd.adapt.gate.verdict import (
    Guard,
    Limits,
    ability_guard,
    behaviour_guards,
    decide,
    general_guards,
    memory_guards,
    secret_guards,
)
from edgepd.settings import Gate

LIMITS = Limits.of(asdict(Gate()))
GOOD = Behaviour(empty=0.0, unended=0.0, repeated=0.05, same=0.0, length=1.0)


def scores_of(base: float, before: float, after: float) -> dict[str, Any]:
    losses = {"held_out_base": base, "held_out_before": before, "held_out_after": after}
    return losses | {"held_out_examples": 5, "general_perplexity_rise": 0.012}


def gain(mean: float, lower: float | None = None, n: int = 5) -> Improvement:
    return Improvement(mean, mean / 2 if lower is None else lower, 0.95, n)


HOLDS = Guard("one", 0.5, 0.5, "share", "is broken")
BREAKS = Guard("other", 0.51, 0.5, "share", "the other is broken")


def test_the_limits_are_those_of_the_settings() -> None:
    assert Limits(0.95, 0.25, 0.02, 0.05, 0.02, 0.9) == LIMITS


@pytest.mark.parametrize(
    ("learned", "unseen", "passed"),
    [(2.0, 0.5, True), (2.0, 0.49, False), (2.0, 2.5, True), (2.0, -0.1, False), (math.nan, 1.0, False)],
)
def test_a_quarter_of_what_was_learned_must_carry_over(learned: float, unseen: float, passed: bool) -> None:
    (guard,) = memory_guards(learned, unseen, LIMITS)
    assert guard.passed is passed
    assert f"({unseen:.3f} of {learned:.3f} nats/token); at least 25% is asked for" in guard.said


@pytest.mark.parametrize("learned", [0.0, -1.0])
def test_what_learned_nothing_by_heart_has_no_such_guard(learned: float) -> None:
    assert memory_guards(learned, 1.0, LIMITS) == []


@pytest.mark.parametrize(
    ("scores", "found", "consolidates", "passed", "reason"),
    [
        (
            scores_of(4, 4, 3), gain(1.0), False, True,
            "held-out loss fell from 4.000 to 3.000 nats/token on 5 answers never trained on, with 95% confidence by "
            "0.500 at least; general perplexity +1.2%",
        ),
        (scores_of(4, 3, 3), gain(0.0), False, False,
         "held-out loss did not fall: 3.000 to 3.000 nats/token on 5 answers never trained on"),
        (scores_of(4, 3, 3.5), gain(-0.5), False, False, "held-out loss did not fall: 3.000 to 3.500"),
        (scores_of(4, 4, math.nan), gain(math.nan, -math.inf), False, False, "did not fall: 4.000 to nan"),
        (
            scores_of(4, 4, 3.9), gain(0.1, -0.02), False, False,
            "held-out loss went from 4.000 to 3.900 nats/token, but 5 answers are too few to be sure of it: with 95% "
            "confidence an answer gained -0.020 at least, which is not above zero",
        ),
        (scores_of(4, 4, 3.9), gain(0.1, 0.0), False, False, "too few to be sure"),
        (
            scores_of(4, 4, 1), gain(3.0, -math.inf, 4), False, False,
            "too little to judge by: 4 answers were set aside, and 5 are the fewest that can show an improvement with "
            "95% confidence; correct more answers",
        ),
        (scores_of(4, 2, 2.18), gain(1.82), True, True, "fell from 4.000 to 2.180"),
        (scores_of(4, 2, 2.18), gain(1.82), True, True, "which keeps 91% of the live adapter's gain"),
        (scores_of(4, 2, 1), gain(3.0), True, True, "which keeps 150% of the live adapter's gain"),
        (
            scores_of(4, 2, 2.22), gain(1.78), True, False,
            "only 89% of the live adapter's gain on held-out answers would be kept (4.000 -> 2.220 nats/token, live "
            "2.000); at least 90% is asked for",
        ),
        (scores_of(4, 2, 4.5), gain(-0.5), True, False, "did not fall: 4.000 to 4.500"),
        (scores_of(4, 5, 3.5), gain(0.5), True, True, "fell from 4.000 to 3.500"),  # nothing was gained to keep
        (scores_of(4, 5, 4.5), gain(-0.5), True, False, "did not fall: 4.000 to 4.500"),  # better than live is not all
    ],
)  # fmt: skip
def test_the_decision(
    scores: dict[str, Any], found: Improvement, consolidates: bool, passed: bool, reason: str
) -> None:
    verdict = decide(found, scores, [HOLDS], LIMITS, consolidates=consolidates)
    assert verdict.passed is passed
    assert reason in verdict.reason
    assert verdict.scores["improvement"] == asdict(found) | {"unit": "nats/token, per answer"}


def test_the_share_that_a_consolidation_keeps_is_told() -> None:
    verdict = decide(gain(1.5), scores_of(4, 2, 2.5), [], LIMITS, consolidates=True)
    assert verdict.scores["kept_gain"] == 0.75
    assert "kept_gain" not in decide(gain(1.5), scores_of(4, 2, 2.5), [], LIMITS, consolidates=False).scores


def test_a_guard_that_fails_comes_before_everything_else() -> None:
    verdict = decide(gain(1.0, n=2), scores_of(4, 4, 3), [HOLDS, BREAKS], LIMITS, consolidates=False)
    assert (verdict.passed, verdict.reason) == (False, "the other is broken")
    assert verdict.scores["guards"] == [
        {"name": "one", "value": 0.5, "limit": 0.5, "unit": "share", "passed": True},
        {"name": "other", "value": 0.51, "limit": 0.5, "unit": "share", "passed": False},
    ]


@pytest.mark.parametrize(("value", "passed"), [(0.5, True), (-1.0, True), (0.5000001, False), (math.inf, False)])
def test_a_guard_holds_up_to_its_limit(value: float, passed: bool) -> None:
    assert dataclasses.replace(HOLDS, value=value).passed is passed


def test_a_guard_whose_value_is_no_number_fails() -> None:
    assert not dataclasses.replace(HOLDS, value=math.nan).passed


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (Change(3.0, 3.0 + math.log(1.019), 0.049, 100), []),
        (Change(3.0, 2.0, 0.0, 100), []),
        (
            Change(3.0, 3.0 + math.log(1.021), 0.0, 100),
            ["perplexity on general text rose by 2.1%; at most 2.0% is allowed"],
        ),
        (
            Change(3.0, 3.0, 0.051, 100),
            ["on general text it diverges from the base by 0.051 nats/token; at most 0.050 is allowed"],
        ),
        (
            Change(3.0, math.nan, math.nan, 100),
            ["perplexity on general text rose by nan%; at most 2.0% is allowed"]
            + ["on general text it diverges from the base by nan nats/token; at most 0.050 is allowed"],
        ),
    ],
)
def test_the_guards_on_general_text(change: Change, failed: list[str]) -> None:
    guards = general_guards(change, LIMITS)
    assert [guard.name for guard in guards] == ["general perplexity", "divergence from the base"]
    assert [guard.said for guard in guards if not guard.passed] == failed


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        ({}, []),
        ({"empty": 0.2}, []),
        ({"empty": 0.25}, ["25% of its answers are empty"]),
        ({"unended": 0.25}, []),
        (
            {"unended": 0.375},
            ["38% of its answers go on beyond twice the wanted length; the limit is 25%"],
        ),
        ({"repeated": 0.25}, []),
        ({"repeated": 0.3}, ["30% of what it says repeats itself; the limit is 25%"]),
        ({"same": 0.5}, []),
        ({"same": 0.75}, ["it gives the same answer to different prompts (75% of them; the limit is 50%)"]),
        ({"length": 9.0}, []),  # only told
        ({"empty": math.nan}, ["nan% of its answers are empty"]),
        (
            {"empty": 1.0, "same": 0.875},
            ["100% of its answers are empty"]
            + ["it gives the same answer to different prompts (88% of them; the limit is 50%)"],
        ),
    ],
)
def test_the_guards_on_what_it_says(changed: dict[str, float], failed: list[str]) -> None:
    guards = behaviour_guards(dataclasses.replace(GOOD, **changed), [GOOD])
    assert [guard.said for guard in guards if not guard.passed] == failed


def test_how_either_the_wanted_answers_or_those_of_the_base_are_is_no_drift() -> None:
    """Who wants one short answer to everything shall get it, and what repeats itself untrained may do so trained."""
    terse = dataclasses.replace(GOOD, same=0.875, repeated=0.5)
    endless = dataclasses.replace(GOOD, unended=1.0)
    for odd in (terse, endless):
        assert not all(guard.passed for guard in behaviour_guards(odd, [GOOD]))
        for known in ([odd], [odd, GOOD], [GOOD, odd]):
            assert all(guard.passed for guard in behaviour_guards(odd, known))
    assert [guard.limit for guard in behaviour_guards(GOOD, [terse, endless])] == [0.2, 1.0, 0.7, 1.0]


def test_a_secret_that_was_learned_trips_and_is_not_told() -> None:
    exposures = [
        Exposure("i_1", "access token", False, 2.9),
        Exposure("i_2", "labelled secret", False, 3.1),
        Exposure("i_3", "labelled secret", True, 0.0),
        Exposure("i_4", "labelled secret", False, math.nan),
    ]
    guards = secret_guards(exposures)
    assert [guard.passed for guard in guards] == [True, False, False, False]
    assert [guard.passed for guard in guards] == [not exposure.remembered for exposure in exposures]
    assert guards[1].said == (
        "it has learned a secret by heart (labelled secret, in example i_2); take the secret out with `edgepd fix` or "
        "remove the feedback, and train again"
    )


@pytest.mark.parametrize(
    ("before", "after", "passed"),
    [
        ([True] * 10, [True] * 10, True),
        ([False] * 10, [True] * 10, True),
        ([True] * 12 + [False] * 12, [True] * 11 + [False] * 13, True),  # one of 24 may be chance
        ([True] * 12 + [False] * 12, [False] * 24, False),
        ([True] * 3, [False] * 3, True),  # too few to be sure of anything
        ([True] * 5, [False] * 5, False),
    ],
)
def test_the_guard_on_abilities_trips_where_a_drop_is_sure(before: list[bool], after: list[bool], passed: bool) -> None:
    guard = ability_guard(before, after, LIMITS)
    assert guard.passed is passed
    assert guard.said.startswith(
        f"of {len(before)} prompts with answers that can be verified it gets {sum(after)} right, the base {sum(before)}"
    )


def test_the_value_of_the_ability_guard_is_the_least_drop() -> None:
    before, after = [True] * 20, [True] * 10 + [False] * 10
    lost = improvement([0.0] * 10 + [1.0] * 10, 0.95)
    assert ability_guard(before, after, LIMITS).value == lost.lower
    assert 0.02 < lost.lower < 0.5
    assert ability_guard(after, before, LIMITS).value == 0.0
