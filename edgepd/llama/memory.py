"""Memory that goes back to the system: that of a KV cache that nothing has been written to yet, and what was freed.

The idea: llama.cpp clears a new KV cache, which makes every page of it resident though most conversations fill a
small part. A private anonymous page that holds zeros reads the same after MADV_DONTNEED: the kernel gives it back
and makes a new one, of zeros, at the next write. So a context costs what its conversations use, not what they could.
Invariant: only pages that hold nothing but zeros are given back, in mappings that appeared with the context; the
interpreter lock is held from the check to the release, so that no Python thread writes in between.
What this does not do: free anything, or work where /proc and madvise are missing; there nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

SMALLEST = 16 * 2**20  # bytes; a smaller mapping is not a KV cache worth the search, and may be another thread's
BLOCK = 256 * 2**10  # bytes that are checked and given back at a time
MAPS = Path("/proc/self/maps")

Mapping = tuple[int, int]  # first address, and the one after the last


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
    """Give back zero pages of the mappings that were not there `before`; return how many bytes that were."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return 0
    # PyDLL, unlike CDLL, keeps the interpreter lock during the call.
    libc = ctypes.PyDLL(None)
    libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    zeros = (ctypes.c_char * BLOCK)()
    given_back = 0
    for start, end in anonymous_mappings() - before:
        for address in range(start, end - BLOCK + 1, BLOCK):
            if libc.memcmp(address, zeros, BLOCK) == 0 and libc.madvise(address, BLOCK, mmap.MADV_DONTNEED) == 0:
                given_back += BLOCK
    return given_back


def trim() -> None:
    """Give freed memory back to the system, where the C library can (glibc's malloc_trim)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
