"""Pages of zeros go back to the system, and nothing else does."""

from __future__ import annotations

import mmap
from pathlib import Path

import psutil
import pytest

from edgepd.llama import Context, Entry, Model
from edgepd.llama.memory import BLOCK, SMALLEST, anonymous_mappings, release_zero_pages

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc here")


def test_only_zeros_are_given_back() -> None:
    before = anonymous_mappings()
    size = 2 * SMALLEST
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area[:] = bytes(size)  # makes every page resident
        area[SMALLEST + 5] = 7
        area[size - 1] = 9
        released = release_zero_pages(before)
        assert size - 4 * BLOCK <= released < size
        assert (area[SMALLEST + 5], area[size - 1]) == (7, 9)
        assert area[:SMALLEST] == bytes(SMALLEST)
        area[0] = 1
        assert area[0] == 1


def test_what_was_there_before_is_left_alone() -> None:
    with mmap.mmap(-1, 2 * SMALLEST, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area[:] = bytes(2 * SMALLEST)
        assert release_zero_pages(anonymous_mappings()) == 0


@pytest.mark.real_model
def test_a_context_costs_what_its_conversations_use(model_path: Path) -> None:
    process = psutil.Process()
    with Model(model_path) as model:
        before = process.memory_info().rss
        with Context(model, context_tokens=2048, sequences=4, threads=1) as context:
            # 22.5 KiB for each of 8192 tokens would be 184 MB.
            assert process.memory_info().rss - before < 60e6
            assert context.decode([Entry(100 + i, i, 0, i == 9) for i in range(10)])
