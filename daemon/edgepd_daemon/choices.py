"""The answers of one exchange as far as they have come, and what they tell whoever waits for them.

The idea: a Choice takes in the engine's events one by one and says what each of them means to the client.
What this does not do: wait for events, or store anything (see exchange.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from edgepd_daemon.ask import Ask
from edgepd_daemon.engine.types import Event, Finished, Request, Sampling, ScoredToken, Text, Timings
from edgepd_daemon.prompt import Prompt, about_tools
from edgepd_daemon.recorder import Ending
from edgepd_daemon.tools.format import Parsed
from edgepd_daemon.tools.types import ToolCall
from edgepd_profiles.interactions import Interaction


@dataclass(frozen=True)
class Piece:
    """More of a choice: text to show, tool calls that are complete, and the scores of its tokens if asked for."""

    choice: int
    text: str
    calls: tuple[ToolCall, ...] = ()
    scored: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True)
class End:
    """The end of a choice: `stop`, `length`, `tool_calls` or `cancelled`."""

    choice: int
    reason: str


@dataclass
class Choice:
    """One answer as far as it has come. `raw` is what the model wrote, `content` what of it is not a tool call."""

    interaction: Interaction
    prompt: Prompt
    started_at: float
    raw: str = ""
    content: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    scored: list[ScoredToken] = field(default_factory=list)
    completion_tokens: int = 0
    timings: Timings | None = None
    finish_reason: str | None = None
    stop: str | None = None  # the stop string that ended it
    logged: bool = False
    saved_at: float = 0.0
    request: Request | None = None

    def __post_init__(self) -> None:
        self._parser = self.prompt.parser()

    @property
    def interaction_id(self) -> str | None:
        """The id under which feedback can be given, None if the choice is not stored."""
        return self.interaction.id if self.logged else None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None

    def add(self, event: Text) -> Parsed:
        """Take in more text and return what it means to the client."""
        self.raw += event.text
        self.completion_tokens += event.tokens
        self.scored += event.scored
        return self._noted(self._parser.feed(event.text) if self._parser else Parsed(event.text))

    def end(self, event: Finished) -> Parsed:
        """Take in the end and return what was held back until then."""
        self.timings, self.stop = event.timings, event.stop
        self.completion_tokens = event.timings.completion_tokens
        rest = self._noted(self._parser.finish() if self._parser else Parsed(""))
        self.finish_reason = "tool_calls" if self.calls and event.reason == "stop" else event.reason
        return rest

    def ending(self, state: str) -> Ending:
        """Return what the profile stores about the end."""
        return Ending(
            text=self.raw,
            state=state,
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.prompt.tokens),
            completion_tokens=self.completion_tokens,
            ttft_ms=self.timings.ttft_ms if self.timings else None,
            duration_ms=(time.monotonic() - self.started_at) * 1000,
        )

    def _noted(self, parsed: Parsed) -> Parsed:
        self.content += parsed.text
        self.calls += parsed.calls
        return parsed


def for_choice(sampling: Sampling, index: int) -> Sampling:
    """Give each choice a seed of its own: with the same one they would all be the same."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + index)


def kind_of(ask: Ask) -> str:
    """Return what the profile calls this kind of exchange; only plain chats can be learned from."""
    if not ask.messages:
        return "completion"
    return "tools" if ask.offered_tools or about_tools(ask.messages) else "chat"


def merged(events: list[tuple[int, Event]]) -> list[tuple[int, Event]]:
    """Join successive texts of one choice, so that a reader that lags behind catches up in one piece."""
    merged: list[tuple[int, Event]] = []
    for index, event in events:
        last: Any = merged[-1] if merged else None
        if last and last[0] == index and isinstance(last[1], Text) and isinstance(event, Text):
            before = last[1]
            joined = Text(before.text + event.text, before.tokens + event.tokens, before.scored + event.scored)
            merged[-1] = (index, joined)
        else:
            merged.append((index, event))
    return merged
