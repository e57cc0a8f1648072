"""From a question to the tokens that the engine prefills, and to what may come of them.

The idea: the chat template, the tools and the overflow policy are settled here, before the engine sees anything.
What this does not do: know the dialect of the client, or touch the engine's state.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgepd_daemon.ask import Ask, Message
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.types import Grammar, Version
from edgepd_daemon.tools.format import ToolFormat, ToolParser
from edgepd_daemon.tools.types import Tool

ROOM_FOR_ANSWER = 0.25  # share of the context window that dropping old messages leaves free


@dataclass(frozen=True)
class Prompt:
    """What to prefill, what the answer may consist of, and how to read tool calls out of it."""

    tokens: list[int]
    text: str = ""  # of a bare prompt
    grammar: Grammar | None = None
    tool_format: ToolFormat | None = None
    tools: tuple[Tool, ...] = ()

    def parser(self) -> ToolParser | None:
        """Return a fresh parser of tool calls, None if there are no tools."""
        return self.tool_format.parser(self.tools) if self.tool_format else None

    @property
    def markers(self) -> tuple[str, ...]:
        """The control tokens that mark tool calls."""
        return self.tool_format.markers if self.tool_format else ()


def prepare(engine: Engine, version: Version, ask: Ask) -> Prompt:
    """Return the prompt of a question. Raises TemplateError, RequestError or what loading the model raises."""
    if ask.prompt is not None:
        return _bare(engine, version, ask)
    tools = ask.offered_tools
    if not tools and not about_tools(ask.messages):
        return Prompt(_fitting(engine, version, ask, ask.messages, None), grammar=ask.grammar)
    tool_format = engine.tool_format(version)
    messages = tool_format.messages(ask.messages, tools)
    tokens = _fitting(engine, version, ask, messages, tool_format.template_tools(tools) or None)
    if not tools:
        return Prompt(tokens, grammar=ask.grammar)
    grammar = tool_format.grammar(tools, ask.tool_choice, parallel=ask.parallel_tool_calls)
    return Prompt(tokens, grammar=grammar, tool_format=tool_format, tools=tools)


def about_tools(messages: Sequence[Message]) -> bool:
    """Whether a conversation has calls of tools, or what they returned."""
    return any(m["role"] == "tool" or m.get("tool_calls") for m in messages)


def _bare(engine: Engine, version: Version, ask: Ask) -> Prompt:
    given = ask.prompt or ""
    tokens = engine.tokenize(version, given) if isinstance(given, str) else given
    text = given if isinstance(given, str) else engine.detokenize(version, given)
    if ask.overflow == "shift":
        tokens = tokens[-_room(engine) :]
    return Prompt(tokens, text, ask.grammar)


def _fitting(
    engine: Engine, version: Version, ask: Ask, messages: list[Message], tools: list[dict[str, Any]] | None
) -> list[int]:
    """Return the prompt's tokens; with overflow `shift`, without the oldest messages that do not fit."""

    def encode(some: list[Message]) -> list[int]:
        return engine.encode(version, some, tools)

    tokens = encode(messages)
    if ask.overflow != "shift" or len(tokens) <= _room(engine):
        return tokens
    return _shortened(encode, messages, _room(engine))


def _shortened(encode: Callable[[list[Message]], list[int]], messages: list[Message], room: int) -> list[int]:
    """Return the longest newest part of a conversation, system messages kept, that fits; at least the last turn."""
    system = [m for m in messages if m["role"] == "system"]
    rest = [m for m in messages if m["role"] != "system"]
    starts = [i for i, m in enumerate(rest) if m["role"] == "user"] or [len(rest) - 1]
    # A later start gives a shorter prompt, so the first that fits is found in a few steps.
    fitting = bisect.bisect_left(starts, True, key=lambda start: len(encode(system + rest[start:])) <= room)
    return encode(system + rest[starts[min(fitting, len(starts) - 1)] :])


def _room(engine: Engine) -> int:
    return int(engine.context_tokens * (1 - ROOM_FOR_ANSWER))
