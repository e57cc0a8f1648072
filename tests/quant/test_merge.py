"""Merging adapters: sums are exact, compression is the best possible, and no shape or zero makes a NaN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd.errors import AdapterError
from edgepd_quant import merge as module
from edgepd_quant.adapter_file import Adapter, LowRank, Vector, read_adapter, write_adapter
from edgepd_quant.merge import concatenate, recompress, scaled
from edgepd_quant.types import GGMLType
from tests.tiny_gguf import llama_logits, tiny_llama

NAME, OTHER = "blk.0.attn_q.weight", "blk.1.ffn_down.weight"
TOKENS = [1, 120, 118, 266, 13, 272, 2]


def random_pair(rng: np.random.Generator, rows: int, columns: int, rank: int) -> LowRank:
    a, b = rng.normal(0, 1, (rank, columns)), rng.normal(0, 1, (rows, rank))
    return LowRank(a.astype(np.float32), b.astype(np.float32))


def lora(
    tensors: Mapping[str, LowRank | Vector], alpha: float = 0.0, metadata: Mapping[str, str] | None = None
) -> Adapter:
    return Adapter("lora", "llama", alpha, tensors, metadata or {})


def pair_of(adapter: Adapter, name: str = NAME) -> LowRank:
    pair = adapter.tensors[name]
    assert isinstance(pair, LowRank)
    return pair


def dense(adapter: Adapter, name: str = NAME) -> npt.NDArray[np.float64]:
    """The delta as llama.cpp adds it."""
    pair = pair_of(adapter, name)
    scaling = adapter.alpha / len(pair.a) if adapter.alpha else 1.0
    product: npt.NDArray[np.float64] = scaling * (pair.b.astype(np.float64) @ pair.a.astype(np.float64))
    return product


def relative(found: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_a_sum_computed_by_hand() -> None:
    first = lora({NAME: LowRank(np.array([[1, 2]], dtype="f4"), np.array([[1], [0], [-1]], dtype="f4"))}, alpha=2.0)
    second = lora({NAME: LowRank(np.array([[0, 1], [3, 0]], dtype="f4"), np.ones((3, 2), dtype="f4"))}, alpha=8.0)
    merged = concatenate([first, second], [0.5, -1.0])  # 0.5 * 2/1 * first - 8/2 * second
    assert merged.alpha == 0.0
    assert pair_of(merged).a.tolist() == [[1, 2], [0, 1], [3, 0]]
    assert pair_of(merged).b.tolist() == [[1, -4, -4], [0, -4, -4], [-1, -4, -4]]
    assert dense(merged).tolist() == [[-11, -2], [-12, -4], [-13, -6]]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    alphas=st.lists(st.sampled_from([0.0, 1.0, -3.0, 16.0]), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_the_ranks_add_and_so_do_the_deltas(
    shape: tuple[int, int], ranks: list[int], alphas: list[float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    adapters = [lora({NAME: random_pair(rng, *shape, rank)}, alpha) for rank, alpha in zip(ranks, alphas, strict=False)]
    weights = [float(weight) for weight in rng.normal(0, 1, len(ranks))]
    merged = concatenate(adapters, weights)
    expected = sum(
        (weight * dense(adapter) for adapter, weight in zip(adapters, weights, strict=True)), np.zeros(shape)
    )
    assert pair_of(merged).a.shape == (sum(ranks), shape[1])
    size = sum(abs(weight) * np.linalg.norm(dense(one)) for one, weight in zip(adapters, weights, strict=True))
    assert np.linalg.norm(dense(merged) - expected) <= 1e-6 * size


def test_tensors_of_only_some_adapters_keep_their_share() -> None:
    rng = np.random.default_rng(0)
    first = lora({NAME: random_pair(rng, 6, 8, 2), OTHER: random_pair(rng, 8, 6, 3)}, alpha=4.0)
    second = lora({NAME: random_pair(rng, 6, 8, 1)}, alpha=4.0)
    merged = concatenate([first, second], [2.0, 1.0])
    assert list(merged.tensors) == [NAME, OTHER]
    assert (len(pair_of(merged).a), len(pair_of(merged, OTHER).a)) == (3, 3)
    assert relative(dense(merged, OTHER), 2.0 * dense(first, OTHER)) < 1e-6
    assert relative(dense(merged), 2.0 * dense(first) + dense(second)) < 1e-6


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    own=st.integers(1, 12),
    rank=st.integers(1, 14),
    alpha=st.sampled_from([0.0, 0.5, 16.0]),
    seed=st.integers(0, 99),
)
def test_compression_is_the_eckart_young_optimum(
    shape: tuple[int, int], own: int, rank: int, alpha: float, seed: int
) -> None:
    adapter = lora({NAME: random_pair(np.random.default_rng(seed), *shape, own)}, alpha)
    small = recompress(adapter, rank)
    singular = np.linalg.svd(dense(adapter), compute_uv=False)
    optimum = float(np.sqrt(np.sum(singular[rank:] ** 2)))
    error = float(np.linalg.norm(dense(small) - dense(adapter)))
    assert len(pair_of(small).a) == min(rank, own, *shape)
    assert error <= 1.01 * optimum + 1e-6 * float(singular[0])


@pytest.mark.parametrize("elements", [1, 120, 1 << 12])  # blocks of 12 rows, of 20, and none
def test_factors_are_balanced(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QR_ELEMENTS", elements)
    rng = np.random.default_rng(1)
    pair = random_pair(rng, 301, 50, 6)
    adapter = lora({NAME: LowRank(pair.a * np.float32(1e-3), pair.b * np.float32(1e3))}, alpha=12.0)
    small = pair_of(recompress(adapter, 4))
    singular = np.linalg.svd(dense(adapter), compute_uv=False)[:4]
    assert small.a @ small.a.T == pytest.approx(np.diag(singular), rel=1e-5, abs=1e-5 * singular[0])
    assert small.b.T @ small.b == pytest.approx(np.diag(singular), rel=1e-5, abs=1e-5 * singular[0])


def test_each_tensor_keeps_at_most_its_own_rank() -> None:
    rng = np.random.default_rng(2)
    adapter = lora({NAME: random_pair(rng, 16, 12, 9), OTHER: random_pair(rng, 12, 16, 2)}, 4.0, {"base_sha256": "ab"})
    small = recompress(adapter, 4)
    assert (len(pair_of(small).a), len(pair_of(small, OTHER).a)) == (4, 2)
    assert relative(dense(small, OTHER), dense(adapter, OTHER)) < 1e-6
    assert small.metadata == {"base_sha256": "ab"}


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_zero_and_deficient_deltas_stay_finite_and_can_learn_on(rank: int) -> None:
    rng = np.random.default_rng(3)
    pair = random_pair(rng, 10, 12, 4)
    zero = lora({NAME: LowRank(pair.a, np.zeros_like(pair.b))})
    nothing = lora({NAME: LowRank(np.zeros_like(pair.a), np.zeros_like(pair.b))})
    twice = concatenate([lora({NAME: pair}), lora({NAME: pair})], [1.0, 1.0])
    gone = concatenate([lora({NAME: pair}), lora({NAME: pair})], [1.0, -1.0])
    for adapter in (zero, nothing, gone, twice):
        small = recompress(adapter, rank)
        found = pair_of(small)
        assert np.isfinite(found.a).all() and np.isfinite(found.b).all()
        if adapter is not twice:
            assert np.abs(dense(small)).max() < 1e-6
        assert np.linalg.matrix_rank(found.a) == len(found.a)  # else no gradient would reach b
    assert relative(dense(recompress(twice, 4)), 2.0 * dense(lora({NAME: pair}))) < 1e-6
    assert not pair_of(recompress(twice, 8)).b[:, 4:].any()


def test_the_size_stays_the_same_over_fifty_merges(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    shapes = {NAME: (24, 16), OTHER: (16, 40)}
    long = lora({name: random_pair(rng, *shape, 8) for name, shape in shapes.items()}, 16.0, {"base_sha256": "ab"})
    sizes = set()
    for _ in range(50):
        short = lora({name: random_pair(rng, *shape, 4) for name, shape in shapes.items()}, 8.0, {"base_sha256": "ab"})
        together = concatenate([long, short], [0.9, 0.3])
        exact = {name: 0.9 * dense(long, name) + 0.3 * dense(short, name) for name in shapes}
        long = recompress(together, 8)
        write_adapter(tmp_path / "long.gguf", long)
        sizes.add((tmp_path / "long.gguf").stat().st_size)
        long = read_adapter(tmp_path / "long.gguf")
        for name in shapes:
            optimum = np.sqrt(np.sum(np.linalg.svd(exact[name], compute_uv=False)[8:] ** 2))
            assert np.linalg.norm(dense(long, name) - exact[name]) <= 1.01 * optimum
    assert len(sizes) == 1


def test_llama_cpp_adds_the_merged_adapter_as_the_formula_says(tmp_path: Path) -> None:
    """One adapter of alpha 6 and rank 3, merged with weight 1, and split into two halves: the same answers."""
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.F32, seed=1)
    rng = np.random.default_rng(5)
    pairs = {NAME: random_pair(rng, 64, 64, 3), OTHER: random_pair(rng, 64, 96, 2)}
    single = lora({name: LowRank(pair.a, pair.b * np.float32(0.03)) for name, pair in pairs.items()}, alpha=6.0)
    merged = concatenate([single, single], [0.75, 0.25])
    for name, adapter in (("single", single), ("merged", merged), ("small", recompress(merged, 3))):
        write_adapter(tmp_path / f"{name}.gguf", adapter)
    expected = llama_logits(base, TOKENS, tmp_path / "single.gguf")
    assert np.abs(expected - llama_logits(base, TOKENS)).max() > 0.1
    assert np.abs(llama_logits(base, TOKENS, tmp_path / "merged.gguf") - expected).max() < 0.01
    assert np.abs(llama_logits(base, TOKENS, tmp_path / "small.gguf") - expected).max() < 0.01


@pytest.mark.parametrize("alpha", [0.0, 4.0])
@pytest.mark.parametrize("factor", [0.0, 0.5, -2.0, 1e-44])
def test_a_lora_is_scaled(alpha: float, factor: float, tmp_path: Path) -> None:
    adapter = lora({NAME: random_pair(np.random.default_rng(6), 5, 7, 2)}, alpha, {"base_sha256": "ab"})
    write_adapter(tmp_path / "scaled.gguf", scaled(adapter, factor))
    found = read_adapter(tmp_path / "scaled.gguf")
    np.testing.assert_allclose(dense(found), factor * dense(adapter), rtol=1e-5, atol=1e-43)
    assert found.metadata == {"base_sha256": "ab"}


def test_other_kinds_are_scaled() -> None:
    rng = np.random.default_rng(7)
    scale = Adapter("scale", "llama", 8.0, {NAME: random_pair(rng, 5, 7, 2)}, {})
    assert (scaled(scale, -0.5).kind, scaled(scale, -0.5).alpha) == ("scale", 8.0)
    expected = -0.5 * pair_of(scale).b @ pair_of(scale).a
    np.testing.assert_allclose(pair_of(scaled(scale, -0.5)).b @ pair_of(scale).a, expected, rtol=1e-6)
    gain = Adapter("gain", "llama", 0.0, {NAME: Vector(np.array([1, -2], dtype=np.float32))}, {})
    values = scaled(gain, 1.5).tensors[NAME]
    assert isinstance(values, Vector)
    assert values.values.tolist() == [1.5, -3.0]


def test_what_does_not_belong_together_is_refused() -> None:
    rng = np.random.default_rng(8)
    good = lora({NAME: random_pair(rng, 6, 8, 2)}, metadata={"base_sha256": "aa"})

    def merge(*others: Adapter, weights: tuple[float, ...] = (1.0, 1.0)) -> Adapter:
        return concatenate([good, *others], weights)

    with pytest.raises(AdapterError, match="nothing to merge"):
        concatenate([], [])
    with pytest.raises(AdapterError, match="1 adapters need as many weights, but there are 2"):
        merge()
    with pytest.raises(AdapterError, match="weight nan"):
        merge(good, weights=(1.0, float("nan")))
    with pytest.raises(AdapterError, match=r"different bases: SHA-256 aa, bb"):
        merge(replace(good, metadata={"base_sha256": "bb"}))
    with pytest.raises(AdapterError, match="adapters for gemma3 and llama cannot be merged"):
        merge(replace(good, architecture="gemma3"))
    with pytest.raises(AdapterError, match="only adapters of kind 'lora' .* kind 'scale'"):
        merge(replace(good, kind="scale"))
    with pytest.raises(AdapterError, match=rf"'{NAME}' in the shapes \(5, 8\) and \(6, 8\)"):
        merge(lora({NAME: random_pair(rng, 5, 8, 2)}))
    with pytest.raises(AdapterError, match=f"'{NAME}' does not fit into float32"):
        merge(good, weights=(1.0, 1e39))
    named = merge(replace(good, metadata={"parent": "3"}))  # made elsewhere, for a base that it does not name
    assert named.metadata == {"base_sha256": "aa"}
    assert merge(good).metadata == {"base_sha256": "aa"}


def test_what_cannot_be_compressed_is_refused() -> None:
    pair = random_pair(np.random.default_rng(9), 6, 8, 2)
    with pytest.raises(AdapterError, match="rank 0; choose at least 1"):
        recompress(lora({NAME: pair}), 0)
    with pytest.raises(AdapterError, match="kind 'shift'"):
        recompress(replace(lora({NAME: pair}), kind="shift"), 4)
    with pytest.raises(AdapterError, match=f"'{NAME}' are not finite"):
        recompress(lora({NAME: LowRank(pair.a, pair.b * np.float32(np.nan))}), 4)
    with pytest.raises(AdapterError, match=f"'{NAME}' has gains"):
        recompress(lora({NAME: Vector(np.ones(3, dtype=np.float32))}), 4)
    with pytest.raises(AdapterError, match=r"\(1, 8\) and \(6, 2\), which do not belong"):
        recompress(lora({NAME: LowRank(pair.a[:1], pair.b)}), 4)
    with pytest.raises(AdapterError, match="multiplied by inf"):
        scaled(lora({NAME: pair}), float("inf"))
