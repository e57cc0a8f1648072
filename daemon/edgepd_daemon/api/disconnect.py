"""Stops what nobody waits for any more.

The idea: while a route waits for a whole answer, a task listens for the client's hanging up.
What this does not do: watch streams. Starlette does that itself and closes the iterator, which cancels the exchange.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request

from edgepd_daemon.exchange import Exchange

T = TypeVar("T")

GONE = 499  # the status for a client that has closed the connection, as nginx has it; only tests see it


@asynccontextmanager
async def cancel_on_disconnect(request: Request, exchange: Exchange) -> AsyncIterator[None]:
    """Cancel `exchange` as soon as the client of `request` is gone, for as long as the block runs."""

    async def watch() -> None:
        await _gone(request)
        exchange.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


async def unless_gone(request: Request, future: Future[T]) -> T | None:
    """Return the future's result; cancel it and return None as soon as the client hangs up."""
    result = asyncio.wrap_future(future)
    gone = asyncio.create_task(_gone(request))
    either: set[asyncio.Future[Any]] = {result, gone}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    return None if not result.done() and result.cancel() else await result


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
