"""What the machine says about itself now: one object that reads all sensors into one record.

The idea: every sensor is a few files of the kernel below a root, which is / but for tests. One reading is some dozen
small reads, well below 2 ms, and starts no process: it may be made every second.
Invariant: a sensor that is missing, fails or talks nonsense is None in the record; reading never raises for it.
What this does not do: judge what it reads (see scheduler), remember more than the last look at the processors, or read
from two threads at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Set
from pathlib import Path

from edgepd_daemon.scheduler.types import Readings
from edgepd_daemon.sensors import clocks, files, power, pressure, processes, thermal
from edgepd_daemon.sensors.memory import Memory
from edgepd_daemon.sensors.processor import Processor

MIB = 2**20


def allowed_processors() -> Set[int]:
    """Return the processors that this process may use."""
    return os.sched_getaffinity(0)


class Sensors:
    """Reads the machine."""

    def __init__(
        self,
        directory: Path,
        *,
        root: Path = Path("/"),
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        allowed: Callable[[], Set[int]] = allowed_processors,
    ) -> None:
        """`directory` is where the profile is, or will be; /proc and /sys are read below `root`.

        `wall` and `monotonic` return seconds, `allowed` the processors that this process may use.
        """
        self._directory = directory
        self._root = root
        self._wall = wall
        self._monotonic = monotonic
        self._thermal = thermal.Thermal(root)
        self._memory = Memory(root)
        self._processor = Processor(root, monotonic, allowed)

    def read(self, *, busy: bool, idle_s: float, trainer_pid: int | None) -> Readings:
        """Read all sensors. `busy` and `idle_s` are what the daemon knows; `trainer_pid` is its child, if there is one.

        The first reading knows no `other_cpu_percent`: it is of the time since the reading before.
        """
        at = self._wall()
        supply = power.read(self._root)
        free = files.free_bytes(self._directory)
        return Readings(
            at=at,
            minute_of_day=clocks.minute_of_day(at),
            busy=busy,
            idle_s=0.0 if busy else idle_s,
            on_ac=supply.on_ac,
            battery_percent=supply.battery_percent,
            temperature_c=self._thermal.hottest_c(self._monotonic()),
            other_cpu_percent=self._processor.others_percent(trainer_pid),
            available_mb=self._memory.available_mb(),
            memory_pressure=pressure.some_percent(self._root, "memory"),
            io_pressure=pressure.some_percent(self._root, "io"),
            free_disk_mb=None if free is None else free / MIB,
            trainer_rss_mb=None if trainer_pid is None else processes.resident_mb(self._root, trainer_pid),
        )

    def trainer_cpu_s(self, pid: int) -> float | None:
        """Return the processor seconds that a process has used, in steps of 10 ms; None if it is gone."""
        return processes.cpu_s(self._root, pid)

    def describe(self) -> dict[str, list[str]]:
        """Return for each field of Readings that has a sensor what it is read from; nothing: there is no sensor.

        Reads everything anew: `edgepd doctor` asks once.
        """
        supplies = power.find(self._root)
        feeding = [*supplies.mains, *supplies.usb, *supplies.batteries]
        now = power.read(self._root)
        hot = thermal.telling(self._root)
        return {
            "on_ac": [supply.name for supply in feeding] if now.on_ac is not None else [],
            "battery_percent": [supply.name for supply in supplies.batteries]
            if now.battery_percent is not None
            else [],
            "temperature_c": [f"{path} ({name})" for path, name in hot.items()],
            "other_cpu_percent": [f"cpu{number}" for number in self._processor.processors()],
            "available_mb": [str(path) for path in self._memory.sources()],
            "memory_pressure": self._pressure("memory"),
            "io_pressure": self._pressure("io"),
            "free_disk_mb": [str(self._directory)] if files.free_bytes(self._directory) is not None else [],
        }

    def _pressure(self, resource: str) -> list[str]:
        known = pressure.some_percent(self._root, resource) is not None
        return [str(pressure.path_of(self._root, resource))] if known else []
