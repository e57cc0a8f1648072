"""Streams of every dialect: JSON in one line, and a start that waits for the first event.

The idea: a stream starts only when its first event is there, so that what fails before has a proper status code.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from json.encoder import encode_basestring
from typing import Any, TypeVar

from fastapi import Request

from edgepd_daemon.api.disconnect import cancel_on_disconnect
from edgepd_daemon.exchange import Exchange

T = TypeVar("T")

# Not line ends in server-sent events or JSON, but to many a line reader.
LINE_ENDS = (("\x85", "\\u0085"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))


def quoted(text: str) -> str:
    """Return a text as JSON in one line, whatever a client takes for one."""
    return one_line(encode_basestring(text))


def encoded(body: dict[str, Any]) -> str:
    """Return an object as JSON in one line."""
    return one_line(json.dumps(body, ensure_ascii=False, separators=(",", ":")))


def one_line(text: str) -> str:
    """Escape what some clients would split a line at, in a JSON text."""
    if not text.isascii():
        for character, escape in LINE_ENDS:
            text = text.replace(character, escape)
    return text


async def started(
    request: Request, exchanges: Sequence[Exchange], events: AsyncGenerator[T, None]
) -> AsyncGenerator[T, None]:
    """Wait for the first event and return all of them. Raises what the first one raises.

    A client that goes away while it waits cancels the exchanges; afterwards Starlette watches the stream.
    """
    async with AsyncExitStack() as stack:
        for exchange in exchanges:
            await stack.enter_async_context(cancel_on_disconnect(request, exchange))
        first = await anext(events)
    return _resumed(first, events)


async def _resumed(first: T, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    async with aclosing(events):
        yield first
        async for event in events:
            yield event
