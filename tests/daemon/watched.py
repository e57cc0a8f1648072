"""The real supervisor over the parts of training_parts.py, on a machine and clocks that the test makes up.

The idea: `watched(daemon)` looks only when the test says so; `let_pass` moves the clocks that nobody sets.
What this does not do: read sensors, or wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgepd.settings import Budget, Settings, Train
from edgepd_daemon.activity import Activity
from edgepd_daemon.scheduler.types import Decision, Readings
from edgepd_daemon.supervisor import Supervisor
from edgepd_profiles import decisions, demand, forgetting, runs
from tests.daemon.scheduler.situations import WELL
from tests.daemon.training_parts import Parts


class Clock:
    """CLOCK_BOOTTIME, as far as the state and the last use are counted by it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 10_000.0
        for module in ("remembered", "activity"):
            patch.setattr(f"edgepd_daemon.{module}.boottime", lambda: self.now)

    def let_pass(self, seconds: float) -> None:
        self.now += seconds


class MadeUp:
    """A machine that is as `now` says; while a child is there it holds `rss_mb`."""

    def __init__(self) -> None:
        self.now = WELL
        self.rss_mb: float | None = None
        self.fails: Exception | None = None

    def read(self, *, busy: bool, idle_s: float, trainer_pid: int | None) -> Readings:
        if self.fails is not None:
            raise self.fails
        rss_mb = self.rss_mb if trainer_pid is not None else None
        return replace(self.now, busy=busy, idle_s=0.0 if busy else idle_s, trainer_rss_mb=rss_mb)

    def becomes(self, **changed: Any) -> None:
        self.now = replace(self.now, **changed)


class Watched:
    """A supervisor and what it depends on."""

    def __init__(self, daemon: Parts, clock: Clock, **budget: Any) -> None:
        self.daemon, self.clock, self.machine = daemon, clock, MadeUp()
        self.set(Settings(train=Train(rank=4), budget=Budget(**budget)))
        self.busy = False
        self.supervisor = self.restarted()
        clock.let_pass(3600)

    def restarted(self) -> Supervisor:
        """Return the supervisor of a daemon that has just started on the same profile."""
        machine: Any = self.machine
        self.activity = Activity()
        file = self.daemon.paths.data_dir / "paused.json"
        is_busy: Callable[[], bool] = lambda: self.busy  # noqa: E731
        self.supervisor = Supervisor(
            self.daemon.store, is_busy, self.daemon.trainer, machine, self.activity, lambda: self.settings, file
        )
        return self.supervisor

    def set(self, settings: Settings) -> None:
        """Let other settings take effect."""
        self.settings = self.daemon.trainer.settings = settings

    async def look(self) -> Decision:
        return await self.supervisor.look()

    async def started(self) -> None:
        """Let it start a run, which it must, and wait until the child is there."""
        (self.daemon.directory / "environment.json").unlink(missing_ok=True)
        decision = await self.look()
        assert decision.action == "start", decision.reason
        await self.daemon.until((self.daemon.directory / "environment.json").exists)

    async def ended(self) -> None:
        await self.daemon.until(lambda: self.daemon.trainer.run is None)

    def noted(self) -> list[tuple[str, str]]:
        """Return the actions and constraints of the stored decisions, the oldest first."""
        with self.daemon.store.read() as conn:
            return [(row.action, row.constraint) for row in reversed(decisions.newest(conn, 99))]

    def due_since(self) -> float | None:
        with self.daemon.store.read() as conn:
            return demand.due_since(conn)


def newest(daemon: Parts) -> runs.Run:
    """Return the newest run."""
    with daemon.store.read() as conn:
        return runs.runs(conn, 1)[0]


def wanted(daemon: Parts) -> list[str]:
    """Return the kinds of the runs that forgetting has made necessary."""
    with daemon.store.read() as conn:
        return [each.kind for each in forgetting.wanted(conn)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return a clock for `Watched`; a test file imports it."""
    return Clock(monkeypatch)
