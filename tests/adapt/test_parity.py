"""Run: python -m pytest tests/adapt/test_parity.py

The torch decoder against llama.cpp, which serves the very same files, for every architecture and quant type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgepd.adapt.architecture import read_architecture
from edgepd.adapt.decoder import Decoder
from edgepd.errors import EdgepdError
from edgepd.llama import Model
from edgepd.models import Catalog
from edgepd_quant.adapter_file import write_adapter
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType
from tests.conftest import INSTALLED_MODELS
from tests.tiny_archs import ARCHITECTURES, VOCABULARY, tiny_arch
from tests.tiny_gguf import llama_logits

KL_BOUND = 0.005  # nats per token; llama.cpp rounds activations to 8 bits, we do not
# Gemma's few huge activations suffer most from that rounding: with the same weights written as F32, where llama.cpp
# rounds nothing, the mean divergence over 256 tokens is 4e-7.
GEMMA_KL_BOUND = 0.01
EXACT_BOUND = 2e-4  # of a logit, where llama.cpp rounds nothing
GELU_BOUND = 2e-2  # llama.cpp looks GELU up in a table of 16-bit values
NEAR_TIE = 0.25  # of a logit; between closer ones rounding may decide
TOKENS: list[int] = np.random.default_rng(0).integers(3, VOCABULARY, 32).tolist()
QTYPES = ["F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For matrices this small threads only wait for each other, the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reference_logits(path: Path, tokens: list[int] = TOKENS, *, exact: bool = False) -> torch.Tensor:
    """Logits (T, V) from llama.cpp."""
    return torch.from_numpy(llama_logits(path, tokens, exact=exact))


def our_logits(path: Path, tokens: list[int] = TOKENS, **changes: Any) -> torch.Tensor:
    """Logits (T, V) from torch, with some hyper-parameters changed."""
    with GGUFFile.open(path) as model:
        return Decoder(model, dataclasses.replace(read_architecture(model), **changes)).forward_logits(tokens)


def mean_kl(reference: torch.Tensor, found: torch.Tensor) -> float:
    """Mean over tokens of KL(reference || found), in nats."""
    p, q = reference.double().log_softmax(-1), found.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def lost_by_choice(reference: torch.Tensor, found: torch.Tensor) -> float:
    """By how much the reference prefers its own choice to the other's, at the worst position; 0: all are the same."""
    chosen = reference.gather(-1, found.argmax(-1, keepdim=True)).squeeze(-1)
    return float((reference.amax(-1) - chosen).max())


def assert_equal(reference: torch.Tensor, found: torch.Tensor, bound: float) -> None:
    """All logits and all choices are the same up to rounding."""
    assert (reference - found).abs().max() <= bound
    assert lost_by_choice(reference, found) <= 2 * bound


def assert_close(reference: torch.Tensor, found: torch.Tensor) -> None:
    """The distributions are the same up to llama.cpp's 8-bit rounding."""
    assert mean_kl(reference, found) <= KL_BOUND
    assert lost_by_choice(reference, found) <= NEAR_TIE
    assert (reference.argmax(-1) == found.argmax(-1)).float().mean() >= 0.85


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_are_computed_exactly(tmp_path: Path, name: str, tied: bool) -> None:
    path = tiny_arch(tmp_path / "m.gguf", name, qtype=GGMLType.F32, tied=tied)
    assert_equal(reference_logits(path, exact=True), our_logits(path), GELU_BOUND if name == "gemma3" else EXACT_BOUND)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"fused_qkv": True}),
        ("llama", {"extra": {"llama.attention.sliding_window": 8}}),
        ("qwen2", {"extra": {"qwen2.attention.sliding_window": 8}}),
        ("phi3", {"extra": {"phi3.attention.sliding_window": 8}}),
        ("phi3", {"extra": {"phi3.rope.dimension_count": 8}}),
        ("phi3", {"fused_qkv": False}),
        ("gemma3", {"extra": {"gemma3.rope.freq_base_swa": 50.0}}),
        ("gemma3", {"extra": {"gemma3.attention.sliding_window": 0}}),
        ("gemma3", {"extra": {"gemma3.attention.sliding_window_pattern": [0, 1]}}),
        ("gemma3", {"extra": {"gemma3.attention.sliding_window_pattern": 3}, "layers": 7}),
        ("gemma3", {"without": ("gemma3.attention.sliding_window_pattern",), "layers": 7}),
    ],
)
def test_variants_are_computed_exactly(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    path = tiny_arch(tmp_path / "m.gguf", name, qtype=GGMLType.F32, **changes)
    assert_equal(reference_logits(path, exact=True), our_logits(path), GELU_BOUND if name == "gemma3" else EXACT_BOUND)


def test_attention_scale_of_the_largest_gemma(tmp_path: Path) -> None:
    """llama.cpp knows it by its 62 layers; over so many, the rounding of its GELU adds up."""
    path = tiny_arch(tmp_path / "m.gguf", "gemma3", qtype=GGMLType.F32, layers=62)
    reference = reference_logits(path, exact=True)
    assert_close(reference, our_logits(path))
    assert mean_kl(reference, our_logits(path, attention_scale=32**-0.5)) > KL_BOUND


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapters_are_computed_exactly(tmp_path: Path, name: str) -> None:
    """An adapter for every matrix, fused ones too, means the same to llama.cpp that serves it."""
    path = tiny_arch(tmp_path / "m.gguf", name, qtype=GGMLType.F32)
    with GGUFFile.open(path) as model:
        decoder = Decoder(model)
        base = decoder.forward_logits(TOKENS)
        decoder.adapt("lora", rank=2, alpha=4.0, seed=1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in decoder.parameters:
                parameter.normal_(0.0, 0.15, generator=generator)
        write_adapter(tmp_path / "a.gguf", decoder.export({}))
        changed = decoder.forward_logits(TOKENS)
    reference = torch.from_numpy(llama_logits(path, TOKENS, tmp_path / "a.gguf", exact=True))
    assert_equal(reference, changed, GELU_BOUND if name == "gemma3" else EXACT_BOUND)
    assert mean_kl(reference, base) > KL_BOUND


@pytest.mark.parametrize("qtype", QTYPES)
def test_quant_types_agree(tmp_path: Path, qtype: str) -> None:
    path = tiny_arch(tmp_path / "m.gguf", "llama", qtype=GGMLType[qtype], seed=4)
    assert_close(reference_logits(path), our_logits(path))


@pytest.mark.parametrize("qtype", ["Q8_0", "Q4_K"])
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma3", "phi3"])
def test_quantised_architectures_agree(tmp_path: Path, name: str, qtype: str) -> None:
    path = tiny_arch(tmp_path / "m.gguf", name, qtype=GGMLType[qtype])
    assert_close(reference_logits(path), our_logits(path))


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("llama", {"interleaved_rope": False}),
        ("llama", {"rope_base": 10000.0}),
        ("qwen2", {"qkv_bias": False}),
        ("qwen2", {"interleaved_rope": True}),
        ("qwen3", {"qk_norm": False}),
        ("qwen3", {"interleaved_rope": True}),
        ("qwen3", {"attention_scale": 1.0}),
        ("gemma3", {"interleaved_rope": True}),
        ("gemma3", {"qk_norm": False}),
        ("gemma3", {"post_norms": False}),
        ("gemma3", {"window": None, "sliding": (False, False)}),
        ("gemma3", {"window": 7}),
        ("gemma3", {"window": 9}),
        ("gemma3", {"sliding": (False, True)}),
        ("gemma3", {"local_rope_base": 1000.0}),
        ("gemma3", {"embedding_scale": 1.0}),
        ("gemma3", {"activation": "silu"}),
        ("phi3", {"interleaved_rope": True}),
        ("phi3", {"activation": "gelu"}),
    ],
)
def test_mistakes_would_be_seen(tmp_path: Path, name: str, mistake: dict[str, Any]) -> None:
    path = tiny_arch(tmp_path / "m.gguf", name, qtype=GGMLType.F32)
    assert mean_kl(reference_logits(path, exact=True), our_logits(path, **mistake)) > KL_BOUND


def test_batch_of_unequal_sequences_is_each_alone(tmp_path: Path) -> None:
    """With a window shorter than the sequences, one of which is shorter than the window."""
    path = tiny_arch(tmp_path / "m.gguf", "gemma3", qtype=GGMLType.F32)
    with GGUFFile.open(path) as model:
        decoder = Decoder(model)
        with torch.no_grad():
            together = decoder.hidden([TOKENS, TOKENS[:5], TOKENS[3:20]]).view(3, 32, -1)
            alone = [decoder.hidden([sequence]) for sequence in (TOKENS, TOKENS[:5], TOKENS[3:20])]
    for row, expected in zip(together, alone, strict=True):
        assert torch.allclose(row[: len(expected)], expected, atol=1e-4)


@pytest.fixture(scope="module")
def gemma_path() -> Path:
    """Gemma-3-270M, if somebody who accepts its terms has installed it."""
    try:
        return Catalog(INSTALLED_MODELS).find("gemma3-270m-q4_k_m").path
    except EdgepdError:
        pytest.skip("Gemma-3-270M is not installed; read its terms, then: edgepd model add gemma3-270m --accept-terms")


@pytest.mark.real_model
def test_real_gemma_agrees(gemma_path: Path) -> None:
    text = files("edgepd.adapt").joinpath("data/general.txt").read_text(encoding="utf-8")
    with Model(gemma_path, vocab_only=True) as vocabulary:
        tokens = vocabulary.tokenize_prompt(text)[:96]
    reference = reference_logits(gemma_path, tokens)
    assert len(tokens) == 96
    assert mean_kl(reference, our_logits(gemma_path, tokens)) <= GEMMA_KL_BOUND
    assert mean_kl(reference, our_logits(gemma_path, tokens, local_rope_base=None)) > 2 * GEMMA_KL_BOUND
