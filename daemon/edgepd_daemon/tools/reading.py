"""What is behind the marker of a tool call, as soon as enough of it is there.

The idea: a reader gets all text since the marker, again and again as it grows, and answers with the calls and how
much of the text they took, with NOT_YET, or with NO_CALL. The invariants: the answer does not depend on the pieces
in which the text came; at the end of the text it is never NOT_YET.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepd_daemon.tools.families import Family
from edgepd_daemon.tools.json_end import JsonEnd

SPACE = " \t\r\n"
MAX_NAME = 256  # characters; what is longer is not the name of a function

Found = tuple[str, str]  # name and arguments as JSON text
Schemas = Mapping[str, Mapping[str, Any]]  # the parameters of each tool


@dataclass(frozen=True)
class Read:
    """Complete calls and the length of the text that they took; no calls if the text is something else."""

    calls: tuple[Found, ...]
    length: int


NO_CALL = Read((), 0)
NOT_YET = None


class Reader(ABC):
    """Reads one call, or list of calls."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._read: Read | None = NOT_YET

    def read(self, text: str, *, at_end: bool) -> Read | None:
        """Return what is there; `at_end` says that no more will come."""
        if self._read is NOT_YET:
            self._read = self._body(text)
        if self._read is NOT_YET:
            return NO_CALL if at_end else NOT_YET
        return self._with_closing(self._read, text, at_end) if self._read.calls else NO_CALL

    @abstractmethod
    def _body(self, text: str) -> Read | None:
        """Return what is there before the closing marker."""

    def _with_closing(self, read: Read, text: str, at_end: bool) -> Read | None:
        """Add the closing marker, which models sometimes leave out."""
        closing = self._family.closing
        if not closing:
            return read
        inside = text[read.length :].lstrip(SPACE)
        if inside.startswith(closing):
            return Read(read.calls, len(text) - len(inside) + len(closing))
        return NOT_YET if closing.startswith(inside) and not at_end else read


class JsonReader(Reader):
    """Reads {"name": ..., "arguments": {...}}, or a list of such."""

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self._start = 0
        self._end: JsonEnd | None = None

    def _body(self, text: str) -> Read | None:
        if self._end is None:
            self._start = len(text) - len(text.lstrip(SPACE))
            if self._start == len(text):
                return NOT_YET
            if text[self._start] not in "{[":
                return NO_CALL
            self._end = JsonEnd(self._start)
        end = self._end.find(text)
        return NOT_YET if end is None else Read(calls_in(text[self._start : end]), end)


class NamedReader(Reader):
    """Reads a name, a separator and arguments in JSON."""

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        self._name = ""
        self._start = 0
        self._end: JsonEnd | None = None

    def _body(self, text: str) -> Read | None:
        if self._end is None:
            name, separator, rest = text.partition(self._family.separated)
            if not separator:
                return NO_CALL if len(text) >= MAX_NAME + len(self._family.separated) else NOT_YET
            self._name = name.partition("[CALL_ID]")[0].strip(SPACE)
            inside = rest.lstrip(SPACE)
            if not self._name or len(name) > MAX_NAME or inside[:1] not in ("", "{"):
                return NO_CALL
            if not inside:
                return NOT_YET
            self._start = len(text) - len(inside)
            self._end = JsonEnd(self._start)
        end = self._end.find(text)
        if end is None:
            return NOT_YET
        arguments = compact(text[self._start : end])
        return Read(((self._name, arguments),), end) if arguments else NO_CALL


_FUNCTION = re.compile(r"\s*<function=([^<>\s]+)>\s*")
_PARAMETER = re.compile(r"<parameter=([^<>]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)


class XmlReader(Reader):
    """Reads <function=name><parameter=key>value</parameter></function>."""

    def __init__(self, family: Family, schemas: Schemas) -> None:
        super().__init__(family)
        self._schemas = schemas

    def _body(self, text: str) -> Read | None:
        head = text.lstrip(SPACE)[: len("<function=")]
        if not "<function=".startswith(head):
            return NO_CALL
        body, closed, _ = text.partition("</function>")
        if not closed:
            return NOT_YET
        function = _FUNCTION.match(body)
        if function is None:
            return NO_CALL
        known = self._schemas.get(function[1], {}).get("properties", {})
        arguments: dict[str, Any] = {}
        at = function.end()
        while match := _PARAMETER.match(body, at):
            arguments[match[1]] = _typed(match[2], known.get(match[1]) if isinstance(known, dict) else None)
            at = match.end()
        return NO_CALL if body[at:] else Read(((function[1], _written(arguments)),), len(body) + len(closed))


def reader(family: Family, schemas: Schemas) -> Reader:
    """Return a reader for the next call."""
    if family.xml:
        return XmlReader(family, schemas)
    return NamedReader(family) if family.separated else JsonReader(family)


def calls_in(text: str) -> tuple[Found, ...]:
    """Return the calls in a JSON object or list; none if something of it is not a call."""
    value = _json(text)
    calls = [_call_of(item) for item in (value if isinstance(value, list) else [value])]
    return tuple(call for call in calls if call) if all(calls) else ()


def compact(text: str) -> str:
    """Return a JSON object in compact form, empty if the text is not one."""
    value = _json(text)
    return _written(value) if isinstance(value, dict) else ""


def _call_of(item: Any) -> Found | None:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]
    if not isinstance(item, dict) or not isinstance(item.get("name"), str) or not _is_text(item["name"]):
        return None
    arguments: Any = next((item[key] for key in ("arguments", "parameters") if key in item), {})
    if isinstance(arguments, str):  # JSON within JSON, as OpenAI has it
        text = compact(arguments)
        return (item["name"], text) if text else None
    return (item["name"], _written(arguments)) if isinstance(arguments, dict) else None


def _typed(value: str, schema: Any) -> Any:
    """Return a value that is written without quotes; text stays text if the schema says so or it is not JSON."""
    if isinstance(schema, dict) and schema.get("type") == "string":
        return value
    parsed = _json(value)
    return value if parsed is _MALFORMED else parsed


_MALFORMED = object()


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _MALFORMED


def _refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(constant)


def _written(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if _is_text(text) else json.dumps(value, separators=(",", ":"))


def _is_text(text: str) -> bool:
    """Return whether a text says something and can be sent; half of a pair of surrogates, as in \\ud83d, cannot."""
    return bool(text) and text.encode("utf-8", errors="ignore").decode() == text
