"""uvicorn, started and stopped as a part of the daemon.

The idea: the first signal stops accepting and lets running answers finish, the second ends them at once. The
invariant: when `serve` returns, every request has ended, and had the time to be recorded.
What this does not do: handle signals (see service.py), or wake up while nothing happens, as uvicorn itself does
ten times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn

from edgepd_daemon.protocol import Config, GuardedProtocol

QUEUE = 2048  # connections that wait in the kernel to be accepted
END_SECONDS = 2  # what answers that were cut off then get to be recorded


class Server(uvicorn.Server):
    """Serves until `stop`."""

    def __init__(self, config: Config, on_started: Callable[[], None]) -> None:
        """`on_started` is called when connections are accepted."""
        super().__init__(config)
        self._on_started = on_started
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Stop accepting and end when the running requests have; a second time, end them now."""
        if not self.should_exit:
            self.should_exit = True
            self._stopping.set()
            return
        self.force_exit = True
        for connection in list(self.server_state.connections):
            if isinstance(connection, GuardedProtocol):
                connection.transport.abort()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer requests until `stop`, then until the running ones have ended."""
        await super().serve(sockets)
        # uvicorn cancels what is left after the drain, but does not wait for the ends, which are still to be recorded.
        if left := list(self.server_state.tasks):
            await asyncio.wait(left, timeout=END_SECONDS)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, and say so."""
        await super().startup(sockets)
        for listener in sockets or []:
            # Once more, because asyncio has set it to what it accepts at once. A client that finds the queue full
            # is refused if it does not want to block.
            listener.listen(QUEUE)
        self._on_started()

    async def main_loop(self) -> None:
        """Sleep until `stop`: without a date header there is nothing to do at intervals."""
        await self.on_tick(0)
        await self._stopping.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would end the process before the other parts are stopped."""
        yield
