"""The child process that trains: how it is started, talked to and ended.

The idea: a job goes in on its standard input, events come back line by line (see edgepd.adapt.job). The invariant: a
child whose end was waited for has left nothing open. What this does not do: know what a run is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator, Sequence

from edgepd.adapt.job import Event, Job, read_event
from edgepd.errors import TrainingError

log = logging.getLogger(__name__)

# -P: a json.py in the working directory must not be taken for the standard one.
WORKER = (sys.executable, "-P", "-m", "edgepd.adapt.worker")
EVENT_LIMIT_BYTES = 16 * 1024 * 1024  # longest line that a child may write
CHILD_ENVIRONMENT = {
    # How long a thread of torch or llama.cpp that waits for the others spins before it sleeps. By default that is 30
    # times longer, which on a busy machine wastes most of the time that nice 19 leaves; without any spinning
    # (OMP_WAIT_POLICY PASSIVE) training on an idle machine takes 1.7 times as long.
    "GOMP_SPINCOUNT": "10000",
}


async def spawn(worker: Sequence[str]) -> asyncio.subprocess.Process:
    """Start a child, with this command line, that waits for its job. Raises TrainingError."""
    try:
        return await asyncio.create_subprocess_exec(
            *worker,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=EVENT_LIMIT_BYTES,
            env=os.environ | CHILD_ENVIRONMENT,
        )
    except OSError as error:
        raise TrainingError(f"the trainer could not be started: {error}") from error


async def events(process: asyncio.subprocess.Process, job: Job) -> AsyncGenerator[Event, None]:
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
