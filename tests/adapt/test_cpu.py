"""Run: python -m pytest tests/adapt/test_cpu.py"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgepd.adapt.cpu import compute_dtype, features

# Shortened, as /proc/cpuinfo has them on the kernel's three kinds of machine that matter here.
X86 = """processor\t: 0
vendor_id\t: GenuineIntel
flags\t\t: fpu sse2 avx2 fma
vmx flags\t: vnmi avx512_bf16

processor\t: 1
flags\t\t: fpu avx512_bf16
"""
SAPPHIRE_RAPIDS = "processor\t: 0\nflags\t\t: avx2 avx512_bf16 amx_bf16 amx_tile\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd {}\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("content", "found", "dtype"),
    [
        (X86, {"fpu", "sse2", "avx2", "fma"}, torch.float32),
        (SAPPHIRE_RAPIDS, {"avx2", "avx512_bf16", "amx_bf16", "amx_tile"}, torch.bfloat16),
        (ARM.format("asimdhp"), {"fp", "asimd", "asimdhp"}, torch.float32),
        (ARM.format("svebf16 bf16"), {"fp", "asimd", "svebf16", "bf16"}, torch.bfloat16),
        ("hart\t: 0\nisa\t: rv64imafdc\n", set(), torch.float32),
        ("", set(), torch.float32),
    ],
)
def test_features_of_the_first_cpu_decide(tmp_path: Path, content: str, found: set[str], dtype: torch.dtype) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(content)
    assert features(path) == found
    assert compute_dtype(features(path)) == dtype


def test_a_system_that_does_not_say_gets_float32(tmp_path: Path) -> None:
    assert features(tmp_path / "missing") == frozenset()
    assert compute_dtype(features(tmp_path / "missing")) == torch.float32


def test_without_arguments_it_is_about_this_machine() -> None:
    assert compute_dtype() == compute_dtype(features())
