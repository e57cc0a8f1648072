"""The system prompt of the app that is likely next, computed while nobody asks anything, so that it answers sooner.

The idea: some seconds after a request, and each half hour while a model is loaded, ask which app is likely next, render
the beginning that every question of it has, and let the engine fill a slot with that. The invariants: nothing is loaded
for it, and nothing kept loaded; whoever asks something ends it at once; it gives up no conversation that the next new
one would not have taken the place of anyway; it is not recorded, saved, or counted as use of the model.
What this does not do: predict (foresight.py), choose the slot (engine/slots.py), or warm what depends on the question:
facts and examples that are looked up for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edgepd.errors import EdgepdError, TemplateError
from edgepd.settings import Settings
from edgepd_daemon.ask import Ask, Message
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.types import EngineStatus, Finished, Sampling, Timings, Version
from edgepd_daemon.foresight import HALF_HOUR_S, Foresight
from edgepd_daemon.generations import Generations
from edgepd_daemon.personal import Personaliser
from edgepd_daemon.sensors import power
from edgepd_daemon.sensors.power import Power
from edgepd_profiles import interactions
from edgepd_profiles.rows import text_of
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

# Seconds after the last request or event. The second time conversations may be given up that were not the first.
LOOKS_S = (5.0, 65.0)
RELEASE_S, RELEASE_UNLOADED_S = 600.0, 60.0  # after which a student that nobody asks is let go of
MOST_UNUSED = 3  # prompts that are computed ahead in a row without any request
LEAST_TOKENS = 32  # of a prompt that is worth it
MOST_OF_CONTEXT = 0.75  # share of the context window that a beginning may take
MOST = 0.8  # share of a prompt that must have been reused to be called a hit
CHARS_PER_TOKEN = 8  # at most, in a text that may be worth rendering
NEWEST = 20  # exchanges of an app among which is looked for a chat
# Two questions that have no beginning, and no word, in common with each other or with what is asked.
QUESTIONS: tuple[Message, Message] = ({"role": "user", "content": "?"}, {"role": "user", "content": "1"})


@dataclass(frozen=True)
class Warmings:
    """What came of it. A hit is the next request of the app, if it reused most of the prompt; else it is a miss."""

    made: int = 0
    cancelled: int = 0  # because somebody asked something meanwhile
    hits: int = 0
    misses: int = 0
    tokens: int = 0  # computed ahead
    saved_s: float = 0.0  # in which hits would have computed what they reused


@dataclass(frozen=True)
class _Warm:
    """A prompt that waits for its app: its length, what of it was there before, and what a token took."""

    app: str
    tokens: int
    cached: int
    token_s: float


class Warmer:
    """The looks. Lives on the event loop, but for `wake`."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        generations: Generations,
        personaliser: Personaliser,
        foresight: Foresight,
        settings: Callable[[], Settings],
        training: Callable[[], bool],
        *,
        supply: Callable[[], Power] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Nothing happens until `run`. `training` says whether a run goes on; `settings` returns those in effect."""
        self._store = store
        self._engine = engine
        self._generations = generations
        self._personaliser = personaliser
        self._foresight = foresight
        self._settings = settings
        self._training = training
        self._supply = supply or partial(power.read, Path("/"))
        self._wall = wall
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stirred = asyncio.Event()
        self._woken_at = -math.inf
        self._looks = len(LOOKS_S)  # since it was woken
        self._unasked = 0  # prompts computed since the last request
        self._waits: _Warm | None = None
        self.warmings = Warmings()
        foresight.on_load = partial(self._call, self._stirred.set)

    def wake(self) -> None:
        """Look soon, because an event has come. Any thread; costs nothing."""
        self._call(self._begin_again)

    def answered(self, app: str, timings: Timings) -> None:
        """Note what an answer to an app took, and look soon. On the event loop."""
        if not timings.completion_tokens:
            return  # cancelled before its prompt was computed
        self._unasked = 0
        self._settle(app, timings)
        self._begin_again()

    async def run(self) -> None:
        """Look until cancelled."""
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                await self._sleep()
                try:
                    await self.look()
                except EdgepdError as error:
                    log.info("nothing is computed ahead: %s", error)
                except Exception:  # noqa: BLE001 - the edge of the task: a mistake here must not end it
                    log.exception("nothing is computed ahead")
        finally:
            self._loop = None

    async def look(self) -> None:
        """Compute the prompt of the app that is likely next, if it may be done now. Raises EdgepdError."""
        self._looks += 1
        status = self._engine.status()
        unused_s = RELEASE_UNLOADED_S if status.state == "unloaded" else RELEASE_S
        await asyncio.to_thread(self._foresight.release, unused_s)
        wanted = self._settings().intent
        if not (wanted.enabled and wanted.warm) or not self._may(status):
            return
        version = self._generations.current
        if not self._engine.is_prepared(version) or await asyncio.to_thread(self._is_low):
            return
        likely = await asyncio.to_thread(self._foresight.likely_apps)
        if not likely or likely[0][1] < wanted.warm_min_probability:
            return
        app = likely[0][0]
        read_at = time.monotonic()
        tokens = await asyncio.to_thread(self.beginning, version, app)
        if len(tokens) >= LEAST_TOKENS:
            self._note(app, len(tokens), await asyncio.wrap_future(self._engine.warm(version, tokens, read_at)))

    def beginning(self, version: Version, app: str) -> list[int]:
        """Return the tokens with which questions of an app begin, as its newest chat and the profile say. Blocks.

        None at all if it has no chat. Rendered as Exchanges renders it, with two questions: what both begin with.
        """
        most = min(self._settings().intent.warm_tokens, self._engine.context_tokens - 1)
        with self._store.read() as conn:
            own = _newest_opening(conn, app)
        if own is None or sum(len(text_of(m.get("content"))) for m in own) > CHARS_PER_TOKEN * most:
            return []
        ask = Ask(model="default", max_tokens=1, sampling=Sampling(), messages=[*own, QUESTIONS[0]], app=app)
        told = _opening(self._personaliser.of(version, ask).messages)
        for opening in (told, own):
            with contextlib.suppress(TemplateError):  # of a model that takes no system message; Exchanges does the same
                first, second = (self._engine.encode(version, [*opening, question]) for question in QUESTIONS)
                shared = len(os.path.commonprefix([first, second]))
                if shared <= MOST_OF_CONTEXT * self._engine.context_tokens:
                    return first[: min(shared, most)]
        return []

    def _may(self, status: EngineStatus) -> bool:
        """Whether nobody needs the machine, and a model is loaded that somebody has used since it was last done."""
        idle = status.state == "ready" and not status.active and not status.queued
        return idle and self._unasked < MOST_UNUSED and not self._training()

    def _is_low(self) -> bool:
        """Whether the battery, if there is one, has less than what training may take of it."""
        supply = self._supply()
        if supply.on_ac or supply.battery_percent is None:
            return False
        return supply.battery_percent < self._settings().budget.min_battery_percent

    def _note(self, app: str, tokens: int, ended: Finished | None) -> None:
        if ended is None:
            return
        if ended.reason != "length":
            self.warmings = replace(self.warmings, cancelled=self.warmings.cancelled + 1)
            return
        cached = ended.timings.cached_tokens
        computed = tokens - cached
        self._unasked += 1
        self._waits = _Warm(app, tokens, cached, ended.timings.prefill_ms / 1000 / max(1, computed))
        self.warmings = replace(self.warmings, made=self.warmings.made + 1, tokens=self.warmings.tokens + computed)
        log.debug("%d tokens of the likely next prompt were computed ahead", computed)

    def _settle(self, app: str, timings: Timings) -> None:
        """Count what came of the prompt that waits, if it waits for this app."""
        warm = self._waits
        if warm is None or warm.app != app:
            return
        self._waits = None
        if timings.ahead_tokens < MOST * warm.tokens:
            self.warmings = replace(self.warmings, misses=self.warmings.misses + 1)
            return
        saved_s = max(0, min(timings.ahead_tokens, warm.tokens) - warm.cached) * warm.token_s
        self.warmings = replace(self.warmings, hits=self.warmings.hits + 1, saved_s=self.warmings.saved_s + saved_s)

    async def _sleep(self) -> None:
        """Sleep until a look is due, for ever if there is nothing to look at."""
        while True:
            self._stirred.clear()
            try:
                async with asyncio.timeout(self._due_in_s()):
                    await self._stirred.wait()
            except TimeoutError:
                return

    def _due_in_s(self) -> float | None:
        if self._looks < len(LOOKS_S):
            return max(0.0, self._woken_at + LOOKS_S[self._looks] - time.monotonic())
        loaded = self._engine.alive and self._engine.status().state != "unloaded"
        due_s = [HALF_HOUR_S - self._wall() % HALF_HOUR_S] if loaded else []
        if self._foresight.loaded is not None:
            due_s.append(RELEASE_S if loaded else RELEASE_UNLOADED_S)
        return min(due_s, default=None)

    def _begin_again(self) -> None:
        self._woken_at, self._looks = time.monotonic(), 0
        self._stirred.set()

    def _call(self, work: Callable[[], object]) -> None:
        """Do something on the event loop, if it still runs."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(work)


def _newest_opening(conn: sqlite3.Connection, app: str) -> list[Message] | None:
    """Return the messages with which the newest chat of an app begins, None if none of the newest is a chat."""
    row = conn.execute(
        "SELECT seq FROM (SELECT seq, kind FROM interactions WHERE app = ? ORDER BY seq DESC LIMIT ?) "
        "WHERE kind = 'chat' ORDER BY seq DESC LIMIT 1",
        (app, NEWEST),
    ).fetchone()
    found = interactions.by_seq(conn, row or ())
    return _opening(found[row[0]].messages) if found else None


def _opening(messages: Sequence[Message]) -> list[Message]:
    """Return the system messages at the beginning of a conversation."""
    end = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    return list(messages[:end])
