"""The training run that is going on, as the trainer keeps it in memory.

What this does not do: change by itself (see trainer.py), or outlive the daemon (edgepd_profiles.runs does).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from edgepd.adapt.job import Job, Progress
from edgepd.intent.job import TuneJob
from edgepd_daemon.scheduler.types import Running
from edgepd_profiles.registry import Generation
from edgepd_profiles.runs import Run


@dataclass(frozen=True)
class ToldToEnd:
    """Why a child was told to end, what becomes of its run, and by whom that was meant."""

    reason: str
    state: Literal["interrupted", "parked", "failed"] = "interrupted"
    by: Literal["user", "edgepd"] | None = None


@dataclass
class GoingOn:
    """A run and its child."""

    run: Run
    job: Job | TuneJob
    asked: bool  # the user waits for it
    seq: int  # the newest feedback, or event, when it was chosen what it learns from
    process: asyncio.subprocess.Process
    progress: Progress | None = None
    promoted: Generation | None = None  # the run has its result, and the child only reviews it; of adapters alone
    concluded: bool = False
    told_to_end: ToldToEnd | None = None
    smaller_mb: int | None = None  # the child is to be started again within so much
    shrinks: int = 0  # how often that was so
    curve: list[tuple[int, float]] = field(default_factory=list)
    follower: asyncio.Task[None] | None = None

    def tell_to_end(self, told: ToldToEnd) -> None:
        """Note why it ends. Who came first is right, except that what was only to be parked can still be stopped."""
        if self.told_to_end is None or self.told_to_end.state == "parked":
            self.told_to_end = told
        self.smaller_mb = None

    @property
    def changing(self) -> bool:
        """Whether its child has been told to end."""
        return self.told_to_end is not None or self.smaller_mb is not None

    def described(self) -> Running:
        """Return it as the scheduler wants to know it."""
        return Running(self.job.kind, self.asked, self.promoted is not None, float(self.job.memory_mb), 0.0)
