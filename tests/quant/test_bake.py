"""Baking: only scales change, each by the exact factor; every failure leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import stat
from collections import namedtuple
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from edgepd.errors import AdapterError, FormatError, StoreError
from edgepd_quant import bake as module
from edgepd_quant.adapter_file import Adapter, LowRank
from edgepd_quant.bake import bake, scale_fields
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import BLOCK_SIZES, GGMLType
from tests.tiny_gguf import llama_logits, tiny_llama, write_gguf

BAKEABLE = [GGMLType[n] for n in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]]
NAMES = ("blk.0.attn_q.weight", "blk.1.ffn_down.weight")
TOKENS = [1, 120, 118, 266, 13, 272, 2]


def delta_for(base: Path, names: tuple[str, ...] = NAMES, deviation: float = 0.2, rank: int = 3) -> Adapter:
    rng = np.random.default_rng(4)
    tensors = {}
    with GGUFFile.open(base) as file:
        for name in names:
            rows, columns = file.tensors[name].shape
            blocks = columns // BLOCK_SIZES[file.tensors[name].qtype].elements
            a = rng.normal(0, 1, (rank, blocks)).astype(np.float32)
            tensors[name] = LowRank(a, rng.normal(0, deviation / rank, (rows, rank)).astype(np.float32))
    return Adapter("scale", "llama", 0.0, tensors, {})


def decoded(path: Path, name: str) -> npt.NDArray[np.float32]:
    with GGUFFile.open(path) as file:
        kind = gguf.GGMLQuantizationType(int(file.tensors[name].qtype))
        values: npt.NDArray[np.float32] = gguf.quants.dequantize(file.rows(name), kind)
        return values


def left_behind(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("qtype", BAKEABLE)
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
    block = BLOCK_SIZES[qtype]
    with GGUFFile.open(base) as file:
        for name in NAMES:
            info = file.tensors[name]
            for start in range(info.offset, info.offset + info.nbytes, block.bytes):
                allowed |= {start + field + byte for field in scale_fields(qtype) for byte in (0, 1)}
    assert set(changed.tolist()) <= allowed
    assert report.changed_bytes == len(changed) > 0
    assert (report.tensors, report.blocks) == (2, len(allowed) // 2 // len(scale_fields(qtype)))
    assert 0 < report.mean_relative_rounding < 2**-12
    assert report.max_relative_rounding <= 2**-10  # 2**-11, and a little more where a scale is subnormal
    for name, pair in delta.tensors.items():
        old, new = decoded(base, name), decoded(tmp_path / "out.gguf", name)
        expected = old * (1.0 + np.repeat(pair.b @ pair.a, block.elements, axis=1))
        assert np.abs(new - expected).max() <= 2**-9 * np.abs(expected).max()


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
                g = np.repeat(delta.tensors[name].b @ delta.tensors[name].a, 32, axis=1)
                weights = (weights * (1.0 + g)).astype(np.float32)
            content[info.offset : info.offset + info.nbytes] = weights.astype("<f4").tobytes()
    plain.write_bytes(content)
    baked = llama_logits(tmp_path / "out.gguf", TOKENS)
    # What remains is that llama.cpp rounds activations to 8 bits for a quantised model but not for F32.
    assert np.abs(baked - llama_logits(plain, TOKENS)).mean() < 0.05
    assert np.abs(baked - llama_logits(base, TOKENS)).mean() > 0.15


def test_tiles_and_plain_copy_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q5_1, seed=1)
    whole = bake(base, delta_for(base), tmp_path / "whole.gguf")

    def unsupported(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "copy_file_range", unsupported)
    monkeypatch.setattr(module, "TILE_BYTES", 500)  # neither a whole number of rows nor of pages
    tiled = bake(base, delta_for(base), tmp_path / "tiled.gguf")
    assert (tmp_path / "tiled.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert tiled.changed_bytes == whole.changed_bytes
    assert tiled.mean_relative_rounding == pytest.approx(whole.mean_relative_rounding)


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


def refused(base: Path, delta: Adapter, problem: str) -> None:
    with pytest.raises(AdapterError, match=problem):
        bake(base, delta, base.parent / "out.gguf")
    assert left_behind(base.parent) == ["base.gguf"]


def test_deltas_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)
    good = delta_for(base, ("blk.0.attn_q.weight",)).tensors["blk.0.attn_q.weight"]

    def scale(name: str, pair: LowRank = good, architecture: str = "llama") -> Adapter:
        return Adapter("scale", architecture, 0.0, {name: pair}, {})

    refused(base, Adapter("lora", "llama", 8.0, {}, {}), "only a scale delta can be baked; this one is of kind 'lora'")
    refused(base, scale("blk.0.attn_q.weight", architecture="qwen3"), "architecture 'qwen3'")
    refused(base, scale("blk.5.attn_q.weight"), "has no tensor 'blk.5.attn_q.weight'")
    refused(base, scale("token_embd.weight"), "'token_embd.weight' must stay as it is")
    refused(base, scale("blk.0.attn_norm.weight"), "only matrices")
    refused(base, scale("blk.0.ffn_down.weight"), r"needs \(r, 3\) and \(64, r\)")
    refused(base, scale("blk.0.attn_q.weight", LowRank(good.a[:2], good.b)), "ranks for 'blk.0.attn_q.weight' differ")


@pytest.mark.parametrize("qtype", [GGMLType.F32, GGMLType.F16, GGMLType.BF16])
def test_unquantised_tensors_are_refused(tmp_path: Path, qtype: GGMLType) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=qtype, seed=1)
    refused(base, delta_for(base), f"type {qtype.name} cannot hold a scale delta; possible are Q4_0")


def test_no_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    needed = base.stat().st_size + module.DISK_MARGIN_BYTES
    with pytest.raises(StoreError, match=f"needs {needed} bytes free in .* but there are 1000"):
        bake(base, delta_for(base), tmp_path / "out.gguf")
    assert left_behind(tmp_path) == ["base.gguf"]


def test_the_base_is_never_overwritten(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)
    before = base.read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(base)
    for out in (base, link):
        with pytest.raises(StoreError, match="is the base itself"):
            bake(base, delta_for(base), out)
    assert base.read_bytes() == before


def test_missing_folder_and_broken_base(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)
    delta = delta_for(base)
    with pytest.raises(StoreError, match="there is no such folder"):
        bake(base, delta, tmp_path / "absent" / "out.gguf")
    base.write_bytes(base.read_bytes()[:1000])
    with pytest.raises(FormatError):
        bake(base, delta, tmp_path / "out.gguf")


def test_a_wrong_write_is_noticed_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)
    out = tmp_path / "out.gguf"
    out.write_bytes(b"the generation before")
    write = module._write

    def faulty(target: BinaryIO, content: bytes | memoryview, position: int) -> int:
        return write(target, bytes(content)[:-1] + bytes([content[-1] ^ 1]), position)

    monkeypatch.setattr(module, "_write", faulty)
    with pytest.raises(StoreError, match="not as written"):
        bake(base, delta_for(base), out)
    assert out.read_bytes() == b"the generation before"
    assert left_behind(tmp_path) == ["base.gguf", "out.gguf"]
