"""The time of day, and what happened to the clocks: the machine slept, or somebody set the time.

The idea: three clocks (clock_gettime(2)). CLOCK_MONOTONIC stands still while the machine sleeps, CLOCK_BOOTTIME goes
on, and both are slewed with CLOCK_REALTIME, so that their differences to it change only when it is set. What the first
two differ by more than before was sleep; what the last two do was somebody who set the clock.
Invariant: what `look` has told in all is what happened in all, to within LEAST_S: less than that adds up.
What this does not do: notice sleep as it happens. Nothing runs then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

LEAST_S = 1.0  # a smaller jump is told of when it has grown to this; a leap second is one
TOGETHER_S = 0.001  # within which clocks must be read to be compared
TRIES = 5


@dataclass(frozen=True)
class Jump:
    """What happened since the last look, in seconds. 0: nothing worth telling."""

    suspended_s: float = 0.0  # that the machine slept; never negative
    clock_s: float = 0.0  # by which the clock was set: forward if positive


def minute_of_day(at: float) -> int:
    """Return the minutes since midnight, local time, at a moment in unix seconds."""
    time.tzset()  # or the time zone stays the one of the start, and quiet hours with it, when the user travels
    local = time.localtime(at)
    return local.tm_hour * 60 + local.tm_min


def boottime() -> float:
    """Return CLOCK_BOOTTIME in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Jumps:
    """Compares the clocks with how they stood at the last look."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        boot: Callable[[], float] = boottime,
    ) -> None:
        """The first look compares with now. The clocks return seconds."""
        self._wall, self._monotonic, self._boot = wall, monotonic, boot
        self._slept_s, self._offset_s = self._differences()

    def look(self) -> Jump:
        """Return what has happened to the clocks since the last look."""
        slept_s, offset_s = self._differences()
        suspended_s, clock_s = slept_s - self._slept_s, offset_s - self._offset_s
        suspended_s = suspended_s if suspended_s >= LEAST_S else 0.0
        clock_s = clock_s if abs(clock_s) >= LEAST_S else 0.0
        self._slept_s += suspended_s
        self._offset_s += clock_s
        return Jump(suspended_s, clock_s)

    def _differences(self) -> tuple[float, float]:
        """Boot time less monotonic time, and wall time less boot time."""
        for _ in range(TRIES):
            begun, boot, wall = self._monotonic(), self._boot(), self._wall()
            if 0 <= self._monotonic() - begun < TOGETHER_S:
                break  # nobody took the processor away in between
        return boot - begun, wall - boot
