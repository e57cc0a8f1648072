"""The events of several exchanges as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from edgepd_daemon.choices import End, Piece

Event = Piece | End


async def merged(streams: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[tuple[int, Event], None]:
    """Yield the events of all streams with the number of their stream, as they come.

    Raises what the first of them raises, and then closes the others.
    """
    events: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()

    async def pump(number: int, stream: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(stream):
                async for event in stream:
                    events.put_nowait((number, event))
        finally:
            events.put_nowait((number, None))

    pumps = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            number, event = await events.get()
            if event is not None:
                yield number, event
            else:
                await pumps[number]
                running -= 1
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
