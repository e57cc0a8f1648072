"""Writes answers into the profile while they are generated.

The invariant: an answer ends in the profile exactly once; a profile that cannot be written never stops an answer,
but the problem is remembered and told.
What this does not do: decide when a row is begun, saved or finished (see exchange.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from edgepd.errors import ConflictError, EdgepdError, NotFoundError, StoreError
from edgepd.settings import Intent
from edgepd_profiles import events, implicit, interactions, suggestions
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.rows import last_user_text
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

MAX_LEFT = 1000  # ends of answers that are remembered while the disk is full; the next start closes the others


@dataclass(frozen=True)
class Ending:
    """How an answer ended, as the profile stores it."""

    text: str
    state: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float | None
    duration_ms: float


class Recorder:
    """Writes answers into the profile, and remembers when that last failed."""

    def __init__(self, store: Store, *, enabled: bool) -> None:
        """With `enabled` false nothing is stored."""
        self._store = store
        self.enabled = enabled
        self.events: bool = Intent.enabled  # whether chats become events; a reload replaces it
        self.problem: str | None = None
        self._left: dict[str, Ending] = {}  # ends that could not be stored, by row

    async def begin(self, interaction: Interaction) -> str | None:
        """Store the row; return why that failed, None if it is on disk.

        What the question says about the answer before it, about suggestions, and of what the user does, is noted
        without waiting for it.
        """
        try:
            await _written(self._store.write(lambda c: interactions.begin(c, interaction)))
        except StoreError as error:
            return self._failed(error)
        self.problem = None
        with contextlib.suppress(StoreError):  # closed just now; the row is there
            with_events = self.events
            self._store.write(lambda c: _observe(c, interaction, with_events)).add_done_callback(_unobserved)
        return None

    async def finish(self, row: str, ending: Ending) -> str | None:
        """Store the end of an answer; return why that failed."""
        try:
            await _written(self._store.write(_finisher(row, ending)))
        except StoreError as error:
            self._leave(row, ending)
            return self._failed(error)
        return None

    def finish_unattended(self, row: str, ending: Ending) -> None:
        """Store the end of an answer that nobody waits for any more."""

        def note(done: Future[None]) -> None:
            if isinstance(done.exception(), StoreError):
                self._leave(row, ending)
            self._note(done)

        self._store.write(_finisher(row, ending)).add_done_callback(note)

    async def finish_left(self) -> None:
        """Try once more to store the ends that could not be stored. Raises StoreError if that fails again."""
        for row, ending in list(self._left.items()):
            try:
                await _written(self._store.write(_finisher(row, ending)))
            except (ConflictError, NotFoundError) as error:  # ended or forgotten meanwhile
                log.info("%s", error)
            self._left.pop(row, None)
            self.problem = None

    def _leave(self, row: str, ending: Ending) -> None:
        if len(self._left) < MAX_LEFT:
            self._left[row] = ending

    def update(self, row: str, text: str, tokens: int) -> None:
        """Save the text so far, without waiting."""
        self._store.write(lambda c: interactions.update(c, row, text, tokens)).add_done_callback(self._note)

    def _note(self, done: Future[None]) -> None:
        error = done.exception()
        if isinstance(error, EdgepdError):
            self._failed(error)
        elif error is not None:
            log.error("an answer could not be recorded", exc_info=error)

    def _failed(self, error: EdgepdError) -> str:
        self.problem = f"answers are not being stored: {error}"
        log.error("%s", self.problem)
        return self.problem


def _observe(conn: sqlite3.Connection, interaction: Interaction, with_events: bool) -> None:
    """Note what a question shows besides itself: it corrects the answer before, takes up a suggestion, is an event."""
    implicit.follow_ups(conn, interaction)
    suggestions.settle(conn, interaction.app, last_user_text(interaction.messages), interaction.created_at)
    if with_events:
        events.note_chat(conn, interaction)


def _unobserved(done: Future[None]) -> None:
    """A full disk is told by the recording of the answer itself; anything else is a mistake of ours."""
    error = done.exception()
    if error is not None and not isinstance(error, EdgepdError):
        log.error("a question could not be observed", exc_info=error)


def _finisher(row: str, ending: Ending) -> Callable[..., None]:
    return lambda conn: interactions.finish(
        conn,
        row,
        ending.text,
        ending.state,
        ending.finish_reason,
        prompt_tokens=ending.prompt_tokens,
        completion_tokens=ending.completion_tokens,
        ttft_ms=ending.ttft_ms,
        duration_ms=ending.duration_ms,
    )


async def _written(write: Future[None]) -> None:
    """Wait for a write. Whoever stops waiting, a client that hangs up for example, does not take it back."""
    await asyncio.shield(asyncio.wrap_future(write))
