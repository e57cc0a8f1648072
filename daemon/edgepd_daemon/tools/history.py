"""Conversations with tools as a model's chat template wants them.

The idea: a template that knows tools gets the calls and results of earlier turns as they are, with the details
that templates differ in. Any other gets them as text: the tools in the system message, calls in the assistant's
words, results as the user's. The invariant: the given messages are not changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgepd_daemon.tools.families import Family
from edgepd_daemon.tools.types import Tool

Message = dict[str, Any]

# The words with which Hermes and Qwen models are trained; others have seen them as well.
INSTRUCTIONS = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def for_template(family: Family, messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return the messages for a template that knows tools."""
    names: dict[Any, str] = {}  # of the functions, by the id of the call
    found = []
    for given in messages:
        message = {**given, "content": "" if given.get("content") is None else given["content"]}
        if given.get("tool_calls"):
            message["tool_calls"] = [_call(family, call) for call in given["tool_calls"]]
            names.update((call.get("id"), _function(call).get("name", "")) for call in given["tool_calls"])
        if given.get("role") == "tool":
            if not given.get("name") and names.get(given.get("tool_call_id")):
                message["name"] = names[given["tool_call_id"]]
            if given.get("tool_call_id"):
                message["tool_call_id"] = _id(family, given["tool_call_id"])
        found.append(message)
    return found


def as_text(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool], *, system: bool) -> list[Message]:
    """Return the messages for a template without tools; without `system` it has no system messages either."""
    found: list[Message] = []
    after_result = False
    for given in messages:
        content = given.get("content") or ""
        if given.get("role") == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
            if after_result:  # many templates want turns to alternate
                found[-1]["content"] += "\n" + content
            else:
                found.append({"role": "user", "content": content})
        else:
            calls = [_written_call(call) for call in given.get("tool_calls") or ()]
            kept = {key: value for key, value in given.items() if key != "tool_calls"}
            found.append({**kept, "content": "\n".join([*([content] if content else []), *calls])})
        after_result = given.get("role") == "tool"
    return _instructed(found, tools, "system" if system else "user") if tools else found


def _instructed(messages: list[Message], tools: Sequence[Tool], role: str) -> list[Message]:
    """Tell the model about the tools in the first message of a role."""
    listed = "\n".join(json.dumps(tool.as_json(), ensure_ascii=False) for tool in tools)
    text = INSTRUCTIONS.format(tools=listed)
    first = next((i for i, message in enumerate(messages) if message.get("role") == role), None)
    if first is None:
        return [{"role": role, "content": text}, *messages]
    before = messages[first]["content"]
    parts = (before, text) if role == "system" else (text, before)
    messages[first] = {**messages[first], "content": "\n\n".join(part for part in parts if part)}
    return messages


def _function(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    return dict(function) if isinstance(function, Mapping) else {}


def _call(family: Family, call: Mapping[str, Any]) -> Message:
    function = _function(call)
    arguments = function.get("arguments")
    if family.text_arguments:
        function["arguments"] = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    else:
        function["arguments"] = _object(arguments)
    found = {**call, "type": "function", "function": function}
    return {**found, "id": _id(family, call["id"])} if call.get("id") else found


def _object(arguments: Any) -> Any:
    """Return arguments, which clients send as JSON text, as the object that templates write out."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value


def _written_call(call: Mapping[str, Any]) -> str:
    function = _function(call)
    value = {"name": function.get("name", ""), "arguments": _object(function.get("arguments"))}
    return f"<tool_call>\n{json.dumps(value, ensure_ascii=False)}\n</tool_call>"


def _id(family: Family, given: Any) -> Any:
    """Return an id that the template takes, always the same for the same id."""
    if not family.short_ids or re.fullmatch(r"[a-zA-Z0-9]{9}", str(given)):
        return given
    return hashlib.sha256(str(given).encode()).hexdigest()[:9]
