"""How long the stages of a run took."""

from __future__ import annotations

import time


class Laps:
    """Takes lap times in seconds; `laps` has them by name."""

    def __init__(self) -> None:
        """Begin the first lap."""
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Note the time since the last lap."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
