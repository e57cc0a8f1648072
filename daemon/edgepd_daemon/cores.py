"""How many threads are worth using on this machine."""

from __future__ import annotations

import os

import psutil


def physical_cores() -> int:
    """Return the number of physical cores that this process may use, at least 1.

    A second thread on one core slows llama.cpp and torch down; a container may allow fewer than there are.
    """
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))
