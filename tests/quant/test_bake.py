"""Baking: only the numbers that hold the delta change, each exactly; what cannot be held is refused."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgepd.errors import AdapterError
from edgepd_quant import bake as module
from edgepd_quant.adapter_file import Adapter, Kind, LowRank, Vector
from edgepd_quant.bake import SCALE_FIELDS, bake, fields
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import BLOCK_SIZES, GGMLType
from tests.quant.baking import NAMES, decoded, delta_for, factors_of, left_behind, refused
from tests.tiny_gguf import llama_logits, tiny_llama, write_gguf

HELD = [GGMLType[n] for n in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "F32"]]
TOKENS = [1, 120, 118, 266, 13, 272, 2]


@pytest.mark.parametrize("qtype", HELD)
def test_only_scales_change_and_by_the_factor(tmp_path: Path, qtype: GGMLType) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=qtype, seed=1)
    before = base.read_bytes()
    delta = delta_for(base)
    report = bake(base, delta, tmp_path / "out.gguf")
    after = (tmp_path / "out.gguf").read_bytes()
    assert base.read_bytes() == before
    assert len(after) == len(before)
    changed = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8))
    allowed: set[int] = set()
    block, width = BLOCK_SIZES[qtype].bytes, 4 if qtype is GGMLType.F32 else 2
    with GGUFFile.open(base) as file:
        for name in NAMES:
            info = file.tensors[name]
            for start in range(info.offset, info.offset + info.nbytes, block):
                allowed |= {start + field + byte for field in fields("scale", qtype) for byte in range(width)}
    assert set(changed.tolist()) <= allowed
    assert report.changed_bytes == len(changed) > 0
    assert (report.tensors, report.blocks) == (2, len(allowed) // width // len(fields("scale", qtype)))
    half_step = 2**-24 if qtype is GGMLType.F32 else 2**-11
    assert 0 < report.mean_relative_rounding < report.max_relative_rounding <= half_step


@pytest.mark.parametrize("qtype", HELD)
def test_each_value_is_as_near_as_the_rounded_scales_allow(tmp_path: Path, qtype: GGMLType) -> None:
    """Against the decoded tensor times 1 + g: the part that the scale holds and the part that the minimum holds."""
    base = tiny_llama(tmp_path / "base.gguf", qtype=qtype, seed=1)
    delta = delta_for(base, deviation=0.1)
    bake(base, delta, tmp_path / "out.gguf")
    content = bytearray(base.read_bytes())
    with GGUFFile.open(base) as file:
        for info in (file.tensors[name] for name in NAMES if len(SCALE_FIELDS.get(qtype, ())) == 2):
            for start in range(info.offset, info.offset + info.nbytes, BLOCK_SIZES[qtype].bytes):
                content[start + 2 : start + 4] = bytes(2)
    without_minima = tmp_path / "without.gguf"
    without_minima.write_bytes(content)
    for name in NAMES:
        pair, old, of_scale = factors_of(delta, name), decoded(base, name), decoded(without_minima, name)
        factor = 1.0 + np.repeat(pair.b @ pair.a, BLOCK_SIZES[qtype].elements, axis=1)
        error = np.abs(decoded(tmp_path / "out.gguf", name) - old * factor)
        size = (np.abs(of_scale) + np.abs(old - of_scale)) * np.abs(factor)
        rounding = 2.0**-24 if qtype is GGMLType.F32 else 2.0**-11
        smallest = 2.0**-25 if qtype is GGMLType.F16 else 0.0  # half a step of subnormal weights
        assert (error <= (rounding + 2.0**-21) * size + smallest).all()  # 2^-21: sums and products in float32
        assert np.abs(old * factor - old).max() > 0.1 * np.abs(old).max()


def test_values_of_their_own_computed_by_hand(tmp_path: Path) -> None:
    """In F16, 2^-24 is the smallest number: 1.5 times 1, 2 and 3 of them is 2, 3 and 4 (rounded to even)."""
    halves = np.array([[1, -2, 2048], [2**-24, 2**-23, 3 * 2**-24]], dtype=np.float16)
    singles = np.array([[1, -2, 2048], [0, -0.0, 3]], dtype=np.float32)
    base = write_gguf(
        tmp_path / "base.gguf", {}, {"h": (halves.view(np.uint8), GGMLType.F16), "f": (singles, GGMLType.F32)}
    )
    pair = LowRank(np.array([[0.5, 0.5, 0.5], [0, 0, -0.5]], dtype=np.float32), np.array([[1, 1], [1, 0]], dtype="f4"))
    report = bake(base, Adapter("scale", "llama", 0.0, {"h": pair, "f": pair}, {}), tmp_path / "out.gguf")
    expected = np.array([[1.5, -3, 2048], [2**-23, 3 * 2**-24, 2**-22]], dtype=np.float16)
    assert row_of(tmp_path / "out.gguf", "h") == expected.tobytes()
    assert row_of(tmp_path / "out.gguf", "f") == np.array([1.5, -3, 2048, 0, -0.0, 4.5], dtype=np.float32).tobytes()
    assert report.blocks == 12
    assert report.max_relative_rounding == 2**-11  # half of 2^-24, over the smallest normal number 2^-14


def test_a_block_computed_by_hand(tmp_path: Path) -> None:
    # Q4_1: half d = 2, half m = -3, nibbles; two blocks, factors 1.5 and 1 (a zero factor changes nothing).
    block = np.float16(2.0).tobytes() + np.float16(-3.0).tobytes() + bytes(range(16))
    raw = np.frombuffer(block * 2, dtype=np.uint8).reshape(1, 40)
    base = write_gguf(tmp_path / "base.gguf", {}, {"w": (raw, GGMLType.Q4_1)})
    pair = LowRank(np.array([[0.5, 0.0]], dtype=np.float32), np.array([[1.0]], dtype=np.float32))
    report = bake(base, Adapter("scale", "llama", 0.0, {"w": pair}, {}), tmp_path / "out.gguf")
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        row = file.rows("w").tobytes()
    assert row == np.float16(3.0).tobytes() + np.float16(-4.5).tobytes() + bytes(range(16)) + block
    assert (report.tensors, report.blocks, report.max_relative_rounding) == (1, 2, 0.0)


def q4_1(d: float, m: float) -> bytes:
    """A block of Q4_1: half d, half m, 16 bytes of nibbles."""
    return np.float16(d).tobytes() + np.float16(m).tobytes() + bytes(range(16))


def row_of(path: Path, name: str) -> bytes:
    with GGUFFile.open(path) as file:
        return file.rows(name).tobytes()


def column(*values: float) -> npt.NDArray[np.float32]:
    return np.array([[value] for value in values], dtype=np.float32)


def test_a_shift_computed_by_hand(tmp_path: Path) -> None:
    # Minima may be negative, zero, or the negative zero, which stays as it is where nothing is added.
    raw = np.frombuffer(q4_1(2, -3) + q4_1(-1, 0.0) + q4_1(0.5, -0.0), dtype=np.uint8).reshape(1, 60)
    base = write_gguf(tmp_path / "base.gguf", {}, {"w": (raw, GGMLType.Q4_1)})
    pair = LowRank(np.array([[1.0, -0.25, 0.0]], dtype=np.float32), column(1.0))
    report = bake(base, Adapter("shift", "llama", 0.0, {"w": pair}, {}), tmp_path / "out.gguf")
    assert row_of(tmp_path / "out.gguf", "w") == q4_1(2, -2) + q4_1(-1, -0.25) + q4_1(0.5, -0.0)
    assert (report.tensors, report.blocks, report.max_relative_rounding) == (1, 3, 0.0)
    # Halves of the byte order little-endian: -3 to -2 is c200 to c000, 0 to -0.25 is 0000 to b400.
    assert report.changed_bytes == 2


def test_the_rounding_of_a_shift_is_that_of_the_new_minimum(tmp_path: Path) -> None:
    raw = np.frombuffer(q4_1(1, 1), dtype=np.uint8).reshape(1, 20)
    base = write_gguf(tmp_path / "base.gguf", {}, {"w": (raw, GGMLType.Q4_1)})
    pair = LowRank(column(2.0**-11), column(1.0))  # halfway to the next fp16, so it is rounded to even
    report = bake(base, Adapter("shift", "llama", 0.0, {"w": pair}, {}), tmp_path / "out.gguf")
    assert row_of(tmp_path / "out.gguf", "w") == q4_1(1, 1)
    assert report.max_relative_rounding == report.mean_relative_rounding == pytest.approx(2**-11, rel=1e-3)


def test_gains_computed_by_hand(tmp_path: Path) -> None:
    """Of the rows of a quantised and two unquantised matrices, of a norm, and of a bias."""
    f16, f32 = np.array([[1, -2], [3, 4]], dtype=np.float16), np.array([[1, -2], [3, 4]], dtype=np.float32)
    blocks = np.frombuffer(q4_1(2, -3) + q4_1(1, 1) + q4_1(4, 0), dtype=np.uint8).reshape(3, 20)
    tensors: dict[str, tuple[npt.NDArray[np.float32] | npt.NDArray[np.uint8], int]] = {
        "q": (blocks, GGMLType.Q4_1),
        "h": (f16.view(np.uint8), GGMLType.F16),
        "f": (f32, GGMLType.F32),
        "blk.0.attn_norm.weight": (np.array([2, 0, -1], dtype=np.float32), GGMLType.F32),
        "blk.0.attn_q.bias": (np.array([2, 0, -1], dtype=np.float32), GGMLType.F32),
        "blk.0.attn_k.bias": (np.array([-0.0, 5], dtype=np.float32), GGMLType.F32),
    }
    base = write_gguf(tmp_path / "base.gguf", {}, tensors)
    gains = {"q": [0.5, 0, -1], "h": [0.5, -0.25], "f": [1.5, 0.125], "blk.0.attn_norm.weight": [0.5, 1, 0.25]}
    gains |= {"blk.0.attn_q.bias": [0.5, 1, 0.25], "blk.0.attn_k.bias": [0, 0.5]}
    delta = {name: Vector(np.array(values, dtype=np.float32)) for name, values in gains.items()}
    report = bake(base, Adapter("gain", "llama", 0.0, delta, {}), tmp_path / "out.gguf")
    out = tmp_path / "out.gguf"
    assert row_of(out, "q") == q4_1(3, -4.5) + q4_1(1, 1) + q4_1(0, 0)
    assert row_of(out, "h") == np.array([1.5, -3, 2.25, 3], dtype=np.float16).tobytes()
    assert row_of(out, "f") == np.array([2.5, -5, 3.375, 4.5], dtype=np.float32).tobytes()
    assert row_of(out, "blk.0.attn_norm.weight") == np.array([3, 0, -1.25], dtype=np.float32).tobytes()
    assert row_of(out, "blk.0.attn_q.bias") == np.array([2.5, 1, -0.75], dtype=np.float32).tobytes()
    assert row_of(out, "blk.0.attn_k.bias") == np.array([-0.0, 5.5], dtype=np.float32).tobytes()
    assert (report.tensors, report.blocks) == (6, 3 + 4 + 4 + 3 + 3 + 2)
    assert report.max_relative_rounding == 0.0


@pytest.mark.parametrize("qtype", HELD)
def test_gains_change_scales_and_vectors_only(tmp_path: Path, qtype: GGMLType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE_BYTES", 500)  # a vector is patched whole, a matrix in tiles of a few rows
    base = tiny_llama(tmp_path / "base.gguf", qtype=qtype, seed=1)
    before = base.read_bytes()
    rng = np.random.default_rng(3)
    allowed: set[int] = set()
    delta: dict[str, Vector] = {}
    with GGUFFile.open(base) as file:
        for name in (*NAMES, "blk.1.ffn_norm.weight"):
            info = file.tensors[name]
            delta[name] = Vector(rng.normal(0, 0.3, info.shape[0]).astype(np.float32))
            block = BLOCK_SIZES[info.qtype].bytes
            width, offsets = (block, (0,)) if qtype in (GGMLType.F16, GGMLType.F32) else (2, fields("scale", qtype))
            if name not in NAMES:
                width, offsets = 4, (0,)
            for start in range(info.offset, info.offset + info.nbytes, block):
                allowed |= {start + field + byte for field in offsets for byte in range(width)}
    report = bake(base, Adapter("gain", "llama", 0.0, delta, {}), tmp_path / "out.gguf")
    after = (tmp_path / "out.gguf").read_bytes()
    assert base.read_bytes() == before
    changed = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8))
    assert set(changed.tolist()) <= allowed
    assert report.changed_bytes == len(changed) > 0
    for name in NAMES:
        expected = decoded(base, name) * (1.0 + delta[name].values[:, np.newaxis])
        assert np.abs(decoded(tmp_path / "out.gguf", name) - expected).max() <= 2**-9 * np.abs(expected).max()


def test_zero_delta_gives_the_same_bytes(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_K, seed=1)
    report = bake(base, delta_for(base, deviation=0.0), tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == base.read_bytes()
    assert (report.changed_bytes, report.max_relative_rounding) == (0, 0.0)
    assert stat.S_IMODE((tmp_path / "out.gguf").stat().st_mode) == 0o600


def test_llama_cpp_serves_the_baked_file(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q8_0, seed=1)
    delta = delta_for(base)
    bake(base, delta, tmp_path / "out.gguf")
    plain = tiny_llama(tmp_path / "f32.gguf", qtype=GGMLType.F32, seed=1)
    content = bytearray(plain.read_bytes())
    with GGUFFile.open(plain) as file:  # the same model in F32, with W (1 + g) in place of W
        for name, info in file.tensors.items():
            if name.endswith("_norm.weight"):
                continue
            weights = decoded(base, name)
            if name in delta.tensors:
                g = np.repeat(factors_of(delta, name).b @ factors_of(delta, name).a, 32, axis=1)
                weights = (weights * (1.0 + g)).astype(np.float32)
            content[info.offset : info.offset + info.nbytes] = weights.astype("<f4").tobytes()
    plain.write_bytes(content)
    baked = llama_logits(tmp_path / "out.gguf", TOKENS)
    # What remains is that llama.cpp rounds activations to 8 bits for a quantised model but not for F32.
    assert np.abs(baked - llama_logits(plain, TOKENS)).mean() < 0.05
    assert np.abs(baked - llama_logits(base, TOKENS)).mean() > 0.15


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (1e6, "row 2, block 1: the scale 1.0 times 1000001.0 does not fit"),
        (float("nan"), "row 0, block 1: the scale 1.0 times nan does not fit"),  # 0 times NaN is NaN in row 0 too
    ],
)
def test_scale_out_of_range_names_tensor_and_block(tmp_path: Path, value: float, place: str) -> None:
    raw = np.tile(np.frombuffer(np.float16(1.0).tobytes() * 2 + bytes(16), dtype=np.uint8), (3, 2))
    base = write_gguf(tmp_path / "base.gguf", {}, {"w": (raw, GGMLType.Q4_1)})
    pair = LowRank(np.array([[0.0, value]], dtype=np.float32), np.array([[0.0], [0.0], [1.0]], dtype=np.float32))
    with pytest.raises(AdapterError, match=f"tensor 'w', {place}"):
        bake(base, Adapter("scale", "llama", 0.0, {"w": pair}, {}), tmp_path / "out.gguf")
    assert left_behind(tmp_path) == ["base.gguf"]


@pytest.mark.parametrize(
    ("kind", "values", "place"),
    [
        (
            "shift",
            LowRank(column(1.0), column(0, 7e4)),
            "row 1, block 0: the offset 1.0 plus 70000.0 does not fit into fp16",
        ),
        ("shift", LowRank(column(1.0), column(0, np.inf)), "row 1, block 0: the offset 1.0 plus inf"),
        (
            "gain",
            Vector(np.array([0, 7e4], dtype=np.float32)),
            "row 1, block 0: the scale 1.0 times 70001.0 does not fit into fp16",
        ),
        ("gain", Vector(np.array([np.nan, 0], dtype=np.float32)), "row 0, block 0: the scale 1.0 times nan"),
    ],
)
def test_numbers_out_of_range_name_tensor_and_block(
    tmp_path: Path, kind: Kind, values: LowRank | Vector, place: str
) -> None:
    raw = np.frombuffer(q4_1(1, 1) * 2, dtype=np.uint8).reshape(2, 20)
    base = write_gguf(tmp_path / "base.gguf", {}, {"w": (raw, GGMLType.Q4_1)})
    refused(base, Adapter(kind, "llama", 0.0, {"w": values}, {}), f"tensor 'w', {place}")


def test_a_vector_out_of_range_names_the_entry(tmp_path: Path) -> None:
    name = "blk.0.attn_norm.weight"
    base = write_gguf(tmp_path / "base.gguf", {}, {name: (np.ones(3, dtype=np.float32), GGMLType.F32)})
    delta = Adapter("gain", "llama", 0.0, {name: Vector(np.array([0, 1, np.inf], dtype=np.float32))}, {})
    refused(base, delta, f"tensor '{name}', row 0, block 2: the scale 1.0 times inf does not fit into fp32")


def test_deltas_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)
    good = factors_of(delta_for(base, ("blk.0.attn_q.weight",)), "blk.0.attn_q.weight")

    def scale(name: str, pair: LowRank = good, architecture: str = "llama") -> Adapter:
        return Adapter("scale", architecture, 0.0, {name: pair}, {})

    refused(base, Adapter("lora", "llama", 8.0, {}, {}), "only kinds scale, shift, gain can be baked")
    refused(base, scale("blk.0.attn_q.weight", architecture="qwen3"), "architecture 'qwen3'")
    refused(base, scale("blk.5.attn_q.weight"), "has no tensor 'blk.5.attn_q.weight'")
    refused(base, scale("token_embd.weight"), "'token_embd.weight' must stay as it is")
    refused(base, scale("blk.0.attn_norm.weight"), "only matrices")
    refused(base, scale("blk.0.ffn_down.weight"), r"needs \(r, 3\) and \(64, r\)")
    refused(base, scale("blk.0.attn_q.weight", LowRank(good.a[:2], good.b)), "ranks for 'blk.0.attn_q.weight' differ")


def test_gains_and_shifts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)
    good = factors_of(delta_for(base, (NAMES[0],)), NAMES[0])

    def gain(name: str, count: int) -> Adapter:
        return Adapter("gain", "llama", 0.0, {name: Vector(np.zeros(count, dtype=np.float32))}, {})

    refused(base, gain(NAMES[0], 63), r"are \(63,\), but this base needs \(64,\)")
    refused(base, gain("blk.0.attn_norm.weight", 63), r"needs \(64,\)")
    refused(base, gain("output.weight", 273), "'output.weight' must stay as it is")
    refused(base, Adapter("gain", "llama", 0.0, {NAMES[0]: good}, {}), "has a LowRank, which is not of kind 'gain'")
    refused(base, Adapter("shift", "llama", 0.0, gain(NAMES[0], 64).tensors, {}), "has a Vector")
    refused(base, Adapter("shift", "llama", 0.0, {"blk.0.attn_norm.weight": good}, {}), "only matrices")


@pytest.mark.parametrize("qtype", [GGMLType.Q4_0, GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.F16])
def test_types_without_a_minimum_cannot_be_shifted(tmp_path: Path, qtype: GGMLType) -> None:
    """The K-quants have one, dmin, but it is multiplied by a scale of each sub-block."""
    base = tiny_llama(tmp_path / "base.gguf", qtype=qtype, seed=1)
    shift = Adapter("shift", "llama", 0.0, delta_for(base).tensors, {})
    refused(base, shift, f"type {qtype.name} cannot hold a shift delta; possible are Q4_1, Q5_1")


def test_gains_of_quantised_vectors_are_refused(tmp_path: Path) -> None:
    name = "blk.0.attn_norm.weight"
    base = write_gguf(tmp_path / "base.gguf", {}, {name: (np.ones(32, dtype=np.float32), GGMLType.Q8_0)})
    delta = Adapter("gain", "llama", 0.0, {name: Vector(np.zeros(32, dtype=np.float32))}, {})
    refused(base, delta, "is a vector of Q8_0, but only F32 vectors")


@pytest.mark.parametrize("kind", ["scale", "gain"])
def test_a_type_of_too_few_bits_is_refused_with_the_reason(tmp_path: Path, kind: Kind) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.BF16, seed=1)
    delta = delta_for(base)
    if kind == "gain":
        delta = Adapter("gain", "llama", 0.0, {NAMES[0]: Vector(np.zeros(64, dtype=np.float32))}, {})
    refused(base, delta, f"type BF16 cannot hold a {kind} delta .*8 bits.* possible are Q4_0, .*, F16, F32$")
