"""Tool calls for one model: what goes into its prompt, what it may write, and what that means.

The idea: `tool_format` looks at the model's chat template once; the rest of the daemon deals with any model in the
same way through the `ToolFormat` that it returns. What this does not do: run tools. The client does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgepd.errors import RequestError
from edgepd_daemon.engine.types import Grammar
from edgepd_daemon.tools.calling import call_grammar
from edgepd_daemon.tools.families import Family, family_of
from edgepd_daemon.tools.history import as_text, for_template
from edgepd_daemon.tools.parser import Parsed, ToolParser
from edgepd_daemon.tools.types import AUTO, NONE, REQUIRED, Tool

__all__ = ["Parsed", "ToolFormat", "ToolParser", "tool_format"]


class ToolFormat:
    """How one model is told about tools and calls them."""

    def __init__(self, family: Family, *, system_messages: bool = True) -> None:
        """`system_messages` says whether the chat template takes them."""
        self._family = family
        self._system_messages = system_messages

    @property
    def name(self) -> str:
        """The name of the family, for status reports."""
        return self._family.name

    @property
    def markers(self) -> tuple[str, ...]:
        """The texts that mark calls. Where they are control tokens they have to be part of the answer's text."""
        family = self._family
        return tuple(mark for mark in (*family.opening, family.separated, family.closing, family.ending) if mark)

    def template_tools(self, tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
        """Return the tools for the chat template, None if `messages` has put them into a message."""
        return [tool.as_json() for tool in tools] if self._family.in_template else None

    def messages(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
        """Return the conversation as the chat template has to get it."""
        if self._family.in_template:
            return for_template(self._family, messages)
        return as_text(messages, tools, system=self._system_messages)

    def grammar(self, tools: Sequence[Tool], choice: str, *, parallel: bool = True) -> Grammar | None:
        """Return what the model may write; None is anything.

        `choice` is `auto`, `none`, `required` or the name of the tool to call. Without `parallel` there is at most
        one call. Raises RequestError if there is no such tool.
        """
        if choice == NONE or not tools:
            return None
        if choice in (AUTO, REQUIRED):
            return call_grammar(self._family, tools, lazy=choice == AUTO, parallel=parallel)
        chosen = [tool for tool in tools if tool.name == choice]
        if not chosen:
            raise RequestError(f"tool_choice names the tool {choice!r}, which is not among the tools of the request")
        return call_grammar(self._family, chosen, lazy=False, parallel=parallel)

    def parser(self, tools: Sequence[Tool] = ()) -> ToolParser:
        """Return what tells calls from text in one answer."""
        return ToolParser(self._family, tools)


def tool_format(template_source: str | None, supports_tools: bool) -> ToolFormat:
    """Return the format of a model by the text of its chat template; None stands for ChatML."""
    refuses_system = "System role not supported" in (template_source or "")  # Gemma, and what is made from it
    return ToolFormat(family_of(template_source, supports_tools), system_messages=not refuses_system)
