"""What the tests of baking share: deltas that fit a tiny model, its decoded tensors, and what lies in a folder."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from edgepd.errors import AdapterError
from edgepd_quant.adapter_file import Adapter, LowRank
from edgepd_quant.bake import bake
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import BLOCK_SIZES

NAMES = ("blk.0.attn_q.weight", "blk.1.ffn_down.weight")


def factors_of(delta: Adapter, name: str) -> LowRank:
    """Return the factors of one tensor of a delta that is not of kind "gain"."""
    factors = delta.tensors[name]
    assert isinstance(factors, LowRank)
    return factors


def delta_for(
    base: Path, names: tuple[str, ...] = NAMES, deviation: float = 0.2, rank: int = 3, seed: int = 4
) -> Adapter:
    """Return a random delta of kind "scale" for these tensors of the base."""
    rng = np.random.default_rng(seed)
    tensors = {}
    with GGUFFile.open(base) as file:
        for name in names:
            rows, columns = file.tensors[name].shape
            blocks = columns // BLOCK_SIZES[file.tensors[name].qtype].elements
            a = rng.normal(0, 1, (rank, blocks)).astype(np.float32)
            tensors[name] = LowRank(a, rng.normal(0, deviation / rank, (rows, rank)).astype(np.float32))
    return Adapter("scale", "llama", 0.0, tensors, {})


def decoded(path: Path, name: str) -> npt.NDArray[np.float32]:
    """Decode a tensor with gguf-py."""
    with GGUFFile.open(path) as file:
        kind = gguf.GGMLQuantizationType(int(file.tensors[name].qtype))
        values: npt.NDArray[np.float32] = gguf.quants.dequantize(file.rows(name), kind)
        return values


def left_behind(folder: Path) -> list[str]:
    """Return the names of what lies in the folder."""
    return sorted(entry.name for entry in folder.iterdir())


def refused(base: Path, delta: Adapter, problem: str) -> None:
    """Check that baking refuses the delta with this text and leaves nothing behind."""
    with pytest.raises(AdapterError, match=problem):
        bake(base, delta, base.parent / "out.gguf")
    assert left_behind(base.parent) == ["base.gguf"]
