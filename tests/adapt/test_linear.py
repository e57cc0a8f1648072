"""Run: python -m pytest tests/adapt/test_linear.py"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgepd.adapt.decoder import Decoder
from edgepd.adapt.delta import LoRA
from edgepd.adapt.functional import Plain
from edgepd.adapt.linear import LinearGroup, QuantLinear, Residency, Scratch
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType
from tests.adapt.helpers import random_examples, tiny_decoder
from tests.tiny_gguf import tiny_llama

QKV = ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight")  # (64, 64), (32, 64), (32, 64)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[GGUFFile]:
    with GGUFFile.open(tiny_llama(tmp_path / "m.gguf", qtype=GGMLType.Q4_1, seed=1)) as opened:
        yield opened


class Filler:
    """Fills buffers with a number and remembers that it was asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, scratch: Scratch, slot: str, number: float, shape: tuple[int, int] = (2, 3)) -> Tensor:
        def fill(buffer: Tensor) -> None:
            self.asked.append(number)
            buffer.fill_(number)

        return scratch.weight(slot, number, shape, fill)


def test_one_buffer_serves_all_slots_in_turn() -> None:
    scratch, filler = Scratch(), Filler()
    first = filler(scratch, "up", 1.0)
    second = filler(scratch, "down", 2.0)
    assert second.data_ptr() == first.data_ptr()
    assert first.tolist() == [[2.0] * 3] * 2, "valid until the next call"
    filler(scratch, "up", 1.0)
    assert filler.asked == [1.0, 2.0, 1.0]


def test_shared_buffers_keep_what_each_slot_holds() -> None:
    scratch, filler = Scratch(), Filler()
    scratch.shared = True
    first, second = filler(scratch, "up", 1.0), filler(scratch, "down", 2.0)
    again = filler(scratch, "up", 1.0)
    assert again.data_ptr() == first.data_ptr() != second.data_ptr()
    assert filler.asked == [1.0, 2.0]
    assert again.tolist() == [[1.0] * 3] * 2
    assert filler(scratch, "up", 3.0).tolist() == [[3.0] * 3] * 2, "the next layer's"
    assert filler(scratch, "up", 1.0).tolist() == [[1.0] * 3] * 2
    assert filler.asked == [1.0, 2.0, 3.0, 1.0]


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_stale_is_filled_again(shared: bool) -> None:
    scratch, filler = Scratch(), Filler()
    scratch.shared = shared
    first = filler(scratch, "up", 1.0)
    scratch.forget()
    assert filler(scratch, "up", 1.0).data_ptr() == first.data_ptr()
    scratch.release()
    filler(scratch, "up", 1.0)
    assert filler.asked == [1.0] * 3


def test_a_buffer_grows_and_serves_smaller_shapes() -> None:
    scratch, filler = Scratch(), Filler()
    filler(scratch, "up", 1.0, (2, 3))
    large = filler(scratch, "up", 2.0, (4, 5))
    small = filler(scratch, "up", 3.0, (3, 2))
    assert small.shape == (3, 2)
    assert small.is_contiguous()
    assert small.data_ptr() == large.data_ptr()
    assert filler(scratch, "up", 2.0, (4, 5)).tolist() == [[2.0] * 5] * 4


def test_a_fill_that_fails_leaves_nothing_that_looks_filled() -> None:
    scratch, filler = Scratch(), Filler()
    filler(scratch, "up", 1.0)

    def broken(buffer: Tensor) -> None:
        buffer.fill_(9.0)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        scratch.weight("up", 2.0, (2, 3), broken)
    for number in (2.0, 1.0):
        assert filler(scratch, "up", number).tolist() == [[number] * 3] * 2


def group_of(model: GGUFFile, scratch: Scratch | None = None) -> LinearGroup:
    return LinearGroup([QuantLinear(model, name) for name in QKV], "qkv", Plain(), scratch or Scratch())


def test_a_group_is_its_layers_one_below_the_other(model: GGUFFile) -> None:
    group = group_of(model)
    parts = [linear.weight() for linear in group.linears]
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    assert (group.shape, group.sizes) == ((128, 64), [64, 32, 32])
    assert torch.equal(group.weight(changed=False), torch.cat(parts))
    expected = torch.cat([x @ part.T for part in parts], dim=1)
    torch.testing.assert_close(group(x, None, changed=False), expected, rtol=1e-5, atol=1e-5)
    assert group(x, None, changed=True, wanted=False).shape == (5, 128)


def lora_on(group: LinearGroup) -> list[LoRA]:
    generator = torch.Generator().manual_seed(1)
    deltas = [LoRA(linear, 2, 4.0, generator) for linear in group.linears]
    with torch.no_grad():
        for delta in deltas:
            delta.b.normal_(0.0, 0.1, generator=generator)
    group.deltas = deltas
    return deltas


@pytest.mark.parametrize("residency", ["stream", "fp32", "fp16"])
def test_a_group_has_the_same_weight_wherever_it_lives(model: GGUFFile, residency: Residency) -> None:
    scratch = Scratch()
    group = group_of(model, scratch)
    base = torch.cat([linear.weight() for linear in group.linears])
    deltas = lora_on(group)
    changed = base + torch.cat([2.0 * delta.b @ delta.a for delta in deltas]).detach()
    group.settle(residency)
    rounding = 2**-11 * base.abs().max().item() if residency == "fp16" else 1e-6
    for _ in range(2):  # what was computed before must not get in the way
        assert (group.weight(changed=True) - changed).abs().max() <= rounding
        assert (group.weight(changed=False) - base).abs().max() <= rounding
    group.settle("stream")
    scratch.forget()  # as `Decoder.arrange` does
    assert torch.equal(group.weight(changed=False), base), "what was kept is dropped"


def test_resident_float32_weights_are_not_copied_and_not_changed(model: GGUFFile) -> None:
    group = group_of(model)
    lora_on(group)
    group.settle("fp32")
    base = group.weight(changed=False)
    before = base.clone()
    group.weight(changed=True)
    assert group.weight(changed=False).data_ptr() == base.data_ptr()
    assert torch.equal(base, before)


def test_a_fresh_parameter_needs_forgetting(model: GGUFFile) -> None:
    """The scratch cannot see that an optimiser has stepped: whoever steps says so, as `Decoder.hidden` does."""
    scratch = Scratch()
    group = group_of(model, scratch)
    deltas = lora_on(group)
    before = group.weight(changed=True).clone()
    with torch.no_grad():
        deltas[0].b.add_(1.0)
    scratch.forget()
    assert (group.weight(changed=True) - before)[:64].abs().max() > 0.1


@pytest.mark.parametrize("kept", [0, None])
def test_a_step_is_seen_by_the_next_forward_pass(tmp_path: Path, kept: int | None) -> None:
    sequences = [example.tokens for example in random_examples(2, seed=1)]
    with tiny_decoder(tmp_path) as decoder, torch.no_grad():
        decoder.adapt("lora", rank=2, alpha=4.0, seed=0)
        decoder.arrange(kept_layers=kept)
        before = decoder.hidden(sequences)
        for parameter in decoder.parameters:
            parameter.add_(0.05)
        after = decoder.hidden(sequences)
        fresh = Decoder(decoder.model)
        fresh.adapt("lora", rank=2, alpha=4.0, seed=0)
        fresh.load(decoder.export({}))
        assert (after - before).abs().max() > 0.01
        torch.testing.assert_close(after, fresh.hidden(sequences), rtol=1e-5, atol=1e-5)


def test_pages_are_given_back_once_dequantised(model: GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[str] = []
    monkeypatch.setattr(model, "release", released.append)
    group = group_of(model)
    group.weight(changed=False)
    assert released == list(QKV)
    group.weight(changed=False)
    assert released == list(QKV), "what is still in the scratch was not read again"
    group.settle("fp32")
    assert released == [*QKV, *QKV]
    group.weight(changed=True)
    assert released == [*QKV, *QKV], "resident weights are not read again"


def test_rows_and_pieces_are_the_whole(model: GGUFFile) -> None:
    linear = QuantLinear(model, QKV[0])
    whole = linear.weight()
    assert torch.equal(linear.weight(5, 9), whole[5:9])
    assert torch.equal(linear.rows(torch.tensor([9, 0, 9])), whole[[9, 0, 9]])
    out = torch.empty(4, 64)
    assert linear.weight(5, 9, out) is out
    assert torch.equal(out, whole[5:9])
    linear.release()
    assert torch.equal(linear.weight(), whole)


def test_bfloat16_is_for_products_only(tmp_path: Path) -> None:
    sequences = [example.tokens for example in random_examples(2, seed=1)]
    with tiny_decoder(tmp_path) as decoder, torch.no_grad():
        exact = decoder.hidden(sequences)
        rounded = Decoder(decoder.model, dtype=torch.bfloat16).hidden(sequences)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.03  # 8 bits
