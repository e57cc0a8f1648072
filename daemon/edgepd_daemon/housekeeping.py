"""What the daemon does with the profile while nobody asks anything.

The idea: one pass a minute, if the engine is idle: fold new exchanges into the profile, make events of the chats that
are older than events, embed and select examples, make similar pairs if that is wanted, let old exchanges and events go,
and back the profile up when it is time. Invariants: every step is bounded, so that a pass never delays a question for
long; one that fails is logged and does not keep the others from running; none loads a model.
What this does not do: train, or decide when to (see supervisor.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from edgepd.errors import EdgepdError
from edgepd.settings import Settings
from edgepd_daemon.embedding import Embedding
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.pairing import Pairing
from edgepd_daemon.training_jobs import keep_examples
from edgepd_profiles import backup, events, expiry, profile, rescue
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

PAUSE_SECONDS = 60.0
QUIET_SECONDS = 3600.0  # for which a pass that had nothing to do is not repeated while nothing changes
FOLDED = 50  # exchanges that one transaction folds into the profile, in about 20 ms
TAKEN = 50  # old chats that one transaction makes events of
EXPIRED = 50  # exchanges, and then events, that one transaction lets go


class Housekeeper:
    """The passes. Lives on the event loop."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        embedding: Embedding,
        pairing: Pairing,
        backups: Path,
        settings: Callable[[], Settings],
        finish_left: Callable[[], Awaitable[None]],
    ) -> None:
        """`backups` is their directory; `settings` returns those in effect.

        `finish_left` stores the ends of answers that could not be stored before.
        """
        self._finish_left = finish_left
        self._quiet: tuple[object, ...] | None = None  # the situation in which there was nothing to do
        self._quiet_since = 0.0
        self._store = store
        self._engine = engine
        self._embedding = embedding
        self._pairing = pairing
        self._backups = backups
        self._settings = settings

    async def run(self) -> None:
        """Make a pass a minute until cancelled."""
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            status = self._engine.status()
            if self._engine.alive and not status.active and not self._is_quiet(status.state):
                before = self._situation(status.state)
                await self.once()
                self._quiet = before if self._situation(status.state) == before else None
                self._quiet_since = time.monotonic()

    def _situation(self, engine_state: str) -> tuple[object, ...]:
        return self._store.changes, engine_state, self._settings()

    def _is_quiet(self, engine_state: str) -> bool:
        """Whether the last pass had nothing to do, nothing has changed since, and it is not long ago.

        What follows from time alone, as backups do, can wait that long.
        """
        unchanged = self._quiet == self._situation(engine_state)
        return unchanged and time.monotonic() - self._quiet_since < QUIET_SECONDS

    async def once(self) -> None:
        """Make one pass."""
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            self._finish,
            self._fold,
            self._take_chats,
            self._embed,
            self._select,
            self._pair,
            self._expire,
            self._back_up,
        )
        for step in steps:
            try:
                await step()
            except EdgepdError as error:
                log.warning("housekeeping: %s: %s", step.__name__.strip("_"), error)
            except Exception:  # noqa: BLE001 - the edge of the task: one mistake must not end all housekeeping
                log.exception("housekeeping: %s", step.__name__.strip("_"))

    async def _finish(self) -> None:
        await self._finish_left()

    async def _fold(self) -> None:
        half_life = self._settings().profile.half_life_days
        await self._write_all(lambda: self._store.write(lambda c: profile.catch_up(c, half_life, FOLDED)).result())

    async def _take_chats(self) -> None:
        if self._settings().intent.enabled:
            await self._write_all(lambda: self._store.write(lambda c: events.take_chats(c, TAKEN)).result())

    async def _embed(self) -> None:
        await self._embedding.make_missing()

    async def _select(self) -> None:
        if self._engine.status().state == "unloaded":
            return  # selecting loads numpy, and a daemon whom nobody asks anything does without
        select = self._settings().select
        for pool in ("examples", "questions"):
            await asyncio.to_thread(keep_examples, self._store, select, pool)

    async def _pair(self) -> None:
        await self._pairing.make_missing()

    async def _expire(self) -> None:
        keep, now = self._settings().keep, time.time()
        await self._write_all(
            lambda: self._store.write(lambda c: expiry.expire(c, keep.interactions, keep.days, now, EXPIRED)).result()
        )

    async def _back_up(self) -> None:
        keep = self._settings().keep
        made = await asyncio.to_thread(backup.listing, self._backups)
        if rescue.backup_due(made, keep.backup_days, time.time()):
            await asyncio.to_thread(backup.make, self._store, self._backups, keep.backups, time.time())

    async def _write_all(self, job: Callable[[], int]) -> None:
        """Repeat a bounded job until there is nothing left, as long as nobody asks anything."""
        while await asyncio.to_thread(job) and not self._engine.status().active:
            continue
