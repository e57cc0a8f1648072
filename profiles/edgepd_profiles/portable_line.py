"""One line of what is taken out or in: read, checked, and turned into rows; and the other way round.

The idea: a line is {"messages": [..., {"role": "assistant", "content": wanted}], "edgepd": {...}}, or a fact as
{"edgepd": {"fact": text, "app": name, "at": time}}, an event as {"edgepd": {"event": name, "intent": name, ...}}, or a
row of the user's map of events as {"edgepd": {"mapped": event, "intent": name, "at": time}}. Without "edgepd" it comes
from another program, and what it lacks gets a default. The invariant: what `read_line` returns can be stored; every
refusal is a RequestError whose sentence says what is wrong and holds no text of the line.
What this does not do: store anything (see portable.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from edgepd.errors import RequestError
from edgepd_profiles.apps import MAX_NAME_CHARS
from edgepd_profiles.event_rules import New
from edgepd_profiles.feedback_kinds import KINDS, Feedback
from edgepd_profiles.interactions import CROCKFORD, FINAL_STATES, Interaction
from edgepd_profiles.rows import canonical_json, last_user_text, text_of

MAX_LINE_CHARS = 4 * 1024 * 1024
MAX_TEXT_BYTES = 1024 * 1024  # of one answer, correction or comment
MAX_MESSAGES = 2000
MAX_TIME = 1e11  # unix seconds
MAX_NUMBER = 2**53
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "prompt")
INTERACTION_KINDS = ("chat", "tools", "completion")
ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
SOURCE = "import"  # of the thumb up that a line of another program gets


@dataclass(frozen=True)
class ExchangeLine:
    """An exchange and the feedback on it."""

    interaction: Interaction
    feedback: list[Feedback]


@dataclass(frozen=True)
class FactLine:
    """A fact; whether it is fit to be stored is for facts.remember to say."""

    text: str
    app: str
    at: float


@dataclass(frozen=True)
class EventLine:
    """An event; whether it is fit to be stored is for events.put to say."""

    new: New


@dataclass(frozen=True)
class MapLine:
    """An event that the user has given an intent."""

    event: str
    intent: str
    at: float


def exchange_line(interaction: Interaction, given: Sequence[Feedback]) -> str:
    """Return the line of an exchange, in ASCII, so that no character in it looks like the end of a line."""
    edits = [one.text for one in given if one.kind == "edit" and one.text is not None]
    wanted = edits[0] if edits else interaction.response
    messages = [
        {**message, "role": "user"} if message.get("role") == "prompt" else message for message in interaction.messages
    ]
    own = {
        name: getattr(interaction, name)
        for name in (
            "id", "app", "conversation", "created_at", "model", "kind", "state", "finish_reason", "prompt_tokens",
            "completion_tokens", "response",
        )
    }  # fmt: skip
    own["feedback"] = [
        {"kind": one.kind, "value": one.value, "text": one.text, "source": one.source, "at": one.at} for one in given
    ]
    return json.dumps({"messages": [*messages, {"role": "assistant", "content": wanted}], "edgepd": own})


def fact_line(text: str, app: str, at: float) -> str:
    """Return the line of a fact."""
    return json.dumps({"edgepd": {"fact": text, "app": app, "at": at}})


def event_line(new: New) -> str:
    """Return the line of an event, with the intent that its sender gave it."""
    names = ("event", "intent", "context", "at", "utc_offset_s", "app", "interaction")
    return json.dumps({"edgepd": {name: getattr(new, name) for name in names}})


def map_line(event: str, intent: str, at: float) -> str:
    """Return the line of a row of the user's map."""
    return json.dumps({"edgepd": {"mapped": event, "intent": intent, "at": at}})


def read_line(line: str, now: float, app: str | None = None) -> ExchangeLine | FactLine | EventLine | MapLine:
    """Read a line; `app` takes the place of the app in it, and `now` that of a missing time. Raises RequestError."""
    if len(line) > MAX_LINE_CHARS:
        raise RequestError(f"the line has {len(line)} characters, but at most {MAX_LINE_CHARS} are allowed")
    try:
        found = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError("the line is not JSON, or too deeply nested") from error
    if not isinstance(found, dict):
        raise RequestError("the line is not a JSON object with `messages` in it")
    own = found.get("edgepd")
    if own is not None and not isinstance(own, dict):
        raise RequestError("`edgepd` is not a JSON object")
    named = _app((own or {}).get("app", "")) if app is None else app
    if own is not None and "fact" in own:
        return FactLine(_text(own["fact"], "the fact"), named, _time(own.get("at"), now))
    if own is not None and "mapped" in own:
        return MapLine(_name(own["mapped"], "event"), _name(own.get("intent"), "intent"), _time(own.get("at"), now))
    if own is not None and "event" in own:
        return _event(own, named, now)
    messages, answer = _messages(found.get("messages"))
    if own is None or "id" not in own:
        return _foreign(messages, answer, named, now)
    return _exchange(own, messages, named, now)


def _exchange(own: Mapping[str, Any], messages: list[dict[str, Any]], app: str, now: float) -> ExchangeLine:
    name = own["id"]
    if not isinstance(name, str) or not ID.fullmatch(name):
        raise RequestError("the id is not 1 to 128 letters, digits, '_', '.', ':' or '-'")
    kind = _one_of(own.get("kind", "chat"), INTERACTION_KINDS, "kind")
    if kind == "completion":
        messages = [{**m, "role": "prompt"} if m["role"] == "user" else m for m in messages]
    finish_reason = own.get("finish_reason")
    interaction = Interaction(
        id=name,
        conversation=_text(own.get("conversation", name), "the conversation", MAX_NAME_CHARS),
        created_at=_time(own.get("created_at"), now),
        app=app,
        model=_text(own.get("model", ""), "the model", MAX_NAME_CHARS * 4),
        generation=0,
        messages=messages,
        kind=kind,
        response=_text(own.get("response"), "the response"),
        state=_one_of(own.get("state", "done"), FINAL_STATES, "state"),
        finish_reason=None if finish_reason is None else _text(finish_reason, "finish_reason", MAX_NAME_CHARS),
        prompt_tokens=_count(own.get("prompt_tokens", 0), "prompt_tokens"),
        completion_tokens=_count(own.get("completion_tokens", 0), "completion_tokens"),
    )
    given = own.get("feedback", [])
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise RequestError("`feedback` is not a list of JSON objects")
    feedback = [_feedback(name, one, now) for one in given]
    if len({one.kind for one in feedback}) < len(feedback):
        raise RequestError("`feedback` has the same kind twice")
    return ExchangeLine(interaction, feedback)


def _event(own: Mapping[str, Any], app: str, now: float) -> EventLine:
    name, offset = own.get("interaction"), own.get("utc_offset_s", 0)
    if name is not None and not (isinstance(name, str) and ID.fullmatch(name)):
        raise RequestError("the interaction of the event is no id")
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise RequestError("the UTC offset of the event is not a whole number of seconds")
    event = _name(own["event"], "event")
    intent, context = _name(own.get("intent", event), "intent"), _name(own.get("context", ""), "context")
    return EventLine(New(_time(own.get("at"), now), event, intent, context, offset, app, name))


def _foreign(messages: list[dict[str, Any]], answer: str, app: str, now: float) -> ExchangeLine:
    """Return the exchange of another program's line. Its id comes from what it says, so that it is taken in once."""
    if not answer.strip():
        raise RequestError("the answer is empty, so there is nothing to learn")
    if not last_user_text(messages).strip():
        raise RequestError("no message is from the user")
    kind = "tools" if any(m["role"] in ("tool", "function") or m.get("tool_calls") for m in messages) else "chat"
    name = _id_of(messages, answer)
    interaction = Interaction(
        name, name, now, app, "", 0, messages, kind=kind, response=answer, state="done", finish_reason="stop"
    )
    return ExchangeLine(interaction, [Feedback(name, "thumb", 1, None, SOURCE, now)])


def _id_of(messages: list[dict[str, Any]], answer: str) -> str:
    """Return "i_" and 26 characters, as ids have, from the SHA-256 of the canonical JSON."""
    number = int(hashlib.sha256(canonical_json([messages, answer]).encode()).hexdigest(), 16) >> 128
    return "i_" + "".join(CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def _messages(value: object) -> tuple[list[dict[str, Any]], str]:
    """Return the messages before the answer, and the answer."""
    if not isinstance(value, list) or not value or len(value) > MAX_MESSAGES:
        raise RequestError(f"`messages` is not a list of 1 to {MAX_MESSAGES} messages")
    for n, message in enumerate(value, 1):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise RequestError(f"message {n} is not a JSON object with a role ({', '.join(ROLES[:-1])})")
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        if not isinstance(content, str | list | None) or not all(isinstance(part, dict) for part in parts):
            raise RequestError(f"the content of message {n} is neither a text nor a list of parts")
    try:
        canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise RequestError("the messages hold a number that is not finite, or are too deeply nested") from error
    if value[-1]["role"] != "assistant":
        raise RequestError("the last message is not the assistant's, so there is no answer")
    return value[:-1], _text(text_of(value[-1].get("content")), "the answer")


def _feedback(interaction: str, one: Mapping[str, Any], now: float) -> Feedback:
    value, text = one.get("value"), one.get("text")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_NUMBER):
        raise RequestError("the value of a feedback is not a whole number")
    return Feedback(
        interaction,
        _one_of(one.get("kind"), KINDS, "kind of feedback"),
        value,
        None if text is None else _text(text, "the text of a feedback"),
        _text(one.get("source", SOURCE), "the source of a feedback", MAX_NAME_CHARS),
        _time(one.get("at"), now),
    )


def _text(value: object, what: str, most: int = MAX_TEXT_BYTES) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{what} is missing or not a text")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise RequestError(f"{what} has half a character at position {error.start}") from error
    if size > most:
        raise RequestError(f"{what} has {size} bytes, but at most {most} are allowed")
    return value


def _name(value: object, what: str) -> str:
    return _text(value, f"the {what}", MAX_NAME_CHARS * 4)


def _app(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME_CHARS or not value.isprintable():
        raise RequestError(f"the app is not a name of at most {MAX_NAME_CHARS} characters")
    return value


def _one_of(value: object, allowed: Sequence[str], what: str) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise RequestError(f"the {what} is not one of {', '.join(allowed)}")
    return value


def _count(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_NUMBER:
        raise RequestError(f"{what} is not a count")
    return value


def _time(value: object, now: float) -> float:
    if value is None:
        return now
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError("a time is not a number of unix seconds")
    if not math.isfinite(value) or not 0 <= value <= MAX_TIME:
        raise RequestError(f"a time is not between 0 and {MAX_TIME:g} unix seconds")
    return float(value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
