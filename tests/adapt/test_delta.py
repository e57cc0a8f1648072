"""Run: python -m pytest tests/adapt/test_delta.py"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from edgepd.adapt import delta as module
from edgepd.adapt.delta import Delta, LoRA, RowGain, Scale, Shift, VectorDelta
from edgepd.adapt.kinds import export_all, load_all, wrap
from edgepd.adapt.linear import QuantLinear
from edgepd.errors import TrainingError
from edgepd_quant.adapter_file import Adapter, Kind, LowRank, Vector, read_adapter, write_adapter
from edgepd_quant.bake import HELD_BY, bake
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import BLOCK_SIZES, GGMLType
from tests.adapt.helpers import tiny_decoder
from tests.tiny_gguf import llama_logits, tiny_llama

NAME = "blk.0.ffn_down.weight"  # (64, 96): three blocks of 32 in a row; (256, 512) in K-quants
TOKENS = [1, 120, 118, 266, 13, 272, 2]
CASES: list[tuple[Kind, GGMLType]] = [
    *(("lora", qtype) for qtype in (GGMLType.F16, GGMLType.Q4_0, GGMLType.Q6_K)),
    *(("scale", qtype) for qtype in (GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.Q6_K)),
    *(("shift", qtype) for qtype in (GGMLType.Q4_1, GGMLType.Q5_1)),
    *(("gain", qtype) for qtype in (GGMLType.F32, GGMLType.F16, GGMLType.Q5_0, GGMLType.Q5_K)),
]
KINDS: list[tuple[Kind, GGMLType]] = [(kind, GGMLType.Q4_1) for kind in ("lora", "scale", "shift", "gain")]


@contextmanager
def tiny_model(folder: Path, qtype: GGMLType) -> Iterator[GGUFFile]:
    path = folder / f"{qtype.name}.gguf"
    with GGUFFile.open(path if path.exists() else tiny_llama(path, qtype=qtype, seed=2)) as model:
        yield model


def fresh(kind: str, model: GGUFFile, name: str = NAME, *, rank: int = 4, block_size: int | None = None) -> Delta:
    generator = torch.Generator().manual_seed(3)
    linear = QuantLinear(model, name)
    return wrap(kind, linear, rank=rank, alpha=8.0, rs_lora=False, generator=generator, block_size=block_size)


def trained(delta: Delta | VectorDelta, seed: int = 4, size: float = 0.3) -> Delta | VectorDelta:
    """Move the parameters that are zero at first."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        delta.parameters[-1].uniform_(-size, size, generator=generator)
    return delta


def changed_weight(delta: Delta) -> Tensor:
    weight = delta.base.weight()
    delta.change_(weight)
    return weight


def dense(delta: Delta, weight: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The changed weight by the formula of each kind, differentiable."""
    if isinstance(delta, RowGain):
        return weight * (1 + parameters[0].unsqueeze(1))
    a, b = parameters
    if isinstance(delta, LoRA):
        return weight + 2.0 * b @ a  # alpha / r = 8 / 4
    assert isinstance(delta, Scale | Shift)
    of_weights = (b @ a).repeat_interleave(delta.block_size, dim=1)
    return weight * (1 + of_weights) if isinstance(delta, Scale) else weight + of_weights


def assert_gradients_are_dense(delta: Delta, seed: int = 0) -> None:
    """The hand-written gradients equal float64 autograd through the dense formula."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(7, delta.base.in_features, generator=generator)
    grad = torch.randn(7, delta.base.out_features + 5, generator=generator)[:, 2:-3]  # a part of a wider product
    wide = [parameter.detach().double().requires_grad_() for parameter in delta.parameters]
    reference = dense(delta, delta.base.weight().double(), wide)
    changed = changed_weight(delta)
    torch.testing.assert_close(changed.double(), reference, rtol=1e-5, atol=1e-6)
    expected = torch.autograd.grad(((x.double() @ reference.T) * grad.double()).sum(), wide)
    kept = changed.clone()
    found = delta.gradients(x, grad, changed)
    assert torch.equal(changed, kept), "the changed weight is shared with the product and must stay"
    assert len(found) == len(expected)
    for gradient, of_dense in zip(found, expected, strict=True):
        assert of_dense.abs().max() > 0.01
        rounding = 1e-5 * of_dense.abs().max().item()  # of entries in which large terms cancel
        torch.testing.assert_close(gradient.double(), of_dense, rtol=1e-4, atol=rounding)


@pytest.mark.parametrize(("kind", "qtype"), CASES)
def test_gradients_equal_dense_autograd(tmp_path: Path, kind: Kind, qtype: GGMLType) -> None:
    with tiny_model(tmp_path, qtype) as model:
        delta = fresh(kind, model)
        trained(delta)
        assert_gradients_are_dense(delta)


@pytest.mark.parametrize(("kind", "qtype"), KINDS)
def test_gradients_equal_finite_differences(tmp_path: Path, kind: Kind, qtype: GGMLType) -> None:
    """Of a sum that is quadratic in the parameters, so that central differences are exact up to rounding."""
    generator = torch.Generator().manual_seed(7)
    with tiny_model(tmp_path, qtype) as model:
        delta = fresh(kind, model)
        trained(delta)
        x = torch.randn(5, delta.base.in_features, generator=generator)
        grad = torch.randn(5, delta.base.out_features, generator=generator)
        gradients = delta.gradients(x, grad, changed_weight(delta))
        direction = [torch.randn(p.shape, generator=generator) for p in delta.parameters]
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        values = []
        for step in (0.05, -0.1):  # to +h, then from there to -h
            with torch.no_grad():
                for parameter, d in zip(delta.parameters, direction, strict=True):
                    parameter.add_(d, alpha=step)
            values.append(float(((x @ changed_weight(delta).T).double() * grad).sum()))
        assert abs(slope) > 1
        assert (values[0] - values[1]) / 0.1 == pytest.approx(slope, rel=2e-3)


@pytest.mark.parametrize("kind", ["scale", "gain"])
def test_a_factor_of_zero_is_not_divided_by(tmp_path: Path, kind: Kind) -> None:
    """Where 1 + g is 0 the changed weight says nothing about the base any more, yet g has a gradient."""
    with tiny_model(tmp_path, GGMLType.Q4_1) as model:
        delta = trained(fresh(kind, model, rank=1))
        with torch.no_grad():
            if isinstance(delta, Scale):
                delta.a.copy_(torch.tensor([[0.5, 1.0, -2.0]]))
            delta.parameters[-1][[3, 40]] = torch.tensor([[-1.0], [-2.0]]) if kind == "scale" else -1.0
        assert isinstance(delta, Delta)
        assert_gradients_are_dense(delta)


def test_the_dense_gradient_of_scale_is_formed_in_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE_ELEMENTS", 1000)  # ten rows of 96, and four at the end
    with tiny_model(tmp_path, GGMLType.Q4_1) as model:
        delta = trained(fresh("scale", model, rank=1))
        with torch.no_grad():
            assert isinstance(delta, Scale)
            delta.a.copy_(torch.tensor([[0.5, 1.0, -2.0]]))
            delta.b[[9, 10, 63]] = -1.0
        assert_gradients_are_dense(delta)


@pytest.mark.parametrize(("kind", "qtype"), CASES)
def test_a_fresh_delta_changes_nothing(tmp_path: Path, kind: Kind, qtype: GGMLType) -> None:
    with tiny_model(tmp_path, qtype) as model:
        delta = fresh(kind, model)
        assert torch.equal(changed_weight(delta), delta.base.weight())
        trained(delta)
        assert not torch.equal(changed_weight(delta), delta.base.weight())


def test_fresh_factors_come_from_the_generator(tmp_path: Path) -> None:
    """Uniform within 1 / sqrt(width), in the order of the tensors; anything else would change what a seed gives."""
    with tiny_model(tmp_path, GGMLType.Q4_1) as model:
        for kind, width in (("lora", 96), ("scale", 3), ("shift", 3)):
            delta = fresh(kind, model)
            bound = 1 / math.sqrt(width)
            expected = torch.empty(4, width).uniform_(-bound, bound, generator=torch.Generator().manual_seed(3))
            assert torch.equal(delta.parameters[0], expected)
            assert torch.equal(delta.parameters[1], torch.zeros(64, 4))
        (rho,) = fresh("gain", model).parameters
        assert torch.equal(rho, torch.zeros(64))


@pytest.mark.parametrize("kind", ["scale", "shift"])
def test_coarser_blocks_are_exported_in_those_of_the_format(tmp_path: Path, kind: Kind) -> None:
    with tiny_model(tmp_path, GGMLType.Q4_1) as model:
        delta = fresh(kind, model, block_size=96)
        assert delta.parameters[0].shape == (4, 1)
        trained(delta)
        assert_gradients_are_dense(delta)
        factors = delta.export()
        assert isinstance(factors, LowRank) and factors.a.shape == (4, 3)
        fine = fresh(kind, model)
        fine.load(factors)
        torch.testing.assert_close(changed_weight(fine), changed_weight(delta), rtol=1e-6, atol=1e-7)
        again = fresh(kind, model, block_size=96)
        again.load(factors)
        assert torch.equal(changed_weight(again), changed_weight(delta))
        with pytest.raises(TrainingError, match=NAME):
            again.load(LowRank(np.arange(12, dtype=np.float32).reshape(4, 3), factors.b))  # not the same in all three
        for size in (16, 48, 64, 0):  # below the format's block, not a multiple of it, not a divisor of 96, nothing
            with pytest.raises(TrainingError, match=f"blocks of {size} do not suit tensor '{NAME}'"):
                fresh(kind, model, block_size=size)


def test_a_shift_is_also_a_lora(tmp_path: Path) -> None:
    with tiny_model(tmp_path, GGMLType.Q5_1) as model:
        shift = trained(fresh("shift", model))
        assert isinstance(shift, Shift)
        lora = LoRA(shift.base, 4, 4.0, torch.Generator())  # alpha is the rank: scaled by 1
        lora.load(shift.to_lora(), 4.0)
        torch.testing.assert_close(changed_weight(lora), changed_weight(shift), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "qtype"), KINDS)
def test_what_is_exported_can_be_continued(tmp_path: Path, kind: Kind, qtype: GGMLType) -> None:
    path = tmp_path / "adapter.gguf"
    with tiny_model(tmp_path, qtype) as model:
        deltas = [fresh(kind, model, name) for name in (NAME, "blk.1.attn_k.weight")]
        for delta in deltas:
            trained(delta)
        alpha, tensors = export_all(deltas)
        write_adapter(path, Adapter(kind, "llama", alpha, tensors, {}))
        before = [changed_weight(delta) for delta in deltas]
        with torch.no_grad():
            deltas[0].parameters[-1].zero_()
        again = [fresh(kind, model, delta.name) for delta in deltas]
        load_all(again, read_adapter(path))  # what was exported is a copy
        for delta, weight in zip(again, before, strict=True):
            assert torch.equal(changed_weight(delta), weight)
            assert all(parameter.requires_grad and parameter.is_leaf for parameter in delta.parameters)


def test_a_lora_continues_with_another_rank_and_alpha(tmp_path: Path) -> None:
    with tiny_model(tmp_path, GGMLType.Q4_1) as model:
        small = trained(fresh("lora", model, rank=2))
        assert isinstance(small, LoRA)
        for rs_lora in (False, True):
            large = LoRA(small.base, 8, 32.0, torch.Generator().manual_seed(1), rs_lora=rs_lora)
            trained(large)  # what the columns of b held before must not stay
            large.load(small.export(), small.file_alpha)
            torch.testing.assert_close(changed_weight(large), changed_weight(small), rtol=1e-5, atol=1e-6)
            assert large.a[2:].abs().min() > 0, "fresh rows of a must be able to learn"
        unscaled = LoRA(small.base, 2, 8.0, torch.Generator())
        unscaled.load(small.export(), 0.0)  # llama.cpp takes alpha 0 as scaling 1
        expected = small.base.weight() + small.b.detach() @ small.a.detach()
        torch.testing.assert_close(changed_weight(unscaled), expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_continued_is_refused(tmp_path: Path) -> None:
    with tiny_model(tmp_path, GGMLType.Q4_1) as model:
        lora, scale, shift, gain = (fresh(kind, model) for kind in ("lora", "scale", "shift", "gain"))
        larger = fresh("lora", model, rank=5).export()
        with pytest.raises(TrainingError, match=rf"'{NAME}'.*\(5, 96\), \(64, 5\).*continues from \(4, 96\)"):
            lora.load(larger, 8.0)
        with pytest.raises(TrainingError, match=r"\(64,\).*rank 4"):
            lora.load(gain.export(), 8.0)
        with pytest.raises(TrainingError, match=r"low rank, but \(64,\)"):
            gain.load(scale.export())
        with pytest.raises(TrainingError, match=r"\(3,\), but \(64,\)"):
            gain.load(Vector(np.zeros(3, dtype=np.float32)))
        of_scale = Adapter("scale", "llama", 0.0, {NAME: scale.export()}, {})
        with pytest.raises(TrainingError, match="kind 'scale', not 'shift'"):
            load_all([shift], of_scale)
        with pytest.raises(TrainingError, match=f"changes '{NAME}', which is not trained now"):
            load_all([fresh("scale", model, "blk.1.attn_q.weight")], of_scale)


def test_types_that_cannot_hold_a_kind_are_refused(tmp_path: Path) -> None:
    with tiny_model(tmp_path, GGMLType.BF16) as model:
        with pytest.raises(TrainingError, match=rf"'{NAME}' is BF16.*no block scales"):
            fresh("scale", model)
        with pytest.raises(TrainingError, match=rf"'{NAME}' is BF16"):
            fresh("gain", model)
    for qtype in (GGMLType.F16, GGMLType.Q4_K):
        reason = rf"'{NAME}' is {qtype.name}, .*no block minimum.*Q4_1, Q5_1"
        with tiny_model(tmp_path, qtype) as model, pytest.raises(TrainingError, match=reason):
            fresh("shift", model)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("dora", "llama.cpp has no place for DoRA's magnitudes"),
        ("DoRA", "llama.cpp has no place"),
        ("pissa", "moves a part of the base"),
        ("olora", "moves a part of the base"),
        ("loftq", "quantises the base anew"),
        ("lokr", "possible are lora, scale, shift and gain"),
    ],
)
def test_kinds_that_no_file_can_hold_are_refused_with_the_reason(tmp_path: Path, kind: str, reason: str) -> None:
    with tiny_model(tmp_path, GGMLType.Q4_1) as model, pytest.raises(TrainingError, match=f"'{kind}'.*{reason}"):
        fresh(kind, model)


def test_rank_and_alpha_must_be_positive(tmp_path: Path) -> None:
    with tiny_model(tmp_path, GGMLType.Q4_1) as model:
        with pytest.raises(TrainingError, match=rf"rank for tensor '{NAME}' is 0"):
            fresh("scale", model, rank=0)
        with pytest.raises(TrainingError, match=r"alpha is 0\.0"):
            LoRA(QuantLinear(model, NAME), 4, 0.0, torch.Generator())


def test_vectors_are_multiplied_or_for_biases_added_to() -> None:
    base = torch.tensor([2.0, 0.0, -1.0])
    for name, expected, slope in (
        ("blk.0.attn_norm.weight", [3.0, 0.0, -1.25], [2.0, 0.0, -1.0]),
        ("blk.0.attn_q.bias", [2.5, 1.0, -0.75], [1.0, 1.0, 1.0]),
    ):
        delta = VectorDelta(name, base)
        assert torch.equal(delta.value(), base)
        with torch.no_grad():
            delta.parameters[0].copy_(torch.tensor([0.5, 1.0, 0.25]))
        assert delta.value().tolist() == expected
        torch.autograd.backward(delta.value().sum())
        assert delta.parameters[0].grad is not None and delta.parameters[0].grad.tolist() == slope
        again = VectorDelta(name, base)
        again.load(delta.export())
        assert again.value().tolist() == expected


# Below, files are made and given to llama.cpp.


def rewritten(path: Path, out: Path, changed: Mapping[str, npt.NDArray[np.float32]]) -> Path:
    """A copy of an F32 model with some tensors replaced."""
    content = bytearray(path.read_bytes())
    with GGUFFile.open(path) as model:
        for name, values in changed.items():
            info = model.tensors[name]
            content[info.offset : info.offset + info.nbytes] = values.astype("<f4").tobytes()
    out.write_bytes(content)
    return out


@pytest.mark.parametrize("rs_lora", [False, True])
def test_llama_cpp_scales_a_lora_as_it_was_trained(tmp_path: Path, rs_lora: bool) -> None:
    """With rsLoRA and with ranks that differ, though a file has one alpha and its reader divides by the rank."""
    plain = tiny_llama(tmp_path / "plain.gguf", qtype=GGMLType.F32, seed=2)
    generator = torch.Generator().manual_seed(5)
    with GGUFFile.open(plain) as model:
        deltas: list[Delta] = [
            LoRA(QuantLinear(model, name), rank, 3.0, generator, rs_lora=rs_lora)
            for name, rank in (("blk.0.attn_q.weight", 4), (NAME, 2), ("blk.1.ffn_up.weight", 16))
        ]
        for delta in deltas:
            trained(delta, size=0.2)
        merged = rewritten(plain, tmp_path / "merged.gguf", {d.name: changed_weight(d).numpy() for d in deltas})
    alpha, tensors = export_all(deltas)
    assert alpha == pytest.approx(6.0 if rs_lora else 3.0)  # 3 sqrt(4)
    write_adapter(tmp_path / "adapter.gguf", Adapter("lora", "llama", alpha, tensors, {}))
    adapted = llama_logits(plain, TOKENS, tmp_path / "adapter.gguf")
    assert np.abs(adapted - llama_logits(merged, TOKENS)).max() < 0.02
    assert np.abs(adapted - llama_logits(plain, TOKENS)).max() > 0.3
    again: list[Delta] = [LoRA(d.base, len(d.parameters[0]), 3.0, generator, rs_lora=rs_lora) for d in deltas]
    load_all(again, read_adapter(tmp_path / "adapter.gguf"))
    for delta, loaded in zip(deltas, again, strict=True):
        torch.testing.assert_close(changed_weight(loaded), changed_weight(delta), rtol=1e-5, atol=1e-6)


BAKED = [(kind, qtype) for kind in HELD_BY for qtype in HELD_BY[kind]]


@pytest.mark.parametrize(("kind", "qtype"), BAKED)
def test_a_baked_tensor_is_the_changed_one(tmp_path: Path, kind: Kind, qtype: GGMLType) -> None:
    with tiny_model(tmp_path, qtype) as model:
        deltas = [trained(fresh(kind, model, name), seed) for seed, name in enumerate((NAME, "blk.1.attn_k.weight"))]
        alpha, tensors = export_all(deltas)
        report = bake(model.path, Adapter(kind, "llama", alpha, tensors, {}), tmp_path / "out.gguf")
        elements = sum(model.tensors[delta.name].shape[0] * model.tensors[delta.name].shape[1] for delta in deltas)
        assert (report.tensors, report.blocks) == (2, elements // BLOCK_SIZES[qtype].elements)
        with GGUFFile.open(tmp_path / "out.gguf") as baked:
            for delta in deltas:
                assert isinstance(delta, Delta)
                expected = changed_weight(delta)
                found = QuantLinear(baked, delta.name).weight()
                rounding = 0.0 if qtype is GGMLType.F32 else 2**-9 * expected.abs().max().item()
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=rounding)
                # Of unquantised types each weight is a block, and the largest one seldom changes most.
                assert (expected - delta.base.weight()).abs().max() > 0.03 * expected.abs().max()


def set_random(parameters: Sequence[Tensor], size: float) -> None:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in parameters:
            parameter.uniform_(-size, size, generator=generator)


@pytest.mark.parametrize(("kind", "qtype"), [*KINDS, ("scale", GGMLType.Q4_K), ("gain", GGMLType.F16)])
def test_llama_cpp_computes_with_the_delta_as_torch_did(tmp_path: Path, kind: Kind, qtype: GGMLType) -> None:
    """Through the whole network: torch with the delta, llama.cpp with the file that was written from it."""
    size: dict[Kind, float] = {"lora": 0.05, "scale": 0.4, "shift": 0.04, "gain": 0.5}
    out = tmp_path / "out.gguf"
    with tiny_decoder(tmp_path, qtype) as decoder:
        base = decoder.model.path
        deltas = decoder.adapt(kind, rank=4, alpha=8.0, seed=0)
        assert len(deltas) == (19 if kind == "gain" else 14)  # seven linears in each of two layers, and five norms
        set_random([delta.parameters[-1] for delta in deltas], size[kind])
        found = decoder.forward_logits(TOKENS)
        adapter = decoder.export({})
    if kind == "lora":
        write_adapter(out, adapter)
        served = llama_logits(base, TOKENS, out)
    else:
        bake(base, adapter, out)
        served = llama_logits(out, TOKENS)
    reference = llama_logits(base, TOKENS)
    distance = np.abs(found.numpy() - served).mean()
    assert distance < 0.05  # llama.cpp rounds activations to 8 bits
    assert np.abs(reference - served).mean() > 0.2
