"""What a running daemon consists of, handed to every request."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edgepd.config import Paths
from edgepd.settings import Settings
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.exchange import Exchanges
from edgepd_daemon.foresight import Foresight
from edgepd_daemon.forgetter import Forgetter
from edgepd_daemon.generations import Generations
from edgepd_daemon.metrics import Metrics
from edgepd_daemon.personal import Personaliser
from edgepd_daemon.recorder import Recorder
from edgepd_daemon.recovery import Recovery
from edgepd_daemon.supervisor import Supervisor
from edgepd_daemon.trainer import Trainer
from edgepd_daemon.warming import Warmer
from edgepd_profiles.store import Store


@dataclass
class Services:
    """The parts. They stay the same; what changes while the daemon runs stands last, except for `settings`.

    `settings` are those in effect: a reload replaces them as a whole, so whoever needs several reads them once.
    `load_settings` reads them again from where they came from. `token` is what clients of the TCP port must know.
    """

    settings: Settings
    paths: Paths
    store: Store
    engine: Engine
    generations: Generations
    recorder: Recorder
    trainer: Trainer
    exchanges: Exchanges
    personaliser: Personaliser
    forgetter: Forgetter
    supervisor: Supervisor
    foresight: Foresight
    warmer: Warmer
    load_settings: Callable[[], Settings]
    metrics: Metrics = field(default_factory=Metrics)
    token: str | None = None
    started_at: float = field(default_factory=time.monotonic)
    draining: bool = False
    needs_restart: tuple[str, ...] = ()  # settings that have changed since the start and wait for the next one
    preload_problem: str | None = None
    recovery: Recovery | None = None

    @property
    def problems(self) -> list[str]:
        """What is wrong, in sentences for the user."""
        waiting = ", ".join(self.needs_restart)
        restart = f"changed in the settings, but not in effect until the daemon is restarted: {waiting}"
        parts = (self.generations.problem, self.recorder.problem, self.preload_problem, self.foresight.problem)
        found = (*parts, waiting and restart)
        return [*(problem for problem in found if problem), *(self.recovery.problems if self.recovery else ())]
