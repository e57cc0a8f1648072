"""The user's pause: how long it lasts, over restarts, clocks that are set, and files that cannot be read or removed."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from edgepd.errors import StoreError
from edgepd_daemon.holding import UserPause


class Clocks:
    """A wall clock that can be set, and one that cannot."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.wall, self.boot = 1_000_000.0, 500.0
        patch.setattr("edgepd_daemon.holding.time.time", lambda: self.wall)
        patch.setattr("edgepd_daemon.holding.boottime", lambda: self.boot)

    def let_pass(self, seconds: float) -> None:
        self.wall += seconds
        self.boot += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "paused.json"


def test_a_pause_ends_by_itself_and_leaves_nothing(file: Path, clocks: Clocks) -> None:
    pause = UserPause(file)
    pause.begin(10)
    clocks.let_pass(599)
    assert (pause.until, UserPause(file).until) == (1_000_600.0, 1_000_600.0)
    clocks.let_pass(1)
    assert (pause.until, file.exists(), UserPause(file).until) == (None, False, None)


def test_a_pause_without_an_end_is_taken_back(file: Path, clocks: Clocks) -> None:
    pause = UserPause(file)
    pause.begin(None)
    clocks.let_pass(1e9)
    assert (pause.until, UserPause(file).until) == (math.inf, math.inf)
    pause.end()
    pause.end()
    assert (pause.until, file.exists()) == (None, False)


@pytest.mark.parametrize("set_by", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_changes_no_pause(file: Path, clocks: Clocks, set_by: float) -> None:
    pause = UserPause(file)
    pause.begin(10)
    clocks.wall += set_by
    assert pause.until == clocks.wall + 600
    clocks.let_pass(600)
    assert pause.until is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"until": "soon"}', '{"til": 5}', "\xff"])
def test_a_file_that_cannot_be_read_holds(file: Path, content: str) -> None:
    file.write_bytes(content.encode("latin-1"))
    pause = UserPause(file)
    assert pause.until == math.inf
    pause.end()
    assert UserPause(file).until is None


def test_a_pause_that_cannot_be_written_down_is_none(tmp_path: Path) -> None:
    pause = UserPause(tmp_path / "missing" / "paused.json")
    with pytest.raises(StoreError):
        pause.begin(10)
    assert pause.until is None


def test_a_file_that_cannot_be_removed(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.mkdir()  # which no process can unlink
    (file / "x").touch()
    pause = UserPause(file)
    assert pause.until == math.inf
    with pytest.raises(StoreError, match="remove it yourself"):
        pause.end()
    assert pause.until is None  # this daemon trains
    pause._until = time.time() - 1
    assert pause.until is None
    assert "cannot be removed" in caplog.text
