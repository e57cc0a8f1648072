"""Pages of zeros go back to the system, and nothing else does."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import psutil
import pytest

from edgepd.llama import Context, Entry, Model
from edgepd.llama.memory import BLOCK, NATIVE, SMALLEST, Native, anonymous_mappings, fresh, release_zero_pages

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


def test_nothing_is_given_back_while_another_thread_may_write_or_free_it() -> None:
    before = anonymous_mappings()
    with mmap.mmap(-1, 2 * SMALLEST, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area[:] = bytes(2 * SMALLEST)
        with NATIVE.work():
            assert release_zero_pages(before) == 0
        assert release_zero_pages(before) > 0


def test_work_waits_for_who_is_alone_and_not_for_longer() -> None:
    native, begun = Native(), threading.Event()

    def work() -> None:
        with native.work():
            begun.set()

    with native.alone(0.0) as undisturbed:
        assert undisturbed
        worker = threading.Thread(target=work)
        worker.start()
        assert not begun.wait(0.05)
    assert begun.wait(10)
    worker.join()
    with native.work(), native.alone(0.01) as undisturbed:
        assert not undisturbed


def test_only_new_addresses_count_where_the_kernel_has_joined_neighbours() -> None:
    size = SMALLEST
    before = {(4 * size, 6 * size), (9 * size, 10 * size)}
    assert fresh(before, before) == []
    assert fresh({(2 * size, 6 * size)}, before) == [(2 * size, 4 * size)]
    assert fresh({(2 * size, 12 * size)}, before) == [
        (2 * size, 4 * size),
        (6 * size, 9 * size),
        (10 * size, 12 * size),
    ]
    assert fresh({(3 * size + 1, 6 * size)}, before) == []  # what is new is too small


@pytest.mark.real_model
def test_a_context_costs_what_its_conversations_use(model_path: Path) -> None:
    process = psutil.Process()
    with Model(model_path) as model:
        before = process.memory_info().rss
        assert not NATIVE.busy, "an engine of another test is still at work"
        with Context(model, context_tokens=2048, sequences=4, threads=1) as context:
            # 22.5 KiB for each of 8192 tokens would be 184 MB.
            assert process.memory_info().rss - before < 60e6
            assert context.decode([Entry(100 + i, i, 0, i == 9) for i in range(10)])
