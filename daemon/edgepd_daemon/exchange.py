"""One chat exchange: from messages to a stream of text, recorded in the profile on the way.

The idea: `start` resolves the version, tokenises and submits; iterating yields the engine's events. The row is
written when the first text arrives, before the client sees it, updated about once a second, and finished with the
last event or when the client goes away. Invariants: an exchange ends in the profile exactly once; a profile that
cannot be written never stops an answer, but the answer says so.
What this does not do: know the dialect of the client.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass

from edgepd.errors import EdgepdError, StoreError
from edgepd_daemon.engine.loop import Engine
from edgepd_daemon.engine.types import Event, Failed, Finished, Request, Sampling, Text, Timings, Version
from edgepd_daemon.generations import Generations
from edgepd_profiles import interactions
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

UPDATE_SECONDS = 1.0  # how often a streaming answer is saved
STATE_OF_REASON = {"stop": "done", "length": "done", "cancelled": "cancelled"}


@dataclass(frozen=True)
class Ask:
    """What a client asks for, in no dialect."""

    model: str
    messages: list[dict[str, str]]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    store: bool = True
    conversation: str | None = None
    app: str = ""
    reuse_cache: bool = True


class Recorder:
    """Writes exchanges into the profile, and remembers when that last failed."""

    def __init__(self, store: Store, *, enabled: bool) -> None:
        """With `enabled` false nothing is stored."""
        self._store = store
        self.enabled = enabled
        self.problem: str | None = None

    async def begin(self, interaction: Interaction) -> str | None:
        """Store the row; return why that failed, None if it is on disk."""
        try:
            await _written(self._store.write(lambda c: interactions.begin(c, interaction)))
        except StoreError as error:
            return self._failed(error)
        self.problem = None
        return None

    async def finish(self, exchange: Exchange, state: str) -> str | None:
        """Store the end of the exchange; return why that failed."""
        try:
            await _written(self._finish(exchange, state))
        except StoreError as error:
            return self._failed(error)
        return None

    def finish_unattended(self, exchange: Exchange, state: str) -> None:
        """Store the end of an exchange that nobody waits for any more."""
        self._finish(exchange, state).add_done_callback(self._note)

    def update(self, exchange: Exchange) -> None:
        """Save the text so far, without waiting."""
        text, tokens = exchange.text, exchange.completion_tokens
        row = exchange.interaction.id
        self._store.write(lambda c: interactions.update(c, row, text, tokens)).add_done_callback(self._note)

    def _finish(self, exchange: Exchange, state: str) -> Future[None]:
        text, timings, reason, row = exchange.text, exchange.timings, exchange.finish_reason, exchange.interaction.id
        duration_ms = (time.monotonic() - exchange.started_at) * 1000
        return self._store.write(
            lambda c: interactions.finish(
                c,
                row,
                text,
                state,
                reason,
                prompt_tokens=exchange.interaction.prompt_tokens,
                completion_tokens=timings.completion_tokens if timings else exchange.completion_tokens,
                ttft_ms=timings.ttft_ms if timings else None,
                duration_ms=duration_ms,
            )
        )

    def _note(self, done: Future[None]) -> None:
        error = done.exception()
        if isinstance(error, EdgepdError):
            self._failed(error)
        elif error is not None:
            log.error("an exchange could not be recorded", exc_info=error)

    def _failed(self, error: EdgepdError) -> str:
        self.problem = f"answers are not being stored: {error}"
        log.error("%s", self.problem)
        return self.problem


class Exchange:
    """A submitted question and the answer as far as it has come."""

    def __init__(
        self, engine: Engine, recorder: Recorder, ask: Ask, version: Version, model_id: str, prompt_tokens: int
    ) -> None:
        """Use `start`."""
        self._engine = engine
        self._recorder = recorder
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self.version = version
        self.model_id = model_id
        self.text = ""
        self.completion_tokens = 0
        self.timings: Timings | None = None
        self.finish_reason: str | None = None
        self.warnings: list[str] = []
        self.stores = ask.store and recorder.enabled
        self.logged = False
        self.started_at = time.monotonic()
        self.interaction = _new_interaction(ask, version, model_id, prompt_tokens)
        self._request: Request | None = None

    @classmethod
    async def start(cls, engine: Engine, generations: Generations, recorder: Recorder, ask: Ask) -> Exchange:
        """Resolve, tokenise and submit. Raises EdgepdError if the request cannot be accepted."""
        version = await asyncio.to_thread(generations.resolve, ask.model)
        prompt = await asyncio.to_thread(engine.encode, version, ask.messages)
        exchange = cls(engine, recorder, ask, version, generations.model_id(version), len(prompt))
        exchange._request = Request(
            prompt=prompt,
            version=version,
            max_tokens=ask.max_tokens,
            emit=exchange._emitter(),
            sampling=ask.sampling,
            stop=ask.stop,
            reuse_cache=ask.reuse_cache,
        )
        engine.submit(exchange._request)
        return exchange

    @property
    def interaction_id(self) -> str | None:
        """The id under which feedback can be given, None if the exchange is not stored."""
        return self.interaction.id if self.logged else None

    async def events(self) -> AsyncIterator[Text | Finished]:
        """Yield the answer's events. Raises the EdgepdError with which the engine failed.

        If the consumer stops early, the answer is cancelled and recorded as such.
        """
        ended = False
        saved_at = time.monotonic()
        try:
            while not ended:
                event = await self._events.get()
                if not self.logged and self.stores and not self.warnings:
                    await self._begin()
                if isinstance(event, Text):
                    self.text += event.text
                    self.completion_tokens += 1
                    if self.logged and time.monotonic() - saved_at > UPDATE_SECONDS:
                        self._recorder.update(self)
                        saved_at = time.monotonic()
                else:
                    ended = True
                    await self._end(event)
                if isinstance(event, Failed):
                    raise event.error
                yield event
        finally:
            if not ended:
                self._abandon()

    def _emitter(self) -> Callable[[Event], None]:
        loop = asyncio.get_running_loop()

        def emit(event: Event) -> None:
            # When the loop is gone, so is everyone who could have read the event.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        return emit

    async def _begin(self) -> None:
        self.logged = True  # already, because the row is there even if the client goes while it is written
        problem = await self._recorder.begin(self.interaction)
        self.logged = problem is None
        if problem:
            self.warnings.append(problem)

    async def _end(self, event: Finished | Failed) -> None:
        if isinstance(event, Finished):
            self.timings, self.finish_reason = event.timings, event.reason
        state = "failed" if isinstance(event, Failed) else STATE_OF_REASON[event.reason]
        problem = await self._recorder.finish(self, state) if self.logged else None
        if problem:
            self.warnings.append(problem)

    def cancel(self) -> None:
        """Stop computing; what there is by now is the answer, recorded as cancelled."""
        if self._request is not None:
            self._engine.cancel(self._request)

    def _abandon(self) -> None:
        """The client has gone: stop computing, and keep what there is."""
        self.cancel()
        self.finish_reason = "cancelled"
        if self.logged:
            self._recorder.finish_unattended(self, "cancelled")


async def _written(write: Future[None]) -> None:
    """Wait for a write. Whoever stops waiting, a client that hangs up for example, does not take it back."""
    await asyncio.shield(asyncio.wrap_future(write))


def _new_interaction(ask: Ask, version: Version, model_id: str, prompt_tokens: int) -> Interaction:
    row = interactions.new_id()
    return Interaction(
        id=row,
        conversation=ask.conversation or row,
        created_at=time.time(),
        app=ask.app,
        model=model_id,
        generation=version.generation,
        messages=ask.messages,
        prompt_tokens=prompt_tokens,
    )
