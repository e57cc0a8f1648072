"""How much CPU time a process has used, and whether it may use more.

The idea: both are functions of samples (a time, and the CPU seconds used so far), so they can be tested without a clock
or a process. The invariant: over any minute the mean stays within three points of the share that is allowed, however
irregular the samples are, as long as they are not seconds apart.
What this does not do: take samples, or stop anything (see throttle.py).
"""

from __future__ import annotations

from collections import deque

PERIOD_S = 1.0  # within which the duty cycle runs and stops once
LATE_S = 0.5  # by which a sample may be late without anything being lost for the process
WINDOW_S = 60.0  # of which the use is the mean


class DutyCycle:
    """Decides, from how much CPU time a process has used, whether it may go on.

    A bucket fills with CPU seconds as the budget allows, up to little more than a period's, and is emptied by use.
    What is used too much between two looks is owed, so that over a minute it makes no difference; time in which nothing
    is used earns no more than the bucket holds.
    """

    def __init__(self, cpu_percent: float, cores: int) -> None:
        """The process may use this share of so many cores."""
        share = cpu_percent / 100
        self._rate = share * cores  # CPU seconds per second
        # Full out, this much is gone when the share of a period is over: what comes in meanwhile is counted.
        self._enough = share * (1 - share) * cores * PERIOD_S
        self._most = self._enough + self._rate * LATE_S
        self._credit = self._enough
        self._last: tuple[float, float] | None = None
        self._free = share >= 1
        self._runs = True

    def may_run(self, now: float, cpu_s: float) -> bool:
        """Take in how much CPU time the process has used so far, at a time in seconds; return whether it may run."""
        before, self._last = self._last or (now, cpu_s), (now, cpu_s)
        earned, used = self._rate * (now - before[0]), cpu_s - before[1]
        self._credit = min(self._most, self._credit + earned - used)
        if self._credit <= 0:
            self._runs = False
        elif self._credit >= self._enough:
            self._runs = True
        return self._runs or self._free


class Usage:
    """The mean CPU use of the last minute."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, now: float, cpu_s: float) -> None:
        """Take in a sample; one a second is kept."""
        if not self._samples or now - self._samples[-1][0] >= 1:
            self._samples.append((now, cpu_s))
        while len(self._samples) > 1 and now - self._samples[1][0] >= WINDOW_S:
            self._samples.popleft()

    def cpus(self) -> float | None:
        """Return CPU seconds per second, None in the first second."""
        if len(self._samples) < 2:
            return None
        (start, used_before), (end, used) = self._samples[0], self._samples[-1]
        return (used - used_before) / (end - start)
