"""The queue of requests that have no slot yet, fair between clients.

The idea: when a slot is free, it goes to the client with the fewest running answers; of those, to the one that was
served longest ago; of its requests, to the oldest. A client that sends fifty requests at once therefore delays
another client's single one by at most one answer.
What this does not do: bound its length, which the engine does before anything gets here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from edgepd_daemon.engine.types import Request


class Waiting(NamedTuple):
    """A request and when it was submitted, in monotonic seconds."""

    request: Request
    submitted: float


class WaitingQueue:
    """Requests in the order of arrival."""

    def __init__(self) -> None:
        """Start empty."""
        self._waiting: list[Waiting] = []
        self._turns: dict[str, int] = {}  # by client: the turn in which it was served last
        self._turn = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._waiting)

    def push(self, request: Request, submitted: float) -> None:
        """Add a request."""
        self._waiting.append(Waiting(request, submitted))

    def remove(self, request: Request) -> Waiting | None:
        """Take a request out; return None if it is not waiting."""
        found = next((w for w in self._waiting if w.request is request), None)
        if found is not None:
            self._waiting.remove(found)
        return found

    def pop(self, admissible: Callable[[Request], bool], running: Counter[str]) -> Waiting | None:
        """Take out the request whose turn it is among those that are admissible, None if there is none.

        `running` counts the running answers of each client.
        """
        candidates = [w for w in self._waiting if admissible(w.request)]
        if not candidates:
            return None
        chosen = min(candidates, key=lambda w: (running[w.request.client], self._turns.get(w.request.client, 0)))
        self._waiting.remove(chosen)
        self._turn += 1
        self._turns[chosen.request.client] = self._turn
        known = {w.request.client for w in self._waiting} | set(running) | {chosen.request.client}
        self._turns = {client: turn for client, turn in self._turns.items() if client in known}
        return chosen
