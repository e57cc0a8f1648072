"""Memory that goes back to the system: that of a KV cache that nothing has been written to yet, and what was freed.

The idea: llama.cpp clears a new KV cache, which makes every page of it resident though most conversations fill a
small part. A private anonymous page that holds zeros reads the same after MADV_DONTNEED: the kernel gives it back
and makes a new one, of zeros, at the next write. So a context costs what its conversations use, not what they could.
Invariant: only pages that hold nothing but zeros are given back, at addresses that appeared with the context, and
nobody writes to or frees them between the check and the release: no Python thread, because the interpreter lock is
held, and no llama.cpp on another thread, because every call of it that takes, fills or frees memory counts as `Native`
work, and pages are given back only while there is none.
What this does not do: free anything, or work where /proc and madvise are missing; there nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SMALLEST = 16 * 2**20  # bytes; a smaller mapping is not a KV cache worth the search, and may be another thread's
BLOCK = 256 * 2**10  # bytes that are checked and given back at a time
MAPS = Path("/proc/self/maps")

PATIENCE_S = 0.03  # for which llama.cpp on other threads is kept waiting; a model that loads takes longer, and wins

Mapping = tuple[int, int]  # first address, and the one after the last


class Native:
    """llama.cpp's work on any thread, and the moments in which there is none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._wanted_alone = 0

    @property
    def busy(self) -> bool:
        """Whether llama.cpp is at work on some thread."""
        return self._working > 0

    @contextmanager
    def work(self) -> Iterator[None]:
        """Count as work; wait shortly if somebody wants to be alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._wanted_alone)
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self, patience_s: float) -> Iterator[bool]:
        """Keep others from beginning; yield whether those at work have come to an end in time."""
        with self._changed:
            self._wanted_alone += 1
            ended = self._changed.wait_for(lambda: not self._working, patience_s)
        try:
            yield ended
        finally:
            with self._changed:
                self._wanted_alone -= 1
                self._changed.notify_all()


NATIVE = Native()  # one for the process, as its memory is


def anonymous_mappings() -> set[Mapping]:
    """Return the large private anonymous writable mappings of this process."""
    found: set[Mapping] = set()
    if not MAPS.exists():
        return found
    for line in MAPS.read_text().splitlines():
        fields = line.split()
        start, end = (int(address, 16) for address in fields[0].split("-"))
        if fields[1] == "rw-p" and len(fields) == 5 and end - start >= SMALLEST:
            found.add((start, end))
    return found


def release_zero_pages(before: set[Mapping]) -> int:
    """Give back zero pages at addresses that were in no mapping `before`; return how many bytes that were.

    It is nothing if llama.cpp is at work on another thread and does not come to an end within PATIENCE_S.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return 0
    with NATIVE.alone(PATIENCE_S) as undisturbed:
        return _release(fresh(anonymous_mappings(), before)) if undisturbed else 0


def fresh(now: set[Mapping], before: set[Mapping]) -> list[Mapping]:
    """Return the large ranges of addresses that are in a mapping now and were in none before.

    The kernel joins neighbours, so one that is larger now may have been there in part.
    """
    found = []
    for start, end in sorted(now):
        at = start
        for first, last in sorted(before):
            if first < end and last > at:
                found.append((at, first))
                at = max(at, last)
        found.append((at, end))
    return [(start, end) for start, end in found if end - start >= SMALLEST]


def _release(ranges: list[Mapping]) -> int:
    # PyDLL, unlike CDLL, keeps the interpreter lock during the call.
    libc = ctypes.PyDLL(None)
    libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    zeros = (ctypes.c_char * BLOCK)()
    given_back = 0
    for start, end in ranges:
        for address in range(start, end - BLOCK + 1, BLOCK):
            if libc.memcmp(address, zeros, BLOCK) == 0 and libc.madvise(address, BLOCK, mmap.MADV_DONTNEED) == 0:
                given_back += BLOCK
    return given_back


def trim() -> None:
    """Give freed memory back to the system, where the C library can (glibc's malloc_trim)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
