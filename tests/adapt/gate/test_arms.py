"""Run: python -m pytest tests/adapt/gate/test_arms.py

The losses of an arm are llama.cpp's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepd.adapt.examples import Encoded
from edgepd.adapt.gate.arms import Arm, Scorer, log_softmax_at
from edgepd.errors import AdapterError, ModelError
from tests.adapt.gate.parts import VOCABULARY, losses_by_hand
from tests.tiny_gguf import llama_logits

TOKENS = tuple(np.random.default_rng(5).integers(3, VOCABULARY, 40).tolist())


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("window", [8, 39, 512])
@pytest.mark.parametrize("first_target", [1, 8, 9, 25, 39])
def test_losses_are_cross_entropies_of_llama_cpp(
    base: Path, adapter: Path, adapted: bool, window: int, first_target: int
) -> None:
    arm = Arm(base, adapter if adapted else None)
    with Scorer(arm, 1, longest=512, window=window) as scorer:
        found = scorer.token_losses(TOKENS, first_target)
        assert scorer.token_losses(TOKENS, first_target) == found  # nothing is left over from the first time
    assert len(found) == 40 - first_target
    assert found == pytest.approx(losses_by_hand(arm, TOKENS, first_target), abs=5e-3)


def test_an_answer_is_the_mean_of_its_tokens(base: Path) -> None:
    with Scorer(Arm(base), 1, longest=512) as scorer:
        each = scorer.token_losses(TOKENS, 30)
        assert scorer.answer_losses([Encoded("e", TOKENS, 30), Encoded("f", TOKENS[:32], 30)]) == [
            pytest.approx(sum(each) / 10),
            pytest.approx(sum(each[:2]) / 2),
        ]
        assert scorer.answer_losses([]) == []


def test_answers_are_the_likeliest_of_this_arm_and_leave_losses_as_they_were(base: Path, adapter: Path) -> None:
    arm = Arm(base, adapter)
    with Scorer(arm, 1, longest=64) as scorer:
        before = scorer.token_losses(TOKENS, 30)
        (answer,) = scorer.answers([TOKENS[:6]], [4])
        assert scorer.token_losses(TOKENS, 30) == before
    tokens = list(TOKENS[:6])
    for _ in range(4):
        tokens.append(int(llama_logits(base, tokens, adapter)[-1].argmax()))
    assert answer.tokens == tokens[6:]
    with Scorer(Arm(base), 1, longest=64) as scorer:
        (other,) = scorer.answers([TOKENS[:6]], [4])
    assert other.tokens != answer.tokens


def test_log_softmax_does_not_overflow() -> None:
    logits = np.array([1e4, 1e4, -1e4], dtype=np.float32)
    assert log_softmax_at(logits, 1) == pytest.approx(-np.log(2))
    assert log_softmax_at(logits, 2) == pytest.approx(-2e4 - np.log(2))


def test_arms_that_cannot_be_loaded(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        Scorer(Arm(tmp_path / "missing.gguf"), 1, longest=64)
    with pytest.raises(AdapterError, match="refuses the adapter"):
        Scorer(Arm(base, tmp_path / "missing.gguf"), 1, longest=64)
