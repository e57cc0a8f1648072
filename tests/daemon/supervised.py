"""A supervisor that says what the test tells it to, for the API over it.

What this does not do: read sensors, decide, or hold anything (see test_supervisor.py for the real one).
"""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from typing import Any

from edgepd_daemon.scheduler.types import Demand, Readings

READINGS = Readings(
    at=2000.0,
    minute_of_day=600,
    busy=False,
    idle_s=12.0,
    on_ac=True,
    battery_percent=62.0,
    temperature_c=56.5,
    other_cpu_percent=12.5,
    available_mb=3210.0,
    memory_pressure=0.0,
    io_pressure=0.25,
    free_disk_mb=51200.0,
)
BLIND = replace(READINGS, on_ac=None, battery_percent=None, temperature_c=None)  # a board without such sensors
DECISION = {
    "at": 1990.0,
    "action": "wait",
    "constraint": "mains",
    "reason": "waits for mains power: on battery at 62 %",
    "kind": "live",
    "due": True,
}
TRAINER = {"pid": 4711, "paused": None, "cpu_percent": 41.0, "rss_mb": 512.0}


class FakeSupervisor:
    """Remembers what it was asked to do, and on which thread."""

    def __init__(self, readings: Readings = READINGS, **changed: Any) -> None:
        """`changed` replaces what it says."""
        self.asked: list[float | None | str] = []
        self.threads: set[str] = set()
        self._said = {
            "preset": "laptop",
            "automatic": True,
            "paused": False,
            "paused_until": None,
            "decision": DECISION,
            "decisions": [DECISION | {"at": 1990.0 - age} for age in range(20)],
            "readings": asdict(readings),
            "today": {"at_work_s": 726.0, "limit_s": 3600.0, "cpu_s": 600.0},
            "demand": asdict(Demand(4.5, 12.0, 40)),
            "trainer": None,
            "pauses": 3,
        } | changed

    def view(self) -> dict[str, Any]:
        """Say everything."""
        self.threads.add(threading.current_thread().name)
        return dict(self._said)

    def pause(self, minutes: float | None) -> None:
        """Be paused."""
        self.threads.add(threading.current_thread().name)
        self.asked.append(minutes)
        self._said |= {"paused": True, "paused_until": None if minutes is None else 2000.0 + 60 * minutes}

    def refuse_if_paused(self) -> None:
        """Refuse nothing."""

    def look_soon(self) -> None:
        """Nothing depends on it here."""

    def forgotten(self, *, everything: bool) -> None:
        """Foresee nothing here."""

    def resume(self) -> None:
        """Be paused no longer."""
        self.threads.add(threading.current_thread().name)
        self.asked.append("resume")
        self._said |= {"paused": False, "paused_until": None}
