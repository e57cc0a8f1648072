"""The trainer in a control group of its own, where a user manager can make one; a systemd-run that is a script."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgepd.errors import TrainingError
from edgepd_daemon import scope, training_child
from edgepd_daemon.scope import ROOT_SLICE, SLICE, Limits, available, command, home, properties
from edgepd_daemon.training_child import ask_to_park, end, how_it_ended, killed_for_memory, spawn

ECHO = (sys.executable, "-c", "import sys; sys.stdout.write(sys.stdin.read())")
LIMITS = Limits(50.0, 4, 700, 900)
# What systemd-run does with --scope, as far as a script can: note its arguments and become the command.
OBEDIENT = '#!/bin/sh\necho "$@" > "{log}"\nwhile [ "$1" != "--" ]; do shift; done\nshift\nexec "$@"\n'
REFUSING = '#!/bin/sh\necho "$@" > "{log}"\necho "Failed to connect to bus: No such file or directory" >&2\nexit 1\n'
HANGING = '#!/bin/sh\necho "$@" > "{log}"\nwhile :; do sleep 0.1; done # --scope\n'

Manager = Callable[[str], Path]


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    """Put such a systemd-run on the PATH and the socket of a user manager in place; return where it notes its call."""

    def put(script: str) -> Path:
        folder, log = tmp_path / "bin", tmp_path / "called"
        folder.mkdir()
        (folder / scope.RUN).write_text(script.format(log=log))
        (folder / scope.RUN).chmod(0o755)
        private = tmp_path / "run" / "systemd" / "private"
        private.parent.mkdir(parents=True)
        private.touch()
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        monkeypatch.setattr(scope, "SYSTEM_FOLDERS", ())
        return log

    return put


def answer(limits: Limits | None, worker: tuple[str, ...] = ECHO) -> tuple[str, int | None]:
    """Start a child, say something to it, and return what it answered and how it ended."""

    async def run() -> tuple[str, int | None]:
        process = await spawn(worker, limits=limits)
        said, _ = await asyncio.wait_for(process.communicate(b"hello"), 30)
        return said.decode(), process.returncode

    return asyncio.run(run())


def test_the_child_is_started_in_a_scope_with_its_limits(manager: Manager) -> None:
    log = manager(OBEDIENT)
    assert answer(LIMITS) == ("hello", 0)
    options, _, started = log.read_text().partition(" -- ")
    assert options.split() == [
        *("--user", "--scope", "--quiet", "--collect", "--slice=-.slice"),
        *("-p", "CPUWeight=1", "-p", "IOWeight=1", "-p", "TasksMax=1024", "-p", "CPUQuota=200%"),
        *("-p", "MemoryHigh=700M", "-p", "MemoryMax=900M"),
    ]
    assert started.startswith(sys.executable)


def test_without_limits_nobody_is_asked_for_a_scope(manager: Manager) -> None:
    log = manager(OBEDIENT)
    assert answer(None) == ("hello", 0)
    assert not log.exists()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (REFUSING, "training without a scope of its own: systemd-run ended with exit code 1"),
        (HANGING, "training without a scope of its own: systemd-run had no answer within 0 s"),
        ("\x7fELF", "training without a scope of its own: the trainer could not be started: "),
    ],
)
def test_a_scope_that_cannot_be_had_is_done_without(
    tmp_path: Path,
    manager: Manager,
    script: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(training_child, "SCOPE_SECONDS", 0.4)
    manager(script)
    if script not in (REFUSING, HANGING):  # else the next one on the PATH is taken
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert answer(LIMITS) == ("hello", 0)
    assert said in caplog.text


def test_a_child_that_cannot_be_started_at_all_is_an_error(manager: Manager) -> None:
    manager(REFUSING)
    with pytest.raises(TrainingError, match="the trainer could not be started: .*/missing"):
        answer(LIMITS, ("/missing",))


def test_where_there_is_no_user_manager(tmp_path: Path, manager: Manager) -> None:
    manager(OBEDIENT)
    here = dict(os.environ)
    assert available(here)
    assert not available(here | {"PATH": str(tmp_path)})
    assert not available(here | {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert not available({name: value for name, value in here.items() if name != "XDG_RUNTIME_DIR"})


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(100.0, 8), {}),
        (Limits(12.5, 2, memory_mb=300), {"CPUQuota": "25%", "MemoryHigh": "300M"}),
        (Limits(1.0, 1, hard_memory_mb=400), {"CPUQuota": "1%", "MemoryMax": "400M"}),
        (Limits(33.3, 4), {"CPUQuota": "134%"}),
    ],
)
def test_what_the_scope_is_told(limits: Limits, expected: dict[str, str]) -> None:
    always = {"CPUWeight": "1", "IOWeight": "1", "TasksMax": "1024"}
    assert properties(limits) == always | expected


def test_our_slice_is_taken_only_with_all_that_is_above_it(manager: Manager, tmp_path: Path) -> None:
    """One that has no unit file would be made, with the weight of everybody else."""
    manager(OBEDIENT)
    folder = tmp_path / "config" / "systemd" / "user"
    folder.mkdir(parents=True)
    parts = SLICE.removesuffix(".slice").split("-")
    for n in range(len(parts)):
        assert home(os.environ) == ROOT_SLICE
        (folder / ("-".join(parts[: n + 1]) + ".slice")).touch()
    assert home(os.environ) == SLICE
    assert f"--slice={SLICE}" in command(ECHO, LIMITS, os.environ)


def test_a_child_has_a_session_of_its_own_and_is_nice() -> None:
    program = "import os; print(os.getsid(0) == os.getpid(), os.getpriority(os.PRIO_PROCESS, 0))"
    waiting = f"import sys; sys.stdin.read(); {program}"
    assert answer(None, (sys.executable, "-c", waiting)) == ("True 19\n", 0)


def test_a_stopped_child_can_be_asked_to_park() -> None:
    """The signal waits for a process that stands still, so that is let go on."""
    program = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); print(flush=True); signal.pause()"
    )

    async def run() -> str:
        process = await spawn((sys.executable, "-c", program))
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        ask_to_park(process)
        await asyncio.wait_for(process.wait(), 30)
        ask_to_park(process)  # it has ended: nothing to ask
        await end(process)
        return how_it_ended(process)

    assert asyncio.run(run()) == "ended with exit code 9"


@pytest.mark.parametrize(
    ("code", "asked", "expected"),
    [
        (-9, False, True),
        (-9, True, False),
        (-15, False, False),
        (0, False, False),
        (9, False, False),
        (None, False, False),
    ],
)
def test_who_was_killed_for_memory(code: int | None, asked: bool, expected: bool) -> None:
    process: Any = SimpleNamespace(returncode=code)
    assert killed_for_memory(process, asked_to_end=asked) is expected


def test_what_is_awaited_is_the_end_of_systemd_run_and_not_a_time(manager: Manager) -> None:
    manager(OBEDIENT.replace("exec", "sleep 0.4; exec"))
    began = time.monotonic()
    assert answer(LIMITS) == ("hello", 0)
    assert time.monotonic() - began >= 0.4
