"""Run: python -m pytest tests/adapt/test_delta.py"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgepd.adapt.batches import batch_nll
from edgepd.adapt.delta import LoRA, Scale
from edgepd.adapt.linear import QuantLinear
from edgepd.errors import TrainingError
from edgepd_quant.adapter_file import Kind
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType
from tests.adapt.helpers import random_examples, tiny_decoder
from tests.tiny_gguf import tiny_llama

NAME = "blk.0.ffn_down.weight"  # (64, 96): three blocks of 32 in a row


def delta_of(kind: Kind, model: GGUFFile, name: str = NAME) -> LoRA | Scale:
    generator = torch.Generator().manual_seed(3)
    base = QuantLinear(model, name)
    delta = LoRA(base, 4, 8.0, generator) if kind == "lora" else Scale(base, 4, generator)
    with torch.no_grad():
        delta.b.uniform_(-0.3, 0.3, generator=generator)
    return delta


def dense_product(delta: LoRA | Scale, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    weight = delta.base.weight().to(x.dtype)
    if isinstance(delta, LoRA):
        return x @ (weight + 2.0 * b @ a).T  # alpha / r = 8 / 4
    gain = (b @ a).repeat_interleave(delta.block_size, dim=1)
    return x @ (weight * (1 + gain)).T


@pytest.mark.parametrize("qtype", [GGMLType.Q4_0, GGMLType.Q8_0, GGMLType.Q6_K])
@pytest.mark.parametrize("kind", ["lora", "scale"])
def test_gradients_equal_dense_autograd(tmp_path: Path, kind: Kind, qtype: GGMLType) -> None:
    with GGUFFile.open(tiny_llama(tmp_path / "m.gguf", qtype=qtype, seed=2)) as model:
        delta = delta_of(kind, model)
        x = torch.randn(7, delta.base.in_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
        weights = torch.randn(7, delta.base.out_features, generator=torch.Generator().manual_seed(1))
        torch.autograd.backward((delta(x) * weights).sum())
        wide = [t.detach().double().requires_grad_() for t in (x, delta.a, delta.b)]
        expected = dense_product(delta, *wide)
        torch.testing.assert_close(delta(x).double(), expected, rtol=1e-4, atol=1e-5)
        torch.autograd.backward((expected * weights.double()).sum())
        for found, reference in zip((x, delta.a, delta.b), wide, strict=True):
            assert found.grad is not None and reference.grad is not None
            assert reference.grad.abs().max() > 0.01
            rounding = 1e-5 * reference.grad.abs().max().item()  # of entries in which large terms cancel
            torch.testing.assert_close(found.grad.double(), reference.grad, rtol=1e-4, atol=rounding)


@pytest.mark.parametrize("kind", ["lora", "scale"])
def test_gradients_equal_finite_differences(tmp_path: Path, kind: Kind) -> None:
    """Through the whole network: the derivative along a random direction in A and B."""
    with tiny_decoder(tmp_path) as decoder:
        deltas = decoder.adapt(kind, rank=4, alpha=8.0, seed=0)
        generator = torch.Generator().manual_seed(5)
        parameters = [p for delta in deltas for p in (delta.a, delta.b)]
        with torch.no_grad():
            for delta in deltas:
                delta.b.uniform_(-0.1, 0.1, generator=generator)
        examples = random_examples(3, seed=0)
        torch.autograd.backward(batch_nll(decoder, examples, [0.03, 0.02, 0.01]))
        direction = [torch.randn(p.shape, generator=generator) for p in parameters]
        slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True) if p.grad is not None)
        losses = []
        for step in (1e-3, -2e-3):  # to +h, then from there to -h
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=step)
                losses.append(batch_nll(decoder, examples, [0.03, 0.02, 0.01]).item())
        assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize("kind", ["lora", "scale"])
def test_fresh_delta_changes_nothing(tmp_path: Path, kind: Kind) -> None:
    tokens = list(range(3, 23))
    with tiny_decoder(tmp_path) as decoder:
        base = decoder.forward_logits(tokens)
        deltas = decoder.adapt(kind, rank=8, alpha=16.0, seed=0)
        assert len(deltas) == 14  # seven linears in each of two layers, no embedding and no output
        assert torch.equal(decoder.forward_logits(tokens), base)
        with torch.no_grad():
            deltas[0].b.fill_(0.1)
        assert not torch.equal(decoder.forward_logits(tokens), base)
        decoder.strip()
        assert torch.equal(decoder.forward_logits(tokens), base)


@pytest.mark.parametrize(("kind", "columns"), [("lora", 64), ("scale", 2)])
def test_export_holds_the_factors(tmp_path: Path, kind: Kind, columns: int) -> None:
    with tiny_decoder(tmp_path) as decoder:
        deltas = decoder.adapt(kind, rank=4, alpha=8.0, seed=0)
        adapter = decoder.export({"data_hash": "abc"})
        assert (adapter.kind, adapter.architecture, adapter.metadata) == (kind, "llama", {"data_hash": "abc"})
        assert set(adapter.tensors) == {delta.name for delta in deltas}
        factors = adapter.tensors["blk.1.attn_k.weight"]  # (32, 64)
        assert (factors.a.shape, factors.b.shape) == ((4, columns), (32, 4))
        with torch.no_grad():
            deltas[0].a.zero_()
        assert adapter.tensors[deltas[0].name].a.any(), "an export must be a copy"
        decoder.strip()
        with pytest.raises(TrainingError, match="no delta"):
            decoder.export({})


def test_scale_needs_blocks(tmp_path: Path) -> None:
    with tiny_decoder(tmp_path, GGMLType.F16) as decoder, pytest.raises(TrainingError, match=r"F16.*no block scales"):
        decoder.adapt("scale", rank=4, alpha=8.0, seed=0)
