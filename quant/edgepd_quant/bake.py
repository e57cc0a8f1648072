"""Bake a delta into a copy of the quantised base file.

The idea: what training changed is a number per quantisation block (kind "scale": W (1 + g), held by the block's own
fp16 scales; "shift": W + g, held by its fp16 minimum), per row ("gain", held by all scales of the row), or per entry of
an F32 vector ("gain"); an unquantised value is a block of its own. So the result has the size, the kernels and the
speed of the base, and is an ordinary model file. The invariant: only bytes of such numbers differ from the base, each
new one is the nearest to the exact result in its own format, and the target name never shows anything unfinished. What
this does not do: judge whether the result is better (the gate does), or bake what the format has no number for.
Memory is flat: the file is copied by the kernel and patched in tiles of rows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from edgepd.atomic import replacing
from edgepd.errors import AdapterError, StoreError
from edgepd_quant.adapter_file import (
    REFUSED_TENSORS,
    Adapter,
    Kind,
    LowRank,
    Vector,
    check_architecture,
    check_shapes,
    shapes_of,
)
from edgepd_quant.reader import GGUFFile, TensorInfo
from edgepd_quant.types import BLOCK_SIZES, GGMLType

TILE_BYTES: Final = 1 << 20
TILE_NUMBERS: Final = 1 << 16  # of one field; float64 copies of so many stay in the cache
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
MINIMUM_FIELDS: Final[dict[GGMLType, tuple[int, ...]]] = {GGMLType.Q4_1: (2,), GGMLType.Q5_1: (2,)}  # m
VALUE_FIELDS: Final[dict[GGMLType, tuple[int, ...]]] = {GGMLType.F16: (0,), GGMLType.F32: (0,)}  # the value itself

# The bytes of a block (of one value, in unquantised types) that a kind changes, and so the types that can hold it.
HELD_BY: Final[Mapping[Kind, Mapping[GGMLType, tuple[int, ...]]]] = {
    "scale": SCALE_FIELDS | VALUE_FIELDS,
    "shift": MINIMUM_FIELDS,
    "gain": SCALE_FIELDS | VALUE_FIELDS,
}


@dataclass(frozen=True)
class BakeReport:
    """What baking changed.

    `blocks` counts those of the tensors that a delta names; an unquantised value is a block of its own. The roundings
    are relative to the exact result, or to the smallest normal number of the format where that is larger (so never
    above 2^-11 in fp16); exact zeros are left out.
    """

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
    numbers: int = 0
    rounding_sum: float = 0.0
    rounding_max: float = 0.0


def fields(kind: Kind, qtype: GGMLType) -> tuple[int, ...]:
    """Return the byte offsets in a block of the numbers that hold a kind of HELD_BY.

    Raises AdapterError for types that cannot hold it.
    """
    held_by = HELD_BY[kind]
    if qtype not in held_by:
        known = ", ".join(known.name for known in held_by)
        why = " (with 8 bits, it would round most small changes away)" if qtype is GGMLType.BF16 else ""
        raise AdapterError(f"tensors of type {qtype.name} cannot hold a {kind} delta{why}; possible are {known}")
    return held_by[qtype]


def bake(base: Path, delta: Adapter, out: Path) -> BakeReport:
    """Write `out`, the base with the delta in its own numbers, atomically.

    Raises AdapterError when the delta does not fit or a number leaves the range of its format (naming tensor and
    block), FormatError for a broken base, StoreError when the disk has no room or `out` is the base itself.
    """
    with GGUFFile.open(base) as source:
        _check(source, delta, out)
        tally = _Tally()
        with replacing(out) as target:
            _copy(source, target)
            for name, values in delta.tensors.items():
                _patch(source, target, delta.kind, source.tensors[name], values, tally)
            _verify(source, target, tally.changed_bytes)
        mean = tally.rounding_sum / tally.numbers if tally.numbers else 0.0
        return BakeReport(len(delta.tensors), tally.blocks, tally.changed_bytes, tally.rounding_max, mean)


def _check(source: GGUFFile, delta: Adapter, out: Path) -> None:
    if delta.kind not in HELD_BY:
        raise AdapterError(f"only kinds {', '.join(HELD_BY)} can be baked; this one is of kind {delta.kind!r}")
    check_architecture(ORIGIN, delta.architecture, source)
    for name, values in delta.tensors.items():
        _check_tensor(source, delta.kind, name, values)
    if out.exists() and out.samefile(source.path):
        raise StoreError(f"{out} is the base itself, which is never changed; choose another name")
    if not out.parent.is_dir():
        raise StoreError(f"{out.parent}: there is no such folder; create it first")
    free, needed = shutil.disk_usage(out.parent).free, source.size + DISK_MARGIN_BYTES
    if free < needed:
        raise StoreError(f"baking needs {needed} bytes free in {out.parent}, but there are {free}; free some space")


def _check_tensor(source: GGUFFile, kind: Kind, name: str, values: LowRank | Vector) -> None:
    if name in REFUSED_TENSORS:
        raise AdapterError(f"{ORIGIN}: {name!r} must stay as it is; train without it")
    if isinstance(values, Vector) != (kind == "gain"):
        raise AdapterError(f"{ORIGIN}: {name!r} has a {type(values).__name__}, which is not of kind {kind!r}")
    check_shapes(ORIGIN, kind, name, shapes_of(values), source)
    info = source.tensors[name]
    fields(kind, info.qtype)
    if len(info.shape) == 1 and info.qtype is not GGMLType.F32:
        raise AdapterError(f"{ORIGIN}: {name!r} is a vector of {info.qtype.name}, but only F32 vectors can be changed")
    if isinstance(values, LowRank) and values.a.shape[0] != values.b.shape[1]:
        raise AdapterError(f"{ORIGIN}: the ranks for {name!r} differ: {values.a.shape[0]} and {values.b.shape[1]}")


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


def _patch(
    source: GGUFFile, target: BinaryIO, kind: Kind, info: TensorInfo, values: LowRank | Vector, tally: _Tally
) -> None:
    """Rewrite the numbers of one tensor that hold its delta, in tiles of whole rows; a vector is one row."""
    rows = info.shape[0] if len(info.shape) == 2 else 1
    number = np.dtype("<f4" if info.qtype is GGMLType.F32 else "<f2")
    block_bytes = BLOCK_SIZES[info.qtype].bytes
    per_block = block_bytes // number.itemsize
    row_bytes = info.nbytes // rows
    step = max(1, min(TILE_BYTES, TILE_NUMBERS * block_bytes) // row_bytes)
    added = kind == "shift" or info.name.endswith(".bias")
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        offset = info.offset + start * row_bytes
        tile = np.frombuffer(bytearray(os.pread(source.fileno(), (stop - start) * row_bytes, offset)), dtype=number)
        blocks = tile.reshape(stop - start, -1, per_block)  # (rows of the tile, blocks per row, numbers per block)
        change = _change(values, info.shape, start, stop)  # (rows of the tile, blocks per row or 1)
        for field in fields(kind, info.qtype):
            _apply(blocks[:, :, field // number.itemsize], change, added=added, name=info.name, row=start, tally=tally)
        tally.blocks += blocks.shape[0] * blocks.shape[1]
        _write(target, tile.data.cast("B"), offset)


def _change(values: LowRank | Vector, shape: Sequence[int], start: int, stop: int) -> npt.NDArray[np.float64]:
    """Return what is added to the numbers of these rows, or to the factor 1 that they are multiplied with."""
    if isinstance(values, LowRank):
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found in _apply
            return (values.b[start:stop] @ values.a).astype(np.float64)
    gains = values.values.astype(np.float64)
    return gains[np.newaxis] if len(shape) == 1 else gains[start:stop, np.newaxis]


def _apply(
    numbers: npt.NDArray[np.floating],
    change: npt.NDArray[np.float64],
    *,
    added: bool,
    name: str,
    row: int,
    tally: _Tally,
) -> None:
    """Add the change to these numbers (rows, blocks per row) or multiply them by 1 + change, rounding once."""
    before = np.ascontiguousarray(numbers)
    exact = before.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.add(exact, change, out=exact) if added else np.multiply(exact, 1.0 + change, out=exact)
        rounded = exact.astype(numbers.dtype)
    np.copyto(rounded, before, where=change == 0)  # as -0 + 0 is another 0
    if not np.isfinite(rounded).all():
        first, block = (int(index) for index in np.argwhere(~np.isfinite(rounded))[0])
        operand = float(np.broadcast_to(change, numbers.shape)[first, block])
        what, act = ("offset", f"plus {operand}") if added else ("scale", f"times {1.0 + operand}")
        raise AdapterError(
            f"{ORIGIN}: tensor {name!r}, row {row + first}, block {block}:"
            f" the {what} {float(numbers[first, block])} {act} does not fit into fp{8 * numbers.itemsize};"
            " train again with a lower learning rate"
        )
    tally.changed_bytes += int(np.count_nonzero(before.view(np.uint8) != rounded.view(np.uint8)))
    tally.numbers += int(np.count_nonzero(exact))
    size = np.maximum(np.abs(exact), np.finfo(numbers.dtype).tiny)
    error = np.abs(np.subtract(exact, rounded, out=exact), out=exact)
    error /= size
    tally.rounding_sum += float(error.sum())
    tally.rounding_max = max(tally.rounding_max, float(error.max(initial=0.0)))
    numbers[...] = rounded


def _verify(source: GGUFFile, target: BinaryIO, changed_bytes: int) -> None:
    """Read both files back: same size, and as many different bytes as were changed."""
    os.fsync(target.fileno())
    os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that what is read comes from the disk
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
