"""The times of day at which nothing is trained, as the user writes them: '22:00-07:00,12:00-13:00'.

The idea: spans of local minutes of the day, from the first up to but without the last; a span whose end lies before its
start goes over midnight. `24:00` may end a span, so that '00:00-24:00' is the whole day. A span that ends where it
starts is refused, for one person means the whole day by it and another nothing. When the clocks change, an hour that
comes twice is quiet twice, and one that is left out is not missed.
What this does not do: know what time it is, or tell days of the week apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from edgepd.errors import ConfigError

MINUTES_PER_DAY = 1440

_SPAN = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})", re.ASCII)


@dataclass(frozen=True)
class QuietHours:
    """Spans of (first minute, minute after the last), in minutes of the day; the second is in 1 to 1440."""

    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the value of `budget.quiet_hours`; an empty one has no spans. Raises ConfigError with what is wrong."""
        if not text.strip():
            return cls()
        return cls(tuple(_span(piece.strip(), text) for piece in text.split(",")))

    def within(self, minute_of_day: int) -> bool:
        """Return whether that minute is quiet."""
        return any(_contains(span, minute_of_day) for span in self.spans)

    def minutes_left(self, minute_of_day: int) -> int:
        """Return the minutes until it is no longer quiet, over spans that meet: 0 if it is not, 1440 if it always is.

        The minute that has begun counts in full.
        """
        left = 0
        while left < MINUTES_PER_DAY:
            at = (minute_of_day + left) % MINUTES_PER_DAY
            ends = [(end - at) % MINUTES_PER_DAY or MINUTES_PER_DAY for s, end in self.spans if _contains((s, end), at)]
            if not ends:
                return left
            left += max(ends)
        return MINUTES_PER_DAY


def clock(minute_of_day: int) -> str:
    """Return a minute of the day, of this day or the next, as people write it: 07:05."""
    return f"{minute_of_day // 60 % 24:02d}:{minute_of_day % 60:02d}"


def _contains(span: tuple[int, int], minute: int) -> bool:
    first, end = span
    return first <= minute < end if first < end else minute >= first or minute < end


def _span(piece: str, text: str) -> tuple[int, int]:
    match = _SPAN.fullmatch(piece)
    if match is None:
        raise ConfigError(
            f"budget.quiet_hours = '{text}': '{piece}' is not a span of time; write spans such as '22:00-07:00', "
            "separated by commas"
        )
    hours, minutes, end_hours, end_minutes = (int(number) for number in match.groups())
    if minutes > 59 or end_minutes > 59:
        raise ConfigError(f"budget.quiet_hours = '{text}': '{piece}' has more than 59 minutes in an hour")
    first, end = 60 * hours + minutes, 60 * end_hours + end_minutes
    if first >= MINUTES_PER_DAY or end > MINUTES_PER_DAY:
        raise ConfigError(
            f"budget.quiet_hours = '{text}': '{piece}' goes beyond the day; a span starts at 23:59 or earlier and ends "
            "at 24:00 or earlier"
        )
    if first == end % MINUTES_PER_DAY and end != MINUTES_PER_DAY:
        raise ConfigError(
            f"budget.quiet_hours = '{text}': '{piece}' ends where it starts; write '00:00-24:00' for the whole day"
        )
    return first, end or MINUTES_PER_DAY
