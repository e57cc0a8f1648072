"""The gate: its losses are llama.cpp's, and only what is better and harmless passes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgepd.adapt.examples import Encoded
from edgepd.adapt.gate import Arm, Limits, Scorer, Verdict, decide, general_windows, judge
from edgepd.errors import AdapterError, ModelError
from edgepd_quant.adapter_file import Adapter, LowRank, read_adapter, write_adapter
from edgepd_quant.types import GGMLType
from tests.daemon.adapters import random_lora
from tests.tiny_gguf import llama_logits, tiny_llama

RNG = np.random.default_rng(5)
TOKENS = tuple(RNG.integers(3, 273, 40).tolist())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", qtype=GGMLType.Q4_1, seed=1)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_lora(tmp_path_factory.mktemp("adapter") / "a.gguf", base, seed=1, deviation=0.3)


def losses_by_hand(arm: Arm, tokens: tuple[int, ...], first_target: int) -> list[float]:
    """Cross entropies from logits that llama.cpp computed without our binding."""
    logits = llama_logits(arm.model, tokens, arm.adapter).astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return [-float(logp[n - 1, tokens[n]]) for n in range(first_target, len(tokens))]


def favourites(arm: Arm, count: int) -> list[Encoded]:
    """Answers that this arm itself would give, so that it has a lower loss on them than others."""
    found = []
    for seed in range(count):
        tokens = np.random.default_rng(seed).integers(3, 273, 5).tolist()
        for _ in range(6):
            tokens.append(int(llama_logits(arm.model, tokens, arm.adapter)[-1].argmax()))
        found.append(Encoded(f"e{seed}", tuple(tokens), 5))
    return found


def judged(base: Path, candidate: Arm, held_out: list[Encoded], rise: float = 1e9, **arms: Arm) -> Verdict:
    given = {"original": Arm(base), "current": Arm(base), **arms}
    return judge(candidate=candidate, held_out=held_out, limits=Limits(rise, 0.9), threads=1, **given)


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


def test_an_answer_is_the_mean_of_its_tokens_and_text_that_of_its_windows_second_halves(base: Path) -> None:
    with Scorer(Arm(base), 1, longest=512) as scorer:
        each = scorer.token_losses(TOKENS, 30)
        assert scorer.answer_losses([Encoded("e", TOKENS, 30)]) == [pytest.approx(sum(each) / 10)]
        windows = [TOKENS[:12], TOKENS[13:31]]
        losses = [scorer.token_losses(window, len(window) // 2) for window in windows]
        assert scorer.text_loss(windows) == pytest.approx(sum(map(sum, losses)) / 15)


def test_a_candidate_that_is_better_passes(base: Path, adapter: Path) -> None:
    candidate = Arm(base, adapter)
    held_out = favourites(candidate, 4)
    verdict = judged(base, candidate, held_out)
    before = np.mean([losses_by_hand(Arm(base), e.tokens, 5) for e in held_out])
    after = np.mean([losses_by_hand(candidate, e.tokens, 5) for e in held_out])
    assert verdict.passed
    scores = verdict.scores
    assert (scores["held_out_examples"], scores["held_out_tokens"], scores["improved_examples"]) == (4, 24, 4)
    assert scores["held_out_before"] == pytest.approx(before, abs=5e-3)
    assert scores["held_out_after"] == pytest.approx(after, abs=5e-3)
    assert verdict.reason.startswith(
        f"held-out loss fell from {scores['held_out_before']:.3f} to {scores['held_out_after']:.3f} nats/token"
    )
    assert scores["general_perplexity_rise"] == pytest.approx(
        scores["general_perplexity_after"] / scores["general_perplexity_before"] - 1
    )


def test_long_answers_count_for_as_much_as_their_tokens(base: Path, adapter: Path) -> None:
    held_out = [Encoded("short", TOKENS[:8], 6), Encoded("long", TOKENS, 10)]
    scores = judged(base, Arm(base, adapter), held_out).scores
    each = [losses_by_hand(Arm(base), e.tokens, e.supervised_from) for e in held_out]
    assert scores["held_out_tokens"] == 32
    assert scores["held_out_before"] == pytest.approx((sum(each[0]) + sum(each[1])) / 32, abs=5e-3)


def test_a_candidate_that_is_worse_or_the_same_fails(base: Path, adapter: Path) -> None:
    held_out = favourites(Arm(base), 3)
    worse = judged(base, Arm(base, adapter), held_out)
    assert not worse.passed
    assert worse.reason.startswith("held-out loss did not fall: ")
    assert worse.scores["improved_examples"] == 0
    same = judged(base, Arm(base), held_out)
    assert not same.passed
    assert same.scores["held_out_before"] == same.scores["held_out_after"]
    assert same.scores["general_perplexity_rise"] == 0


def test_a_candidate_must_beat_what_serves_now_and_not_the_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    held_out = favourites(Arm(base, adapter), 3)
    assert judged(base, Arm(base, adapter), held_out).passed
    again = judged(base, Arm(base, adapter), held_out, current=Arm(base, adapter))
    assert not again.passed
    assert again.scores["held_out_before"] == again.scores["held_out_after"]


def test_general_text_is_compared_with_the_original(base: Path, adapter: Path) -> None:
    adapted = Arm(base, adapter)
    rise = judged(base, adapted, favourites(adapted, 3)).scores["general_perplexity_rise"]
    back = judged(base, Arm(base), favourites(Arm(base), 3), original=adapted, current=adapted)
    assert rise != 0
    assert back.scores["general_perplexity_rise"] == pytest.approx(1 / (1 + rise) - 1)


def scores_of(base: float, before: float, after: float, rise: float = 0.0) -> dict[str, float]:
    losses = {"held_out_base": base, "held_out_before": before, "held_out_after": after}
    return losses | {"held_out_examples": 5, "general_perplexity_rise": rise}


@pytest.mark.parametrize(
    ("scores", "consolidates", "passed", "reason"),
    [
        (scores_of(4, 4, 3), False, True, "held-out loss fell from 4.000 to 3.000 nats/token on 5 answers"),
        (scores_of(4, 3, 3), False, False, "held-out loss did not fall: 3.000 -> 3.000 nats/token"),
        (scores_of(4, 3, 3.5), False, False, "held-out loss did not fall: 3.000 -> 3.500 nats/token"),
        (scores_of(4, 4, 3, 0.02), False, True, "general perplexity +2.0%"),
        (scores_of(4, 4, 3, 0.021), False, False, "perplexity on general text rose by 2.1%; at most 2.0% is allowed"),
        (scores_of(4, 4, 3, -0.5), False, True, "general perplexity -50.0%"),
        (scores_of(4, 4, math.nan), False, False, "did not fall"),
        (scores_of(4, 4, 3, math.nan), False, False, "perplexity on general text rose by nan"),
        (scores_of(4, 2, 2.18), True, True, "keeps 91% of the live adapter's gain: held-out loss 4.000 -> 2.180"),
        (scores_of(4, 2, 1), True, True, "keeps 150% of the live adapter's gain"),
        (scores_of(4, 2, 2.21), True, False, "only 90% of the live adapter's gain on held-out answers would be kept"),
        (scores_of(4, 2, math.nan), True, False, "only nan% of the live adapter's gain"),
        (scores_of(4, 2, 1, 0.021), True, False, "perplexity on general text rose by 2.1%"),
        (scores_of(4, 5, 4.5), True, True, "held-out loss fell from 5.000 to 4.500"),  # nothing was gained to keep
        (scores_of(4, 5, 5.5), True, False, "did not fall"),
    ],
)
def test_the_decision(scores: dict[str, float], consolidates: bool, passed: bool, reason: str) -> None:
    verdict = decide(scores, Limits(0.02, 0.9), consolidates=consolidates)
    assert verdict.passed is passed
    assert reason in verdict.reason
    assert verdict.scores is scores


def test_a_file_that_takes_the_place_of_an_adapter_is_a_consolidation(base: Path, adapter: Path) -> None:
    held_out = favourites(Arm(base, adapter), 3)
    verdict = judged(base, Arm(base), held_out, current=Arm(base, adapter))
    assert not verdict.passed
    assert verdict.scores["kept_gain"] == 0  # the base itself keeps nothing
    assert "only 0% of the live adapter's gain" in verdict.reason
    assert "kept_gain" not in judged(base, Arm(base, adapter), held_out).scores


def test_a_candidate_of_numbers_that_are_none_fails(base: Path, adapter: Path, tmp_path: Path) -> None:
    good = read_adapter(adapter)
    spoilt = {name: LowRank(pair.a, np.full_like(pair.b, np.nan)) for name, pair in good.tensors.items()}
    broken = tmp_path / "nan.gguf"
    write_adapter(broken, Adapter(good.kind, good.architecture, good.alpha, spoilt, {}))
    verdict = judged(base, Arm(base, broken), favourites(Arm(base), 2))
    assert not verdict.passed
    assert math.isnan(verdict.scores["held_out_after"])


def test_arms_that_cannot_be_loaded(base: Path, adapter: Path, tmp_path: Path) -> None:
    held_out = [Encoded("e", TOKENS, 30)]
    with pytest.raises(ModelError, match="does not exist"):
        judged(base, Arm(tmp_path / "missing.gguf"), held_out)
    with pytest.raises(AdapterError, match="refuses the adapter"):
        judged(base, Arm(base, tmp_path / "missing.gguf"), held_out)


@pytest.mark.real_model
def test_the_general_text_is_ordinary_to_the_real_model(model_path: Path) -> None:
    with Scorer(Arm(model_path), 2, longest=512) as scorer:
        windows = general_windows(scorer.model)
        assert [len(window) for window in windows] == [192] * 4
        assert len({tuple(window) for window in windows}) == 4
        assert 1.5 < scorer.text_loss(windows) < 4.0  # nats per token; a random model would have 10.8
