"""Where a JSON value ends in text that is still coming."""

from __future__ import annotations

import re

_NOTABLE = re.compile(r'["\\{}\[\]]')


class JsonEnd:
    """Finds the end of an object or array. Each character is looked at once, however it comes."""

    def __init__(self, start: int) -> None:
        """`start` is the place of the opening bracket in the text."""
        self._at = start
        self._depth = 0
        self._quoted = False

    def find(self, text: str) -> int | None:
        """Return the place behind the value in the text so far, None if it is not complete."""
        while match := _NOTABLE.search(text, self._at):
            mark = match[0]
            self._at = match.end()
            if mark == "\\":
                if self._at >= len(text) and self._quoted:
                    self._at -= 1  # what it escapes is still to come
                    return None
                self._at += 1 if self._quoted else 0
            elif mark == '"':
                self._quoted = not self._quoted
            elif not self._quoted:
                self._depth += 1 if mark in "{[" else -1
                if self._depth <= 0:
                    return self._at
        self._at = len(text)
        return None
