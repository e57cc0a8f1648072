"""Run: python -m pytest tests/adapt/test_block.py"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgepd.adapt.batches import batch_nll
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.linear import LinearGroup, Residency
from edgepd_quant.types import GGMLType
from tests.adapt.helpers import random_examples, tiny_decoder

KINDS = ("lora", "scale", "shift", "gain")


def gradients(decoder: Decoder) -> list[torch.Tensor]:
    """Of the loss on three examples, with deltas that are away from zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in decoder.parameters:
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    loss = batch_nll(decoder, random_examples(3, seed=2), [0.1, 0.2, 0.3])
    return list(torch.autograd.grad(loss, decoder.parameters))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_in_memory_changes_no_gradient(tmp_path: Path, kind: str) -> None:
    with tiny_decoder(tmp_path) as decoder:
        decoder.adapt(kind, rank=3, alpha=6.0, seed=0)
        plain = gradients(decoder)
        residencies: tuple[Residency, ...] = ("stream", "fp32")
        for residency in residencies:
            for kept in (0, 1, None):
                decoder.arrange(residency=residency, kept_layers=kept)
                for found, expected in zip(gradients(decoder), plain, strict=True):
                    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
        decoder.arrange(residency="fp16", kept_layers=0)
        for found, expected in zip(gradients(decoder), plain, strict=True):
            assert (found - expected).norm() <= 0.01 * expected.norm()  # weights rounded to 11 bits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [0, None])
def test_gradients_equal_finite_differences(tmp_path: Path, kind: str, kept: int | None) -> None:
    """Along the gradient itself, where the difference is largest and rounding to float32 matters least."""
    examples = random_examples(3, seed=2)
    with tiny_decoder(tmp_path) as decoder:
        decoder.adapt(kind, rank=3, alpha=6.0, seed=0)
        decoder.arrange(kept_layers=kept)
        slopes = gradients(decoder)
        norm = torch.sqrt(torch.stack([slope.square().sum() for slope in slopes]).sum())
        values = []
        with torch.no_grad():
            for sign in (1, -2):
                for parameter, slope in zip(decoder.parameters, slopes, strict=True):
                    parameter.add_(slope / norm, alpha=sign * 5e-3)
                values.append(batch_nll(decoder, examples, [0.1, 0.2, 0.3]).item())
        assert (values[0] - values[1]) / 1e-2 == pytest.approx(norm.item(), rel=0.01)


def dense(group: LinearGroup, x: torch.Tensor, gain: torch.Tensor | None, **_: bool) -> torch.Tensor:
    """What a group computes, left to autograd."""
    if group.slot in ("qkv", "up"):
        x = torch.nn.functional.rms_norm(x, x.shape[-1:], gain, 1e-5)
    if group.slot == "down":
        gate, up = x.chunk(2, dim=1)
        x = torch.nn.functional.silu(gate) * up
    weights = [d.base.weight() + 2.0 * d.parameters[1] @ d.parameters[0] for d in group.deltas]  # alpha / r = 2
    return x @ torch.cat(weights).T


def test_gradients_equal_dense_autograd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model once more in plain float32 autograd, with the delta written out as a dense matrix."""
    with tiny_decoder(tmp_path, GGMLType.Q4_1) as decoder:
        decoder.adapt("lora", rank=3, alpha=6.0, seed=0)
        found = gradients(decoder)
        monkeypatch.setattr(LinearGroup, "__call__", dense)
        loss = batch_nll(decoder, random_examples(3, seed=2), [0.1, 0.2, 0.3])
        expected = torch.autograd.grad(loss, decoder.parameters)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_frozen_layers_are_computed_once_and_get_no_gradient(tmp_path: Path) -> None:
    examples = random_examples(3, seed=2)
    with tiny_decoder(tmp_path) as decoder:
        decoder.adapt("lora", rank=3, alpha=6.0, seed=0, top_layers=1)
        assert {delta.name.split(".")[1] for delta in decoder.deltas} == {"1"}
        first = batch_nll(decoder, examples, [1.0] * 3).item()
        calls: list[int] = []
        embedded = decoder._embedded
        decoder._embedded = lambda sequences: calls.append(1) or embedded(sequences)  # type: ignore[method-assign,func-returns-value]
        again = batch_nll(decoder, examples[::-1], [1.0] * 3)
        assert calls == []
        assert again.item() == pytest.approx(first, rel=1e-6)
        assert all(g.abs().max() > 0 for g in torch.autograd.grad(again, [d.parameters[1] for d in decoder.deltas]))
        decoder.strip()
        assert batch_nll(decoder, examples, [1.0] * 3).item() == pytest.approx(first, rel=1e-3)


def test_the_base_is_one_context_away(tmp_path: Path) -> None:
    examples = random_examples(3, seed=2)
    with tiny_decoder(tmp_path) as decoder, torch.no_grad():
        base = batch_nll(decoder, examples, [1.0] * 3).item()
        decoder.adapt("gain", rank=1, alpha=1.0, seed=0)
        for parameter in decoder.parameters:
            parameter.add_(0.1)
        changed = batch_nll(decoder, examples, [1.0] * 3).item()
        with decoder.base():
            assert batch_nll(decoder, examples, [1.0] * 3).item() == base
        assert batch_nll(decoder, examples, [1.0] * 3).item() == changed != base
