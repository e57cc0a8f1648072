"""Run: python -m pytest tests/adapt/gate/test_review.py

The other arms, preferences and abilities are measured on the arms that they are said to be of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepd.adapt.examples import Encoded
from edgepd.adapt.gate import behaviour
from edgepd.adapt.gate.arms import Arm, Scorer
from edgepd.adapt.gate.judge import Trial
from edgepd.adapt.gate.review import Prompts, preferred, review
from edgepd.adapt.gate.verifiable import VerifiablePrompt
from edgepd.chat import ChatFormat
from tests.adapt.gate.parts import LAX, PROMPT, favourites, losses_by_hand, trial

STRICT = dataclasses.replace(LAX, max_verifiable_drop=0.02)


def behind(prompt: Sequence[int], examples: Sequence[Encoded]) -> list[Encoded]:
    """The same answers behind another prompt."""
    return [Encoded(e.id, (*prompt, *e.tokens), len(prompt) + e.supervised_from) for e in examples]


def mean_loss(arm: Arm, examples: Sequence[Encoded]) -> float:
    losses = [losses_by_hand(arm, e.tokens, e.supervised_from) for e in examples]
    return float(np.mean([loss for each in losses for loss in each]))


def scores_of(base: Path, adapter: Path, held_out: Sequence[Encoded]) -> dict[str, Any]:
    """The part of the verdict's numbers that a review needs."""
    guards = [{"name": "general perplexity", "value": 0.0, "limit": 0.02, "unit": "relative", "passed": True}]
    before, after = mean_loss(Arm(base), held_out), mean_loss(Arm(base, adapter), held_out)
    return {"held_out_base": before, "held_out_after": after, "guards": guards}


@pytest.fixture(scope="module")
def held_out(base: Path, adapter: Path) -> list[Encoded]:
    return favourites(Arm(base, adapter), 5)


@pytest.fixture
def given(base: Path, adapter: Path, held_out: list[Encoded], tmp_path: Path) -> Trial:
    return trial(base, Arm(base, adapter), held_out, tmp_path / "cache", limits=STRICT)


def test_every_arm_is_measured_on_the_same_answers(
    base: Path, adapter: Path, given: Trial, held_out: list[Encoded]
) -> None:
    scores = scores_of(base, adapter, held_out)
    prompts = Prompts(behind([40, 41], held_out), behind([50, 51, 52, 53], held_out))
    found = review(given, prompts, [], scores)
    arms = found.scores["arms"]
    assert arms == {
        "base": scores["held_out_base"],
        "profile": pytest.approx(mean_loss(Arm(base), prompts.profile), abs=5e-3),
        "retrieval": pytest.approx(mean_loss(Arm(base), prompts.retrieval), abs=5e-3),
        "adapter": scores["held_out_after"],
        "adapter+retrieval": pytest.approx(mean_loss(Arm(base, adapter), prompts.retrieval), abs=5e-3),
    }
    best = min(arms, key=lambda name: arms[name])
    assert found.kept
    assert found.reason == f"of all arms {best} does best on held-out answers, at {arms[best]:.3f} nats/token"
    assert set(found.scores) == {"arms"}


def test_where_there_is_no_other_prompt_nothing_is_measured_again(
    base: Path, adapter: Path, given: Trial, held_out: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    losses = Scorer.answer_losses

    def counted(self: Scorer, examples: Sequence[Encoded]) -> list[float]:
        asked.append(len(examples))
        return losses(self, examples)

    monkeypatch.setattr(Scorer, "answer_losses", counted)
    scores = scores_of(base, adapter, held_out)
    found = review(given, Prompts(held_out, held_out), [], scores)
    assert sum(asked) == 0
    assert set(found.scores["arms"].values()) == {scores["held_out_base"], scores["held_out_after"]}


def test_long_prompts_and_answers_that_are_wanted_less_have_room(
    base: Path, adapter: Path, given: Trial, held_out: list[Encoded]
) -> None:
    """More than the trial itself needs, for which llama.cpp makes room of 256 tokens."""
    long = [5 + n % 200 for n in range(300)]
    with_pairs = [dataclasses.replace(e, rejected=(*e.tokens[:PROMPT], *long)) for e in held_out]
    wide = dataclasses.replace(given, held_out=with_pairs)
    found = review(wide, Prompts(with_pairs, with_pairs), [], scores_of(base, adapter, held_out))
    assert found.scores["preference"]["pairs"] == 5
    found = review(given, Prompts(behind(long, held_out), held_out), [], scores_of(base, adapter, held_out))
    assert found.scores["arms"]["profile"] > 0


def test_pairs_are_won_by_the_likelier_answer_per_token(
    base: Path, adapter: Path, given: Trial, held_out: list[Encoded]
) -> None:
    """The adapter's own answers against the base's: each of both likes its own better."""
    with Scorer(Arm(base), 1, longest=64) as scorer:
        own = scorer.answers([e.tokens[:PROMPT] for e in held_out], [4] * 5)
        pairs = [
            dataclasses.replace(e, rejected=(*e.tokens[:PROMPT], *a.tokens))
            for e, a in zip(held_out[:3], own[:3], strict=True)
        ]
        assert preferred(scorer, [*pairs, *held_out[3:]]) == [False] * 3
    with Scorer(Arm(base, adapter), 1, longest=64) as scorer:
        assert preferred(scorer, pairs) == [True] * 3
        assert preferred(scorer, held_out) == []
    wide = dataclasses.replace(given, held_out=[*pairs, *held_out[3:]])
    found = review(wide, Prompts(wide.held_out, wide.held_out), [], scores_of(base, adapter, held_out))
    assert found.scores["preference"] == {"pairs": 3, "before": 0, "after": 3}


def what_only_it_says(arm: Arm, other: Arm, count: int) -> list[VerifiablePrompt]:
    """Prompts that `arm` answers well and `other` does not: the first letters of its own answers."""
    questions = [f"Question {n}?" for n in range(4 * count)]
    said = []
    for one in (arm, other):
        with Scorer(one, 1, longest=64) as scorer:
            chat = ChatFormat(scorer.model)
            tokens = [chat.prompt([{"role": "user", "content": question}]) for question in questions]
            answers = scorer.answers(tokens, [behaviour.VERIFIABLE_TOKENS] * len(tokens))
            said.append([answer.text(scorer.model).strip() for answer in answers])
    found = [
        VerifiablePrompt(question, question, (("starts_with", {"text": own[:4]}),))
        for question, own, others in zip(questions, *said, strict=True)
        if len(own) >= 4 and not others.lower().startswith(own[:4].lower())
    ]
    assert len(found) >= count
    return found[:count]


def test_a_candidate_that_lost_abilities_is_not_kept(
    base: Path, adapter: Path, given: Trial, held_out: list[Encoded]
) -> None:
    prompts = what_only_it_says(Arm(base), Arm(base, adapter), 6)
    scores = scores_of(base, adapter, held_out)
    found = review(given, Prompts(held_out, held_out), prompts, scores)
    assert not found.kept
    assert found.reason == (
        "of 6 prompts with answers that can be verified it gets 0 right, the base 6; at most 2% may be lost"
    )
    assert found.scores["verifiable"] == {"prompts": 6, "before": 6, "after": 0}
    assert found.scores["guards"] == [
        *scores["guards"],
        {"name": "verifiable prompts", "value": 1.0, "limit": 0.02, "unit": "share", "passed": False},
    ]
    assert len(scores["guards"]) == 1, "the verdict's own numbers stay as they were"


def test_a_candidate_that_gained_abilities_is_kept(
    base: Path, adapter: Path, given: Trial, held_out: list[Encoded]
) -> None:
    prompts = what_only_it_says(Arm(base, adapter), Arm(base), 6)
    found = review(given, Prompts(held_out, held_out), prompts, scores_of(base, adapter, held_out))
    assert found.kept
    assert found.scores["verifiable"] == {"prompts": 6, "before": 0, "after": 6}
    assert found.reason.startswith("of all arms adapter")


def test_the_abilities_of_the_base_are_measured_once(
    base: Path, adapter: Path, given: Trial, held_out: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = what_only_it_says(Arm(base), Arm(base, adapter), 3)
    scores = scores_of(base, adapter, held_out)
    first = review(given, Prompts(held_out, held_out), prompts, scores)
    assert [path.name for path in given.cache.iterdir()] == [f"{given.original_sha256[:16]}-verifiable.json"]
    monkeypatch.setattr(behaviour, "verified", _must_not_run)  # which the base's results come from
    again = review(given, Prompts(held_out, held_out), prompts, scores)
    assert again == first


def _must_not_run(*_: object) -> list[bool]:
    raise AssertionError("the base was asked again")
