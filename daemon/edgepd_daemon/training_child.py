"""The child process that trains: how it is started, talked to and ended.

The idea: a job goes in on its standard input, events come back line by line (see edgepd.adapt.job). The invariant: a
child whose end was waited for has left nothing open. A child gets a session of its own: with it comes a share of the
CPU that its nice value counts for (autogroups, sched(7)), and Ctrl-C in the terminal of the daemon does not end it.
What this does not do: know what a run is, or hold a child to its budget while it runs (see throttle.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Protocol

from edgepd.adapt.job import Event, JobKind, read_event
from edgepd.errors import TrainingError
from edgepd_daemon import scope
from edgepd_daemon.scope import Limits

log = logging.getLogger(__name__)

WORKERS: dict[JobKind, str] = {
    "live": "edgepd.adapt.worker",
    "baked": "edgepd.adapt.worker",
    "intent": "edgepd.intent.worker",
}
EVENT_LIMIT_BYTES = 16 * 1024 * 1024  # longest line that a child may write
SCOPE_SECONDS = 5.0  # within which systemd must have made a scope
NICE = 19  # from the first instruction on; the child does the rest when it runs
CHILD_ENVIRONMENT = {
    # How long a thread of torch or llama.cpp that waits for the others spins before it sleeps. By default that is 30
    # times longer, which on a busy machine wastes most of the time that nice 19 leaves; without any spinning
    # (OMP_WAIT_POLICY PASSIVE) training on an idle machine takes 1.7 times as long.
    "GOMP_SPINCOUNT": "10000",
}


class AnyJob(Protocol):
    """What is written to a child."""

    def to_json(self) -> str:
        """Serialise."""


def worker(kind: JobKind) -> Sequence[str]:
    """Return the command line of the child for a kind of run."""
    # -P: a json.py in the working directory must not be taken for the standard one.
    return (sys.executable, "-P", "-m", WORKERS[kind])


async def spawn(command: Sequence[str], *, limits: Limits | None = None) -> asyncio.subprocess.Process:
    """Start a child, with this command line, that waits for its job; within limits where systemd can set them.

    Raises TrainingError if it cannot be started. That it cannot be limited is no reason not to train.
    """
    if limits is not None and scope.available(os.environ):
        try:
            process = await _start(scope.command(command, limits, os.environ))
        except TrainingError as error:
            log.warning("training without a scope of its own: %s", error)
        else:
            if await _is_in_scope(process):
                return process
            hangs = process.returncode is None
            await end(process)
            why = f"had no answer within {SCOPE_SECONDS:.0f} s" if hangs else how_it_ended(process)
            log.warning("training without a scope of its own: %s %s", scope.RUN, why)
    return await _start(command)


async def _start(command: Sequence[str]) -> asyncio.subprocess.Process:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=EVENT_LIMIT_BYTES,
            env=os.environ | CHILD_ENVIRONMENT,
            start_new_session=True,
        )
    except OSError as error:
        raise TrainingError(f"the trainer could not be started: {error}") from error
    with contextlib.suppress(OSError):  # it has ended already
        os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
    return process


async def _is_in_scope(process: asyncio.subprocess.Process) -> bool:
    """Wait until systemd-run has become the child; return False if it ends or hangs instead.

    The child is given no job before, so it says nothing and changes nothing until then.
    """
    for _ in range(round(SCOPE_SECONDS / 0.01)):
        await asyncio.sleep(0.01)
        if process.returncode is not None:
            return False
        try:
            arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ends just now
        if b"--scope" not in arguments and arguments != [b""]:  # a process that has ended has no arguments left
            return True
    return False


async def events(process: asyncio.subprocess.Process, job: AnyJob) -> AsyncGenerator[Event, None]:
    """Send the job and yield what the child says until it has ended. Raises TrainingError for what is no event."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the trainer was started without pipes")
    try:
        process.stdin.write(job.to_json().encode())
        await process.stdin.drain()
        process.stdin.close()
        async for line in process.stdout:
            yield read_event(line.decode())
    except (BrokenPipeError, ConnectionResetError) as error:
        log.warning("lost the trainer with pid %d: %s", process.pid, error)
    except ValueError as error:  # too long, or not UTF-8
        raise TrainingError(f"the trainer wrote a line that cannot be read: {error}") from error
    await process.wait()


def ask_to_park(process: asyncio.subprocess.Process) -> None:
    """Ask a child that has not ended to save and end; it says Parked. One that is stopped is let go on to do so.

    Before it has loaded its libraries the signal ends it as any process: there is nothing to save yet.
    """
    if process.returncode is None:
        process.terminate()
        process.send_signal(signal.SIGCONT)


def kill(process: asyncio.subprocess.Process) -> None:
    """Kill a child that has not ended."""
    if process.returncode is None:
        process.kill()


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill a child that has not ended; read what it has still said, or its pipe would stay open."""
    kill(process)
    await process.communicate()


def how_it_ended(process: asyncio.subprocess.Process) -> str:
    """Say how a child ended, as part of a sentence."""
    code = process.returncode
    return f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"


def killed_for_memory(process: asyncio.subprocess.Process, *, asked_to_end: bool) -> bool:
    """Return whether the kernel has most likely killed a child for its memory.

    It does so with SIGKILL, and says so in its log only; who else sends that is the daemon (`asked_to_end`), or a user.
    """
    return process.returncode == -signal.SIGKILL and not asked_to_end
