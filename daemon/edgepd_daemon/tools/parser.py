"""Telling tool calls from text while an answer is being written.

The idea: text that cannot be the beginning of a call passes at once; from a marker on it is held back until the
call is complete, or turns out not to be one and passes as text. The invariants: text and calls do not depend on the
pieces in which the answer comes, and whatever is not a call comes out as text, but for white space around calls.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass

from edgepd_daemon.tools.families import Family
from edgepd_daemon.tools.reading import NOT_YET, SPACE, Found, Reader, Schemas, reader
from edgepd_daemon.tools.types import Tool, ToolCall, new_call_id

_BARE_KEYS = ("name", "type", "function", "parameters")  # with which a call without a marker may begin
_BARE_START = re.compile(r'\{\s*(?:"([a-z]*)("?))?')
_BETWEEN_BARE = SPACE + ";,"  # what models write between calls without markers


@dataclass(frozen=True)
class Parsed:
    """What more of an answer means: text to show and calls that are complete."""

    text: str
    calls: tuple[ToolCall, ...] = ()


class ToolParser:
    """Reads one answer."""

    def __init__(self, family: Family, tools: Iterable[Tool] = ()) -> None:
        """`tools` are those of the question; formats without quotes need them to tell numbers from texts."""
        self._family = family
        self._schemas: Schemas = {tool.name: tool.parameters for tool in tools}
        self._marks = tuple(mark for mark in (*family.opening, family.ending) if mark)
        self._held = ""  # what is not decided yet
        self._reader: Reader | None = None  # while inside of a call
        self._mark = ""  # the marker before that call, empty for a bare one
        self._bare_possible = family.bare
        self._blank = ""  # white space at the start or behind a call, shown only if text follows
        self._is_blank = True
        self._has_called = False
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []

    def feed(self, text: str) -> Parsed:
        """Take in more of the answer."""
        self._held += text
        return self._decided(at_end=False)

    def finish(self) -> Parsed:
        """Take in the end of the answer."""
        return self._decided(at_end=True)

    def _decided(self, *, at_end: bool) -> Parsed:
        while self._step(at_end):
            pass
        if at_end and not self._has_called:
            self._texts.append(self._blank)
            self._blank = ""
        decided = Parsed("".join(self._texts), tuple(self._calls))
        self._texts, self._calls = [], []
        return decided

    def _step(self, at_end: bool) -> bool:
        """Decide about the next part of what is held. Return False if that needs more text."""
        if self._reader is not None:
            return self._step_in_call(self._reader, at_end)
        if not self._held:
            return False
        if self._bare_possible:
            return self._step_bare(at_end)
        places = [(place, mark) for mark in self._marks if (place := self._held.find(mark)) >= 0]
        if not places:
            kept = 0 if at_end else self._begun_marker()
            self._show(self._held[: len(self._held) - kept])
            self._held = self._held[len(self._held) - kept :]
            return False
        place, mark = min(places)
        self._show(self._held[:place])
        self._held = self._held[place + len(mark) :]
        if mark != self._family.ending:
            self._begin(mark)
        return True

    def _step_in_call(self, call_reader: Reader, at_end: bool) -> bool:
        read = call_reader.read(self._held, at_end=at_end)
        if read is NOT_YET:
            return False
        self._reader = None
        if read.calls:
            self._calls += [self._call(found) for found in read.calls]
            self._held = self._held[read.length :]
            self._blank, self._is_blank, self._has_called = "", True, True
            self._bare_possible = self._family.bare
        else:
            self._show(self._mark)
            self._bare_possible = False
        return True

    def _step_bare(self, at_end: bool) -> bool:
        """Find out whether a call without a marker begins here."""
        inside = self._held.lstrip(_BETWEEN_BARE if self._has_called else SPACE)
        begins = _begins_bare(inside) if inside[:1] == "{" else None if not inside else False
        if begins is None and not at_end:
            return False
        self._bare_possible = False
        if begins:
            self._blank += self._held[: len(self._held) - len(inside)]
            self._held = inside
            self._begin("")
        return True

    def _begin(self, mark: str) -> None:
        self._mark = mark
        self._reader = reader(self._family, self._schemas)

    def _begun_marker(self) -> int:
        """Return how many characters at the end of what is held may be the beginning of a marker."""
        longest = max(map(len, self._marks)) - 1
        tail = self._held[-longest:]
        return next((len(tail) - i for i in range(len(tail)) if any(m.startswith(tail[i:]) for m in self._marks)), 0)

    def _show(self, text: str) -> None:
        if self._is_blank:
            text = self._blank + text
            self._is_blank = not text.strip(_BETWEEN_BARE if self._has_called and self._family.bare else SPACE)
            self._blank = text if self._is_blank else ""
            text = "" if self._is_blank else text
        self._texts.append(text)

    def _call(self, found: Found) -> ToolCall:
        alphabet = string.ascii_letters + string.digits
        short = "".join(secrets.choice(alphabet) for _ in range(9))
        return ToolCall(short if self._family.short_ids else new_call_id(), *found)


def _begins_bare(text: str) -> bool | None:
    """Return whether text that starts with a brace is the beginning of a call, None if it is too short to tell."""
    match = _BARE_START.match(text)
    if match is None or match[1] is None:
        return None if match and match.end() == len(text) else False
    if match[2]:
        return match[1] in _BARE_KEYS
    return None if match.end() == len(text) and any(key.startswith(match[1]) for key in _BARE_KEYS) else False
