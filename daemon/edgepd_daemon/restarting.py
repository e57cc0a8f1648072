"""The daemon starts itself again where nobody else would.

The idea: under a service manager an error ends the process, and the manager starts another one; started by hand, the
process replaces itself with the same command line (execv), so that whoever ran `edgepd daemon run` is served again. The
pid stays, and so does the terminal. When it happened is handed on in the environment, in monotonic seconds, which a
clock that is set does not change. The invariants: at most MAX_RESTARTS within WINDOW_SECONDS, then the error ends the
process; no child outlives a daemon that replaced itself without coming to its end.
What this does not do: decide that a restart is needed (see recovery.py).

How a service manager is recognised: sd_notify(3) for NOTIFY_SOCKET, sd_listen_fds(3) for LISTEN_PID, systemd.exec(5)
for INVOCATION_ID and SYSTEMD_EXEC_PID. Whatever a service starts inherits the last two, a terminal for example; the pid
in the last one tells whether this process is the service itself.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import NoReturn, Self

import psutil

from edgepd.errors import EdgepdError

log = logging.getLogger(__name__)

MAX_RESTARTS = 3
WINDOW_SECONDS = 600.0
CHILD_SECONDS = 2.0  # what children that were killed get to be gone
VARIABLE = "EDGEPD_RESTARTED_AT"


class Restart(EdgepdError):
    """The daemon cannot go on, and a new one could."""


class Restarts:
    """Whether and how this process may start itself again. Made at the very start, before others take variables out."""

    def __init__(
        self, *, managed: bool, at: tuple[float, ...] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`managed`: a service manager starts another one. `at`: the restarts so far, in seconds of `clock`."""
        self.managed = managed
        self._clock = clock
        self._at = at

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """Read who started this process, and take what an earlier self has left out of `environment`."""
        own = str(os.getpid())
        started = environment.get("SYSTEMD_EXEC_PID", own) == own and "INVOCATION_ID" in environment
        activated = environment.get("LISTEN_PID") == own
        managed = bool(environment.get("NOTIFY_SOCKET")) or activated or started
        return cls(managed=managed, at=_times(environment.pop(VARIABLE, "")))

    @property
    def possible(self) -> bool:
        """Whether this process may replace itself: nobody else does, and it did not do so too often."""
        return not self.managed and len(self._recent()) < MAX_RESTARTS

    def again(self) -> NoReturn:
        """Replace this process with a new one of the same command line. Only if `possible`."""
        os.environ[VARIABLE] = ",".join(f"{at:.3f}" for at in (*self._recent(), self._clock()))
        # Ignored signals stay so in the new process, which would else end by a reload that comes before it listens.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 (no shell)

    def at_once(self, reason: str) -> NoReturn:
        """End this process as it is, because a thread of it cannot be ended; start again if `possible`.

        What the threads are doing is written to stderr first. What was acknowledged is on the disk already.
        """
        log.critical("%s", reason)
        faulthandler.dump_traceback(all_threads=True)
        kill_children()
        if self.possible:
            log.critical("the daemon starts again")
            self.again()
        sys.stderr.flush()
        os._exit(EdgepdError.exit_code)

    def _recent(self) -> tuple[float, ...]:
        now = self._clock()
        return tuple(at for at in self._at if 0 <= now - at < WINDOW_SECONDS)


def kill_children() -> None:
    """Kill every child of this process and wait for their ends, or they would be the new process's to wait for."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=CHILD_SECONDS)


def _times(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part)
    except ValueError:
        return ()
