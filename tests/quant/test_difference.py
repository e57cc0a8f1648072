"""Differences of adapters equal those of the dense deltas; differences of model files are counted to the byte."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd.errors import AdapterError, FormatError
from edgepd_quant import difference as module
from edgepd_quant.adapter_file import Adapter, LowRank, Vector
from edgepd_quant.bake import bake
from edgepd_quant.difference import Difference, compare_adapters, compare_models
from edgepd_quant.merge import recompress, scaled
from edgepd_quant.types import GGMLType
from tests.quant.baking import NAMES, delta_for
from tests.tiny_gguf import tiny_llama, write_gguf

NAME, OTHER = NAMES


def adapter_of(seed: int, rank: int, alpha: float, rows: int = 12, columns: int = 9) -> Adapter:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 1, (rank, columns)), rng.normal(0, 1, (rows, rank))
    return Adapter("lora", "llama", alpha, {NAME: LowRank(a.astype(np.float32), b.astype(np.float32))}, {})


def dense(adapter: Adapter) -> npt.NDArray[np.float64]:
    pair = adapter.tensors[NAME]
    assert isinstance(pair, LowRank)
    scaling = adapter.alpha / len(pair.a) if adapter.kind == "lora" and adapter.alpha else 1.0
    product: npt.NDArray[np.float64] = scaling * (pair.b.astype(np.float64) @ pair.a.astype(np.float64))
    return product


def shown(found: list[Difference]) -> list[tuple[str, float, int | None, int | None]]:
    return [(d.tensor, round(d.relative, 4), d.changed_blocks, d.changed_bytes) for d in found]


@settings(max_examples=40, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 50), st.integers(51, 99)),
    ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    alphas=st.tuples(st.sampled_from([0.0, 1.0, 16.0]), st.sampled_from([0.0, 1.0, 16.0])),
)
def test_the_change_is_that_of_the_dense_deltas(
    seeds: tuple[int, int], ranks: tuple[int, int], alphas: tuple[float, float]
) -> None:
    a, b = (adapter_of(*of) for of in zip(seeds, ranks, alphas, strict=True))
    larger = max(np.linalg.norm(dense(a)), np.linalg.norm(dense(b)))
    expected = float(np.linalg.norm(dense(b) - dense(a)) / larger)
    (found,), (reverse,) = compare_adapters(a, b), compare_adapters(b, a)
    assert found.relative == pytest.approx(expected, rel=1e-6)
    assert reverse.relative == pytest.approx(expected, rel=1e-6)


def test_a_change_of_one_percent_and_none() -> None:
    adapter = adapter_of(1, 4, 8.0)
    assert compare_adapters(adapter, adapter) == []
    assert compare_adapters(adapter, recompress(adapter, 4)) == []  # other factors, the same product
    assert shown(compare_adapters(adapter, scaled(adapter, 0.99))) == [(NAME, 0.01, None, None)]
    assert shown(compare_adapters(adapter, scaled(adapter, -1.0))) == [(NAME, 2.0, None, None)]


def test_against_the_base_and_tensors_of_one_side() -> None:
    adapter = adapter_of(1, 4, 8.0)
    assert compare_adapters(None, None) == []
    assert compare_adapters(None, adapter) == compare_adapters(adapter, None) == [Difference(NAME, 1.0)]
    pair = adapter.tensors[NAME]
    wider = replace(adapter, tensors={OTHER: pair, NAME: scaled(adapter, 1.0).tensors[NAME]})
    assert compare_adapters(adapter, wider) == [Difference(OTHER, 1.0)]
    assert isinstance(pair, LowRank)
    zero = replace(adapter, tensors={NAME: LowRank(pair.a, np.zeros_like(pair.b))})
    assert compare_adapters(None, zero) == compare_adapters(zero, zero) == []
    assert compare_adapters(zero, adapter) == [Difference(NAME, 1.0)]


def test_the_largest_change_comes_first_and_other_kinds_are_compared() -> None:
    def gains(*values: float) -> Vector:
        return Vector(np.array(values, dtype=np.float32))

    a = Adapter("gain", "llama", 0.0, {"x": gains(3, 4), "y": gains(1, 0), "z": gains(2)}, {})
    b = Adapter("gain", "llama", 0.0, {"x": gains(3, 3), "y": gains(0, 1), "z": gains(2)}, {})
    assert shown(compare_adapters(a, b)) == [("y", 1.4142, None, None), ("x", 0.2, None, None)]
    scale = replace(adapter_of(1, 2, 8.0), kind="scale")  # alpha is not used
    assert compare_adapters(scale, replace(adapter_of(1, 2, 0.0), kind="scale")) == []


def test_adapters_that_cannot_be_compared_are_refused() -> None:
    adapter = adapter_of(1, 2, 8.0)
    with pytest.raises(AdapterError, match="kinds 'lora' and 'scale'"):
        compare_adapters(adapter, replace(adapter, kind="scale"))
    with pytest.raises(AdapterError, match=f"'{NAME}' in different shapes"):
        compare_adapters(adapter, adapter_of(1, 2, 8.0, rows=13))
    pair = adapter.tensors[NAME]
    assert isinstance(pair, LowRank)
    with pytest.raises(AdapterError, match=f"'{NAME}' are not finite"):
        compare_adapters(None, replace(adapter, tensors={NAME: LowRank(pair.a * np.float32(np.inf), pair.b)}))


def q8_0(d: float, first: int) -> bytes:
    return np.float16(d).tobytes() + bytes([first, *range(31)])


def test_model_files_compared_by_hand(tmp_path: Path) -> None:
    """Of blocks, of values, of a type without numbers, and of tensors that are in one file or another type."""
    bf16 = np.array([1, 2, 3, 4], dtype=np.uint8).reshape(1, 4)

    def model(name: str, first: bytes, values: list[float], last: int, kind: GGMLType) -> Path:
        blocks = np.frombuffer(first + q8_0(4, 0), dtype=np.uint8).reshape(1, 68)
        tensors: dict[str, tuple[npt.NDArray[np.float32] | npt.NDArray[np.uint8], int]] = {
            "q": (blocks, GGMLType.Q8_0),
            "v": (np.array(values, dtype=np.float32), GGMLType.F32),
            "b": (bf16 + np.array([0, 0, 0, last], dtype=np.uint8), GGMLType.BF16),
            "same": (np.ones((2, 2), dtype=np.float32), GGMLType.F32),
            "other": (np.zeros((1, 32), dtype=np.float32), kind),
            name: (np.ones((1, 3), dtype=np.float32), GGMLType.F32),
        }
        return write_gguf(tmp_path / f"{name}.gguf", {}, tensors)

    a = model("a", q8_0(3, 0), [3, 4], 0, GGMLType.F16)
    b = model("b_only", q8_0(1, 1), [3, 4.5], 1, GGMLType.Q8_0)
    assert compare_models(a, a) == []
    # In q: the halves 3 and 1 are 4200 and 3c00, and one value differs. In v: 4 and 4.5 are 40800000 and 40900000.
    # The change of v is 0.5 of the norm of (3, 4.5).
    assert shown(compare_models(a, b)) == [
        ("a", 1.0, 3, 12),
        ("b_only", 1.0, 3, 12),
        ("other", 1.0, 1, 34),
        ("q", 0.4, 1, 2),
        ("b", 0.25, 1, 1),
        ("v", 0.0925, 1, 1),
    ]


@pytest.mark.parametrize("qtype", [GGMLType.Q4_1, GGMLType.Q5_K, GGMLType.F16])
def test_a_baked_file_differs_as_its_delta_says(
    tmp_path: Path, qtype: GGMLType, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=qtype, seed=1)
    delta = delta_for(base, deviation=0.0)
    ones = {name: LowRank(np.ones_like(p.a[:1]), np.full_like(p.b[:, :1], 0.25)) for name, p in pairs(delta)}
    report = bake(base, Adapter("scale", "llama", 0.0, ones, {}), tmp_path / "out.gguf")
    found = compare_models(base, tmp_path / "out.gguf")
    assert [d.relative for d in found] == sorted((d.relative for d in found), reverse=True)
    assert {difference.tensor for difference in found} == set(NAMES)
    assert sum(difference.changed_bytes or 0 for difference in found) == report.changed_bytes
    assert sum(difference.changed_blocks or 0 for difference in found) == report.blocks
    for difference in found:
        assert difference.relative == pytest.approx(0.2, rel=1e-3)  # 0.25 over 1.25
    monkeypatch.setattr(module, "TILE_BYTES", 1000)
    assert shown(compare_models(base, tmp_path / "out.gguf")) == shown(found)
    assert json.loads(json.dumps([asdict(d) for d in found], allow_nan=False))[0]["tensor"] in NAMES


def pairs(delta: Adapter) -> list[tuple[str, LowRank]]:
    return [(name, pair) for name, pair in delta.tensors.items() if isinstance(pair, LowRank)]


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)
    (tmp_path / "cut.gguf").write_bytes(base.read_bytes()[:1000])
    with pytest.raises(FormatError):
        compare_models(base, tmp_path / "cut.gguf")
