"""What one process uses: processor time and resident memory, from proc_pid_stat(5) and proc_pid_statm(5).

What this does not do: keep a process apart from a later one with the same number. Who asks knows its own children.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgepd_daemon.sensors.files import text

MIB = 2**20
# Fields 14 to 17 of stat, utime, stime, cutime and cstime, as they come after the second field, the name.
TIMES = re.compile(r"(?: \S+){11} ([0-9]{1,18}) ([0-9]{1,18}) ([0-9]{1,18}) ([0-9]{1,18})\b")


def ticks(root: Path, pid: int | None = None) -> int | None:
    """Return the processor time of a process, this one if none is given, in ticks; None if it is gone.

    It is that of all its threads and of all its children that it has waited for.
    """
    stat = text(root / "proc" / ("self" if pid is None else str(pid)) / "stat") or ""
    # The name is in brackets and may hold anything, also brackets.
    times = TIMES.match(stat.rpartition(")")[2])
    return sum(int(time) for time in times.groups()) if times else None


def cpu_s(root: Path, pid: int) -> float | None:
    """Return the same in seconds. It grows in steps of a tick, which is 10 ms."""
    used = ticks(root, pid)
    return None if used is None else used / os.sysconf("SC_CLK_TCK")


def resident_mb(root: Path, pid: int) -> float | None:
    """Return the resident memory of a process in MiB, with the pages of files; None if it has ended."""
    sizes = re.match(r"[0-9]{1,15} ([0-9]{1,15}) ", text(root / "proc" / str(pid) / "statm") or "")
    pages = int(sizes[1]) if sizes else 0  # 0 for one that nobody has waited for yet
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB if pages else None
