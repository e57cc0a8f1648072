"""Which sensors count as the temperature of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepd_daemon.sensors.thermal import LOOK_AGAIN_S, Thermal, telling
from tests.daemon.fake_machines import monitor, plant, zone


def hottest(root: Path, *files: dict[str, str]) -> float | None:
    for each in files:
        plant(root, each)
    return Thermal(root).hottest_c(0.0)


def test_no_sensor(tmp_path: Path) -> None:
    assert hottest(tmp_path) is None


def test_the_hottest_zone_counts(tmp_path: Path) -> None:
    assert hottest(tmp_path, zone(0, "acpitz", 40000), zone(1, "cpu-thermal", 67500), zone(10, "gpu", 50000)) == 67.5


@pytest.mark.parametrize("kind", ["iwlwifi_1", "battery", "BAT0", "nvme", "ath10k_thermal", "charger_ntc", "ssd"])
def test_a_zone_that_training_does_not_heat_counts_for_nothing(tmp_path: Path, kind: str) -> None:
    assert hottest(tmp_path, zone(0, "x86_pkg_temp", 50000), zone(1, kind, 95000)) == 50


@pytest.mark.parametrize("name", ["nvme", "drivetemp", "BAT0", "amdgpu", "iwlwifi_1", "jc42"])
def test_a_monitor_of_something_else_counts_for_nothing(tmp_path: Path, name: str) -> None:
    assert hottest(tmp_path, monitor(0, "coretemp", temp1=50000), monitor(1, name, temp1=95000)) == 50


@pytest.mark.parametrize("name", ["coretemp", "k10temp", "cpu_thermal", "soc_thermal", "zenpower"])
def test_monitors_of_processors(tmp_path: Path, name: str) -> None:
    assert hottest(tmp_path, monitor(3, name, temp1=50000, temp2=55000)) == 55


@pytest.mark.parametrize("thousandths", ["0", "-40000", "151000", "2147483647", "", "N/A", "9" * 5000])
def test_values_that_cannot_be(tmp_path: Path, thousandths: str) -> None:
    assert hottest(tmp_path, zone(0, "cpu-thermal", thousandths)) is None
    assert hottest(tmp_path, zone(1, "gpu-thermal", 41000)) == 41


def test_the_real_temperature_counts_and_not_the_one_for_the_fan(tmp_path: Path) -> None:
    assert hottest(tmp_path, monitor(0, "k10temp", temp1=("Tctl", 92000), temp2=("Tdie", 65000))) == 65


def test_cores_are_not_asked_where_the_package_tells(tmp_path: Path) -> None:
    files = monitor(0, "coretemp", temp1=("Package id 0", 62000), temp2=("Core 0", 60000), temp3=("Core 1", 61000))
    directory = tmp_path / "sys/class/hwmon/hwmon0"
    assert telling(plant(tmp_path, files)) == {directory / "temp1_input": "coretemp Package id 0"}


def test_a_sensor_that_comes_later_is_found(tmp_path: Path) -> None:
    thermal = Thermal(plant(tmp_path, zone(0, "acpitz", 30000)))
    assert thermal.hottest_c(0.0) == 30
    plant(tmp_path, monitor(0, "coretemp", temp1=80000))
    assert thermal.hottest_c(LOOK_AGAIN_S + 1) == 80


def test_a_sensor_that_comes_back_under_another_name_is_found_at_once(tmp_path: Path) -> None:
    thermal = Thermal(plant(tmp_path, monitor(0, "coretemp", temp1=60000)))
    assert thermal.hottest_c(0.0) == 60
    (tmp_path / "sys/class/hwmon/hwmon0").rename(tmp_path / "sys/class/hwmon/hwmon7")
    assert thermal.hottest_c(1.0) is None
    assert thermal.hottest_c(2.0) == 60
