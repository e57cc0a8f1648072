"""The characters of a GBNF text: names, spaces, escapes, character classes and repetition counts.

The invariant: reads and refuses what llama.cpp's parser reads and refuses, and refuses classes without characters.
"""

from __future__ import annotations

import re

from edgepd.errors import RequestError

Span = tuple[int, int]  # first and last code point

# What text can consist of: no NUL, which ends a C string, and no surrogates.
TEXT = ((1, 0xD7FF), (0xE000, 0x10FFFF))
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_COUNTS = re.compile(r"\{\s*([0-9]{1,9})\s*(,\s*([0-9]{1,9})?\s*)?\}")
_ESCAPED = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


class Reader:
    """A place in the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    @property
    def at_end(self) -> bool:
        """Whether everything has been read."""
        return self._at >= len(self._text)

    @property
    def at_name(self) -> bool:
        """Whether a name comes next."""
        return _NAME.match(self._text, self._at) is not None

    def error(self, problem: str) -> RequestError:
        """Return the error to raise for a problem at this place."""
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - (self._text.rfind("\n", 0, self._at) + 1) + 1
        return RequestError(f"the grammar cannot be used: line {line}, column {column}: {problem}")

    def peek(self) -> str:
        """Return the next character, empty at the end."""
        return self._text[self._at : self._at + 1]

    def take(self, text: str) -> bool:
        """Skip the text if it comes next, and return whether it did."""
        found = self._text.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def expect(self, text: str) -> None:
        """Skip the text, which has to come next."""
        if not self.take(text):
            raise self.error(f"`{text}` is missing here")

    def expect_newline(self) -> None:
        """Skip the end of a line, which has to come next."""
        if not (self.take("\r\n") or self.take("\n") or self.take("\r")):
            raise self.error(f"the rule cannot go on with {self.peek()!r}")

    def skip_space(self, *, newlines: bool) -> None:
        """Skip spaces and comments."""
        match = (_SPACE_AND_LINES if newlines else _SPACE).match(self._text, self._at)
        self._at = match.end() if match else self._at

    def name(self) -> str:
        """Return the name that comes next."""
        match = _NAME.match(self._text, self._at)
        if match is None:
            raise self.error("the name of a rule is missing; it has letters, digits and hyphens")
        self._at = match.end()
        return match[0]

    def literal(self) -> list[tuple[Span, ...]]:
        """Return the characters up to the closing quote, each as a class."""
        found = []
        while not self.take('"'):
            code = self._character()
            found.append(self._possible([(code, code)]))
        return found

    def character_class(self) -> tuple[Span, ...]:
        """Return what is allowed by the class whose opening bracket has been read."""
        negated = self.take("^")
        spans: list[Span] = []
        while not self.take("]"):
            low = high = self._character()
            if self.peek() == "-" and not self._text.startswith("-]", self._at):
                self.take("-")
                high = self._character()
            if high < low:
                raise self.error("a range in a character class ends before it starts")
            spans.append((low, high))
        if not spans:
            raise self.error("an empty character class")
        return self._possible(_complement(spans) if negated else spans)

    def any_character(self) -> tuple[Span, ...]:
        """Return what `.` allows."""
        return TEXT

    def repetition(self, most_allowed: int) -> tuple[int, int | None]:
        """Return the least and the most times that `*`, `+`, `?` or `{m,n}`, which come next, allow."""
        for sign, counts in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return counts
        match = _COUNTS.match(self._text, self._at)
        if match is None:
            raise self.error("a repetition has to be {n}, {n,} or {m,n}")
        least = int(match[1])
        most = least if match[2] is None else int(match[3]) if match[3] else None
        if max(least, most or 0) > most_allowed:
            raise self.error(f"more than {most_allowed} repetitions")
        if most is not None and most < least:
            raise self.error("a repetition with its largest count before its smallest")
        self._at = match.end()
        return least, most

    def _character(self) -> int:
        if self.at_end:
            raise self.error("the text ends inside a literal or a character class")
        if not self.take("\\"):
            self._at += 1
            return ord(self._text[self._at - 1])
        kind = self.peek()
        self._at += 1
        if kind in _HEX_DIGITS:
            digits = self._text[self._at : self._at + _HEX_DIGITS[kind]]
            if not re.fullmatch(f"[0-9a-fA-F]{{{_HEX_DIGITS[kind]}}}", digits):
                raise self.error(f"\\{kind} needs {_HEX_DIGITS[kind]} hexadecimal digits")
            self._at += len(digits)
            return int(digits, 16)
        if kind not in _ESCAPED or not kind:
            raise self.error(f"unknown escape \\{kind}")
        return ord(_ESCAPED[kind])

    def _possible(self, spans: list[Span]) -> tuple[Span, ...]:
        """Return what of the spans can occur in text, sorted and joined. Raises RequestError if nothing can."""
        found: list[Span] = []
        inside = sorted((max(low, a), min(high, b)) for low, high in spans for a, b in TEXT)
        for low, high in inside:
            if low > high:
                continue
            if found and low <= found[-1][1] + 1:
                found[-1] = (found[-1][0], max(found[-1][1], high))
            else:
                found.append((low, high))
        if not found:
            raise self.error("a character that cannot occur in text")
        return tuple(found)


def _complement(spans: list[Span]) -> list[Span]:
    found = []
    following = 0
    for low, high in sorted(spans):
        if low > following:
            found.append((following, low - 1))
        following = max(following, high + 1)
    return [*found, (following, 0x10FFFF)] if following <= 0x10FFFF else found
