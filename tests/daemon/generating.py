"""An engine in the process of the test, and requests whose events are collected."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgepd.chat import in_process
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.saved import SavedStates
from edgepd_daemon.engine.types import EngineSizes, Event, Failed, Finished, Request, Sampling, Text, Timings, Version

WAIT_SECONDS = 60.0
GREEDY = Sampling(temperature=0)


class Answer:
    """A submitted request and what came of it."""

    def __init__(self, engine: Engine, request: Callable[[Callable[[Event], None]], Request]) -> None:
        """Submit; `request` makes one that emits here."""
        self.events: list[Event] = []
        self.on_text: Callable[[int], None] | None = None  # called with the number of texts so far
        self._first = threading.Event()
        self._ended = threading.Event()
        self.request = request(self._emit)
        self._engine = engine

    def submit(self) -> Answer:
        """Hand it to the engine."""
        self._engine.submit([self.request])
        return self

    def _emit(self, event: Event) -> None:
        self.events.append(event)
        self._first.set()
        if isinstance(event, Text) and self.on_text:
            self.on_text(len(self.events))
        if not isinstance(event, Text):
            self._ended.set()

    def wait_for_first(self) -> None:
        """Wait until something was emitted."""
        assert self._first.wait(WAIT_SECONDS)

    @property
    def last(self) -> Event:
        """Wait for the end and return the event that says so, after checking that it is the only one."""
        assert self._ended.wait(WAIT_SECONDS), "the answer does not end"
        assert [e for e in self.events if not isinstance(e, Text)] == self.events[-1:]
        return self.events[-1]

    @property
    def finished(self) -> Finished:
        """The same, for one that must not fail."""
        last = self.last
        assert isinstance(last, Finished), last
        return last

    @property
    def failed(self) -> Failed:
        """The same, for one that must fail."""
        last = self.last
        assert isinstance(last, Failed), last
        return last

    @property
    def text(self) -> str:
        """The whole text."""
        assert self.finished
        return "".join(e.text for e in self.events if isinstance(e, Text))

    @property
    def timings(self) -> Timings:
        """What it cost."""
        return self.finished.timings


@contextmanager
def running_engine(
    *, max_queue: int = 8, keep_alive: float = math.inf, saved_in: Path | None = None, **sizes: int
) -> Iterator[Engine]:
    """An engine that is stopped after the block. With `saved_in`, it keeps conversations in that directory."""
    given = EngineSizes(**{"slots": 2, "context_tokens": 512, "batch_tokens": 16, "threads": 1, **sizes})
    saved = SavedStates(saved_in, 2**30, given, "test") if saved_in else None
    engine = Engine(given, max_queue=max_queue, make_template=in_process, keep_alive=keep_alive, saved=saved)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def prepared(engine: Engine, prompt: Sequence[int], version: Version, max_tokens: int = 8, **fields: Any) -> Answer:
    """A greedy request that goes on after the end of the turn; not submitted yet."""
    given = {"sampling": GREEDY, "ignore_end": True, **fields}
    return Answer(engine, lambda emit: Request(list(prompt), version, max_tokens, emit, **given))


def ask(engine: Engine, prompt: Sequence[int], version: Version, max_tokens: int = 8, **fields: Any) -> Answer:
    """The same, submitted."""
    return prepared(engine, prompt, version, max_tokens, **fields).submit()
