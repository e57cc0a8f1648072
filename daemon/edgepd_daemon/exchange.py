"""One exchange: from a question to its answers, recorded in the profile on the way.

The idea: `Exchanges.start` resolves the version, puts what the profile knows before the question, tokenises and
submits one request for each of the `n` choices; iterating over `events` yields their text, tool calls and ends as they
come. A row is written when the first text of a choice arrives, before the client sees it, saved about once a second,
and finished with the last event or when the client goes away. The invariant: each choice ends in the profile exactly
once.
What this does not do: know the dialect of the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace

from edgepd.errors import TemplateError
from edgepd_daemon.ask import Ask
from edgepd_daemon.choices import Choice, End, Piece, for_choice, kind_of, merged
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.types import Event, Finished, Request, Text, Timings, Version
from edgepd_daemon.generations import Generations
from edgepd_daemon.mailbox import Mailbox
from edgepd_daemon.personal import Personal, Personaliser
from edgepd_daemon.prompt import Prompt, prepare
from edgepd_daemon.recorder import Recorder
from edgepd_profiles import interactions
from edgepd_profiles.interactions import Interaction

MOST_OF_CONTEXT = 0.75  # share of the context window up to which a prompt may be extended
SAVE_SECONDS = 1.0  # how often a streaming answer is saved
WHOLE = ("stop", "length")  # reasons with which an answer has come to its own end
STATE_OF_REASON = {"stop": "done", "length": "done", "cancelled": "cancelled"}

Observer = Callable[[Timings | None, str], None]
Answered = Callable[[str, Timings], None]


class Exchanges:
    """Starts exchanges with the parts that they need."""

    def __init__(
        self,
        engine: Engine,
        generations: Generations,
        recorder: Recorder,
        personaliser: Personaliser,
        observe: Observer = lambda _timings, _why: None,
        *,
        answered: Answered = lambda _app, _timings: None,
    ) -> None:
        """`observe` is told timings and reason of each choice that ended, `answered` app and timings."""
        self._engine = engine
        self._generations = generations
        self._recorder = recorder
        self._personaliser = personaliser
        self._observe = observe
        self._answered = answered

    async def start(self, ask: Ask) -> Exchange:
        """Resolve, tokenise and submit. Raises EdgepdError if the question cannot be accepted."""
        version = await asyncio.to_thread(self._generations.resolve, ask.model)
        personal, prompt = await asyncio.to_thread(self._prompt, version, ask)
        model_id = self._generations.model_id(version)
        observe = self._observer(version, ask.app)
        exchange = Exchange(self._engine, self._recorder, observe, ask, version, model_id, prompt, personal)
        exchange.submit()
        return exchange

    def _prompt(self, version: Version, ask: Ask) -> tuple[Personal, Prompt]:
        """Return what of the profile goes into the prompt, and the prompt; without it if there is no room for it."""
        personal = self._personaliser.of(version, ask)
        if personal.used:
            with contextlib.suppress(TemplateError):  # of a model that takes no system message, for example
                with_it = prepare(self._engine, version, replace(ask, messages=personal.messages))
                if len(with_it.tokens) <= self._engine.context_tokens * MOST_OF_CONTEXT:
                    return personal, with_it
            personal = replace(personal, used={})
        return personal, prepare(self._engine, version, ask)

    def _observer(self, version: Version, app: str) -> Observer:
        """Return an observer that also counts answers that came to their end for the health of their generation.

        One that was cancelled shows less; and it counts whether it is stored in the profile or not.
        """

        def observe(timings: Timings | None, why: str) -> None:
            self._observe(timings, why)
            if timings is not None:
                self._answered(app, timings)
            if why in WHOLE:
                self._generations.answered(version)

        return observe


class Exchange:
    """A submitted question and its answers as far as they have come."""

    def __init__(
        self,
        engine: Engine,
        recorder: Recorder,
        observe: Observer,
        ask: Ask,
        version: Version,
        model_id: str,
        prompt: Prompt,
        personal: Personal,
    ) -> None:
        """Use `Exchanges.start`."""
        self._engine = engine
        self._recorder = recorder
        self._observe = observe
        self._ask = ask
        self._mailbox: Mailbox[tuple[int, Event]] = Mailbox()
        self.version = version
        self.prompt = prompt
        self.personal = personal.used
        self.stores = ask.store and personal.stored and recorder.enabled
        self.model_id = model_id
        self.created_at = time.time()
        self.warnings: list[str] = []
        self.choices: list[Choice] = []

    def submit(self) -> None:
        """Hand one request for each choice to the engine: all of them or, if one is refused, none."""
        started = time.monotonic()
        self.choices = [Choice(self._interaction(), self.prompt, started) for _ in range(self._ask.n)]
        for index, choice in enumerate(self.choices):
            choice.request = self._request(index)
        self._engine.submit([c.request for c in self.choices if c.request])

    async def events(self) -> AsyncGenerator[Piece | End, None]:
        """Yield what comes of the choices. Raises the EdgepdError with which the engine failed.

        If the consumer stops early, the choices that have not ended are cancelled and recorded as such.
        """
        try:
            while not all(c.ended for c in self.choices):
                for index, event in merged(await self._mailbox.take()):
                    async for shown in self._taken(index, event):
                        yield shown
        finally:
            self._abandon()

    def cancel(self) -> None:
        """Stop computing; what there is by now is the answer, recorded as cancelled."""
        for choice in self.choices:
            if choice.request is not None and not choice.ended:
                self._engine.cancel(choice.request)

    async def _taken(self, index: int, event: Event) -> AsyncIterator[Piece | End]:
        choice = self.choices[index]
        if not choice.logged and self.stores and not self.warnings:
            await self._begin(choice)
        if isinstance(event, Text):
            parsed = choice.add(event)
            self._save(choice)
        elif isinstance(event, Finished):
            parsed = choice.end(event)
            self._observe(event.timings, event.reason)
            await self._finish(choice, STATE_OF_REASON[event.reason])
        else:
            choice.finish_reason = "failed"
            self._observe(None, "failed")
            await self._finish(choice, "failed")
            raise event.error
        scored = event.scored if isinstance(event, Text) else ()
        if parsed.text or parsed.calls or scored:
            yield Piece(index, parsed.text, parsed.calls, scored)
        if choice.finish_reason is not None:
            yield End(index, choice.finish_reason)

    def _save(self, choice: Choice) -> None:
        now = time.monotonic()
        if choice.logged and now - max(choice.saved_at, choice.started_at) > SAVE_SECONDS:
            self._recorder.update(choice.interaction.id, choice.raw, choice.completion_tokens)
            choice.saved_at = now

    async def _begin(self, choice: Choice) -> None:
        choice.logged = True  # already, because the row is there even if the client goes while it is written
        problem = await self._recorder.begin(choice.interaction)
        choice.logged = problem is None
        if problem:
            self.warnings.append(problem)

    async def _finish(self, choice: Choice, state: str) -> None:
        if choice.logged and (problem := await self._recorder.finish(choice.interaction.id, choice.ending(state))):
            self.warnings.append(problem)

    def _abandon(self) -> None:
        """Stop what has not ended, because the client has gone or a choice has failed, and keep what there is."""
        self.cancel()
        for choice in self.choices:
            if not choice.ended:
                choice.finish_reason = "cancelled"
                if choice.logged:
                    self._recorder.finish_unattended(choice.interaction.id, choice.ending("cancelled"))

    def _request(self, index: int) -> Request:
        ask = self._ask
        return Request(
            prompt=self.prompt.tokens,
            version=self.version,
            max_tokens=ask.max_tokens,
            emit=lambda event: self._mailbox.put((index, event)),
            sampling=for_choice(ask.sampling, index),
            stop=ask.stop,
            ignore_end=ask.ignore_end,
            reuse_cache=ask.reuse_cache,
            grammar=self.prompt.grammar,
            markers=self.prompt.markers,
            logprobs=ask.logprobs,
            shift=ask.overflow == "shift",
            client=ask.client or ask.app,
            keep_alive=ask.keep_alive,
            persist=self.stores,
        )

    def _interaction(self) -> Interaction:
        row = interactions.new_id()
        return Interaction(
            id=row,
            conversation=self._ask.conversation or row,
            created_at=self.created_at,
            app=self._ask.app,
            model=self.model_id,
            generation=self.version.generation,
            kind=kind_of(self._ask),
            messages=self._ask.messages or [{"role": "prompt", "content": self.prompt.text}],
            prompt_tokens=len(self.prompt.tokens),
            personal=self.personal,
        )
