"""The daemon's HTTP server around an application of the test, without a model, an engine or a profile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepd.settings import Serve
from edgepd_daemon.listener import listening
from edgepd_daemon.protocol import Config
from edgepd_daemon.server import Server
from tests.daemon.running import short_directory

App = Callable[..., Awaitable[None]]
WAIT_SECONDS = 20.0


@dataclass
class Echo:
    """An application that answers with its path, and remembers what it was asked."""

    scopes: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Read the whole body and answer."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.scopes.append(scope)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@dataclass
class Served:
    """A server that runs."""

    path: Path
    server: Server
    config: Config

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """Open a connection that fails rather than hangs."""
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect(str(self.path))  # blocks while the queue of the socket is full; with a timeout it would fail
            client.settimeout(WAIT_SECONDS)
            yield client

    def ask(self, request: bytes) -> bytes:
        """Send bytes and return all that comes until the connection is closed."""
        with self.connected() as client:
            with contextlib.suppress(
                BrokenPipeError
            ):  # who is refused may find the door shut, and the answer behind it
                client.sendall(request)
            return everything(client)


def everything(client: socket.socket) -> bytes:
    """Read until the other side closes, or resets because it has not read all that was sent."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            received += piece
    return received


def get(path: str = "/", *headers: str) -> bytes:
    """A request that asks for the connection to be closed afterwards."""
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode()


@contextmanager
def served(app: App, **limits: Any) -> Iterator[Served]:
    """Serve `app` on a Unix socket with these settings of [serve]."""
    settings = Serve(**limits)
    with short_directory() as directory, listening(directory / "s") as listener:
        started = threading.Event()
        config = Config(app, lambda: settings, drain_seconds=1)
        server = Server(config, started.set)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_until_complete, args=(server.serve([listener]),))
        thread.start()
        try:
            assert started.wait(WAIT_SECONDS)
            yield Served(directory / "s", server, config)
        finally:
            loop.call_soon_threadsafe(server.stop)
            thread.join(WAIT_SECONDS)
            loop.close()
