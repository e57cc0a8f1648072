"""What `edgepd chat` observes in passing: how long an answer was looked at, and that one was left before its end.

The idea: passive feedback costs the user nothing, so it must not cost the chat anything either. The invariants: only
stored answers are reported, and a report that fails is forgotten; the daemon's answer to it is never shown.
What this does not do: observe when lines come from a pipe, where nobody looks at anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edgepd.cli.conversation import Turn
from edgepd.client import Client
from edgepd.errors import ConflictError, EdgepdError

MAX_DWELL_MS = 10 * 60 * 1000  # after that nobody knows whether the user was still there


class Observer:
    """Reports what happens to the answers of one chat. `clock` is in seconds and never goes back."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._shown: tuple[str, float] | None = None  # the answer that is being looked at, and since when
        self._abandoned: str | None = None

    def answered(self, turn: Turn, *, stopped: bool) -> None:
        """Take note that an answer has ended, or was `stopped` by the user."""
        self._shown = None
        if turn.interaction_id is None:
            return
        if stopped:
            self._abandoned = turn.interaction_id
        else:
            self._shown = turn.interaction_id, self._clock()

    def went_on(self) -> None:
        """Report the last answer: the user has typed the next line, or left."""
        if self._shown is not None:
            shown, since = self._shown
            dwell_ms = min(round((self._clock() - since) * 1000), MAX_DWELL_MS)
            self._shown = None
            quietly(lambda: self._client.dwelt(shown, dwell_ms, source="cli"))
        abandoned = self._abandoned
        if abandoned is not None and quietly(lambda: self._client.abandoned(abandoned, source="cli")):
            self._abandoned = None


def quietly(report: Callable[[], object]) -> bool:
    """Send a report. Return False if it came too early, because the daemon does not know yet that the answer ended."""
    try:
        report()
    except ConflictError:
        return False
    except EdgepdError:
        return True  # it is lost, which harms less than a word about it in the middle of a conversation
    return True
