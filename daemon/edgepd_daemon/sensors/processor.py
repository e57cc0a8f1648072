"""How busy the processors are with the work of others.

The idea: the ticks that /proc/stat counts as busy since a look some seconds ago, less those of this process and the
trainer, over all ticks; over one second alone, a page that loads would look like a busy machine. As proc_stat(5) says:
guest is in user already, and guest_nice in nice; iowait is idle time, and may even fall. Steal, what the host of a
virtual machine took away, is time that passed, but no program's work. "All" are the processors that this process may
use (sched_getaffinity(2)): a container sees those of the whole machine, and what is busy elsewhere is in nobody's way.
The trainer may use no others.
Invariant: 0 to 100. The trainer's time is not lost when it ends: it is then in the time of this process's children.
What this does not do: know the share of time that a cgroup allows (cpu.max), or count other children of this process
before they end; they are few and short.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

from edgepd_daemon.sensors.files import text
from edgepd_daemon.sensors.processes import ticks

MEAN_S = 10.0  # over which the share is taken where looks follow each other faster
LEAST_S = 0.2  # between two looks; in less time, the 10 ms of a tick are too coarse
LINE = re.compile(r"^cpu([0-9]{1,6})((?: [0-9]{1,18}){4,})$", re.MULTILINE)


@dataclass(frozen=True)
class Look:
    """The counters at one moment, in ticks since the start of the machine or of the process."""

    at_s: float
    processors: tuple[int, ...]
    busy: int
    all: int
    own: int


class Processor:
    """Compares the counters under a root with those of an earlier look."""

    def __init__(self, root: Path, clock: Callable[[], float], allowed: Callable[[], Set[int]]) -> None:
        """`clock` returns seconds and does not jump; `allowed` the processors that this process may use."""
        self._root = root
        self._clock = clock
        self._allowed = allowed
        self._looks: deque[Look] = deque()  # the first one is that to compare with
        self._percent: float | None = None

    def others_percent(self, trainer_pid: int | None) -> float | None:
        """Return the share of all processors that others used in the last MEAN_S or since the last look, in percent.

        None if there was no other look before. Within LEAST_S of the last one the answer stays as it was.
        """
        now_s, looks = self._clock(), self._looks
        if looks and now_s - looks[-1].at_s < LEAST_S:
            return self._percent
        now = self._look(now_s, trainer_pid)
        if now is None:
            looks.clear()
            self._percent = None
            return None
        while len(looks) > 1 and now_s - looks[1].at_s >= MEAN_S:
            looks.popleft()
        self._percent = share_percent(looks[0], now) if looks else None
        if looks and self._percent is None:  # of other processors
            looks.clear()
        looks.append(now)
        return self._percent

    def processors(self) -> list[int]:
        """Return the numbers of the processors that count."""
        look = self._look(self._clock(), None)
        return list(look.processors) if look else []

    def _look(self, now_s: float, trainer_pid: int | None) -> Look | None:
        lines = {
            int(line[1]): [int(count) for count in line[2].split()]
            for line in LINE.finditer(text(self._root / "proc/stat") or "")
        }
        own = ticks(self._root)
        if not lines or own is None:
            return None
        allowed = self._allowed()
        # lxcfs counts the processors of a container from 0, whatever their numbers are outside.
        counted = {number: counts for number, counts in lines.items() if number in allowed} or lines
        busy = idle = stolen = 0
        for counts in counted.values():
            user, nice, system, not_used, iowait, irq, softirq, steal = (*counts, 0, 0, 0, 0)[:8]
            busy += user + nice + system + irq + softirq
            idle += not_used + iowait
            stolen += steal
        trainer = ticks(self._root, trainer_pid) if trainer_pid is not None else None
        return Look(now_s, tuple(sorted(counted)), busy, busy + idle + stolen, own + (trainer or 0))


def share_percent(before: Look, now: Look) -> float | None:
    """Return what others used between two looks, of all there was; None if the two cannot be compared."""
    if before.processors != now.processors or now.all <= before.all:
        return None  # another set of processors: nothing to compare
    others = (now.busy - before.busy) - max(0, now.own - before.own)
    return min(100.0, max(0.0, 100.0 * others / (now.all - before.all)))
