"""Pressure stall information, where there is any."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepd_daemon.sensors import files
from edgepd_daemon.sensors.pressure import some_percent
from tests.daemon.fake_machines import ANY, plant


def test_some_of_the_last_ten_seconds(tmp_path: Path) -> None:
    plant(tmp_path, ANY)
    assert some_percent(tmp_path, "memory") == 1.5
    assert some_percent(tmp_path, "io") == 12.34


def test_an_older_kernel_has_none(tmp_path: Path) -> None:
    assert some_percent(tmp_path, "memory") is None


@pytest.mark.parametrize("content", ["", "full avg10=3.00", "some avg10= avg60=1.00", "some avg60=4.00", "\0\0\0"])
def test_what_is_no_pressure(tmp_path: Path, content: str) -> None:
    plant(tmp_path, {"proc/pressure/memory": content})
    assert some_percent(tmp_path, "memory") is None


def test_switched_off_at_boot(tmp_path: Path) -> None:
    """As with psi=0: the file is there, and fails. Here with EISDIR in the place of EOPNOTSUPP."""
    (tmp_path / "proc/pressure/memory").mkdir(parents=True)
    assert some_percent(tmp_path, "memory") is None


def test_bytes_that_are_no_text_are_no_error(tmp_path: Path) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(b"\xff\xfe\x00\x80")
    assert files.number(path) is None
    assert files.text(path) is not None
