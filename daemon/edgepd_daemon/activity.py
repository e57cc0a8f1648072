"""When the model was used last, in time that goes on while the machine sleeps.

What this does not do: tell who used it, or keep anything over a restart: a daemon that has just started counts as used.
"""

from __future__ import annotations

from edgepd_daemon.sensors.clocks import boottime


class Activity:
    """The last use. Safe to use from any thread."""

    def __init__(self) -> None:
        """Begin now."""
        self._at = boottime()

    def note(self) -> None:
        """Note a request, or that the machine has just woken up, because then somebody has come."""
        self._at = boottime()

    def idle_s(self) -> float:
        """Return for how many seconds there was none."""
        return max(0.0, boottime() - self._at)
