"""Run: python -m pytest tests/adapt/test_decoder.py"""

from __future__ import annotations

import dataclasses
from importlib.resources import files
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from edgepd.adapt.decoder import Decoder
from edgepd.errors import ModelError, TrainingError
from edgepd.llama import Context, Entry, Model
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType
from tests.adapt.helpers import VOCABULARY, tiny_decoder
from tests.tiny_gguf import tiny_llama, write_gguf

KL_BOUND = 0.005  # nats per token; llama.cpp rounds activations to 8 bits, we do not


def reference_logits(path: Path, tokens: list[int]) -> torch.Tensor:
    """Logits (T, V) from llama.cpp."""
    with (
        Model(path) as model,
        Context(model, context_tokens=len(tokens), threads=2, logits_everywhere=True) as context,
    ):
        context.decode([Entry(token, i, 0, True) for i, token in enumerate(tokens)])
        return torch.from_numpy(np.stack([context.logits(i) for i in range(len(tokens))]))


def mean_kl(reference: torch.Tensor, found: torch.Tensor) -> float:
    """Mean over tokens of KL(reference || found), in nats."""
    p, q = reference.double().log_softmax(-1), found.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def with_wrong_rope(decoder: Decoder) -> Decoder:
    return Decoder(decoder.model, dataclasses.replace(decoder.architecture, interleaved_rope=False))


@pytest.mark.parametrize(
    "qtype", [GGMLType.F32, GGMLType.F16, GGMLType.Q4_0, GGMLType.Q5_1, GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.Q6_K]
)
@pytest.mark.parametrize("tied", [True, False])
def test_tiny_models_agree_with_llama_cpp(tmp_path: Path, qtype: GGMLType, tied: bool) -> None:
    path = tiny_llama(tmp_path / "m.gguf", qtype=qtype, seed=4, tied=tied)
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, 64).tolist()
    reference = reference_logits(path, tokens)
    with GGUFFile.open(path) as model:
        decoder = Decoder(model)
        assert mean_kl(reference, decoder.forward_logits(tokens)) <= KL_BOUND
        assert mean_kl(reference, with_wrong_rope(decoder).forward_logits(tokens)) > 4 * KL_BOUND


@pytest.mark.real_model
def test_real_model_agrees_with_llama_cpp(model_path: Path) -> None:
    text = files("edgepd.adapt").joinpath("data/general.txt").read_text(encoding="utf-8")
    with Model(model_path, vocab_only=True) as vocabulary:
        tokens = vocabulary.tokenize(text, special=False)[:256]
    reference = reference_logits(model_path, tokens)
    with GGUFFile.open(model_path) as model:
        decoder = Decoder(model)
        assert mean_kl(reference, decoder.forward_logits(tokens)) <= KL_BOUND
        assert mean_kl(reference, with_wrong_rope(decoder).forward_logits(tokens)) > KL_BOUND


def changed_model(directory: Path, metadata: dict[str, str | int | float], tensors: dict[str, tuple[int, ...]]) -> Path:
    """A tiny model with other metadata and with extra F32 tensors of zeros and ones."""
    source = tiny_llama(directory / "source.gguf", qtype=GGMLType.F32, seed=4)
    with GGUFFile.open(source) as model:
        kept = {key: value for key, value in model.metadata.items() if isinstance(value, str | int | float)}
        kept = {key: value for key, value in kept.items() if not key.startswith("GGUF.")}
        arrays = {name: (model.f32(name).copy(), GGMLType.F32) for name in model.tensors}
    arrays |= {name: (np.ones(shape, np.float32), GGMLType.F32) for name, shape in tensors.items()}
    return write_gguf(directory / "changed.gguf", kept | metadata, arrays)


@pytest.mark.parametrize(
    ("metadata", "tensors", "named"),
    [
        ({"general.architecture": "mamba"}, {}, "mamba"),
        ({"llama.rope.scaling.type": "yarn"}, {}, "yarn"),
        ({"llama.rope.scaling.factor": 4.0}, {}, "llama.rope.scaling.factor"),
        ({"llama.expert_count": 8}, {}, "llama.expert_count"),
        ({"llama.attention.key_length": 32}, {}, "value length|shape"),
        ({"llama.attention.head_count_kv": 3}, {}, "3 key/value heads"),
        ({"llama.block_count": 3}, {}, "blk.2.attn_q.weight.*missing"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, {}, "layer_norm_rms_epsilon"),
        ({}, {"blk.0.attn_q.bias": (64,)}, "blk.0.attn_q.bias"),
        ({}, {"blk.0.ffn_gate_inp.weight": (64, 64)}, "ffn_gate_inp"),
        ({}, {"output.weight": (64, 64)}, r"output.weight.*\(64, 64\)"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, metadata: dict[str, str | int | float], tensors: dict[str, tuple[int, ...]], named: str
) -> None:
    with GGUFFile.open(changed_model(tmp_path, metadata, tensors)) as model, pytest.raises(ModelError, match=named):
        Decoder(model)


def test_type_that_cannot_be_decoded_is_refused_with_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "source.gguf"
    tiny_llama(path, qtype=GGMLType.Q4_K, seed=4)
    with GGUFFile.open(path) as model:
        info = model.tensors["blk.0.attn_k.weight"]
        model.tensors["blk.0.attn_k.weight"] = dataclasses.replace(info, qtype=GGMLType.IQ4_XS)
        with pytest.raises(ModelError, match="blk.0.attn_k.weight.*IQ4_XS"):
            Decoder(model)


def test_rope_factors_of_the_file_are_used(tmp_path: Path) -> None:
    """As Llama 3 files carry them; llama.cpp is the oracle."""
    path = changed_model(tmp_path, {}, {})
    with GGUFFile.open(path) as model:
        scalars = {k: v for k, v in model.metadata.items() if isinstance(v, str | int | float)}
        metadata: dict[str, str | int | float | list[str] | list[int]] = {**scalars}
        for key in ("tokens", "token_type", "merges"):
            metadata[f"tokenizer.ggml.{key}"] = source_list(tmp_path / "source.gguf", f"tokenizer.ggml.{key}")
        arrays = {name: (model.f32(name).copy(), GGMLType.F32) for name in model.tensors}
    arrays["rope_freqs.weight"] = (np.linspace(1, 8, 8, dtype=np.float32), GGMLType.F32)
    path = write_gguf(tmp_path / "factors.gguf", metadata, arrays)
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, 64).tolist()
    reference = reference_logits(path, tokens)
    with GGUFFile.open(path) as model, GGUFFile.open(tmp_path / "source.gguf") as plain:
        assert mean_kl(reference, Decoder(model).forward_logits(tokens)) <= KL_BOUND
        assert mean_kl(reference, Decoder(plain).forward_logits(tokens)) > 4 * KL_BOUND


def source_list(path: Path, key: str) -> list[str] | list[int]:
    """An array of the metadata, read by the upstream reader."""
    contents: list[str] | list[int] = gguf.GGUFReader(path).fields[key].contents()
    return contents


def test_context_is_a_limit(tmp_path: Path) -> None:
    with tiny_decoder(tmp_path) as decoder, pytest.raises(TrainingError, match=r"513 tokens.*512"):
        decoder.forward_logits([5] * 513)
