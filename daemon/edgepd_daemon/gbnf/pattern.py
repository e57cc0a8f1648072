"""Regular expressions of JSON schemas (`pattern`) as GBNF, inside a JSON string.

The idea: a recursive descent over the expression; what JSON has to escape, such as a quote, is written escaped.
What this does not do: look around, back references, word boundaries, and anchors inside the expression; those are
RequestError. Without `^` or `$` anything may come before or behind, as ECMAScript and JSON schema have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgepd.errors import RequestError
from edgepd_daemon.gbnf.reader import TEXT, Span
from edgepd_daemon.gbnf.rules import MAX_NESTING, MAX_REPETITIONS
from edgepd_daemon.gbnf.writer import Writer, any_of, character_class, literal

_CLASSES: dict[str, tuple[Span, ...]] = {
    "d": ((0x30, 0x39),),
    "w": ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)),
    "s": ((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x2028, 0x2029), (0xFEFF, 0xFEFF)),
}
_CONTROL = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}")
_JSON_ESCAPES = {0x22: r"\"", 0x5C: r"\\", 0x08: r"\b", 0x0C: r"\f", 0x0A: r"\n", 0x0D: r"\r", 0x09: r"\t"}
_COUNT = re.compile(r"\{([0-9]{1,9})(,([0-9]{1,9})?)?\}")
_GROUP = re.compile(r"\((\?:|\?P?<[A-Za-z_]\w*>)?")


def string_like(writer: Writer, pattern: str) -> str:
    """Return an expression for a JSON string that matches. Raises RequestError for what is not supported."""
    inner = pattern.removeprefix("^")
    before = "" if inner != pattern else f"{writer.json('char')}* "
    ending = re.search(r"(?<!\\)(?:\\\\)*\$\Z", inner)
    after = "" if ending else f" {writer.json('char')}*"
    if (before == "" or ending) and "|" in _outside_groups(inner):
        raise RequestError(f"the pattern {pattern!r} has `^` or `$` in one of several alternatives; put them in (?: )")
    return rf'"\"" {before}{_Pattern(writer, inner[:-1] if ending else inner, pattern).parse()}{after} "\""'


def _outside_groups(pattern: str) -> str:
    """Return what of a pattern is in no parentheses and no character class."""
    found, depth, at = "", 0, 0
    for match in re.finditer(r"\\.|\[(?:\\.|[^\]\\])*\]|[()]|.", pattern, re.DOTALL):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        at = match.end()
        found += match[0] if depth == 0 and len(match[0]) == 1 else ""
    return found + pattern[at:]


class _Pattern:
    """A place in the expression."""

    def __init__(self, writer: Writer, text: str, whole: str) -> None:
        self._writer = writer
        self._text = text
        self._whole = whole
        self._at = 0

    def parse(self) -> str:
        found = self._alternatives(0)
        if self._at < len(self._text):
            raise self._error("a parenthesis too many")
        return found

    def _alternatives(self, depth: int) -> str:
        if depth > MAX_NESTING // 2:
            raise self._error("too many nested groups")
        found = [self._sequence(depth)]
        while self._take("|"):
            found.append(self._sequence(depth))
        return any_of(found)

    def _sequence(self, depth: int) -> str:
        found = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            found.append(self._repeated(self._item(depth)))
        return " ".join(found) if found else '""'

    def _item(self, depth: int) -> str:
        if group := self._match(_GROUP):
            if self._text.startswith("?", self._at):
                raise self._error("looking around is not supported")
            inner = self._alternatives(depth + 1)
            if not self._take(")"):
                raise self._error(f"the group {group[0]} is not closed")
            return f"({inner})"
        if self._take("["):
            return self._expression(self._class())
        if self._take("."):
            return self._expression(_without([(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)]))
        if self._take("\\"):
            return self._expression(self._escape())
        character = self._text[self._at]
        if character in "^$*+?":
            raise self._error(f"`{character}` is not supported here")
        self._at += 1
        return self._expression([(ord(character), ord(character))])

    def _repeated(self, item: str) -> str:
        """Apply the quantifiers that follow."""
        signs = {"*": "*", "+": "+", "?": "?"}
        sign = next((s for s in signs if self._take(s)), "")
        if not sign and (count := self._match(_COUNT)):
            least = int(count[1])
            most = least if count[2] is None else int(count[3]) if count[3] else None
            if max(least, most or 0) >= MAX_REPETITIONS or (most is not None and most < least):
                raise self._error(f"the repetition {count[0]} is not supported")
            sign = f"{{{least},{'' if most is None else most}}}"
        if not sign:
            return item
        self._take("?")  # lazy or greedy makes no difference to what matches
        return self._writer.rule("part", item) + sign

    def _class(self) -> list[Span]:
        negated = self._take("^")
        spans: list[Span] = []
        while not self._take("]"):
            low = self._class_item()
            if len(low) == 1 and low[0][0] == low[0][1] and self._is_range():
                self._take("-")
                high = self._class_item()
                low = [(low[0][0], high[-1][1])]
            spans += low
        return _without(spans) if negated else spans

    def _is_range(self) -> bool:
        return self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at)

    def _class_item(self) -> list[Span]:
        if self._at >= len(self._text):
            raise self._error("a character class is not closed")
        if self._take("\\"):
            return [(8, 8)] if self._take("b") else self._escape()
        self._at += 1
        return [(ord(self._text[self._at - 1]),) * 2]

    def _escape(self) -> list[Span]:
        """Return what the escape means whose backslash has been read."""
        if match := self._match(_HEX):
            return [(int(match[1] or match[2] or match[3], 16),) * 2]
        kind = self._text[self._at : self._at + 1]
        self._at += 1
        if kind in _CONTROL:
            return [(ord(_CONTROL[kind]),) * 2]
        if kind.lower() in _CLASSES and kind:
            return list(_CLASSES[kind]) if kind.islower() else _without(_CLASSES[kind.lower()])
        if not kind or kind.isalnum():
            raise self._error(f"the escape \\{kind} is not supported")
        return [(ord(kind),) * 2]

    def _expression(self, spans: Iterable[Span]) -> str:
        """Return an expression for one of the characters as JSON writes it."""
        wanted = list(spans)
        escaped = [text for code, text in _JSON_ESCAPES.items() if any(low <= code <= high for low, high in wanted)]
        plain = _only_plain(wanted)
        if not plain and not escaped:
            raise self._error("a character class that matches nothing")
        return any_of([*([character_class(plain)] if plain else []), *map(literal, escaped)])

    def _take(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _match(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        match = expression.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return match

    def _error(self, problem: str) -> RequestError:
        return RequestError(f"the pattern {self._whole!r} cannot be used: {problem}")


def _without(spans: Iterable[Span]) -> list[Span]:
    """Return everything that can occur in text except the spans."""
    found = list(TEXT)
    for low, high in spans:
        cut = [part for a, b in found for part in ((a, min(b, low - 1)), (max(a, high + 1), b))]
        found = [(a, b) for a, b in cut if a <= b]
    return found


def _only_plain(spans: Iterable[Span]) -> list[Span]:
    """Return what of the spans needs no escape in JSON."""
    allowed = _without([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)])
    both = [(max(low, a), min(high, b)) for low, high in spans for a, b in allowed]
    return sorted({(a, b) for a, b in both if a <= b})
