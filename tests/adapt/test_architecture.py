"""Run: python -m pytest tests/adapt/test_architecture.py"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edgepd.adapt.architecture import Architecture, layer_shapes, linear_groups, read_architecture, vector_names
from edgepd.errors import ModelError
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType
from tests.tiny_archs import ARCHITECTURES, tiny_arch

COMMON: dict[str, Any] = {
    "layers": 2,
    "hidden": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "feed_forward": 96,
    "context": 512,
    "vocabulary": 273,
    "rope_dims": 16,
    "rope_base": 1000.0,
    "rms_eps": pytest.approx(1e-6),
    "attention_scale": 0.25,
}
OF_NAME: dict[str, dict[str, Any]] = {
    "llama": {"interleaved_rope": True},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma3": {
        "head_dim": 32,
        "rope_dims": 32,
        "attention_scale": pytest.approx(32**-0.5),
        "local_rope_base": 10000.0,
        "window": 8,
        "sliding": (True, False),
        "embedding_scale": 8.0,
        "activation": "gelu",
        "qk_norm": True,
        "post_norms": True,
    },
    "phi3": {"fused_qkv": True, "fused_gate_up": True},
}


def read(directory: Path, name: str, **changes: Any) -> Architecture:
    path = tiny_arch(directory / f"{name}.gguf", name, qtype=GGMLType.F32, **changes)
    with GGUFFile.open(path) as model:
        return read_architecture(model)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_record_of_each_architecture(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, name) == Architecture(name=name, **{**COMMON, **OF_NAME[name]})


@pytest.mark.parametrize(
    ("name", "fused"), [(n, f) for n in ARCHITECTURES for f in (False, True) if (n, f) != ("qwen2", True)]
)
def test_names_and_shapes_are_those_of_the_file(tmp_path: Path, name: str, fused: bool) -> None:
    path = tiny_arch(tmp_path / "m.gguf", name, qtype=GGMLType.F32, fused_qkv=fused)
    with GGUFFile.open(path) as model:
        arch = read_architecture(model)
        in_file = {n: tuple(info.shape) for n, info in model.tensors.items() if n.startswith("blk.1.")}
    assert layer_shapes(arch, 1) == in_file
    linears = [name for group in linear_groups(arch, 1) for name in group]
    assert sorted([*linears, *vector_names(arch, 1)]) == sorted(in_file)


def test_groups_are_in_order_of_use(tmp_path: Path) -> None:
    assert linear_groups(read(tmp_path, "gemma3"), 0) == (
        ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"),
        ("blk.0.attn_output.weight",),
        ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"),
        ("blk.0.ffn_down.weight",),
    )
    assert linear_groups(read(tmp_path, "phi3"), 1) == (
        ("blk.1.attn_qkv.weight",),
        ("blk.1.attn_output.weight",),
        ("blk.1.ffn_up.weight",),
        ("blk.1.ffn_down.weight",),
    )


def test_vectors_are_in_order_of_use(tmp_path: Path) -> None:
    assert vector_names(read(tmp_path, "gemma3"), 0) == (
        "blk.0.attn_norm.weight",
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_k_norm.weight",
        "blk.0.post_attention_norm.weight",
        "blk.0.ffn_norm.weight",
        "blk.0.post_ffw_norm.weight",
    )
    assert vector_names(read(tmp_path, "qwen2"), 0)[1:4] == (
        "blk.0.attn_q.bias",
        "blk.0.attn_k.bias",
        "blk.0.attn_v.bias",
    )


PATTERN = "gemma3.attention.sliding_window_pattern"


@pytest.mark.parametrize(
    ("changes", "sliding"),
    [
        ({"without": (PATTERN,)}, (True, True, True, True, True, False, True)),
        ({"extra": {PATTERN: 3}}, (True, True, False, True, True, False, True)),
        ({"extra": {PATTERN: [0, 1, 0, 0, 1, 1, 0]}}, (False, True, False, False, True, True, False)),
        ({"extra": {"gemma3.attention.sliding_window": 0}}, ()),
        ({"without": ("gemma3.attention.sliding_window",)}, ()),
    ],
)
def test_which_layers_slide(tmp_path: Path, changes: dict[str, Any], sliding: tuple[bool, ...]) -> None:
    found = read(tmp_path, "gemma3", layers=7, **changes)
    assert found.sliding == sliding
    assert (found.window, found.local_rope_base) == ((8, 10000.0) if sliding else (None, None))


def test_base_of_sliding_layers_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, "gemma3", extra={"gemma3.rope.freq_base_swa": 500.0})
    assert (found.local_rope_base, found.rope_base) == (500.0, 1000.0)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "phi3"])
def test_window_that_llama_cpp_ignores_is_ignored(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, name, extra={f"{name}.attention.sliding_window": 8})
    assert (found.window, found.sliding) == (None, ())


def test_largest_gemma_scales_attention_by_hidden_size(tmp_path: Path) -> None:
    found = read(tmp_path, "gemma3", layers=62)
    assert found.attention_scale == 0.25  # 1 / sqrt(64 / 4), though heads have 32 dimensions
    assert found.embedding_scale == math.sqrt(64)


def test_rotary_dimensions_may_be_a_part_of_a_head(tmp_path: Path) -> None:
    assert read(tmp_path, "phi3", extra={"phi3.rope.dimension_count": 8}).rope_dims == 8


@pytest.mark.parametrize(
    "extra", [{"llama.rope.scaling.type": "none"}, {"llama.rope.scaling.factor": 1.0}, {"llama.expert_count": 0}]
)
def test_keys_that_change_nothing_are_accepted(tmp_path: Path, extra: dict[str, Any]) -> None:
    assert read(tmp_path, "llama", extra=extra).name == "llama"


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("llama", {"extra": {"general.architecture": "mamba"}}, "'mamba'.*llama, qwen2, qwen3, gemma3, phi3"),
        ("llama", {"extra": {"llama.rope.scaling.type": "yarn"}}, "llama.rope.scaling.type.*yarn"),
        ("gemma3", {"extra": {"gemma3.rope.scaling.factor": 8.0}}, "gemma3.rope.scaling.factor.*8"),
        ("phi3", {"extra": {"phi3.rope.scaling.attn_factor": 1.19}}, "phi3.rope.scaling.attn_factor"),
        ("qwen3", {"extra": {"qwen3.attention.causal": False}}, "qwen3.attention.causal"),
        ("qwen3", {"extra": {"qwen3.expert_count": 8}}, "qwen3.expert_count"),
        ("gemma3", {"extra": {"gemma3.attn_logit_softcapping": 50.0}}, "attn_logit_softcapping"),
        ("gemma3", {"extra": {"gemma3.final_logit_softcapping": 30.0}}, "final_logit_softcapping"),
        ("gemma3", {"extra": {"gemma3.attention.scale": 0.5}}, "gemma3.attention.scale"),
        ("gemma3", {"extra": {"gemma3.rope.dimension_count_swa": 16}}, "rope.dimension_count_swa.*16.*32"),
        ("gemma3", {"extra": {"gemma3.attention.key_length_swa": 16}}, "attention.key_length_swa.*16.*32"),
        ("gemma3", {"extra": {PATTERN: [1]}}, "sliding_window_pattern.*2 layers"),
        ("gemma3", {"extra": {PATTERN: [1, 4]}}, r"sliding_window_pattern.*\[1, 4\]"),
        ("gemma3", {"extra": {"gemma3.attention.value_length": 16}}, "attention.value_length.*16.*32"),
        ("llama", {"extra": {"llama.block_count": 2**32 - 1}}, "block_count.*4294967295"),
        ("llama", {"extra": {"llama.rope.freq_base": math.inf}}, "rope.freq_base.*inf"),
        ("llama", {"extra": {"llama.feed_forward_length": [96, 96]}}, "feed_forward_length.*one positive number"),
        ("llama", {"without": ("llama.attention.head_count",)}, "attention.head_count.*None"),
        ("llama", {"extra": {"llama.attention.head_count_kv": 3}}, "3 key/value heads"),
        ("llama", {"extra": {"llama.rope.dimension_count": 18}}, "18 rotary dimensions"),
        ("llama", {"extra_tensors": {"blk.0.attn_q.bias": (64,)}}, "blk.0.attn_q.bias.*llama"),
        ("llama", {"extra_tensors": {"blk.1.ffn_gate_inp.weight": (64, 64)}}, "blk.1.ffn_gate_inp.weight"),
        ("qwen2", {"without": ("blk.1.attn_v.bias",)}, "blk.1.attn_v.bias.*missing"),
        ("qwen2", {"fused_qkv": True}, "blk.0.attn_qkv.weight.*qwen2"),
        ("qwen2", {"extra_tensors": {"output.bias": (273,)}}, "output.bias"),
        ("qwen3", {"without": ("blk.0.attn_k_norm.weight",)}, "blk.0.attn_k_norm.weight.*missing"),
        ("qwen3", {"extra_tensors": {"rope_freqs.weight": (8,)}}, "rope_freqs.weight"),
        ("gemma3", {"without": ("blk.1.post_ffw_norm.weight",)}, "blk.1.post_ffw_norm.weight.*missing"),
        ("phi3", {"extra_tensors": {"rope_factors_long.weight": (8,)}}, "rope_factors_long.weight"),
        ("phi3", {"extra_tensors": {"blk.0.attn_qkv.bias": (128,)}}, "blk.0.attn_qkv.bias"),
        ("phi3", {"extra": {"phi3.feed_forward_length": 192}}, r"blk.0.ffn_up.weight.*\(192, 64\).*\(384, 64\)"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, name: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ModelError, match=named):
        read(tmp_path, name, **changes)
