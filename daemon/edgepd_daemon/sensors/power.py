"""Whether the machine runs on mains power, and how full its batteries are.

The idea: /sys/class/power_supply, as the kernel's Documentation/ABI/testing/sysfs-class-power describes it. Whoever
says that power comes in, or goes out, is believed in this order: mains, a battery that discharges, USB, a battery that
charges. USB comes after a battery that discharges: the machine may be the source, or the charger too weak.
Invariant: a battery of something else (a mouse, a headset: scope Device) counts for nothing.
What this does not do: guess. Without power supplies, or if none of them can be read, the answer is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepd_daemon.sensors.files import entries, number, text

CLASS = "sys/class/power_supply"
BATTERIES = ("Battery", "UPS")
MAINS = ("Mains", "Wireless")
# Energy in µWh or charge in µAh, whichever the battery counts in.
CONTENTS = (("energy_now", "energy_full"), ("charge_now", "charge_full"))


@dataclass(frozen=True)
class Power:
    """Where the power comes from. None: not known."""

    on_ac: bool | None
    battery_percent: float | None


@dataclass(frozen=True)
class Supplies:
    """The power supplies of the machine."""

    mains: tuple[Path, ...]
    usb: tuple[Path, ...]
    batteries: tuple[Path, ...]


def read(root: Path) -> Power:
    """Read the power supplies under `root`."""
    supplies = find(root)
    return Power(_on_ac(supplies), _percent(supplies.batteries))


def find(root: Path) -> Supplies:
    """Return the power supplies under `root` that feed the machine. Batteries that are not in it are left out."""
    mains, usb, batteries = [], [], []
    for supply in entries(root / CLASS):
        kind = text(supply / "type") or ""
        if text(supply / "scope") == "Device":
            continue
        if kind in BATTERIES and number(supply / "present") != 0:
            batteries.append(supply)
        elif kind in MAINS:
            mains.append(supply)
        elif kind.startswith("USB"):  # USB_PD, USB_C, USB_DCP: the names of older kernels
            usb.append(supply)
    return Supplies(tuple(mains), tuple(usb), tuple(batteries))


def _on_ac(supplies: Supplies) -> bool | None:
    mains, usb = _online(supplies.mains), _online(supplies.usb)
    states = {text(battery / "status") for battery in supplies.batteries}
    if mains:
        return True
    if "Discharging" in states:
        return False
    if usb or "Charging" in states:
        return True
    if not supplies.batteries:
        # A port that feeds nothing, on a machine without a battery: it gets its power in a way that nobody reports.
        return True if mains is False or usb is False else None
    if mains is False:
        return False
    # Not charging: full enough by the user's own limit.
    return True if states & {"Full", "Not charging"} else None


def _online(supplies: tuple[Path, ...]) -> bool | None:
    """Whether one of them feeds the machine; None if none of them says. 2 is on, too: at a voltage that can be set."""
    known = [online for supply in supplies if (online := number(supply / "online")) is not None]
    return any(online > 0 for online in known) if known else None


def _percent(batteries: tuple[Path, ...]) -> float | None:
    """How full the batteries are together: weighted with their sizes if all of them count in the same unit."""
    if len(batteries) > 1:
        for names in CONTENTS:
            contents = [found for battery in batteries if (found := _content(battery, *names))]
            if len(contents) == len(batteries):
                return min(100.0, 100.0 * sum(now for now, _ in contents) / sum(full for _, full in contents))
    shares = [share for battery in batteries if (share := _share(battery)) is not None]
    return sum(shares) / len(shares) if shares else None


def _share(battery: Path) -> float | None:
    capacity = number(battery / "capacity")
    if capacity is not None and capacity >= 0:
        return min(100.0, float(capacity))  # one that was never calibrated may say 102
    for names in CONTENTS:
        if content := _content(battery, *names):
            return min(100.0, 100.0 * content[0] / content[1])
    return None


def _content(battery: Path, now_name: str, full_name: str) -> tuple[int, int] | None:
    now, full = number(battery / now_name), number(battery / full_name)
    return (now, full) if now is not None and full is not None and now >= 0 and full > 0 else None
