"""The items of a response's input, as messages of a chat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from edgepd.errors import ConflictError, NotFoundError, RequestError
from edgepd_daemon.api.openai.messages import ContentPart, call_for_template, refuse_silence, text_of, tool_answer
from edgepd_daemon.ask import Message
from edgepd_profiles import interactions
from edgepd_profiles.store import Store

ID_PREFIX = "resp_"
ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


class Item(BaseModel):
    """One item: a message (role and content), a function_call, or a function_call_output."""

    model_config = ConfigDict(extra="ignore")
    type: str | None = None
    role: str | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None


@dataclass(frozen=True)
class Before:
    """What a response continues."""

    messages: list[Message] = field(default_factory=list)
    conversation: str | None = None


def continued(store: Store, response_id: str | None) -> Before:
    """Return the messages and the answer of an earlier response. Raises NotFoundError if the profile has it not."""
    if response_id is None:
        return Before()
    row_id = response_id.removeprefix(ID_PREFIX)
    try:
        with store.read() as conn:
            row = interactions.get(conn, row_id)
    except NotFoundError as error:
        raise NotFoundError(
            f"the response {response_id!r} is not known: it never was, was not stored (`store`: false, or "
            "log.interactions is off) or was forgotten; send the whole conversation as `input`"
        ) from error
    if row.state == "streaming":
        raise ConflictError(f"the response {response_id!r} is still being generated; wait for its end")
    if any(message["role"] == "prompt" for message in row.messages):
        raise NotFoundError(f"{response_id!r} is a bare completion, not a response that can be continued")
    answer: Message = {"role": "assistant", "content": row.response}
    return Before([*row.messages, answer], row.conversation)


def item_messages(given: str | list[Item], instructions: str | None, before: Before) -> list[Message]:
    """Return the messages of a chat. Raises RequestError naming the item that is not understood.

    `instructions` replace the system message that the continued conversation begins with.
    """
    messages = list(before.messages)
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        names = _called(messages)
        for index, item in enumerate(given):
            _take(messages, item, f"input[{index}]", names)
    if not messages:
        raise RequestError("`input` is empty; say something")
    if instructions:
        if messages[0]["role"] == "system" and before.messages:
            messages = messages[1:]
        messages.insert(0, {"role": "system", "content": instructions})
    refuse_silence(messages)
    return messages


def _take(messages: list[Message], item: Item, where: str, names: dict[str, str]) -> None:
    kind = item.type or "message"
    if kind == "message":
        if item.role not in ROLES:
            raise RequestError(f"{where} has the role {str(item.role)[:50]!r}; use one of {', '.join(ROLES)}")
        if item.content is None:
            raise RequestError(f"{where} has no content")
        messages.append({"role": ROLES[item.role], "content": text_of(item.content, where)})
    elif kind == "function_call":
        if not item.name or not item.call_id:
            raise RequestError(f"{where} needs a name and a call_id")
        names[item.call_id] = item.name
        call = call_for_template(item.call_id, item.name, item.arguments or "", where)
        _calling(messages).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        if not item.call_id or item.output is None:
            raise RequestError(f"{where} needs a call_id and an output")
        answer = tool_answer(item.call_id, item.name, names)
        messages.append({"role": "tool", "content": text_of(item.output, where), **answer})
    else:
        raise RequestError(f"{where} is of type '{kind[:50]}'; use message, function_call or function_call_output")


def _calling(messages: list[Message]) -> Message:
    """Return the assistant's message that a call belongs to; a new one unless the last message is the assistant's."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _called(messages: list[Message]) -> dict[str, str]:
    """Return the names of the functions that were called, by the id of the call."""
    calls: list[dict[str, Any]] = [call for message in messages for call in message.get("tool_calls") or []]
    return {call["id"]: call["function"]["name"] for call in calls}
