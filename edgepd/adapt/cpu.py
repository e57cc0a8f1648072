"""Which arithmetic this CPU is fast at.

The idea: bfloat16 products are worth their rounding only where the CPU has instructions for them; without these they
are 5 to 9 times slower than float32 (measured on AVX2). The invariant: weights, gradients and optimiser stay float32.
What this does not do: measure.
"""

from __future__ import annotations

from pathlib import Path

import torch

# As /proc/cpuinfo names them: x86 with AMX or AVX-512, ARM with its own bfloat16 products.
BF16_FEATURES = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
CPU_INFO = Path("/proc/cpuinfo")


def features(path: Path = CPU_INFO) -> frozenset[str]:
    """Return the features of the first CPU, or none where the system does not say."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def compute_dtype(found: frozenset[str] | None = None) -> torch.dtype:
    """Return what products are computed in, by the features `found` (None: those of this machine)."""
    return torch.bfloat16 if BF16_FEATURES & (features() if found is None else found) else torch.float32
