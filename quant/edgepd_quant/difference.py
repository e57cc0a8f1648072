"""How much two adapters, or two model files, differ, tensor by tensor.

The idea: the norm of a difference of low-rank products follows from Gram matrices of the size of the ranks, and two
model files are compared as they are read. The invariant: memory is flat, no dense delta is formed, and every number is
finite, so that it can be shown as JSON. What this does not do: decode quantised values (a baked change is in the
numbers of the blocks, which are read as they are), or say which of the two is better (the gate does).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from edgepd.errors import AdapterError, FormatError
from edgepd_quant.adapter_file import Adapter, Vector
from edgepd_quant.bake import HELD_BY
from edgepd_quant.reader import GGUFFile, TensorInfo
from edgepd_quant.types import BLOCK_SIZES, GGMLType

TILE_BYTES: Final = 1 << 18
RESOLUTION: Final = 1e-7  # smaller changes are rounding: of the float32 factors, and of the root of a small sum
NUMBER_TYPES: Final = HELD_BY["gain"]  # types whose blocks have numbers that a change can be measured in

_Delta: TypeAlias = tuple[npt.NDArray[np.float64], ...]  # the gains, or the factors a (r, in) and b (out, r)


@dataclass(frozen=True)
class Difference:
    """How one tensor differs.

    `relative` is the Frobenius norm of the change over the larger of the two norms: 0 for none, 1 where one side has
    nothing, at most 2. Blocks and bytes are counted in model files only; an unquantised value is a block of its own.
    """

    tensor: str
    relative: float
    changed_blocks: int | None = None
    changed_bytes: int | None = None


def compare_adapters(a: Adapter | None, b: Adapter | None) -> list[Difference]:
    """Return the tensors whose delta differs, the largest relative change first; None is the base, without a delta.

    Raises AdapterError for adapters of different kinds or for different bases.
    """
    if a is not None and b is not None and a.kind != b.kind:
        raise AdapterError(f"adapters of kinds {a.kind!r} and {b.kind!r} cannot be compared; take two of one kind")
    names = {name: None for adapter in (a, b) if adapter is not None for name in adapter.tensors}
    found = [Difference(name, _relative(name, _delta(a, name), _delta(b, name))) for name in names]
    return _ordered([difference for difference in found if difference.relative > 0])


def compare_models(a: Path, b: Path) -> list[Difference]:
    """Return the tensors whose bytes differ, the largest relative change first.

    `relative` compares the scales and minima of the blocks, and the values of unquantised tensors: after baking, that
    is what changed. For a type without such numbers it is the share of changed bytes; a tensor that only one file has,
    or that has another shape or type, counts as changed as a whole. Raises FormatError for a broken file.
    """
    with GGUFFile.open(a) as first, GGUFFile.open(b) as second:
        found: list[Difference] = []
        for name in {**first.tensors, **second.tensors}:
            old, new = first.tensors.get(name), second.tensors.get(name)
            if old is None or new is None or (old.shape, old.qtype) != (new.shape, new.qtype):
                only = new if new is not None else first.tensors[name]
                found.append(Difference(name, 1.0, only.nbytes // BLOCK_SIZES[only.qtype].bytes, only.nbytes))
            elif difference := _compare_tensors(first, second, old, new):
                found.append(difference)
        return _ordered(found)


def _ordered(found: list[Difference]) -> list[Difference]:
    return sorted(found, key=lambda difference: (-difference.relative, difference.tensor))


def _delta(adapter: Adapter | None, name: str) -> _Delta | None:
    """Return the delta of one tensor with the scaling of its adapter in it, or None if it has none."""
    values = adapter.tensors.get(name) if adapter is not None else None
    if adapter is None or values is None:
        return None
    if isinstance(values, Vector):
        return (values.values.astype(np.float64),)
    scaling = adapter.alpha / len(values.a) if adapter.kind == "lora" and adapter.alpha else 1.0
    return values.a.astype(np.float64), values.b * np.float64(scaling)


def _relative(name: str, a: _Delta | None, b: _Delta | None) -> float:
    norms = [_norm(name, delta) for delta in (a, b) if delta is not None]
    larger = max(norms)
    if a is None or b is None:
        return 1.0 if larger > 0 else 0.0
    change = _norm(name, _minus(name, b, a))
    return change / larger if change > RESOLUTION * larger else 0.0


def _minus(name: str, b: _Delta, a: _Delta) -> _Delta:
    if _shape(a) != _shape(b):
        raise AdapterError(f"the adapters change {name!r} in different shapes; they were made for different bases")
    if len(a) == 1:
        return (b[0] - a[0],)
    return np.concatenate([b[0], a[0]]), np.concatenate([b[1], -a[1]], axis=1)  # [B_b, -B_a] [A_b; A_a]


def _shape(delta: _Delta) -> tuple[int, ...]:
    return delta[0].shape if len(delta) == 1 else (delta[1].shape[0], delta[0].shape[1])


def _norm(name: str, delta: _Delta) -> float:
    """Return the Frobenius norm, of a product from ||B A||^2 = trace(B^T B A A^T)."""
    with np.errstate(over="ignore", invalid="ignore"):
        if len(delta) == 1:
            squared = float(delta[0] @ delta[0])
        else:
            a, b = delta
            squared = float(np.sum((b.T @ b) * (a @ a.T)))
    if not math.isfinite(squared):
        raise AdapterError(f"the values for {name!r} are not finite; train the adapter again")
    return math.sqrt(max(0.0, squared))


def _compare_tensors(a: GGUFFile, b: GGUFFile, old: TensorInfo, new: TensorInfo) -> Difference | None:
    block = BLOCK_SIZES[old.qtype].bytes
    step = max(1, TILE_BYTES // block) * block
    blocks, size = 0, 0
    norms = np.zeros(3)  # squared: of the numbers in a, of those in b, of their difference
    for start in range(0, old.nbytes, step):
        count = min(step, old.nbytes - start)
        before, after = _tile(a, old.offset + start, count), _tile(b, new.offset + start, count)
        differs = before != after
        size += int(np.count_nonzero(differs))
        touched = np.flatnonzero(differs) // block
        blocks += int(np.count_nonzero(np.diff(touched, prepend=-1)))
        if old.qtype in NUMBER_TYPES:
            x, y = _numbers(before, old.qtype), _numbers(after, old.qtype)
            with np.errstate(over="ignore", invalid="ignore"):
                norms += [float(np.vdot(numbers, numbers)) for numbers in (x, y, y - x)]
    if size == 0:
        return None
    larger = float(max(norms[0], norms[1]))
    measurable = old.qtype in NUMBER_TYPES and larger > 0 and bool(np.isfinite(norms).all())
    return Difference(old.name, math.sqrt(norms[2] / larger) if measurable else size / old.nbytes, blocks, size)


def _tile(file: GGUFFile, offset: int, count: int) -> npt.NDArray[np.uint8]:
    content = os.pread(file.fileno(), count, offset)
    if len(content) != count:
        raise FormatError(file.path, offset + len(content), "the file became shorter while it was read")
    return np.frombuffer(content, dtype=np.uint8)


def _numbers(tile: npt.NDArray[np.uint8], qtype: GGMLType) -> npt.NDArray[np.float32]:
    """Return the numbers of each block that can be changed, (blocks, numbers per block)."""
    number = np.dtype("<f4" if qtype is GGMLType.F32 else "<f2")
    blocks = tile.view(number).reshape(-1, BLOCK_SIZES[qtype].bytes // number.itemsize)
    columns = [blocks[:, field // number.itemsize] for field in NUMBER_TYPES[qtype]]
    return np.stack(columns, axis=1).astype(np.float32)
