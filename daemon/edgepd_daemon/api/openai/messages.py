"""Messages of a chat as the API has them, and as chat templates expect them.

The idea: templates get plain text in `content` and the arguments of tool calls as objects, not as JSON text.
What this does not do: check the order of roles, which is the template's business.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgepd.errors import RequestError
from edgepd_daemon.ask import Message

TEXT_PARTS = ("text", "input_text", "output_text")


class ContentPart(BaseModel):
    """A part of a message; only text is understood."""

    model_config = ConfigDict(extra="ignore")
    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(BaseModel):
    """The function of a tool call that was made; `arguments` is JSON text, an object."""

    name: str = Field(min_length=1, max_length=200)
    arguments: str = ""


class MadeCall(BaseModel):
    """A tool call that an earlier answer made."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(BaseModel):
    """One message of the conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[MadeCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    audio: Any = None
    function_call: Any = None


def template_messages(given: list[ChatMessage]) -> list[Message]:
    """Return the messages as chat templates expect them. Raises RequestError naming the message that is wrong."""
    messages: list[Message] = []
    names: dict[str, str] = {}  # of the tools that were called, by the id of the call
    for index, message in enumerate(given):
        where = f"messages[{index}]"
        if message.audio is not None or message.function_call is not None:
            raise RequestError(f"{where} has audio or a legacy function_call, which are not understood; leave it out")
        translated: Message = {"role": _role(message.role), "content": text_of(message.content, where)}
        if message.tool_calls:
            if message.role != "assistant":
                raise RequestError(f"{where}.tool_calls: only the assistant calls tools, not the role {message.role}")
            names |= {call.id: call.function.name for call in message.tool_calls}
            translated["tool_calls"] = [_call(call, where) for call in message.tool_calls]
        elif message.content is None:
            raise RequestError(f"{where}.content is missing")
        if message.role == "tool":
            translated |= tool_answer(message.tool_call_id, message.name, names)
        messages.append(translated)
    refuse_silence(messages)
    return messages


def refuse_silence(messages: list[Message]) -> None:
    """Raise RequestError if the last message says nothing. What a tool returned may be empty."""
    last = messages[-1]
    if not last["content"].strip() and last["role"] != "tool" and not last.get("tool_calls"):
        raise RequestError("the last message is empty; say something in `messages[-1].content`")


def text_of(content: str | list[ContentPart] | None, where: str) -> str:
    """Return the text of a message. Raises RequestError naming the part that is none."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        if part.type in TEXT_PARTS and part.text is not None:
            texts.append(part.text)
        elif part.type == "refusal" and part.refusal is not None:
            texts.append(part.refusal)
        else:
            raise RequestError(f"{where}.content[{index}] is of type '{part.type[:50]}'; only text is understood")
    return "".join(texts)


def call_for_template(call_id: str, name: str, arguments: str, where: str) -> dict[str, Any]:
    """Return a tool call with its arguments as an object. Raises RequestError if they are none."""
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise RequestError(f"{where}: the arguments of the call of '{name}' must be JSON text, an object")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": parsed}}


def tool_answer(call_id: str | None, name: str | None, names: dict[str, str]) -> Message:
    """Return which call a tool's answer belongs to; some templates want the name, which clients leave out."""
    known = name or names.get(call_id or "")
    return {"tool_call_id": call_id or "", **({"name": known} if known else {})}


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _call(call: MadeCall, where: str) -> dict[str, Any]:
    return call_for_template(call.id, call.function.name, call.function.arguments, f"{where}.tool_calls")
