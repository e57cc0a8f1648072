"""Run: python -m pytest tests/adapt/test_prefix.py"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgepd.adapt.decoder import Decoder
from edgepd.adapt.prefix import FP16_MAX, PrefixCache
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType
from tests.adapt.helpers import random_examples
from tests.tiny_gguf import tiny_llama

THIRD = 1 / 3


class Layers:
    """Stands for the frozen layers: state (t + factor, t * factor) for token t; padding rows hold rubbish."""

    def __init__(self, factor: float = THIRD) -> None:
        self.asked: list[list[tuple[int, ...]]] = []
        self.factor = factor

    def __call__(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        self.asked.append([tuple(sequence) for sequence in sequences])
        length = max(len(sequence) for sequence in sequences)
        states = torch.full((len(sequences), length, 2), 99.0)
        for row, sequence in enumerate(sequences):
            tokens = torch.tensor(sequence, dtype=torch.float32)
            states[row, : len(sequence)] = torch.stack([tokens + self.factor, tokens * self.factor], 1)
        return states.flatten(0, 1)


def half(value: float) -> float:
    return float(torch.tensor(value).half())


def test_states_come_back_rounded_and_padded_the_first_time_as_well() -> None:
    cache, layers = PrefixCache(2), Layers()
    expected = [
        [half(1 + THIRD), half(THIRD)],
        [half(2 + THIRD), half(2 * THIRD)],
        [half(5 + THIRD), half(5 * THIRD)],
        [0.0, 0.0],  # padding
    ]
    for _ in range(2):
        found = cache.get([(1, 2), (5,)], layers)
        assert found.dtype == torch.float32
        assert found.tolist() == expected
    assert layers.asked == [[(1, 2), (5,)]]


def test_only_what_is_missing_is_computed_and_only_once() -> None:
    cache, layers = PrefixCache(2), Layers()
    cache.get([(1, 2), (3,)], layers)
    found = cache.get([(4, 5, 6), (3,), [1, 2], (4, 5, 6)], layers).view(4, 3, 2)
    assert layers.asked == [[(1, 2), (3,)], [(4, 5, 6)]]
    assert torch.equal(found[0], found[3])
    assert found[1, 0, 0] == half(3 + THIRD)
    assert not found[1, 1:].any()
    cache.get([(1,)], layers)
    assert layers.asked[2:] == [[(1,)]], "the beginning of a known sequence is another sequence"


def test_what_is_handed_out_is_a_copy() -> None:
    cache, layers = PrefixCache(2), Layers()
    cache.get([(1, 2)], layers).zero_()
    assert cache.get([(1, 2)], layers)[0, 0] == half(1 + THIRD)


def test_states_too_large_for_fp16_are_kept_as_they_are() -> None:
    cache = PrefixCache(2)
    layers = Layers(factor=FP16_MAX)
    assert cache.get([(3,)], layers).tolist() == [[3 + FP16_MAX, 3 * FP16_MAX]]
    assert cache.get([(3,)], layers).isfinite().all()


@pytest.fixture
def three_layers(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "three.gguf", qtype=GGMLType.Q4_1, seed=1, layers=3)


@pytest.mark.parametrize("top_layers", [1, 2])
def test_frozen_layers_mean_the_same_out_of_the_cache(three_layers: Path, top_layers: int) -> None:
    sequences = [example.tokens for example in random_examples(3, seed=2)]
    with GGUFFile.open(three_layers) as model, torch.no_grad():
        decoder = Decoder(model)
        base = decoder.hidden(sequences)
        rows = torch.cat([torch.arange(len(s)) + n * max(map(len, sequences)) for n, s in enumerate(sequences)])
        decoder.adapt("lora", rank=2, alpha=4.0, seed=0, top_layers=top_layers)
        for _ in range(2):
            torch.testing.assert_close(decoder.hidden(sequences)[rows], base[rows], rtol=0, atol=0.02)


def test_other_frozen_layers_are_not_taken_for_these(three_layers: Path) -> None:
    """What enters the last layer is not what enters the one before it."""
    sequences = [example.tokens for example in random_examples(1, seed=2)]
    with GGUFFile.open(three_layers) as model, torch.no_grad():
        decoder = Decoder(model)
        base = decoder.hidden(sequences)
        for top_layers in (1, 2, 0, 1):
            decoder.adapt("lora", rank=2, alpha=4.0, seed=0, top_layers=top_layers)
            assert (decoder.hidden(sequences) - base).abs().max() < 0.02, top_layers
