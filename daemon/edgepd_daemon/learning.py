"""What makes the daemon learn, put together: the trainer, its throttle, and the supervisor that decides.

The invariant: a request holds the trainer before it is queued, on whatever thread it comes.
What this does not do: any of it (see trainer.py, throttle.py, supervisor.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from edgepd.config import Paths
from edgepd.settings import Settings
from edgepd_daemon.activity import Activity
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.generations import Generations
from edgepd_daemon.quiet_times import QuietTimes
from edgepd_daemon.readings import Sensors
from edgepd_daemon.supervisor import Supervisor
from edgepd_daemon.throttle import Throttle
from edgepd_daemon.trainer import Trainer
from edgepd_profiles import demand
from edgepd_profiles.store import Store


@asynccontextmanager
async def start_trainer(
    store: Store, engine: Engine, generations: Generations, settings: Settings, paths: Paths
) -> AsyncIterator[Trainer]:
    """Make training possible; park a run that is going on at the end."""
    if len(generations.listing()) == 1:  # the base itself
        await asyncio.wrap_future(store.write(demand.begin_again))
    throttle = Throttle(lambda: busy(engine))
    trainer = Trainer(store, generations, settings, paths.runs_dir, throttle)
    await asyncio.to_thread(trainer.students.open)
    try:
        yield trainer
    finally:
        await trainer.close("the daemon was stopped; it goes on when that runs again")


def make_supervisor(
    store: Store, engine: Engine, trainer: Trainer, paths: Paths, settings: Callable[[], Settings]
) -> Supervisor:
    """Return the supervisor, told of every request from now on; `settings` returns those in effect."""
    activity = Activity()

    def request_came() -> None:
        trainer.throttle.request_came()
        activity.note()

    engine.on_submit = request_came
    sensors = Sensors(paths.data_dir)
    quiet_times = QuietTimes(store, settings, paths.data_dir / "awake.json")
    pause_file = paths.data_dir / "paused.json"
    return Supervisor(store, lambda: busy(engine), trainer, sensors, activity, settings, pause_file, quiet_times)


def busy(engine: Engine) -> bool:
    """Return whether requests are being answered or wait."""
    status = engine.status()
    return bool(status.active or status.queued)
