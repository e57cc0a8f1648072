"""Run: python -m pytest tests/adapt/gate/test_judge.py

Only what is better, harmless and not too far from the base passes; what goes a little too far is weakened.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgepd.adapt.examples import Encoded
from edgepd.adapt.gate import general
from edgepd.adapt.gate import judge as module
from edgepd.adapt.gate.arms import Arm, Scorer
from edgepd.adapt.gate.behaviour import Behaviour
from edgepd.adapt.gate.general import Change
from edgepd.adapt.gate.judge import COOLEST, STAGES, judge
from edgepd.errors import AdapterError, ModelError
from edgepd_quant.adapter_file import Adapter, LowRank, Vector, read_adapter, write_adapter
from edgepd_quant.bake import bake
from edgepd_quant.merge import scaled
from edgepd_quant.types import GGMLType
from tests.adapt.gate.parts import LAX, PROMPT, SHA, favourites, judged, losses_by_hand, merged, trial, weakening
from tests.daemon.adapters import random_lora
from tests.tiny_gguf import tiny_llama


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is known of the base, which is measured once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def liked(base: Path, adapter: Path) -> list[Encoded]:
    """Held-out answers that the adapter makes likelier."""
    return favourites(Arm(base, adapter), 5)


def test_a_candidate_that_is_only_surer_of_what_the_base_says_has_learned_nothing(
    base: Path, cache: Path, tmp_path: Path
) -> None:
    """Larger logits, by a larger gain of the last norm, are those of the base at a lower temperature."""
    gains = Vector(np.full(64, 0.5, np.float32))
    bake(base, Adapter("gain", "llama", 0.0, {"output_norm.weight": gains}, {}), tmp_path / "surer.gguf")
    verdict = judged(base, Arm(tmp_path / "surer.gguf"), favourites(Arm(base), 5), cache)
    assert verdict.scores["held_out_after"] < verdict.scores["held_out_before"]
    assert not verdict.passed
    assert "no more than it does without training at another temperature" in verdict.reason


def test_a_candidate_that_is_better_passes(base: Path, adapter: Path, cache: Path, liked: list[Encoded]) -> None:
    candidate = Arm(base, adapter)
    verdict = judged(base, candidate, liked, cache)
    scores = verdict.scores
    assert verdict.passed, verdict.reason
    before = [np.mean(losses_by_hand(Arm(base), e.tokens, PROMPT)) for e in liked]
    after = [np.mean(losses_by_hand(candidate, e.tokens, PROMPT)) for e in liked]
    assert (scores["held_out_examples"], scores["held_out_tokens"], scores["improved_examples"]) == (5, 30, 5)
    assert scores["held_out_base"] == scores["held_out_before"] == pytest.approx(np.mean(before), abs=5e-3)
    assert scores["held_out_after"] == pytest.approx(np.mean(after), abs=5e-3)
    with Scorer(Arm(base), 1, longest=64) as of_base, Scorer(candidate, 1, longest=64) as of_candidate:
        gained = np.subtract(of_base.both_losses(liked)[1], of_candidate.both_losses(liked, COOLEST)[1])
    assert scores["improvement"]["mean"] == pytest.approx(gained.mean(), abs=5e-3)
    assert scores["improvement"]["lower"] == pytest.approx(gained.min(), abs=5e-3)  # of five, the smallest
    assert verdict.reason.startswith(
        f"held-out loss fell from {scores['held_out_before']:.3f} to {scores['held_out_after']:.3f} nats/token "
        f"on 5 answers never trained on, with 95% confidence by {scores['improvement']['lower']:.3f} at least"
    )
    assert scores["general_perplexity_rise"] == pytest.approx(
        scores["general_perplexity_after"] / scores["general_perplexity_before"] - 1
    )
    assert scores["strength"] == 1.0
    assert [guard["name"] for guard in scores["guards"]] == [
        "general perplexity",
        "divergence from the base",
        "empty answers",
        "answers without an end",
        "repetition",
        "same answer to different prompts",
    ]
    assert all(guard["passed"] for guard in scores["guards"])
    assert {name for name in scores if name.endswith("_s")} == {f"gate_{stage}_s" for stage in STAGES}


def test_long_answers_count_for_as_much_as_their_tokens(base: Path, adapter: Path, cache: Path) -> None:
    tokens = tuple(np.random.default_rng(5).integers(3, 273, 40).tolist())
    held_out = [Encoded("short", tokens[:8], 6), Encoded("long", tokens, 10)]
    scores = judged(base, Arm(base, adapter), held_out, cache).scores
    each = [losses_by_hand(Arm(base), e.tokens, e.supervised_from) for e in held_out]
    assert scores["held_out_tokens"] == 32
    assert scores["held_out_before"] == pytest.approx((sum(each[0]) + sum(each[1])) / 32, abs=5e-3)


def test_a_candidate_that_is_worse_or_the_same_fails(base: Path, adapter: Path, cache: Path) -> None:
    held_out = favourites(Arm(base), 5)
    worse = judged(base, Arm(base, adapter), held_out, cache)
    assert not worse.passed
    assert worse.reason.startswith("held-out loss did not fall: ")
    assert worse.scores["improved_examples"] == 0
    same = judged(base, Arm(base), held_out, cache)
    assert not same.passed
    assert same.reason.startswith("held-out loss did not fall: ")
    assert same.scores["held_out_before"] == same.scores["held_out_after"]
    assert same.scores["general_perplexity_rise"] == pytest.approx(0, abs=1e-6)
    assert same.scores["general_kl"] == pytest.approx(0, abs=1e-6)


def test_too_few_answers_or_one_conversation_prove_nothing(
    base: Path, adapter: Path, cache: Path, liked: list[Encoded]
) -> None:
    few = judged(base, Arm(base, adapter), liked[:4], cache)
    assert not few.passed
    assert few.reason.startswith("too little to judge by: 4 answers were set aside, and 5 are the fewest")
    assert few.scores["improvement"]["lower"] == -math.inf
    more = favourites(Arm(base, adapter), 7)
    grouped = judged(base, Arm(base, adapter), more, cache, groups=["a", "a", "b", "c", "d", "e", "a"])
    assert grouped.scores["improvement"]["n"] == 5
    # A conversation alone is all there is, and is taken answer by answer.
    assert judged(base, Arm(base, adapter), more, cache, groups=["a"] * 7).scores["improvement"]["n"] == 7


def test_one_answer_that_got_worse_leaves_a_doubt(base: Path, adapter: Path, cache: Path, liked: list[Encoded]) -> None:
    (spoilt,) = favourites(Arm(base), 1)
    verdict = judged(base, Arm(base, adapter), [*liked[:4], spoilt], cache)
    assert not verdict.passed
    assert verdict.scores["improvement"]["mean"] > 0 > verdict.scores["improvement"]["lower"]
    assert "but 5 answers are too few to be sure of it" in verdict.reason


def test_a_candidate_must_beat_what_serves_now_and_not_the_base(
    base: Path, adapter: Path, cache: Path, liked: list[Encoded]
) -> None:
    again = judged(base, Arm(base, adapter), liked, cache, current=Arm(base, adapter))
    assert not again.passed
    assert again.scores["held_out_before"] == again.scores["held_out_after"] < again.scores["held_out_base"]
    assert "kept_gain" not in again.scores


def test_a_candidate_of_numbers_that_are_none_fails(
    base: Path, adapter: Path, cache: Path, liked: list[Encoded], tmp_path: Path
) -> None:
    good, broken = read_adapter(adapter), tmp_path / "nan.gguf"
    pairs = {name: pair for name, pair in good.tensors.items() if isinstance(pair, LowRank)}
    spoilt = {name: LowRank(pair.a, np.full_like(pair.b, np.nan)) for name, pair in pairs.items()}
    write_adapter(broken, Adapter(good.kind, good.architecture, good.alpha, spoilt, {}))
    verdict = judged(base, Arm(base, broken), liked, cache)
    assert not verdict.passed
    assert verdict.reason.startswith("perplexity on general text rose by nan%")
    assert math.isnan(verdict.scores["held_out_after"])


def test_arms_that_cannot_be_loaded(base: Path, cache: Path, liked: list[Encoded], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        judged(base, Arm(tmp_path / "missing.gguf"), liked, cache)
    with pytest.raises(AdapterError, match="refuses the adapter"):
        judged(base, Arm(base, tmp_path / "missing.gguf"), liked, cache)


def test_it_tells_how_far_it_is(base: Path, adapter: Path, cache: Path, liked: list[Encoded]) -> None:
    told: list[tuple[int, int]] = []
    judged(base, Arm(base, adapter), liked, cache, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def divergence(base: Path, adapter: Path, cache: Path, windows: int = 3) -> float:
    with Scorer(Arm(base), 1, longest=general.WINDOW + 1) as scorer:
        known = general.read(scorer, SHA, windows, cache)
    with Scorer(Arm(base, adapter), 1, longest=general.WINDOW + 1) as scorer:
        return general.compare(scorer, known, windows).kl


@pytest.fixture
def strong(adapter: Path, tmp_path: Path) -> Path:
    """A copy of the adapter, to be weakened."""
    return Path(shutil.copy(adapter, tmp_path / "strong.gguf"))


def test_a_candidate_that_diverges_too_much_is_weakened_until_it_does_not(
    base: Path, strong: Path, cache: Path, liked: list[Encoded]
) -> None:
    first = divergence(base, strong, cache, 2)
    limits = dataclasses.replace(LAX, max_kl=0.6 * divergence(base, strong, cache))
    weaken, asked = weakening(strong)
    verdict = judge(trial(base, Arm(base, strong), liked, cache, limits=limits), weaken)
    assert verdict.passed, verdict.reason
    assert asked[0] == pytest.approx(math.sqrt(0.9 * limits.max_kl / first), abs=1e-3)
    assert asked == sorted(asked, reverse=True)
    assert verdict.scores["strength"] == asked[-1] >= 0.5
    assert verdict.scores["general_kl"] <= limits.max_kl
    # It is the file as it is now that was judged.
    assert verdict.scores["general_kl"] == pytest.approx(divergence(base, strong, cache), rel=1e-6)
    after = [np.mean(losses_by_hand(Arm(base, strong), e.tokens, PROMPT)) for e in liked]
    assert verdict.scores["held_out_after"] == pytest.approx(np.mean(after), abs=5e-3)
    assert verdict.scores["held_out_after"] < verdict.scores["held_out_before"]


@pytest.mark.parametrize(
    ("rise", "divergence_of_it", "asked_for"),
    [
        (0.03, 0.0, [0.6]),  # 0.9 of 0.02 / 0.03: perplexity rises in proportion
        (0.0, 0.1, [0.671]),  # the root of 0.9 of 0.05 / 0.1: the divergence falls with the square
        (0.03, 0.1, [0.671, 0.6]),  # the divergence shows first, on little text
        (0.025, 0.1, [0.671]),
        (0.02, 0.05, []),
        (0.05, 0.0, []),  # less than half of its strength would be left
    ],
)
def test_a_candidate_is_weakened_as_far_as_each_limit_asks_for(
    base: Path,
    strong: Path,
    cache: Path,
    liked: list[Encoded],
    monkeypatch: pytest.MonkeyPatch,
    rise: float,
    divergence_of_it: float,
    asked_for: list[float],
) -> None:
    weaken, asked = weakening(strong)

    def compare(*_: object) -> Change:
        strength = asked[-1] if asked else 1.0
        return Change(3.0, 3.0 + math.log1p(rise * strength), divergence_of_it * strength**2, 100)

    monkeypatch.setattr(general, "compare", compare)
    limits = dataclasses.replace(LAX, max_perplexity_rise=0.0200001, max_kl=0.0500001)
    verdict = judge(trial(base, Arm(base, strong), liked, cache, limits=limits), weaken)
    assert asked == pytest.approx(asked_for, abs=1e-3)
    assert verdict.passed is (rise < 0.05), verdict.reason
    assert verdict.scores["strength"] == (asked[-1] if asked else 1.0)


def test_a_candidate_that_goes_much_too_far_is_refused_as_it_is(
    base: Path, adapter: Path, cache: Path, liked: list[Encoded]
) -> None:
    for limit in (0.1 * divergence(base, adapter, cache, 2), 0.0):
        limits = dataclasses.replace(LAX, max_kl=limit)
        verdict = judged(base, Arm(base, adapter), liked, cache, limits=limits)  # which fails if it is weakened
        assert not verdict.passed
        assert verdict.reason.startswith("on general text it diverges from the base by ")
        assert verdict.scores["strength"] == 1.0


def test_a_limit_of_no_rise_at_all_is_no_endless_loop(base: Path, adapter: Path, cache: Path, tmp_path: Path) -> None:
    """Of a random base, random changes lower perplexity; a small one the other way raises it."""
    path = tmp_path / "forgetful.gguf"
    write_adapter(path, scaled(read_adapter(adapter), -0.2))
    limits = dataclasses.replace(LAX, max_perplexity_rise=0.0)
    verdict = judged(base, Arm(base, path), favourites(Arm(base, path), 5), cache, limits=limits)
    assert not verdict.passed
    assert verdict.reason.startswith("perplexity on general text rose by ")


def test_what_it_says_is_compared_with_the_base_only_where_it_must_be(
    base: Path, adapter: Path, cache: Path, liked: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Behaviour(empty=0.0, unended=0.0, repeated=0.0, same=0.0, length=1.0)
    bad = dataclasses.replace(good, repeated=0.9)
    said: list[Behaviour] = []
    monkeypatch.setattr(module, "behaviour", lambda scorer, held_out: said.pop(0))
    said[:] = [good]
    assert judged(base, Arm(base, adapter), liked, cache).passed
    said[:] = [bad, bad]  # the candidate's and then the base's
    assert judged(base, Arm(base, adapter), liked, cache).passed
    said[:] = [bad, good]
    verdict = judged(base, Arm(base, adapter), liked, cache)
    assert not verdict.passed
    assert verdict.reason == "90% of what it says repeats itself; the limit is 20%"
    assert said == []


def test_a_consolidation_keeps_the_gain_of_the_adapter_that_it_replaces(tmp_path: Path) -> None:
    """The candidates are files into which all, half or nothing of the live adapter is merged."""
    plain = tiny_llama(tmp_path / "plain.gguf", qtype=GGMLType.F32, seed=2)
    live = random_lora(tmp_path / "live.gguf", plain, seed=1, deviation=0.3)
    held_out = favourites(Arm(plain, live), 5)
    verdicts = {}
    for share in (1.0, 0.5, 0.0):
        candidate = Arm(merged(plain, live, tmp_path / f"{share}.gguf", share))
        verdicts[share] = judged(plain, candidate, held_out, tmp_path / "cache", current=Arm(plain, live))
    assert verdicts[1.0].passed, verdicts[1.0].reason
    assert verdicts[1.0].scores["kept_gain"] == pytest.approx(1, abs=0.02)
    assert "which keeps 100% of the live adapter's gain" in verdicts[1.0].reason
    half = verdicts[0.5]
    assert not half.passed
    share = (half.scores["held_out_base"] - half.scores["held_out_after"]) / (
        half.scores["held_out_base"] - half.scores["held_out_before"]
    )
    assert half.scores["kept_gain"] == pytest.approx(share)
    assert 0 < share < 0.9
    assert half.reason.startswith(f"only {share:.0%} of the live adapter's gain on held-out answers would be kept")
    assert verdicts[0.0].reason.startswith("held-out loss did not fall: ")
    assert half.scores["improvement"]["mean"] > 0, (
        "against the base and not against the live adapter, than which it is worse"
    )
