"""Connections: who may open one, and how long it may keep us waiting.

The idea: uvicorn's HTTP protocol with guards at its edges. Over the Unix socket the peer's uid must be ours or
root's, and its pid stands for the client from then on, so that the engine can be fair between programs. A head that
does not arrive in time or is too large, and an answer that is not read, close the connection; uvicorn then tells
the application that the client is gone, which cancels the exchange.
The invariant: nothing that a client leaves undone holds a connection for longer than the settings say, and nothing
here costs anything for each piece of a stream.
What this does not do: look at requests (api/limits.py bounds bodies, api/security.py guards the TCP port).
httptools rather than h11, because it takes 0.8 instead of 4.3 microseconds for each piece of a stream.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import math
import os
import resource
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from edgepd.settings import Serve
from edgepd_daemon.api.errors import RETRY_AFTER_SECONDS

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
MAX_CONNECTIONS = 1000
ACCEPT_AT_ONCE = 64  # by asyncio, before it looks at any; more of a flood would eat up all descriptors meanwhile
FILES_FOR_OTHERS = 500  # descriptors that connections leave for those being accepted, the profile, child processes
SECONDS_BETWEEN_COMPLAINTS = 10.0  # a flood of connections must not become one of log lines
KEEP_ALIVE_SECONDS = 30  # how long a connection may stay open between two requests
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid
_INT = struct.Struct("i")


class Config(uvicorn.Config):
    """What uvicorn needs to know, and what the protocol below does."""

    def __init__(self, app: Any, serve: Callable[[], Serve], drain_seconds: int) -> None:
        """`serve` returns the limits that hold now."""
        super().__init__(
            app,
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # nobody may speak for another client
            server_header=False,
            date_header=False,
            backlog=ACCEPT_AT_ONCE,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=drain_seconds,
        )
        self.serve_settings = serve
        self.max_connections = _room_for_connections()
        self.full_logged_at = -math.inf


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Called by uvicorn."""
        super().__init__(config, server_state, app_state, _loop)
        self._limits = config.serve_settings
        self._config = config
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._seen: object = None  # the last request whose head has arrived
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let in who may come in."""
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family == socket.AF_UNIX:
            pid, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            if uid not in (os.geteuid(), 0):
                log.warning("refused a connection from uid %d (pid %d): the daemon serves one user only", uid, pid)
                transport.abort()
                return
            self.client = (f"pid:{pid}", 0)
        if len(self.connections) > self._config.max_connections:
            self._log_full()
            transport.write(_FULL)
            transport.close()
            return
        # Whatever the kernel does not take at once counts as unread.
        transport.set_write_buffer_limits(high=0)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._head_arrived()
        self._stop_write_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and watch whether the head of a request is complete."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.cycle is not self._seen:
            self._seen = self.cycle
            self._head_arrived()
        elif self.cycle is None or self.cycle.response_complete:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._give_up(_HEAD_TOO_LARGE)
            elif self._head_timer is None:
                self._await_head()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write: give it some time."""
        super().pause_writing()
        self._watch_unread()

    def resume_writing(self) -> None:
        """The client has read everything."""
        self._stop_write_timer()
        super().resume_writing()

    def _log_full(self) -> None:
        now = self.loop.time()
        if now - self._config.full_logged_at > SECONDS_BETWEEN_COMPLAINTS:
            self._config.full_logged_at = now
            log.warning("connections are refused, because %d are open", self._config.max_connections)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._limits().request_timeout_s, self._give_up, b"")

    def _head_arrived(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self, answer: bytes) -> None:
        self._head_arrived()
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()

    def _watch_unread(self) -> None:
        self._stop_write_timer()
        seconds = self._limits().write_timeout_s
        self._write_timer = self.loop.call_later(seconds, self._drop_if_still_unread, self._unread_bytes())

    def _drop_if_still_unread(self, before: int) -> None:
        self._write_timer = None
        if self._unread_bytes() < before:
            self._watch_unread()
            return
        log.info("closed a connection of %s, which left an answer unread", self.client)
        self.transport.abort()

    def _unread_bytes(self) -> int:
        """Return what waits here and in the kernel, which wants a good part read before it takes more."""
        peer = self.transport.get_extra_info("socket")
        queued = bytearray(_INT.size)
        fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, queued)
        return int(self.transport.get_write_buffer_size()) + int(_INT.unpack(queued)[0])

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _plain(status: bytes, body: bytes, *headers: bytes) -> bytes:
    """Return a whole response for a client whose dialect is not known yet."""
    length = b"content-length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status, *headers, length, b"connection: close", b"", body])


_FULL = _plain(b"503 Service Unavailable", b"too many connections\n", b"retry-after: %d" % RETRY_AFTER_SECONDS)
_HEAD_TOO_LARGE = _plain(b"431 Request Header Fields Too Large", b"the head of the request is too large\n")


def _room_for_connections() -> int:
    """Return how many connections there can be, after raising the soft limit on open files as far as needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + FILES_FOR_OTHERS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, soft - FILES_FOR_OTHERS))
