"""The files of `make bench-adapters`: a wide model with random weights in Q4_K, and deltas as large as trained ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from _edgepd import LINEARS, RANK
from _random_gguf import Shape, write

from edgepd_quant.adapter_file import Adapter, Kind, LowRank
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import BLOCK_SIZES

# The layers of Llama 3.2 1B, half as many of them, and a smaller vocabulary: 330 MB.
WIDE = Shape(layers=8, hidden=2048, feed_forward=8192, heads=32, kv_heads=8, head_dim=64, vocabulary=32000)

Q4_K = gguf.GGMLQuantizationType.Q4_K
BLOCK_ELEMENTS, BLOCK_BYTES = gguf.GGML_QUANT_SIZES[Q4_K]
# A weight is d * scale * value - dmin * minimum (block_q4_K in ggml-common.h). Of random bytes, the scale and the
# minimum are uniform in 0..63 and the value in 0..15, so with dmin = 7.5 d the mean is 0 and the deviation 258.3 d.
MINIMUM_RATIO, DEVIATION = 7.5, 258.3

RELATIVE_CHANGE = 0.02  # deviation of what a delta changes, as a share of the deviation of the weights


def write_wide(path: Path, shape: Shape, seed: int = 0) -> Path:
    """Write a model of architecture `llama` in Q4_K that llama.cpp loads without a tokenizer; return its path."""
    return write(path, shape, seed, kind=Q4_K, blocks=_random_q4_k, for_llama=True)


def _random_q4_k(rng: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Return blocks (rows, row bytes) of weights whose deviation is columns ** -0.5: fp16 d and dmin, then the rest."""
    count = rows * columns // BLOCK_ELEMENTS
    blocks = np.frombuffer(rng.bytes(count * BLOCK_BYTES), np.uint8).reshape(count, BLOCK_BYTES).copy()
    d = columns**-0.5 / DEVIATION
    blocks[:, :4] = np.array([d, MINIMUM_RATIO * d], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def delta(base: Path, kind: Kind, base_sha256: str, seed: int = 0) -> Adapter:
    """Return factors of rank 8 on all linears, of kind "lora" or "scale", that change the weights by about 2 %.

    That is what training does. A much smaller change would round to nothing in most fp16 scales.
    """
    rng = np.random.default_rng(seed)
    with GGUFFile.open(base) as model:
        architecture = str(model.metadata["general.architecture"])
        tensors = {name: _factors(rng, kind, *shape) for name, *shape in _linears(model)}
    return Adapter(kind, architecture, float(RANK), tensors, {"base_sha256": base_sha256})


def _linears(model: GGUFFile) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, rows, columns and elements per block of each linear."""
    for name, info in model.tensors.items():
        if name.split(".")[-2] in LINEARS:
            yield name, info.shape[0], info.shape[1], BLOCK_SIZES[info.qtype].elements


def _factors(rng: np.random.Generator, kind: Kind, rows: int, columns: int, block: int) -> LowRank:
    """Return a (8, columns or blocks per row) and b (rows, 8), whose product has the wanted deviation."""
    width = columns if kind == "lora" else columns // block
    deviation = RELATIVE_CHANGE * (columns**-0.5 if kind == "lora" else 1.0)
    a = rng.normal(0, RANK**-0.5, (RANK, width)).astype(np.float32)
    return LowRank(a, rng.normal(0, deviation, (rows, RANK)).astype(np.float32))
