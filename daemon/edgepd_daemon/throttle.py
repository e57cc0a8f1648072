"""The trainer held to its budget from outside: stopped at once when somebody asks something, and kept to its CPU share.

The idea: SIGSTOP takes a process off the CPU within a fraction of a millisecond, whatever it is computing, and SIGCONT
lets it go on as if nothing had been. There are three reasons to stop: a request is being answered, the scheduler wants
a pause, or more CPU time was used than the budget allows. Invariants: the child runs only while none of them holds; one
that was let go of runs; and no other process is ever signalled, although pids are used again, because the signals go
through a file descriptor of the process (pidfd_open(2)), or where there is none through psutil, which compares when the
process was started.
What this does not do: decide when to pause (see scheduler/), free memory (a stopped process keeps it), or stop children
of the child: the trainer has none.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable

import psutil

from edgepd_daemon.duty import DutyCycle, Usage

log = logging.getLogger(__name__)

TICK_S = 0.1  # between two looks at a child that runs, or waits for the end of a request
HELD_TICK_S = 1.0  # while the scheduler holds it; that may take hours
REQUEST = "a request is being answered"


class Handle:
    """A process that is signalled and looked at, and no other one that has its pid later."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError if there is no such process."""
        try:
            self._process = psutil.Process(pid)
        except psutil.NoSuchProcess as error:
            raise ProcessLookupError(f"there is no process {pid}") from error
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            raise
        except (AttributeError, OSError):  # not this system, or an old or confined kernel
            self._descriptor = -1

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal; return whether the process is still there."""
        try:
            if self._descriptor >= 0:
                signal.pidfd_send_signal(self._descriptor, number)
            else:
                self._process.send_signal(number)
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False
        return True

    def cpu_s(self) -> float | None:
        """Return the CPU seconds of all its threads so far, None if it has ended."""
        try:
            times = self._process.cpu_times()
        except psutil.NoSuchProcess:
            return None
        return float(times.user + times.system)

    def is_stopped(self) -> bool:
        """Return whether it stands still, or has ended."""
        try:
            return self._process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    def close(self) -> None:
        """Release the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Throttle:
    """Stops and continues one child at a time. Lives on the event loop but for `request_came` and `requests_ended`.

    `pauses` counts those for requests and for the scheduler since the daemon started; `last_pause_ms` is how long the
    last one for a request took to come into force, at most. The other numbers are of the last child, attached or not;
    `total_*` are those of all children together.
    """

    def __init__(self, busy: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """`busy` says whether requests are being answered or wait; it is asked on the event loop."""
        self._busy = busy
        self._clock = clock
        self._lock = threading.Lock()  # held for the time of a signal
        self._handle: Handle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._resume_after_s = 0.0
        self._limits = (100.0, 1)
        self._duty, self._usage = DutyCycle(*self._limits), Usage()
        self._requested, self._requests = False, 0
        self._quiet_since: float | None = None  # while requested
        self._asked_at: float | None = None  # of a stop that is yet to be seen
        self._reason: str | None = None
        self._exhausted = False
        self._stopped = False  # what the process was told last
        self._at_work_s, self._working_since = 0.0, 0.0
        self._cpu_start_s, self._cpu_now_s = 0.0, 0.0
        self._earlier_at_work_s, self._earlier_cpu_s = 0.0, 0.0  # of the children before
        self.pauses = 0
        self.last_pause_ms: float | None = None

    @property
    def paused(self) -> str | None:
        """Why the child stands still; the duty cycle is no reason of which anybody has to know."""
        if self._handle is None:
            return None
        return self._reason or (REQUEST if self._requested else None)

    @property
    def cpu_percent(self) -> float | None:
        """The mean CPU use of the last minute in percent of all cores, None without a child."""
        cpus = self._usage.cpus() if self._handle is not None else None
        return None if cpus is None else 100 * cpus / self._limits[1]

    @property
    def cpu_s(self) -> float:
        """CPU seconds that the child has used since it was attached."""
        return self._cpu_now_s - self._cpu_start_s

    @property
    def at_work_s(self) -> float:
        """Seconds since the child was attached in which nothing but its CPU budget held it."""
        with self._lock:
            return self._at_work_s + (self._clock() - self._working_since if self._works() else 0.0)

    @property
    def total_at_work_s(self) -> float:
        """`at_work_s` of all children so far."""
        return self._earlier_at_work_s + self.at_work_s

    @property
    def total_cpu_s(self) -> float:
        """`cpu_s` of all children so far."""
        return self._earlier_cpu_s + self.cpu_s

    def attach(self, pid: int, cpu_percent: float, cores: int, resume_after_s: float) -> None:
        """Hold this child of the daemon to a share of so many cores; let go of the one before.

        It goes on `resume_after_s` seconds after the last request. One that has ended already is fine.
        """
        self.detach()
        with self._lock:  # also where the child has ended already: what was counted before must not count as its own
            self._earlier_at_work_s, self._at_work_s = self._earlier_at_work_s + self._at_work_s, 0.0
            self._earlier_cpu_s, self._cpu_start_s = self._earlier_cpu_s + self.cpu_s, self._cpu_now_s
        try:
            handle = Handle(pid)
        except ProcessLookupError:
            return
        now, cpu_s = self._clock(), handle.cpu_s() or 0.0
        with self._lock:
            self._handle = handle
            self._resume_after_s = resume_after_s
            self._requested, self._reason, self._exhausted, self._stopped = False, None, False, False
            self._working_since = now
            self._cpu_start_s = self._cpu_now_s = cpu_s
            self._usage = Usage()
            self._limits = (cpu_percent, cores)
            self._duty = DutyCycle(cpu_percent, cores)
        if self._busy():
            self.request_came()
        self._watching = asyncio.get_running_loop().create_task(self._watch(), name=f"throttle-{pid}")

    def limit(self, cpu_percent: float, cores: int, resume_after_s: float | None = None) -> None:
        """Change the CPU budget and, if it is given, how long after the last request the child goes on."""
        if resume_after_s is not None:
            self._resume_after_s = resume_after_s
        if (cpu_percent, cores) != self._limits:  # the same again would forget what was used too much
            self._limits, self._duty = (cpu_percent, cores), DutyCycle(cpu_percent, cores)

    def hold(self, reason: str | None) -> None:
        """Let the child stand still for this reason until it is None."""
        with self._lock:
            if self._handle is not None:
                self.pauses += reason is not None and self._reason is None
                self._apply(self._requested, reason)

    def request_came(self) -> None:
        """Stop the child, at once, in the calling thread. Any thread; takes microseconds without a child."""
        asked_at = self._clock()
        with self._lock:
            handle = self._handle
            if handle is None:
                return
            self._requests += 1
            self._quiet_since = None
            self.pauses += not self._requested
            if not self._stopped:
                self._asked_at = asked_at
            self._apply(True, self._reason)
            self._see(handle)

    def requests_ended(self) -> None:
        """Begin to wait for `resume_after_s` now and not at the next look. Any thread; need not be called at all."""
        with self._lock:
            if self._requested and self._quiet_since is None:
                self._quiet_since = self._clock()

    def detach(self) -> None:
        """Let go of the child, if there is one: it runs, and is never signalled again."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        with self._lock:
            handle = self._handle
            if handle is None:
                return
            self._exhausted = False
            self._apply(False, None)
            self._at_work_s += self._clock() - self._working_since
            self._handle = None
            handle.close()
        handle_cpu_s = handle.cpu_s()
        self._cpu_now_s = self._cpu_now_s if handle_cpu_s is None else handle_cpu_s

    def close(self) -> None:
        """Let go of whatever there is."""
        self.detach()

    def _works(self) -> bool:
        return self._handle is not None and not self._requested and self._reason is None

    def _apply(self, requested: bool, reason: str | None) -> None:
        """Hold the child for these reasons from now on. With the lock."""
        worked, now = self._works(), self._clock()
        self._requested, self._reason = requested, reason
        if worked and not self._works():
            self._at_work_s += now - self._working_since
        elif not worked:
            self._working_since = now
        stop = self._exhausted or not self._works()
        if stop != self._stopped and self._handle is not None:
            self._handle.signal(signal.SIGSTOP if stop else signal.SIGCONT)
            self._stopped = stop
        if not stop:
            self._asked_at = None  # it goes on before anybody has seen it stand still

    def _see(self, handle: Handle) -> None:
        """Note when a stop for a request has come into force. With the lock."""
        if self._asked_at is not None and handle.is_stopped():
            self.last_pause_ms = 1000 * (self._clock() - self._asked_at)
            self._asked_at = None

    async def _watch(self) -> None:
        """Look at the child until it has ended."""
        try:
            while self._look():
                await asyncio.sleep(TICK_S if self._reason is None else HELD_TICK_S)
        except Exception:  # the edge of the task: a child that nobody looks after must not stand still for ever
            log.exception("the trainer is not held to its budget any more")
            self.detach()

    def _look(self) -> bool:
        """Let the child run, or not, as things are now; return whether it is still there."""
        handle = self._handle
        cpu_s = handle.cpu_s() if handle is not None else None
        if handle is None or cpu_s is None:
            return False
        requests = self._requests
        busy = self._requested and self._busy()
        now = self._clock()
        self._cpu_now_s = cpu_s
        self._usage.add(now, cpu_s)
        with self._lock:
            self._see(handle)
            if busy or requests != self._requests or not self._requested:
                self._quiet_since = None
            elif self._quiet_since is None:
                self._quiet_since = now
            quiet_s = 0.0 if self._quiet_since is None else now - self._quiet_since
            self._exhausted = not self._duty.may_run(now, cpu_s)
            self._apply(self._requested and (self._quiet_since is None or quiet_s < self._resume_after_s), self._reason)
        return True
