"""Tools and the choice among them, in the forms of chat completions (nested) and of responses (flat)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from edgepd.errors import RequestError
from edgepd_daemon.tools.types import AUTO, NONE, REQUIRED, Tool

MAX_TOOLS = 128  # as OpenAI's own API has it
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
NO_ARGUMENTS = {"type": "object", "properties": {}}
# A choice is one of these words or the name of a tool, so no tool may be called like one.
CHOICES = (AUTO, NONE, REQUIRED)

Chosen = tuple[tuple[Tool, ...], str]


class FunctionTool(BaseModel):
    """A function that the client can run; `parameters` is a JSON schema, which calls always obey."""

    model_config = ConfigDict(extra="ignore")
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(BaseModel):
    """A tool of a chat completion; only functions are understood."""

    type: str = "function"
    function: FunctionTool | None = None


class ResponseTool(BaseModel):
    """A tool of a response; only functions are understood."""

    model_config = ConfigDict(extra="ignore")
    type: str = "function"
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


Choice = str | dict[str, Any] | None
ChatTools = list[ChatTool] | None
ResponseTools = list[ResponseTool] | None


def of_chat(given: ChatTools, choice: Choice) -> Chosen:
    """Return the tools that may be called, and the choice among them. Raises RequestError."""
    functions = []
    for index, tool in enumerate(given or []):
        if tool.type != "function" or tool.function is None:
            raise RequestError(
                f"tools[{index}] must be {{'type': 'function', 'function': {{...}}}}; others are unknown"
            )
        functions.append(tool.function)
    return _chosen(_tools(functions), choice)


def of_response(given: ResponseTools, choice: Choice) -> Chosen:
    """The same for the flat form."""
    functions = []
    for index, tool in enumerate(given or []):
        if tool.type != "function" or tool.name is None:
            raise RequestError(
                f"tools[{index}] is of type '{tool.type[:50]}'; only functions with a name are understood"
            )
        functions.append(FunctionTool(name=tool.name, description=tool.description, parameters=tool.parameters))
    return _chosen(_tools(functions), choice)


def _tools(functions: Sequence[FunctionTool]) -> tuple[Tool, ...]:
    if len(functions) > MAX_TOOLS:
        raise RequestError(f"there are {len(functions)} tools, but at most {MAX_TOOLS} are allowed")
    names = [f.name for f in functions]
    for name in names:
        if not NAME.fullmatch(name) or name in CHOICES:
            raise RequestError(
                f"a tool is called {name[:100]!r}; names have 1 to 64 letters, digits, '_' and '-', and none is "
                f"{', '.join(CHOICES)}"
            )
        if names.count(name) > 1:
            raise RequestError(f"two tools are called '{name}'; give each its own name")
    return tuple(Tool(f.name, f.description or "", f.parameters or NO_ARGUMENTS) for f in functions)


def _chosen(tools: tuple[Tool, ...], choice: Choice) -> Chosen:
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            return _allowed(tools, choice)
        name = _named(choice)
        _find(tools, name)
        return tools, name
    word = choice or AUTO
    if word not in CHOICES:
        raise RequestError(f"`tool_choice` is {word[:100]!r}; use {', '.join(CHOICES)} or name a function")
    if word == REQUIRED and not tools:
        raise RequestError("`tool_choice` is 'required', but there are no `tools`")
    return ((), NONE) if word == NONE else (tools, word)


def _allowed(tools: tuple[Tool, ...], choice: dict[str, Any]) -> Chosen:
    nested = choice.get("allowed_tools")
    inner = nested if isinstance(nested, dict) else choice
    listed, mode = inner.get("tools"), inner.get("mode")
    if not isinstance(listed, list) or not listed or mode not in (AUTO, REQUIRED):
        raise RequestError("`allowed_tools` needs `tools`, a list, and `mode`, which is auto or required")
    return tuple(_find(tools, _named(entry)) for entry in listed), mode


def _named(entry: Any) -> str:
    """Return the name in {"type": "function", "function": {"name": ...}} or {"type": "function", "name": ...}."""
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or entry.get("type", "function") != "function":
        raise RequestError("`tool_choice` must name a function: {'type': 'function', 'function': {'name': ...}}")
    return name


def _find(tools: tuple[Tool, ...], name: str) -> Tool:
    for tool in tools:
        if tool.name == name:
            return tool
    raise RequestError(f"`tool_choice` names the function {name[:100]!r}, which is not among the `tools`")
