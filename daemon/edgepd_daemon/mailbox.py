"""Events from the engine thread to a coroutine, which is woken once for all that are there."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue with any number of putting threads and one taking coroutine, on the loop that made it."""

    def __init__(self) -> None:
        """Call on the event loop that will take."""
        self._loop = asyncio.get_running_loop()
        self._items: deque[T] = deque()
        self._there = asyncio.Event()
        self._signalled = False

    def put(self, item: T) -> None:
        """Add an item, from any thread. When the loop is gone, so is everyone who could have read it."""
        self._items.append(item)
        if not self._signalled and not self._loop.is_closed():
            self._signalled = True
            self._loop.call_soon_threadsafe(self._there.set)

    async def take(self) -> list[T]:
        """Wait until there is something and return all of it, in order."""
        await self._there.wait()
        self._there.clear()
        # Before the items are taken: what is put from now on signals again, at worst for nothing.
        self._signalled = False
        taken = []
        while self._items:
            taken.append(self._items.popleft())
        return taken
