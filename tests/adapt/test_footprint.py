"""Run: python -m pytest tests/adapt/test_footprint.py"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgepd.adapt.architecture import Architecture
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.footprint import (
    ALLOCATOR_SLACK,
    BLAS_BYTES,
    PARAMETER_COPIES,
    Load,
    Shapes,
    kept_floats,
    passing_floats,
    peak_bytes,
    step_flops,
)
from edgepd.adapt.linear import Residency
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType
from tests.adapt.helpers import tiny_decoder
from tests.tiny_archs import ARCHITECTURES, tiny_arch

ARCH = Architecture(
    name="llama",
    layers=10,
    hidden=100,
    heads=4,
    kv_heads=2,
    head_dim=20,
    feed_forward=300,
    context=512,
    vocabulary=5000,
    rope_dims=20,
    rope_base=1e4,
    rms_eps=1e-5,
    attention_scale=20**-0.5,
)
SHAPES = Shapes(ARCH, (16_000, 8_000, 60_000, 30_000), 1_000_000)
LOAD = Load(tokens=256, supervised=64, parameters=10_000)


def peak(load: Load = LOAD, residency: Residency = "stream", kept: int = 10, trained: int = 10) -> int:
    return peak_bytes(SHAPES, load, residency=residency, kept_layers=kept, trained_layers=trained, allocator="thrifty")


SLACK = ALLOCATOR_SLACK["thrifty"]


def floats(more: int, less: int) -> float:
    """A difference of two peaks as float32 numbers, without what the allocator adds."""
    return (more - less) / 4 / (1 + SLACK)


def test_shapes_come_from_the_header(tmp_path: Path) -> None:
    with tiny_decoder(tmp_path) as decoder:  # 64 wide, 4 heads that share 2 keys, MLP 96, 273 tokens, Q4_1, tied
        shapes = Shapes.of(decoder.model, decoder.architecture)
    assert shapes.groups == (128 * 64, 64 * 64, 192 * 64, 64 * 96)
    assert shapes.layer_weights == 30_720
    assert shapes.head_weights == 273 * 64
    assert shapes.mapped == (96 * 64 + 273 * 64) // 32 * 20


def test_what_a_token_keeps_by_hand() -> None:
    """Input 100; q, k, v 160; mixed 80; one logsumexp per head; MLP input 100; gate and up 600."""
    assert kept_floats(ARCH) == 100 + 160 + 80 + 4 + 100 + 600
    post = dataclasses.replace(ARCH, post_norms=True)
    assert kept_floats(post) == 1044 + 200
    assert passing_floats(ARCH) == 1500


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_token_keeps_is_what_autograd_saves(tmp_path: Path, name: str) -> None:
    """Both layers, of which gemma3's first slides over a window shorter than the sequences."""
    saved: dict[int, int] = {}
    own: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    sequences = [list(range(3, 35))] * 2
    with GGUFFile.open(tiny_arch(tmp_path / "m.gguf", name, qtype=GGMLType.Q4_1)) as model:
        decoder = Decoder(model)
        decoder.adapt("lora", rank=2, alpha=4.0, seed=0)
        rows = decoder._rows(sequences)
        shared = [*decoder.parameters, rows.turns, rows.local_turns, *([] if rows.window is None else [rows.window])]
        for block in decoder.blocks:
            own = {tensor.untyped_storage().data_ptr() for tensor in [*shared, *block.vectors.values()]}
            saved.clear()
            x = decoder._embedded(sequences).requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                y = block.forward(x, rows, changed=True)
            assert y.requires_grad
            assert sum(saved.values()) == 4 * 64 * kept_floats(decoder.architecture)


def test_activations_count_by_layer_and_token() -> None:
    more = dataclasses.replace(LOAD, tokens=257)
    assert floats(peak(more), peak()) == pytest.approx(10 * 1044 + 1500 + 200, abs=1)
    recomputed = peak(more, kept=0) - peak(kept=0)
    assert floats(recomputed, 0) == pytest.approx(10 * 100 + 1044 + 1500 + 200, abs=1), "inputs, and one layer at once"
    assert floats(peak(kept=5), peak(kept=4)) == pytest.approx(256 * (1044 - 100), abs=1)
    # Recomputation needs scratch for all four products at once, and has one more layer in memory.
    assert floats(peak(kept=10), peak(kept=9)) == pytest.approx(256 * (-100) + 60_000 - 114_000, abs=1)


def test_only_trained_layers_keep_anything() -> None:
    assert floats(peak(kept=4, trained=4), peak(kept=3, trained=3)) == pytest.approx(256 * 1044, abs=1)
    assert peak(kept=9, trained=4) == peak(kept=4, trained=4)
    cached = dataclasses.replace(LOAD, cached_tokens=1000)
    assert (peak(cached, trained=4) - peak(trained=4)) / (1 + SLACK) == pytest.approx(200_000, abs=1)  # fp16


def test_parameters_weights_and_the_head_count() -> None:
    more = dataclasses.replace(LOAD, parameters=10_001)
    assert floats(peak(more), peak()) == pytest.approx(PARAMETER_COPIES, abs=1)
    resident = 114_000 * 10
    assert floats(peak(residency="fp32"), peak()) == pytest.approx(resident, abs=1)
    assert floats(peak(residency="fp16"), peak()) == pytest.approx(resident / 2, abs=1)
    wanted = dataclasses.replace(LOAD, supervised=65)
    assert floats(peak(wanted), peak()) == pytest.approx(3 * 4096 + 400, abs=1), "tiles of 4096 of the 5000 tokens"
    nothing = peak(Load(0, 0, 0))
    assert nothing == pytest.approx(BLAS_BYTES + 1_000_000 + 4 * (60_000 + 409_600) * (1 + SLACK), abs=1)


def test_a_fast_allocator_wastes_more() -> None:
    ways = {"residency": "stream", "kept_layers": 10, "trained_layers": 10}
    fast, thrifty = (peak_bytes(SHAPES, LOAD, **ways, allocator=name) for name in ("fast", "thrifty"))  # type: ignore[arg-type]
    counted = (fast - thrifty) / (ALLOCATOR_SLACK["fast"] - SLACK)
    assert thrifty - BLAS_BYTES - 1_000_000 == pytest.approx(counted * (1 + SLACK), abs=10)


def flops(kept: int = 10, trained: int = 10, *, supervised: int = 0, dense: bool = False, length: float = 50) -> float:
    return step_flops(SHAPES, 1, supervised, length, kept_layers=kept, trained_layers=trained, dense_gradient=dense)


def test_operations_by_hand() -> None:
    """A layer's products take 228,000 operations per token, attention over 50 tokens 8,000 and twice that backward."""
    forward, backward = 228_000 + 8_000, 228_000 + 16_000
    assert flops() == 10 * (forward + backward)
    assert flops(kept=0) - flops() == 10 * (168_000 + 8_000), "again, but for the last product"
    assert flops(kept=7) - flops() == 3 * (168_000 + 8_000)
    assert flops(kept=4, trained=4) == 10 * forward + 4 * backward
    assert flops(dense=True) - flops() == 10 * 228_000
    assert flops(supervised=1) - flops() == 4 * 500_000, "logits, and the expected row"
    assert flops(length=100) - flops(length=50) == 10 * 3 * 8_000
