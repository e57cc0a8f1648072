"""How long training was at work today, as it is limited and shown.

The idea: what the throttle has counted since the last look is added up by local day, and written down now and then, at
the end of a run and at the end of the daemon. The invariants: durations come from a clock that nobody sets; only the
choice of the day depends on the calendar; nothing is counted twice; a crash loses at most WRITE_SECONDS of it, and a
profile that cannot be written loses nothing as long as the day and the daemon last.
What this does not do: limit anything.
"""

from __future__ import annotations

import asyncio
import logging
import time

from edgepd.errors import EdgepdError
from edgepd_daemon.trainer import Trainer
from edgepd_profiles import usage
from edgepd_profiles.store import Store
from edgepd_profiles.usage import Usage

log = logging.getLogger(__name__)

WRITE_SECONDS = 30.0


class WorkToday:
    """The sums of the day."""

    def __init__(self, store: Store, trainer: Trainer) -> None:
        """Nothing is read until `count`."""
        self._store = store
        self._trainer = trainer
        self._day = ""
        self._known = Usage("")
        self._new = Usage("")  # not written down yet
        self._seen = (0.0, 0.0)  # what the throttle had counted at the last look
        self._failing = False

    @property
    def at_work_s(self) -> float:
        """Seconds that training was at work today without being asked."""
        return self._known.at_work_s + self._new.at_work_s

    def fields(self, minutes_per_day: float) -> dict[str, float]:
        """Return the sums as the API shows them, in seconds."""
        total = _sum(self._known, self._new)
        return {
            "at_work_s": round(total.at_work_s, 1),
            "limit_s": 60 * minutes_per_day,
            "asked_s": round(total.asked_s, 1),
            "cpu_s": round(total.cpu_s, 1),
        }

    async def count(self, at: float) -> None:
        """Take in what was done until `at`, in unix seconds. That it cannot be stored is logged and tried again."""
        self._add()
        day = time.strftime("%Y-%m-%d", time.localtime(at))
        unwritten = self._new.at_work_s + self._new.asked_s
        try:
            if day != self._day:
                await self._begin(day)
            elif unwritten >= WRITE_SECONDS or (unwritten > 0 and self._trainer.pid is None):
                await self._write()
            self._failing = False
        except EdgepdError as error:
            if not self._failing:
                log.warning("what training takes of the day could not be stored: %s", error)
            self._failing = True

    async def close(self) -> None:
        """Write down what is not yet, before the daemon ends."""
        self._add()
        try:
            await self._write()
        except EdgepdError as error:
            log.warning("what training took of the day could not be stored: %s", error)

    async def _begin(self, day: str) -> None:
        """Turn to another day, also if what is left of the one before cannot be written any more."""
        known = await asyncio.to_thread(self._read, day)
        before, self._day, self._known = self._day, day, known
        if before:
            done, self._new = self._new, Usage("")
            await self._add_to(before, done)

    async def _write(self) -> None:
        if not self._day:
            return
        known, done = self._known, self._new
        # First: what is limited must not drop meanwhile, and what was stored not be stored again if this is cancelled.
        self._known, self._new = _sum(known, done), Usage("")
        try:
            await self._add_to(self._day, done)
        except EdgepdError:
            self._known, self._new = known, _sum(done, self._new)
            raise

    async def _add_to(self, day: str, done: Usage) -> None:
        added = (done.at_work_s, done.cpu_s, done.asked_s)
        await asyncio.wrap_future(self._store.write(lambda conn: usage.add(conn, day, *added)))

    def _read(self, day: str) -> Usage:
        with self._store.read() as conn:
            return usage.today(conn, day)

    def _add(self) -> None:
        throttle, asked, before = self._trainer.throttle, self._trainer.asked, self._seen
        self._seen = (throttle.total_at_work_s, throttle.total_cpu_s)
        worked, cpu_s = (max(0.0, now - then) for now, then in zip(self._seen, before, strict=True))
        self._new = _sum(self._new, Usage("", 0.0 if asked else worked, cpu_s, worked if asked else 0.0))


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(one.day, one.at_work_s + other.at_work_s, one.cpu_s + other.cpu_s, one.asked_s + other.asked_s)
