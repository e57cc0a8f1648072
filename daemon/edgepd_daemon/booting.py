"""This run of the daemon as the profile remembers it: its start, the answers that came to their end, and its own end.

The idea: a run whose end is not recorded was a crash, and a generation that crashes the daemon again and again is
withdrawn at the next start (see edgepd_profiles.health). Invariants: only a run that came to its end by itself, with a
living engine, is recorded as ended; recording an answer delays nobody, and stops once it says nothing new.
What this does not do: load anything, or decide how many crashes are too many.
"""

from __future__ import annotations

import logging
import sqlite3
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from edgepd.errors import EdgepdError
from edgepd_profiles import health, registry
from edgepd_profiles.health import Fallback
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)


class Boot:
    """One run. As a context manager it records start and end; without that it only counts answers.

    `fallback` is the switch that was made because of how earlier runs ended. Set `clean` to False before the end if
    this one is to count as a crash.
    """

    def __init__(self, store: Store, base_sha256: str) -> None:
        """Record nothing yet."""
        self.fallback: Fallback | None = None
        self.clean = True
        self._store = store
        self._base_sha256 = base_sha256
        self._id: int | None = None
        self._loaded = False
        self._settled: set[int] = set()  # generations of which further answers say nothing new

    def __enter__(self) -> Self:
        """Settle how the run before ended, and record the start of this one, in one transaction."""
        self.fallback, self._id = self._store.write(self._begin).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record the end. One by an error is clean too: what could not be started is no crash."""
        number = self._id
        if self.clean and number is not None:
            self._store.write(lambda conn: health.ended(conn, number)).result()

    def loading(self) -> None:
        """Note that the active generation is about to be loaded: what crashes from now on may be its doing."""
        number = self._id
        if number is not None and not self._loaded:
            self._store.write(lambda conn: health.loading(conn, number)).result()
            self._loaded = True

    def answered(self, generation_id: int) -> None:
        """Note that an answer of a generation came to its end. Returns at once."""
        settled = self._settled
        if generation_id in settled:
            return

        def note(done: Future[bool]) -> None:
            error = done.exception()
            if isinstance(error, EdgepdError):
                # A full disk, or a generation that is gone; the answer itself is not concerned.
                log.debug("the health of generation %d is not recorded: %s", generation_id, error)
            elif error is not None:
                log.error("the health of generation %d is not recorded", generation_id, exc_info=error)
            elif not done.result():
                settled.add(generation_id)

        self._store.write(lambda conn: health.answered(conn, generation_id)).add_done_callback(note)

    def switched(self) -> None:
        """Ask anew about every generation, because another one is active from now on."""
        self._settled = set()  # a new one: what is still being written must not end up in it

    def _begin(self, conn: sqlite3.Connection) -> tuple[Fallback | None, int]:
        registry.ensure_base(conn, self._base_sha256)
        fallback = health.at_boot(conn, self._base_sha256)
        active = registry.active(conn, self._base_sha256)
        return fallback, health.booted(conn, self._base_sha256, active.id)
