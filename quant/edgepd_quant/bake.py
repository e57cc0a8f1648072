"""Bake a block-scale delta into a copy of the quantised base file.

The idea: W' = W (1 + g) with one g per quantisation block is held by the block's own fp16 scales, so the
result has the size, the kernels and the speed of the base, and is an ordinary model file. The invariant:
only bytes of scales differ from the base, each new scale is the fp16 nearest to scale (1 + g), and the
target name never shows anything unfinished. What this does not do: judge whether the result is better (the
gate does), or bake into unquantised tensors or formats without one scale for the whole block.
Memory is flat: the file is copied by the kernel and patched in tiles of rows.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from edgepd.atomic import replacing
from edgepd.errors import AdapterError, StoreError
from edgepd_quant.adapter_file import REFUSED_TENSORS, Adapter, LowRank, check_architecture, check_shapes
from edgepd_quant.reader import GGUFFile, TensorInfo
from edgepd_quant.types import BLOCK_SIZES, GGMLType

TILE_BYTES: Final = 1 << 20
DISK_MARGIN_BYTES: Final = 16 << 20  # left free, so that the profile database can still be written
ORIGIN: Final = "delta to bake"

# Byte offsets of the fp16 numbers that the whole block is multiplied with (structs in ggml-common.h).
SCALE_FIELDS: Final[dict[GGMLType, tuple[int, ...]]] = {
    GGMLType.Q4_0: (0,),  # d
    GGMLType.Q4_1: (0, 2),  # d, m
    GGMLType.Q5_0: (0,),  # d
    GGMLType.Q5_1: (0, 2),  # d, m
    GGMLType.Q8_0: (0,),  # d
    GGMLType.Q4_K: (0, 2),  # d, dmin
    GGMLType.Q5_K: (0, 2),  # d, dmin
    GGMLType.Q6_K: (208,),  # d, at the end of the block
}


@dataclass(frozen=True)
class BakeReport:
    """What baking changed. The roundings compare each new scale with the exact product, zeros left out."""

    tensors: int
    blocks: int
    changed_bytes: int
    max_relative_rounding: float
    mean_relative_rounding: float


@dataclass
class _Tally:
    """Running sums over all tiles."""

    blocks: int = 0
    changed_bytes: int = 0
    scales: int = 0
    rounding_sum: float = 0.0
    rounding_max: float = 0.0


def scale_fields(qtype: GGMLType) -> tuple[int, ...]:
    """Return the byte offsets of a block's fp16 scales. Raises AdapterError for types without such scales."""
    try:
        return SCALE_FIELDS[qtype]
    except KeyError:
        known = ", ".join(known.name for known in SCALE_FIELDS)
        raise AdapterError(f"tensors of type {qtype.name} cannot hold a scale delta; possible are {known}") from None


def bake(base: Path, delta: Adapter, out: Path) -> BakeReport:
    """Write `out`, the base with the delta in its block scales, atomically.

    Raises AdapterError when the delta does not fit or a scale leaves the range of fp16 (naming tensor and
    block), FormatError for a broken base, StoreError when the disk has no room or `out` is the base itself.
    """
    with GGUFFile.open(base) as source:
        _check(source, delta, out)
        tally = _Tally()
        with replacing(out) as target:
            _copy(source, target)
            for name, pair in delta.tensors.items():
                _patch(source, target, source.tensors[name], pair, tally)
            _verify(source, target, tally.changed_bytes)
        mean = tally.rounding_sum / tally.scales if tally.scales else 0.0
        return BakeReport(len(delta.tensors), tally.blocks, tally.changed_bytes, tally.rounding_max, mean)


def _check(source: GGUFFile, delta: Adapter, out: Path) -> None:
    if delta.kind != "scale":
        raise AdapterError(f"only a scale delta can be baked; this one is of kind {delta.kind!r}")
    check_architecture(ORIGIN, delta.architecture, source)
    for name, pair in delta.tensors.items():
        if name in REFUSED_TENSORS:
            raise AdapterError(f"{ORIGIN}: {name!r} must stay as it is; train without it")
        check_shapes(ORIGIN, delta.kind, name, pair.a.shape, pair.b.shape, source)
        scale_fields(source.tensors[name].qtype)
        if pair.a.shape[0] != pair.b.shape[1]:
            raise AdapterError(f"{ORIGIN}: the ranks for {name!r} differ: {pair.a.shape[0]} and {pair.b.shape[1]}")
    if out.exists() and out.samefile(source.path):
        raise StoreError(f"{out} is the base itself, which is never changed; choose another name")
    if not out.parent.is_dir():
        raise StoreError(f"{out.parent}: there is no such folder; create it first")
    free, needed = shutil.disk_usage(out.parent).free, source.size + DISK_MARGIN_BYTES
    if free < needed:
        raise StoreError(f"baking needs {needed} bytes free in {out.parent}, but there are {free}; free some space")


def _copy(source: GGUFFile, target: BinaryIO) -> None:
    position = 0
    while position < source.size:
        try:
            copied = os.copy_file_range(source.fileno(), target.fileno(), source.size - position, position, position)
        except OSError:
            break  # not on every file system; a real fault of the disk shows in the plain copy below
        if copied == 0:
            break
        position += copied
    while chunk := os.pread(source.fileno(), TILE_BYTES, position):
        position += _write(target, chunk, position)


def _write(target: BinaryIO, content: bytes | memoryview, position: int) -> int:
    written = 0
    while written < len(content):
        written += os.pwrite(target.fileno(), memoryview(content)[written:], position + written)
    return written


def _patch(source: GGUFFile, target: BinaryIO, info: TensorInfo, pair: LowRank, tally: _Tally) -> None:
    """Rewrite the scales of one tensor (rows, columns) in tiles of whole rows."""
    rows, block_bytes = info.shape[0], BLOCK_SIZES[info.qtype].bytes
    row_bytes = info.nbytes // rows
    step = max(1, TILE_BYTES // row_bytes)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        offset = info.offset + start * row_bytes
        tile = np.frombuffer(bytearray(os.pread(source.fileno(), (stop - start) * row_bytes, offset)), dtype="<f2")
        halves = tile.reshape(stop - start, -1, block_bytes // 2)  # (rows of the tile, blocks per row, fp16 per block)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found in _rescale
            factor = 1.0 + (pair.b[start:stop] @ pair.a).astype(np.float64)  # (rows of the tile, blocks per row)
        for field in scale_fields(info.qtype):
            _rescale(halves[:, :, field // 2], factor, info.name, start, tally)
        tally.blocks += factor.size
        _write(target, tile.data.cast("B"), offset)


def _rescale(
    scales: npt.NDArray[np.float16], factor: npt.NDArray[np.float64], name: str, first_row: int, tally: _Tally
) -> None:
    """Multiply fp16 scales (rows, blocks per row) by the factor in place, rounding once."""
    with np.errstate(over="ignore", invalid="ignore"):
        exact = scales.astype(np.float64) * factor
        rounded = exact.astype(np.float16)
    bad = np.argwhere(~np.isfinite(rounded))
    if len(bad):
        row, block = (int(index) for index in bad[0])
        raise AdapterError(
            f"{ORIGIN}: tensor {name!r}, row {first_row + row}, block {block}:"
            f" the scale {float(scales[row, block])} times {float(factor[row, block])} does not fit into fp16;"
            " train again with a lower learning rate"
        )
    before, after = np.ascontiguousarray(scales).view(np.uint8), rounded.view(np.uint8)
    tally.changed_bytes += int(np.count_nonzero(before != after))
    used = exact != 0
    error = np.abs(rounded.astype(np.float64)[used] / exact[used] - 1.0)
    tally.scales += error.size
    tally.rounding_sum += float(error.sum())
    tally.rounding_max = max(tally.rounding_max, float(error.max(initial=0.0)))
    scales[...] = rounded


def _verify(source: GGUFFile, target: BinaryIO, changed_bytes: int) -> None:
    """Read both files back: same size, and as many different bytes as scales were changed."""
    os.fsync(target.fileno())
    size = os.fstat(target.fileno()).st_size
    different, position = 0, 0
    while position < source.size:
        old = np.frombuffer(os.pread(source.fileno(), TILE_BYTES, position), dtype=np.uint8)
        new = np.frombuffer(os.pread(target.fileno(), TILE_BYTES, position), dtype=np.uint8)
        if old.size == 0 or old.size != new.size:
            break
        different += int(np.count_nonzero(old != new))
        position += old.size
    if (size, position, different) != (source.size, source.size, changed_bytes):
        raise StoreError(
            f"the baked file is not as written: {size} bytes with {different} changed,"
            f" instead of {source.size} with {changed_bytes}; check the disk and try again"
        )
