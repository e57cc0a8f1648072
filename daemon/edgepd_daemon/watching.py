"""What the daemon keeps an eye on while it runs: whether its engine turns, and whether clients can find it.

The idea: each watcher is asked every two seconds, on the event loop, and costs a stat or a comparison. The invariants:
an engine that computes or reads, however slowly, is not taken for one that hangs before PATIENCE; a socket is bound
again only where nobody else listens.
What this does not do: restart anything (see recovery.py), or look at the process from outside, which the service
manager's watchdog does (see service.py).
"""

from __future__ import annotations

import logging
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from edgepd.config import Paths
from edgepd.errors import ConflictError, StoreError
from edgepd_daemon.listener import fallback_of, identity, listening_somewhere, note_socket, write_token

log = logging.getLogger(__name__)

HANG_SECONDS = 120.0  # how long a step that neither computes nor reads is waited for
PATIENCE = 600.0  # how long any step is: the longest honest one is a batch of a model that is larger than the memory
LONGEST_LOOK = 10.0  # seconds that count at most between two looks: the rest of a gap this process was stopped itself
BUSY_SHARE = 0.5  # of one core: from here on a process computes


class Pulse:
    """How long the engine has been seen without a turn, and whether it was at work meanwhile."""

    def __init__(
        self,
        beat: Callable[[], float],
        *,
        clock: Callable[[], float] = time.monotonic,
        work: Callable[[], tuple[float, int]] | None = None,
    ) -> None:
        """`beat` is the engine's, in seconds of `clock`; `work` returns CPU seconds and pages read by this process."""
        self._beat = beat
        self._clock = clock
        self._work = work or work_done
        self._seen: float | None = None
        self._looked_at = clock()
        self._quiet = self._still = 0.0  # seconds without a turn; of these, those without work
        self._done = self._work()

    def look(self) -> None:
        """Compare with the last look. The engine's beat is now while it has nothing to do, so that it always moves."""
        now, beat, done = self._clock(), self._beat(), self._work()
        passed = now - self._looked_at
        counted = min(passed, LONGEST_LOOK)
        worked = done[0] - self._done[0] >= BUSY_SHARE * passed or done[1] > self._done[1]
        if beat != self._seen:
            self._quiet = self._still = 0.0
        else:
            self._quiet += counted
            self._still = 0.0 if worked else self._still + counted
        self._seen, self._looked_at, self._done = beat, now, done

    @property
    def hangs(self) -> bool:
        """Whether it is not worth waiting any longer."""
        return self._still >= HANG_SECONDS or self._quiet >= PATIENCE

    @property
    def works(self) -> bool:
        """Whether the step that is under way is a slow one: long, but at work."""
        return 0 < self._quiet < PATIENCE and self._still == 0.0


def work_done() -> tuple[float, int]:
    """Return the CPU seconds of this process, and how often it had to wait for a page from the disk (getrusage(2))."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_majflt


class SocketGuard:
    """Sees to it that clients find the socket: one that has gone is bound again. Lives on the event loop."""

    def __init__(
        self,
        paths: Paths,
        serve_on: Callable[[socket.socket, socket.socket | None], Awaitable[None]],
        listener: socket.socket,
        *,
        keep: bool = False,
    ) -> None:
        """`serve_on` begins to accept on a new socket, and stops to on the old one.

        `listener` is the socket in use, which with `keep` goes on being served whatever becomes of its path.
        """
        self.problem: str | None = None
        self._paths = paths
        self._keep = keep
        self._serve_on = serve_on
        self._listener = listener
        self._path = Path(listener.getsockname())
        self._identity = identity(self._path)
        self._stack = ExitStack()

    @property
    def lost(self) -> bool:
        """Whether the socket's path is gone, or is another's."""
        return identity(self._path) != self._identity

    async def look(self) -> None:
        """Bind the socket again if it has gone. What is in the way is a problem, and tried again."""
        if not self.lost:
            return
        try:
            listener = self._stack.enter_context(listening_somewhere(self._paths.socket, fallback_of(self._paths)))
        except (ConflictError, StoreError) as error:
            self._tell(f"clients cannot find the daemon, because its socket {self._path} has gone: {error}")
            return
        old, self._listener = self._listener, listener
        self._path = Path(listener.getsockname())
        self._identity = identity(self._path)
        await self._serve_on(listener, None if self._keep else old)
        self._keep = False
        self.problem = None
        log.warning("the socket had gone and was bound again: %s", self._path)
        try:
            note_socket(self._paths.lock, self._path)
        except StoreError as error:
            log.warning("%s", error)

    def close(self) -> None:
        """Close and remove the sockets that were bound here."""
        self._stack.close()

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            log.error("%s", problem)
        self.problem = problem


def keep_token(path: Path, token: str) -> None:
    """Write the token's file again if it has gone."""
    if not path.exists():
        try:
            write_token(path, token)
        except StoreError as error:
            log.warning("clients of the TCP port cannot read their token: %s", error)
