"""What a client asks for, in no client's dialect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from edgepd_daemon.engine.types import Grammar, Sampling
from edgepd_daemon.tools.types import AUTO, NONE, Tool

Message = dict[str, Any]  # as chat templates expect it: role, content, and tool_calls or tool_call_id and name


@dataclass(frozen=True)
class Ask:
    """A question: either `messages`, which go through the model's chat template, or a bare `prompt`.

    A prompt is text or tokens. `tool_choice` is `auto`, `none`, `required` or the name of a tool. `overflow` says
    what happens when the context window is full: an error for a prompt that does not fit and an end for an answer,
    or forgetting the oldest part. `grammar` and `tools` exclude each other.
    """

    model: str
    max_tokens: int
    sampling: Sampling
    messages: list[Message] = field(default_factory=list)
    prompt: str | list[int] | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = AUTO
    parallel_tool_calls: bool = True
    grammar: Grammar | None = None
    logprobs: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    overflow: Literal["error", "shift"] = "error"
    keep_alive: float | None = None
    store: bool = True
    personal: bool = True  # whether what the profile knows may be put before the question
    conversation: str | None = None
    app: str = ""
    client: str = ""
    reuse_cache: bool = True

    @property
    def offered_tools(self) -> tuple[Tool, ...]:
        """The tools that the model may call."""
        return () if self.tool_choice == NONE else self.tools
