"""What the running daemon does about what goes wrong with itself: told as problems, mended, or a reason to restart.

The idea: `look` is called every two seconds by the watch of service.py; it mends what can be mended in place (a socket
that has gone), keeps what the user must know in `problems`, and returns the reason if only a new process can help: then
the daemon ends as after SIGTERM, and restarting.py sees to the rest. Invariants: a look costs some stats, and no thread
unless something is wrong; a restart for damage in the profile waits until nothing is being answered; an engine that
hangs is given up without waiting for its thread.
What this does not do: mend the profile, which the next start does (edgepd_profiles.rescue), or look after training.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from edgepd.errors import EdgepdError
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.modelfile import ModelFile
from edgepd_daemon.restarting import Restarts
from edgepd_daemon.watching import Pulse, SocketGuard
from edgepd_profiles import damage, rescue
from edgepd_profiles.damage import GuardedStore

log = logging.getLogger(__name__)

MODEL_SECONDS = 30.0  # between two looks at the model's file
HUNG = "the engine has not moved for minutes and cannot be ended; what its threads do is in the log"


class Recovery:
    """Looks after one run of the daemon. Lives on the event loop."""

    def __init__(
        self,
        store: GuardedStore,
        engine: Engine,
        model: ModelFile,
        restarts: Restarts,
        *,
        unchecked: bool = False,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`unchecked`: the profile is still to be checked. `clock` is monotonic, `now` in seconds since 1970."""
        self.pulse = Pulse(engine.beat, clock=clock)
        self.socket: SocketGuard | None = None  # not there if the service manager has the socket
        self.restart: str | None = None  # why a new process is needed
        self._store, self._engine, self._model, self._restarts = store, engine, model, restarts
        self._unchecked = unchecked
        self._clock, self._now = clock, now
        self._model_at = clock() - MODEL_SECONDS
        self._work: asyncio.Future[None] | None = None  # the check that is going on
        self._hopeless = False  # another start would find nothing in the profile either

    @property
    def problems(self) -> list[str]:
        """What is wrong, in sentences for the user."""
        found = [rescue.to_be_told(self._store.path, self._now()), self._damage, self._model.problem]
        found += [self.socket.problem if self.socket else None]
        return [problem for problem in found if problem]

    @property
    def _damage(self) -> str | None:
        if self._store.damage is None:
            return None
        if self._hopeless:
            what = "a start that looked for it found nothing to mend: make a copy of it, and run `edgepd doctor`"
        else:
            what = "the next start mends it, which comes by itself when nothing is being answered"
        return f"the profile {self._store.path} is damaged ({self._store.damage}); {what}"

    async def look(self) -> str | None:
        """Look at everything once; return why a new process is needed, None if all is well or can wait."""
        self.pulse.look()
        if self.pulse.hangs:
            self._restarts.at_once(HUNG)
        if self.socket is not None:
            await self.socket.look()
        self._look_at_files()
        if self._store.damage is not None and not self._hopeless and self._idle():
            await self._give_up_profile(self._store.damage)
        return self.restart

    async def close(self) -> None:
        """Wait for a check that is going on, and let go of what was bound."""
        self._model.close()
        if self._work is not None:
            await asyncio.wait([self._work])
        if self.socket is not None:
            self.socket.close()

    def _idle(self) -> bool:
        status = self._engine.status()
        return not status.active and not status.queued

    def _look_at_files(self) -> None:
        """Start a check on a thread where one is due, one at a time."""
        if self._work is not None:
            if not self._work.done():
                return
            error = self._work.exception()
            self._work = None
            if isinstance(error, EdgepdError):
                log.warning("%s", error)
            elif error is not None:
                log.error("a check failed", exc_info=error)
        if self._unchecked:
            self._unchecked = False
            self._work = asyncio.ensure_future(asyncio.to_thread(self._store.check))
        elif self._clock() - self._model_at >= MODEL_SECONDS:
            self._model_at = self._clock()
            if self._model.changed:
                self._work = asyncio.ensure_future(asyncio.to_thread(self._model.look))

    async def _give_up_profile(self, found: str) -> None:
        """Have the next start examine the profile; ask for that start unless it would not help."""
        path: Path = self._store.path
        try:
            helps = await asyncio.to_thread(damage.suspect, path, found, self._now())
        except EdgepdError as error:
            log.warning("%s", error)
            return
        self._hopeless = not helps or not (self._restarts.managed or self._restarts.possible)
        if not self._hopeless:
            self.restart = f"the profile is damaged ({found}); the next start mends it"
        else:
            log.error("%s", self._damage)
