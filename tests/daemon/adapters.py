"""Random adapters for a given base: small enough to leave sentences, large enough to change them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgepd_quant.adapter_file import Adapter, LowRank, write_adapter
from edgepd_quant.reader import GGUFFile

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def random_lora(
    path: Path,
    base: Path,
    *,
    seed: int,
    deviation: float,
    rank: int = 4,
    base_sha256: str | None = None,
    only: Sequence[str] | None = None,
) -> Path:
    """Write a LoRA with random factors on all linears of `base`; `deviation` is that of b, 0 for a new adapter."""
    rng = np.random.default_rng(seed)
    tensors = {}
    with GGUFFile.open(base) as model:
        sha256 = model.sha256() if base_sha256 is None else base_sha256
        for name, info in model.tensors.items():
            if name.split(".")[-2] not in LINEARS or (only is not None and name not in only):
                continue
            rows, columns = info.shape
            a = rng.normal(0, columns**-0.5, (rank, columns)).astype(np.float32)
            tensors[name] = LowRank(a, rng.normal(0, deviation, (rows, rank)).astype(np.float32))
    write_adapter(path, Adapter("lora", "llama", float(rank), tensors, {"base_sha256": sha256}))
    return path
