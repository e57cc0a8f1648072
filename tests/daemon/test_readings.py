"""One reading of the whole machine: machines that are not there, and the one that is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepd_daemon.readings import Sensors
from edgepd_daemon.scheduler.types import Readings
from tests.daemon.fake_machines import (
    ANY,
    LAPTOP_ON_BATTERY,
    LAPTOP_ON_MAINS,
    RASPBERRY_PI,
    plant,
    process,
    processors,
    supplies,
)

AT = 1_767_268_800.0  # 2026-01-01 12:00:00 UTC
SENSED = (
    *("on_ac", "battery_percent", "temperature_c", "other_cpu_percent", "available_mb"),
    *("memory_pressure", "io_pressure", "free_disk_mb"),
)


@pytest.fixture(autouse=True)
def greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC0")
    yield
    monkeypatch.undo()
    time.tzset()


def sensors(root: Path, clock: Iterator[float] | None = None) -> Sensors:
    """`clock` is asked twice for each reading: for the sensors of heat, and for the processors."""
    seconds = clock or (float(number) for number in range(10**6))
    return Sensors(root, root=root, wall=lambda: AT, monotonic=lambda: next(seconds), allowed=lambda: frozenset({0, 1}))


def reading(root: Path, contents: dict[str, str]) -> Readings:
    """Return the first reading, without the disk, which is that of the test."""
    found = sensors(plant(root, contents)).read(busy=False, idle_s=90.0, trainer_pid=None)
    assert found.free_disk_mb is not None
    assert found.free_disk_mb > 0
    return replace(found, free_disk_mb=None)


PLAIN = Readings(
    at=AT, minute_of_day=720, busy=False, idle_s=90.0, available_mb=2000.0, memory_pressure=1.5, io_pressure=12.34
)


def test_a_laptop_on_battery(tmp_path: Path) -> None:
    expected = replace(PLAIN, on_ac=False, battery_percent=63.0, temperature_c=62.0)
    assert reading(tmp_path, LAPTOP_ON_BATTERY) == expected


def test_a_laptop_on_mains(tmp_path: Path) -> None:
    assert reading(tmp_path, LAPTOP_ON_MAINS) == replace(PLAIN, on_ac=True, battery_percent=80.0, temperature_c=62.0)


def test_a_raspberry_pi(tmp_path: Path) -> None:
    assert reading(tmp_path, RASPBERRY_PI) == replace(PLAIN, temperature_c=48.312)


def test_a_virtual_machine_with_nothing(tmp_path: Path) -> None:
    assert reading(tmp_path, {}) == replace(PLAIN, available_mb=None, memory_pressure=None, io_pressure=None)


def test_while_requests_are_answered_nobody_is_idle(tmp_path: Path) -> None:
    found = sensors(plant(tmp_path, ANY)).read(busy=True, idle_s=90.0, trainer_pid=None)
    assert (found.busy, found.idle_s) == (True, 0.0)


def test_others_and_the_trainer_at_the_second_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", {"SC_CLK_TCK": 100, "SC_PAGE_SIZE": 4096}.__getitem__)
    machine = sensors(plant(tmp_path, {**ANY, **process(77, times=(100, 0, 0, 0), pages=256)}))
    first = machine.read(busy=False, idle_s=0.0, trainer_pid=77)
    assert (first.other_cpu_percent, first.trainer_rss_mb) == (None, 1.0)
    later = {**processors("200 0 0 100", "150 0 0 150"), **process(77, times=(200, 0, 0, 0), pages=512)}
    plant(tmp_path, later)
    second = machine.read(busy=False, idle_s=1.0, trainer_pid=77)
    assert second.other_cpu_percent == 25  # 150 busy, 100 of them the trainer's, of 200
    assert second.trainer_rss_mb == 2.0
    assert machine.trainer_cpu_s(77) == 2.0
    assert machine.trainer_cpu_s(78) is None


def test_a_trainer_that_is_gone(tmp_path: Path) -> None:
    found = sensors(plant(tmp_path, ANY)).read(busy=False, idle_s=0.0, trainer_pid=77)
    assert found.trainer_rss_mb is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_the_files_hold_it_is_a_reading(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("machine")
    garbage = st.sampled_from(
        ["", "\n", "nan", "-1", "1e9", "٣", "a b", "some avg10=", "0::", "9" * 5000, "\0", "(", "cpu0"]
    )
    machine = {**LAPTOP_ON_BATTERY, **process(77)}
    broken = data.draw(st.sets(st.sampled_from(sorted(machine)), min_size=1))
    for number, name in enumerate(sorted(broken)):
        machine[name] = data.draw(garbage, label=f"{number} {name}")
    looked_at = sensors(plant(root, machine))
    for _ in range(2):
        found = asdict(looked_at.read(busy=False, idle_s=1.0, trainer_pid=77))
        assert all(value is None or value == value for value in found.values())  # no nan
        assert all(found[name] is None or 0 <= found[name] <= 100 for name in ("battery_percent", "other_cpu_percent"))
    assert set(looked_at.describe()) == set(SENSED)


def test_files_that_fail_when_they_are_read(tmp_path: Path) -> None:
    """As a thermal zone does with ENODATA: here each file is a directory, which fails with EISDIR."""
    for name in (*LAPTOP_ON_BATTERY, *process(77)):
        (tmp_path / name).mkdir(parents=True)
    found = sensors(tmp_path).read(busy=False, idle_s=1.0, trainer_pid=77)
    assert replace(found, free_disk_mb=None) == Readings(at=AT, minute_of_day=720, busy=False, idle_s=1.0)


def test_a_directory_that_is_not_there_yet_has_the_disk_it_will_be_on(tmp_path: Path) -> None:
    found = Sensors(tmp_path / "a" / "b", root=tmp_path).read(busy=False, idle_s=0.0, trainer_pid=None)
    disk = os.statvfs(tmp_path)
    assert found.free_disk_mb == pytest.approx(disk.f_bavail * disk.f_frsize / 2**20, rel=0.05)


def test_the_sensors_of_a_laptop_by_name(tmp_path: Path) -> None:
    two = {**LAPTOP_ON_BATTERY, **supplies(BAT1={"type": "Battery", "present": "0"})}
    described = sensors(plant(tmp_path, two)).describe()
    assert described["on_ac"] == ["AC", "BAT0"]
    assert described["battery_percent"] == ["BAT0"]
    assert described["temperature_c"] == [
        f"{tmp_path}/sys/class/thermal/thermal_zone0/temp (acpitz)",
        f"{tmp_path}/sys/class/thermal/thermal_zone1/temp (x86_pkg_temp)",
        f"{tmp_path}/sys/class/hwmon/hwmon1/temp1_input (coretemp Package id 0)",
    ]
    assert described["other_cpu_percent"] == ["cpu0", "cpu1"]
    assert described["available_mb"] == [f"{tmp_path}/proc/meminfo"]
    assert described["memory_pressure"] == [f"{tmp_path}/proc/pressure/memory"]
    assert described["free_disk_mb"] == [str(tmp_path)]


def test_what_is_described_is_what_is_read(tmp_path: Path) -> None:
    for number, contents in enumerate([LAPTOP_ON_MAINS, RASPBERRY_PI, ANY, {}]):
        root = plant(tmp_path / str(number), {**contents, "there": "yes"})
        machine = sensors(root)
        machine.read(busy=False, idle_s=0.0, trainer_pid=None)
        if contents:
            plant(root, processors("300 0 0 100", "100 0 0 300"))
        found = asdict(machine.read(busy=False, idle_s=0.0, trainer_pid=None))
        assert {name for name, sources in machine.describe().items() if sources} == {
            name for name in SENSED if found[name] is not None
        }


def test_a_child_that_nobody_has_waited_for(tmp_path: Path) -> None:
    machine = Sensors(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "sum(range(10**6))"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert machine.read(busy=False, idle_s=0.0, trainer_pid=child.pid).trainer_rss_mb is None
        assert machine.trainer_cpu_s(child.pid) is not None  # what it used is known until it is waited for
    assert machine.trainer_cpu_s(child.pid) is None


def test_this_machine(tmp_path: Path) -> None:
    machine = Sensors(tmp_path)
    machine.read(busy=False, idle_s=0.0, trainer_pid=os.getpid())
    time.sleep(0.25)
    before = time.time()
    found = machine.read(busy=False, idle_s=3.0, trainer_pid=os.getpid())
    assert before <= found.at <= time.time()
    assert found.minute_of_day in (int(before // 60) % 1440, int(time.time() // 60) % 1440)  # TZ is UTC here
    assert found.available_mb is not None
    assert 1 < found.available_mb < 2**30
    assert found.other_cpu_percent is not None
    assert 0 <= found.other_cpu_percent <= 100
    assert found.free_disk_mb is not None
    assert found.trainer_rss_mb is not None
    assert 5 < found.trainer_rss_mb < 100_000
    assert found.temperature_c is None or 0 < found.temperature_c <= 150
    assert found.battery_percent is None or 0 <= found.battery_percent <= 100
    children = os.times()  # those of tests that ran before
    own = time.process_time() + children.children_user + children.children_system
    assert machine.trainer_cpu_s(os.getpid()) == pytest.approx(own, abs=5.0)
