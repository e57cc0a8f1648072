"""Where the power comes from, and how full the batteries are."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepd_daemon.sensors.power import Power, read
from tests.daemon.fake_machines import BATTERY, MOUSE, plant, supplies

ONLINE, OFFLINE = {"type": "Mains", "online": "1"}, {"type": "Mains", "online": "0"}
USB_ONLINE, USB_OFFLINE = {"type": "USB", "online": "1"}, {"type": "USB", "online": "0"}


def battery(status: str, **more: str) -> dict[str, str]:
    return {**BATTERY, "status": status, **more}


def power(root: Path, **of: dict[str, str]) -> Power:
    return read(plant(root, supplies(**of)))


def test_a_machine_without_power_supplies_does_not_know(tmp_path: Path) -> None:
    assert read(tmp_path) == Power(None, None)


@pytest.mark.parametrize(
    ("of", "on_ac"),
    [
        ({"AC": ONLINE, "BAT0": battery("Charging")}, True),
        ({"AC": ONLINE, "BAT0": battery("Not charging")}, True),
        ({"AC": ONLINE, "BAT0": battery("Discharging")}, True),  # a weak charger: the charge itself is a limit, too
        ({"AC": OFFLINE, "BAT0": battery("Discharging")}, False),
        ({"AC": OFFLINE, "BAT0": battery("Full")}, False),  # just taken off
        ({"AC": OFFLINE, "BAT0": battery("Unknown")}, False),
        ({"AC": OFFLINE, "USB1": USB_ONLINE, "BAT0": battery("Charging")}, True),
        ({"AC": OFFLINE, "USB1": USB_ONLINE, "BAT0": battery("Full")}, True),
        ({"AC": OFFLINE, "USB1": USB_ONLINE, "BAT0": battery("Discharging")}, False),  # feeds a telephone
        ({"USB1": {"type": "USB_PD", "online": "2"}, "BAT0": battery("Charging")}, True),
        ({"USB1": USB_OFFLINE, "BAT0": battery("Charging")}, True),
        ({"USB1": USB_OFFLINE, "BAT0": battery("Discharging")}, False),
        ({"USB1": USB_OFFLINE}, True),  # no battery, and it runs
        ({"BAT0": battery("Full")}, True),
        ({"BAT0": battery("Charging")}, True),
        ({"BAT0": battery("Not charging")}, True),
        ({"BAT0": battery("Discharging")}, False),
        ({"BAT0": battery("Not charging"), "BAT1": battery("Discharging")}, False),
        ({"BAT0": battery("Unknown")}, None),
        ({"hidpp_battery_0": MOUSE}, None),
        ({"AC": {"type": "Mains", "online": "1", "scope": "Device"}, "BAT0": battery("Discharging")}, False),
        ({"BAT0": battery("Discharging", present="0")}, None),
    ],
)
def test_who_feeds_the_machine(tmp_path: Path, of: dict[str, dict[str, str]], on_ac: bool | None) -> None:
    assert power(tmp_path, **of).on_ac is on_ac


def test_the_charge_is_that_of_the_battery_and_not_of_the_mouse(tmp_path: Path) -> None:
    assert power(tmp_path, BAT0=BATTERY, hidpp_battery_0=MOUSE).battery_percent == 63


def test_two_batteries_count_by_their_size(tmp_path: Path) -> None:
    small = battery("Full", capacity="100", energy_now="20000000", energy_full="20000000")
    large = battery("Discharging", capacity="20", energy_now="12000000", energy_full="60000000")
    assert power(tmp_path, BAT0=small, BAT1=large).battery_percent == 40  # 32 of 80 Wh


def test_batteries_that_count_charge_are_weighted_too(tmp_path: Path) -> None:
    one = battery("Full", capacity="100", charge_now="1000000", charge_full="1000000")
    other = battery("Discharging", capacity="50", charge_now="1500000", charge_full="3000000")
    assert power(tmp_path, BAT0=one, BAT1=other).battery_percent == 62.5


def test_batteries_of_unlike_units_count_alike(tmp_path: Path) -> None:
    one = battery("Full", capacity="90", charge_now="1000000", charge_full="1000000")
    other = battery("Discharging", capacity="50", energy_now="10000000", energy_full="20000000")
    assert power(tmp_path, BAT0=one, BAT1=other).battery_percent == 70


def test_a_battery_without_capacity_is_asked_for_its_energy(tmp_path: Path) -> None:
    assert power(tmp_path, BAT0={"type": "Battery", "energy_now": "3", "energy_full": "4"}).battery_percent == 75


@pytest.mark.parametrize(("capacity", "percent"), [("102", 100.0), ("-1", None), ("lots", None), ("", None)])
def test_a_capacity_that_cannot_be(tmp_path: Path, capacity: str, percent: float | None) -> None:
    assert power(tmp_path, BAT0={"type": "Battery", "capacity": capacity}).battery_percent == percent


def test_a_battery_of_no_size_does_not_divide(tmp_path: Path) -> None:
    empty = {"type": "Battery", "energy_now": "0", "energy_full": "0"}
    assert power(tmp_path, BAT0=empty, BAT1=empty).battery_percent is None
