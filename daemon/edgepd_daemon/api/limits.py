"""Bounds on what a request body may cost: its size, and the time that it takes to arrive.

The idea: bodies are small JSON documents, so the whole body is read here, against a limit and a clock, before any
route sees the request. The invariant: no route ever waits for a client to finish its request, and no body larger
than the limit is in memory. The limits are read for each request, so a reload changes them.
What this does not do: bound the head of a request or the reading of an answer; protocol.py does, below HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepd.errors import RequestError
from edgepd.settings import Serve
from edgepd_daemon.api.errors import refusal

LINGER_SECONDS = 1.0  # for a client that goes on sending after it was refused, so that it gets to read why


class Limits:
    """ASGI middleware that hands on complete requests only."""

    def __init__(self, app: ASGIApp, serve: Callable[[], Serve]) -> None:
        """`serve` returns the limits that hold now."""
        self._app = app
        self._serve = serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then call the application, or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits = self._serve()
        try:
            _check_length(scope, limits.max_body_bytes)
            async with asyncio.timeout(limits.request_timeout_s):
                body = await _whole(receive, limits.max_body_bytes)
        except _TooLargeError as error:
            await _refuse(scope, receive, send, 413, str(error), linger=error.more_to_come)
        except TimeoutError:
            problem = f"the body did not arrive within {limits.request_timeout_s:g} s; send it faster or in parts"
            await _refuse(scope, receive, send, 408, problem, linger=False)
        else:
            if body is not None:
                await self._app(scope, _replaying(body, receive), send)


class _TooLargeError(Exception):
    """The body is larger than allowed."""

    def __init__(self, size: str, limit: int, *, more_to_come: bool) -> None:
        super().__init__(f"the body has {size} bytes, but at most {limit} are taken; raise serve.max_body_bytes")
        self.more_to_come = more_to_come


def _check_length(scope: Scope, limit: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > limit:
            raise _TooLargeError(value[:20].decode("ascii"), limit, more_to_come=True)


async def _whole(receive: Receive, limit: int) -> bytes | None:
    """Return the whole body, None if the client has gone."""
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        more = message.get("more_body", False)
        if size > limit:
            raise _TooLargeError(f"more than {limit}", limit, more_to_come=more)
    return b"".join(pieces)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body first, and then what the client does next."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, problem: str, *, linger: bool) -> None:
    """Answer and close the connection, whose rest is of no use."""
    response = refusal(scope["path"], problem, code=RequestError.code, status=status, headers={"Connection": "close"})
    await send({"type": "http.response.start", "status": status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    if linger:
        # Closing at once would reset the connection under a client that still sends, before it reads the answer.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (message := await receive()).get("more_body") and message["type"] == "http.request":
                    continue
    await send({"type": "http.response.body", "body": b"", "more_body": False})
