"""The hottest sensor of the processor and its surroundings.

The idea: the kernel's thermal zones (Documentation/driver-api/thermal/sysfs-api.rst), and those sensors of hwmon
(Documentation/hwmon/sysfs-interface.rst) that sit on a processor. All of them count in thousandths of a degree.
Invariant: nothing counts that training does not heat: no drive, no battery, no radio.
Which files to read is looked up once in LOOK_AGAIN_S: a module may be loaded later. Where a processor has a sensor for
the whole package, those of its cores are not read: to ask one wakes the core up.
What this does not do: know what is too hot. Limits of the hardware itself are the kernel's work.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgepd_daemon.sensors.files import entries, number, text

LOOK_AGAIN_S = 600.0
PLAUSIBLE_C = 150.0  # above, and at 0 and below, a sensor is not connected or broken
ELSEWHERE = re.compile(r"batter|^bat\d|charger|nvme|drive|ssd|wifi|wlan|ath\d|mt7\d|modem", re.IGNORECASE)
PROCESSORS = re.compile(r"coretemp|k8temp|k10temp|zenpower|cpu|soc", re.IGNORECASE)
# Of the whole processor: Intel's package, and AMD's real temperature next to Tctl, which may be 27 °C more
# (Documentation/hwmon/coretemp.rst and k10temp.rst).
WHOLE = re.compile(r"Package id \d+|Tdie")


class Thermal:
    """Reads the temperature sensors under a root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._inputs: dict[Path, str] = {}
        self._looked_s = float("-inf")

    def hottest_c(self, now_s: float) -> float | None:
        """Return the temperature of the hottest sensor in °C, or None if there is none. `now_s` does not jump."""
        if not self._inputs or now_s - self._looked_s > LOOK_AGAIN_S:
            self._inputs, self._looked_s = find(self._root), now_s
        degrees = [celsius for path in self._inputs if (celsius := _celsius(path)) is not None]
        if not degrees:
            self._inputs = {}  # look again next time
        return max(degrees, default=None)


def telling(root: Path) -> dict[Path, str]:
    """Return those of the files that tell a temperature now."""
    return {path: name for path, name in find(root).items() if _celsius(path) is not None}


def find(root: Path) -> dict[Path, str]:
    """Return the files under `root` that should tell a temperature, with a name for each."""
    inputs = {}
    for zone in entries(root / "sys/class/thermal"):
        kind = text(zone / "type") or ""
        if zone.name.startswith("thermal_zone") and not ELSEWHERE.search(kind):
            inputs[zone / "temp"] = kind or zone.name
    for monitor in entries(root / "sys/class/hwmon"):
        name = text(monitor / "name") or ""
        if PROCESSORS.search(name) and not ELSEWHERE.search(name):
            inputs.update(_of_monitor(monitor, name))
    return inputs


def _of_monitor(monitor: Path, name: str) -> dict[Path, str]:
    labels = {
        path: text(path.with_name(path.name.replace("_input", "_label"))) or ""
        for path in entries(monitor)
        if re.fullmatch(r"temp\d+_input", path.name)
    }
    whole = {path: label for path, label in labels.items() if WHOLE.fullmatch(label)}
    return {path: f"{name} {label}".strip() for path, label in (whole or labels).items()}


def _celsius(path: Path) -> float | None:
    thousandths = number(path)
    celsius = None if thousandths is None else thousandths / 1000
    return celsius if celsius is not None and 0 < celsius <= PLAUSIBLE_C else None
