"""What a process costs that nobody asks anything: how often it wakes up, how long it computes, what it holds.

The idea: a thread that sleeps and is woken up counts one voluntary context switch (proc_pid_status(5)), so their sum
over all threads of a process and its children is its wake-ups; time on a processor is in nanoseconds in schedstat.
What this does not do: count what the kernel does on its behalf.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class AtRest:
    """One process with its children, over a while."""

    wake_ups: float  # a second
    cpu_percent: float  # of one core
    rss_mb: float


@dataclass(frozen=True)
class _Counted:
    at: float
    switches: Mapping[tuple[int, str], int]
    cpu_ns: Mapping[tuple[int, str], int]


def at_rest(pids: Mapping[str, int], seconds: float) -> dict[str, AtRest]:
    """Leave processes alone for a while, and tell what they did."""
    before = {name: _count(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    found = {}
    for name, pid in pids.items():
        first, last = before[name], _count(pid)
        took = last.at - first.at
        found[name] = AtRest(
            _grown(first.switches, last.switches) / took,
            100 * _grown(first.cpu_ns, last.cpu_ns) / 1e9 / took,
            sum(p.memory_info().rss for p in _family(pid)) / 1e6,
        )
    return found


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _count(pid: int) -> _Counted:
    switches: dict[tuple[int, str], int] = {}
    cpu_ns: dict[tuple[int, str], int] = {}
    for process in _family(pid):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            key = process.pid, task.name
            try:
                status = (task / "status").read_text()
                cpu_ns[key] = _on_cpu_ns(task)
            except OSError:
                continue  # a thread that has just ended
            lines = (line for line in status.splitlines() if line.startswith("voluntary_ctxt_switches:"))
            switches[key] = int(next(lines).split()[1])
    return _Counted(time.monotonic(), switches, cpu_ns)


def _on_cpu_ns(task: Path) -> int:
    """Return the first field of schedstat, or where the kernel has none, the ticks of stat."""
    try:
        return int((task / "schedstat").read_text().split()[0])
    except OSError:
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 10_000_000


def _grown(first: Mapping[tuple[int, str], int], last: Mapping[tuple[int, str], int]) -> int:
    return sum(value - first.get(key, 0) for key, value in last.items())
