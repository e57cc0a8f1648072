"""Run: python -m pytest tests/adapt/test_objectives.py

The closed forms are taken on a model of three tokens whose probabilities are written down; the rest on a tiny GGUF.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded
from edgepd.adapt.objectives import DPO, KTO, SFT, AnchorKL, APOZero, Objective, SimPO, objective
from edgepd.adapt.objectives.base import log_likelihoods
from edgepd.adapt.objectives.unpaired import balance, foreign_answers
from edgepd.config import declarations
from edgepd.errors import TrainingError
from tests.adapt.helpers import random_examples, tiny_decoder

BASE = torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])  # p(column | row)
ADAPTED = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.4, 0.4], [0.25, 0.25, 0.5]])


class Bigrams:
    """A stand-in for a decoder: the next token depends on the last one only, as two tables of probabilities say."""

    def __init__(self) -> None:
        self.head = self
        self.passes = 0
        self._base = False
        self._rows = torch.cat([BASE.log().T, ADAPTED.log().T], dim=1)  # logits of hidden = log probabilities
        self.out_features, self.in_features = self._rows.shape

    @contextmanager
    def base(self) -> Iterator[None]:
        self._base = True
        yield
        self._base = False

    def hidden(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        self.passes += len(sequences)
        length = max(len(sequence) for sequence in sequences)
        padded = [[*sequence, *[0] * (length - len(sequence))] for sequence in sequences]
        return torch.eye(6)[torch.tensor(padded).flatten() + (0 if self._base else 3)]

    def output_norm(self, x: Tensor) -> Tensor:
        return x

    def weight(self, start: int, stop: int, out: Tensor) -> Tensor:
        return out.copy_(self._rows[start:stop])

    def rows(self, index: Tensor) -> Tensor:
        return self._rows[index]


def value(of: Objective, batch: Sequence[Encoded], prepared: Sequence[Encoded] | None = None) -> float:
    """The loss of a batch under the two tables, one example per micro-batch."""
    decoder = cast("Decoder", Bigrams())
    of.prepare(decoder, batch if prepared is None else prepared)
    return sum(part.item() for part in of.parts(decoder, batch, step=0, micro_tokens=1))


# Prompt (0,): the answer 1 is preferred to 2, or to 2 and 2. The base says 0.4 to both 1 and 2.
PAIR = Encoded("pair", (0, 1), 1, rejected=(0, 2))
LONG_PAIR = Encoded("long", (0, 1), 1, rejected=(0, 2, 2))
PLAIN = Encoded("plain", (0, 0), 1)  # the answer 0
UNWANTED = Encoded("unwanted", (0, 2), 1, desirable=False)


def test_imitation_is_the_weighted_mean_over_tokens() -> None:
    """Tokens 1, 1 with weight 1 and 2 with weight 0.5: (-ln 0.6 - ln 0.4 - 0.5 ln 0.3) / 2.5."""
    batch = [Encoded("a", (0, 1, 1), 1), Encoded("b", (0, 2), 1, weight=0.5), UNWANTED]
    assert value(SFT(), batch) == pytest.approx((-math.log(0.6) - math.log(0.4) - 0.5 * math.log(0.3)) / 2.5)
    unweighted = SFT().evaluate(cast("Decoder", Bigrams()), batch)
    assert unweighted == pytest.approx((-math.log(0.6) - math.log(0.4) - math.log(0.3)) / 3)


def test_dpo_by_hand() -> None:
    """Margin 0.1 * ((ln 0.6 - ln 0.4) - (ln 0.3 - ln 0.4)) = 0.1 ln 2, so -log sigmoid of it is ln(1 + 2^-0.1)."""
    assert value(DPO(sft_weight=0), [PAIR]) == pytest.approx(math.log(1 + 2**-0.1))
    assert value(DPO(beta=2, sft_weight=0), [PAIR]) == pytest.approx(math.log(1 + 2**-2))


def test_simpo_by_hand() -> None:
    """Per token: chosen ln 0.6; rejected (ln 0.3 + ln 0.5) / 2. With beta 0.1 and gamma 0.5."""
    margin = 0.1 * (math.log(0.6) - (math.log(0.3) + math.log(0.5)) / 2) - 0.5
    assert value(SimPO(sft_weight=0), [LONG_PAIR]) == pytest.approx(math.log(1 + math.exp(-margin)))


def test_a_pair_is_imitated_too_and_a_lone_answer_only_imitated() -> None:
    """The preference is a mean over pairs, the imitation one over tokens: of 1, 1 (weight 0.5) and 0."""
    other = dataclasses.replace(LONG_PAIR, weight=0.5)
    shares = [math.log(1 + 2**-0.1), math.log(1 + math.exp(-0.1 * (math.log(1.5) - math.log(0.75) - math.log(2))))]
    preference = (shares[0] + 0.5 * shares[1]) / 1.5
    imitation = -(1.5 * math.log(0.6) + math.log(0.1)) / 2.5
    batch = [PAIR, PLAIN, other, UNWANTED]
    assert value(DPO(sft_weight=0), batch) == pytest.approx(preference)
    assert value(DPO(), batch) == pytest.approx(preference + imitation)
    assert value(DPO(sft_weight=0.3), batch) == pytest.approx(preference + 0.3 * imitation)
    assert value(DPO(), [PLAIN], prepared=batch) == pytest.approx(-math.log(0.1))
    assert value(DPO(sft_weight=0), [PLAIN, UNWANTED], prepared=batch) == 0


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_apo_zero_by_hand() -> None:
    """Wanted 0 (ratio 0.1 / 0.2), unwanted 2 (ratio 0.3 / 0.4); one each is balanced, so both count alike."""
    wanted, unwanted = 1 - sigmoid(0.1 * math.log(0.5)), sigmoid(0.1 * math.log(0.75))
    assert value(APOZero(), [PLAIN, UNWANTED]) == pytest.approx((wanted + unwanted) / 2)
    heavy = dataclasses.replace(PLAIN, weight=4 / 3)  # still within [1, 4/3]
    assert value(APOZero(), [heavy, UNWANTED]) == pytest.approx((4 / 3 * wanted + unwanted) / (7 / 3))
    three = [dataclasses.replace(PLAIN, id=str(n)) for n in range(3)]  # 3 / (9/4 * 1) = 4/3
    assert value(APOZero(), [*three, UNWANTED]) == pytest.approx((3 * wanted + 9 / 4 * unwanted) / 4)


def test_an_edit_is_wanted_and_what_it_replaced_is_not() -> None:
    wanted, unwanted = 1 - sigmoid(0.1 * math.log(1.5)), sigmoid(0.1 * math.log(0.75))
    assert value(APOZero(), [PAIR]) == pytest.approx((wanted + unwanted) / 2)


@pytest.mark.parametrize("names", [("plain", "unwanted"), ("plain",)])
def test_kto_by_hand(names: tuple[str, ...]) -> None:
    """Each prompt (0,) is paired with the other's answer, so z = mean of ln(0.3 / 0.4) and ln(0.1 / 0.2), at least 0.

    To have z above zero, both examples are mirrored: the adapted model takes the part of the base and vice versa.
    """
    ratios = {"plain": math.log(0.2 / 0.1), "unwanted": math.log(0.4 / 0.3)}
    foreign = {"plain": ratios["unwanted"], "unwanted": ratios["plain"]}
    z = sum(foreign[name] for name in names) / len(names)
    losses = {
        "plain": 1 - sigmoid(0.1 * (ratios["plain"] - z)),
        "unwanted": 1 - sigmoid(0.1 * (z - ratios["unwanted"])),
    }
    batch = [example for example in (PLAIN, UNWANTED) if example.id in names]
    decoder = cast("Decoder", Mirrored())
    kto = KTO()
    kto.prepare(decoder, [PLAIN, UNWANTED])
    found = sum(part.item() for part in kto.parts(decoder, batch, step=0, micro_tokens=1))
    expected = sum(losses[name] for name in names) / len(names)
    assert kto.drift(decoder, batch) == pytest.approx(z)
    assert found == pytest.approx(expected)
    assert sum(kto.loss(decoder, [example], batch).item() for example in batch) == pytest.approx(expected)
    negative = value(KTO(), [PLAIN, UNWANTED])  # not mirrored: z would be below zero and is zero
    assert negative == pytest.approx(value(APOZero(), [PLAIN, UNWANTED]))


class Mirrored(Bigrams):
    def hidden(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        return super().hidden(sequences).roll(3, dims=1)


def test_the_scarcer_kind_is_raised_into_the_band() -> None:
    """Factor times mass of the wanted over factor times mass of the unwanted lies in [1, 4/3]."""
    assert balance(5, 5) == (1, 1)
    assert balance(5, 4) == (1, 1)
    assert balance(2, 8) == (4, 1)
    assert balance(8, 2) == (1, 3)  # 8 / (3 * 2) = 4/3
    assert balance(3, 0) == balance(0, 3) == (1, 1)


def test_foreign_answers_differ_and_are_not_longer_than_the_longest_example() -> None:
    examples = [Encoded("a", (0, 1), 1), Encoded("b", (0, 0, 1), 2), Encoded("c", (1, 2, 2, 2), 1)]
    assert foreign_answers(examples) == {"a": ((0, 2, 2, 2), 1), "b": ((0, 0, 2, 2), 2), "c": ((1, 1), 1)}
    with pytest.raises(TrainingError, match="different answers"):
        KTO().prepare(cast("Decoder", Bigrams()), examples[:2])


def test_divergence_on_anchors_by_hand() -> None:
    """After 0 the two tables differ by KL((.2 .4 .4) || (.1 .6 .3)), after 1 by KL((.5 .25 .25) || (.2 .4 .4))."""
    after_0 = 0.2 * math.log(2) + 0.4 * math.log(0.4 / 0.6) + 0.4 * math.log(0.4 / 0.3)
    after_1 = 0.5 * math.log(2.5) + 0.5 * math.log(0.25 / 0.4)
    anchors = [Encoded("x", (0, 1, 1), 1), Encoded("y", (0, 2), 1), Encoded("z", (1, 1), 1)]
    penalised = AnchorKL(SFT(), anchors, weight=0.5)
    assert [anchor.id for step in range(3) for anchor in penalised.of_step(step)] == ["x", "y", "z", "x", "y", "z"]
    kl = 0.5 * (2 * after_0 + after_1) / 3  # step 0: x at 0 and 1, y at 0
    assert value(penalised, [PLAIN]) == pytest.approx(-math.log(0.1) + kl, rel=1e-3)  # fp16 states
    decoder = cast("Decoder", Bigrams())
    assert penalised.evaluate(decoder, [PLAIN]) == pytest.approx(-math.log(0.1))
    assert penalised.mean_divergence(decoder) == pytest.approx((2 * after_0 + 2 * after_1) / 4, rel=1e-3)


def test_the_base_is_asked_once() -> None:
    anchors = [Encoded("x", (0, 1, 1), 1)]
    for found, passes in ((DPO(), 2), (APOZero(), 3), (KTO(), 5), (AnchorKL(SFT(), anchors, 1.0), 1)):
        decoder = Bigrams()
        found.prepare(cast("Decoder", decoder), [PAIR, UNWANTED])
        assert decoder.passes == passes
    decoder = Bigrams()
    found = DPO()
    for _ in range(2):
        found.prepare(cast("Decoder", decoder), [PAIR])
    assert decoder.passes == 2


def test_what_cannot_be_learned_is_refused_with_advice() -> None:
    decoder = cast("Decoder", Bigrams())
    for name in ("dpo", "simpo"):
        with pytest.raises(TrainingError, match="none of 2 examples has an answer that was replaced"):
            objective(name).prepare(decoder, [PLAIN, UNWANTED])
    with pytest.raises(TrainingError, match="example plain was not among"):
        APOZero().loss(decoder, [PLAIN], [PLAIN])
    with pytest.raises(TrainingError, match="no wanted answer"):
        SFT().evaluate(decoder, [UNWANTED])
    with pytest.raises(TrainingError, match="none of the examples"):
        DPO(sft_weight=0).evaluate(decoder, [PLAIN])
    with pytest.raises(TrainingError, match=r"train\.replay_examples"):
        objective("sft", kl_weight=0.1)
    with pytest.raises(TrainingError, match="objective 'ppo' is not known"):
        objective("ppo")


def test_who_takes_part_has_a_weight() -> None:
    muted = dataclasses.replace(PAIR, weight=0.0)
    expected = {
        "sft": {"pair", "plain"},
        "reward": {"pair", "plain"},
        "dpo": {"pair", "plain"},
        "simpo": {"pair", "plain"},
        "kto": {"pair", "plain", "unwanted"},
        "apo-zero": {"pair", "plain", "unwanted"},
    }
    for name, taking_part in expected.items():
        found = objective(name)
        assert {e.id for e in (PAIR, PLAIN, UNWANTED) if found.weight(e) > 0} == taking_part
        assert {e.id for e in (PAIR, PLAIN, UNWANTED) if found.sequences(e)} == taking_part
        assert found.weight(muted) == 0
        assert not found.sequences(muted)
    assert not objective("dpo", sft_weight=0).sequences(PLAIN)


def test_every_name_of_the_setting_is_known() -> None:
    for name in declarations()["train.objective"].choices:
        objective(name)
    assert isinstance(objective("dpo", anchors=[PLAIN], kl_weight=0.1), AnchorKL)


# From here on with a real forward pass.


def wishes() -> list[Encoded]:
    """Two edits, one accepted and two unwanted answers, of different lengths."""
    other = random_examples(2, seed=8, length=10)
    first, second, *rest = random_examples(5, seed=7)
    return [
        *(
            dataclasses.replace(e, rejected=e.tokens[:4] + o.tokens[4:])
            for e, o in zip((first, second), other, strict=True)
        ),
        dataclasses.replace(rest[0], weight=0.5),
        *(dataclasses.replace(e, desirable=False) for e in rest[1:]),
    ]


@contextmanager
def adapted(directory: Path) -> Iterator[Decoder]:
    """A tiny model with deltas that have moved away from the base."""
    with tiny_decoder(directory) as decoder:
        decoder.adapt("lora", rank=2, alpha=4.0, seed=0)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in decoder.parameters:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        yield decoder


def objectives() -> list[Objective]:
    return [SFT(), DPO(), SimPO(), KTO(), APOZero(), AnchorKL(DPO(), random_examples(3, seed=9), weight=2.0)]


EACH = pytest.mark.parametrize("found", objectives(), ids=lambda found: type(found).__name__)


def total(decoder: Decoder, of: Objective, batch: Sequence[Encoded], micro_tokens: int = 512) -> float:
    with torch.no_grad():
        return sum(part.item() for part in of.parts(decoder, batch, 1, micro_tokens))


def gradient(decoder: Decoder, of: Objective, batch: Sequence[Encoded], micro_tokens: int = 512) -> Tensor:
    for parameter in decoder.parameters:
        parameter.grad = None
    for part in of.parts(decoder, batch, 1, micro_tokens):
        torch.autograd.backward(part)
    return torch.cat([parameter.grad.flatten() for parameter in decoder.parameters if parameter.grad is not None])


@EACH
def test_gradients_equal_finite_differences(tmp_path: Path, found: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    with adapted(tmp_path) as decoder:
        found.prepare(decoder, wishes())
        if isinstance(found, KTO):  # z counts as a constant
            drift = found.drift(decoder, wishes())
            monkeypatch.setattr(found, "drift", lambda *_: drift)
        slope = gradient(decoder, found, wishes())
        generator = torch.Generator().manual_seed(3)
        for _ in range(2):
            # Along the gradient, where the slope is large against float32, tilted at random.
            direction = slope / slope.norm() + torch.randn(len(slope), generator=generator) / len(slope) ** 0.5
            sides = []
            for step in (0.02, -0.02):
                shift(decoder, step * direction)
                sides.append(total(decoder, found, wishes()))
                shift(decoder, -step * direction)
            assert (sides[0] - sides[1]) / 0.04 == pytest.approx((slope @ direction).item(), rel=0.01)


def shift(decoder: Decoder, by: Tensor) -> None:
    with torch.no_grad():
        for parameter, part in zip(decoder.parameters, by.split([p.numel() for p in decoder.parameters]), strict=True):
            parameter.add_(part.view_as(parameter))


@EACH
def test_cutting_a_batch_changes_nothing(tmp_path: Path, found: Objective) -> None:
    with adapted(tmp_path) as decoder:
        found.prepare(decoder, wishes(), micro_tokens=1)
        whole, cut = total(decoder, found, wishes()), total(decoder, found, wishes(), micro_tokens=1)
        slopes = [gradient(decoder, found, wishes(), micro_tokens) for micro_tokens in (512, 1)]
    assert cut == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-6)


@EACH
def test_no_gradient_reaches_what_predicts_the_prompt(
    tmp_path: Path, found: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every sequence the first three positions predict prompt tokens; the padding at the end predicts nothing."""
    reached: list[tuple[list[int], Tensor]] = []
    with adapted(tmp_path) as decoder:
        found.prepare(decoder, wishes())
        final_states = decoder.hidden

        def watched(sequences: Sequence[Sequence[int]]) -> Tensor:
            states, lengths = final_states(sequences), [len(sequence) for sequence in sequences]
            if states.requires_grad:
                states.register_hook(lambda grad: reached.append((lengths, grad.abs().sum(1))))  # type: ignore[no-untyped-call]
            return states

        monkeypatch.setattr(decoder, "hidden", watched)
        gradient(decoder, found, wishes())
    assert reached
    for lengths, rows in reached:
        for length, row in zip(lengths, rows.view(len(lengths), -1), strict=True):
            assert (row > 0).tolist() == [False] * 3 + [True] * (length - 3) + [False] * (len(row) - length)


def test_the_reference_is_the_base_however_far_training_has_come(tmp_path: Path) -> None:
    fresh, warm = DPO(sft_weight=0), DPO(sft_weight=0)
    with adapted(tmp_path) as decoder:
        warm.prepare(decoder, wishes())
        with tiny_decoder(tmp_path) as base:
            fresh.prepare(base, wishes())
            assert total(base, fresh, wishes()) == pytest.approx(math.log(2))  # nothing has moved
        assert total(decoder, warm, wishes()) == pytest.approx(total(decoder, fresh, wishes()), rel=1e-6)
        assert abs(total(decoder, warm, wishes()) - math.log(2)) > 1e-3


def answers(decoder: Decoder, examples: Sequence[Encoded]) -> dict[str, float]:
    """Mean log-likelihood of the answers that are chosen (of edits), accepted, rejected and unwanted."""
    edits = [e for e in examples if e.rejected is not None]
    groups = {
        "chosen": [e.tokens for e in edits],
        "rejected": [e.rejected or () for e in edits],
        "accepted": [e.tokens for e in examples if e.desirable and e.rejected is None],
        "unwanted": [e.tokens for e in examples if not e.desirable],
    }
    return {
        name: sum(log_likelihoods(decoder, [(tokens, 4) for tokens in group])) / len(group)
        for name, group in groups.items()
    }


def train(decoder: Decoder, of: Objective, examples: Sequence[Encoded], steps: int = 12, rate: float = 5e-3) -> None:
    decoder.adapt("lora", rank=4, alpha=8.0, seed=0)
    of.prepare(decoder, examples)
    optimizer = torch.optim.AdamW(decoder.parameters, lr=rate)
    for step in range(steps):
        for part in of.parts(decoder, examples, step):
            torch.autograd.backward(part)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("make", "raised", "lowered"),
    [
        (SFT, ["chosen", "accepted"], []),
        (lambda: DPO(sft_weight=0), [], ["rejected"]),
        (DPO, ["chosen", "accepted"], []),
        (SimPO, ["chosen", "accepted"], []),
        (KTO, ["chosen", "accepted"], ["rejected", "unwanted"]),
        (APOZero, ["chosen", "accepted"], ["rejected", "unwanted"]),
    ],
    ids=["sft", "dpo-alone", "dpo", "simpo", "kto", "apo-zero"],
)
def test_it_moves_the_right_likelihoods(
    tmp_path: Path, make: Callable[[], Objective], raised: list[str], lowered: list[str]
) -> None:
    examples, found = wishes(), make()
    with tiny_decoder(tmp_path) as decoder:
        before = answers(decoder, examples)
        train(decoder, found, examples)
        after = answers(decoder, examples)
        assert found.evaluate(decoder, examples) == pytest.approx(found.evaluate(decoder, examples, micro_tokens=1))
    moved = {name: after[name] - before[name] for name in before}
    assert moved["chosen"] - moved["rejected"] > 0.5, moved
    assert all(moved[name] > 0.1 for name in raised), moved
    assert all(moved[name] < -0.1 for name in lowered), moved


def test_anchors_keep_the_model_closer_to_the_base(tmp_path: Path) -> None:
    anchors = random_examples(3, seed=9)
    divergences, chosen = [], []
    with tiny_decoder(tmp_path) as decoder:
        for weight in (0.0, 3.0):
            found = AnchorKL(SFT(), anchors, weight)
            train(decoder, found, wishes())
            divergences.append(found.mean_divergence(decoder))
            chosen.append(answers(decoder, wishes())["chosen"])
        with decoder.base():
            untrained = answers(decoder, wishes())["chosen"]
    assert divergences[1] < 0.5 * divergences[0], divergences
    assert min(chosen) > untrained + 0.5, (chosen, untrained)
