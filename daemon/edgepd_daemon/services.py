"""What a running daemon consists of, handed to every request."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from edgepd.config import Paths, Settings
from edgepd_daemon.engine.loop import Engine
from edgepd_daemon.exchange import Recorder
from edgepd_daemon.generations import Generations
from edgepd_daemon.trainer import Trainer
from edgepd_profiles.store import Store


@dataclass(frozen=True)
class Services:
    """The parts, in the order in which they start."""

    settings: Settings
    paths: Paths
    store: Store
    engine: Engine
    generations: Generations
    recorder: Recorder
    trainer: Trainer
    started_at: float = field(default_factory=time.monotonic)
