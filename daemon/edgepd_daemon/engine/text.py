"""From token bytes to text that may be shown: whole UTF-8 characters, cut at the stop strings.

The invariant: the pieces returned, joined, are the answer up to (not including) the stop string that is complete
first, however the bytes were split, and nothing that could turn out to be the start of a stop string is returned
before that is settled.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of successive tokens into text."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """Cut the text before the string in `stop` that is complete first; of two at once, before the longer one."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = [s for s in stop if s]
        self._held = ""
        self.stopped: str | None = None  # the stop string that was met

    def feed(self, piece: bytes) -> str:
        """Add a token's bytes; return the text that is settled by now."""
        return self._settle(self._decoder.decode(piece))

    def finish(self) -> str:
        """Return what was held back, once no more tokens come."""
        if self.stopped is not None:
            return ""
        rest = self._settle(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return rest

    def _settle(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        held = self._held + text
        found = [(at + len(s), at, s) for s in self._stop if (at := held.find(s)) >= 0]
        if found:
            _, at, self.stopped = min(found)
            self._held = ""
            return held[:at]
        keep = max((_overlap(held, s) for s in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
