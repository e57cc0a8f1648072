"""Bars, sparklines and small plots made of characters.

The idea: numbers in, text out, one character wide for each point; what has more points than there is room is
averaged. The invariant: no line is wider than it was asked to be, and what is not a number leaves a gap.
What this does not do: colour, label, or know what the numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN = "_.-=+*#@"  # for terminals that cannot show the others
BAR_WIDTH = 30


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """Draw a share from 0 to 1 with its percentage behind."""
    return f"{gauge(share, width)} {_within(share):.0%}"


def gauge(share: float, width: int) -> str:
    """Draw a share from 0 to 1 in plain characters, which every terminal and log can show."""
    full = round(_within(share) * width)
    return f"[{'#' * full}{'.' * (width - full)}]"


def sparkline(values: Sequence[float | None], width: int, *, low: float | None = None, levels: str = BLOCKS) -> str:
    """Draw values in one line, the smallest (or `low`) at the bottom and the largest at the top."""
    return plot(values, width, 1, low=low, levels=levels)[0]


def plot(
    values: Sequence[float | None], width: int, height: int, *, low: float | None = None, levels: str = BLOCKS
) -> list[str]:
    """Draw values as columns in so many lines, the top one first. `levels` are the fillings of one character."""
    points = _averaged(values, width)
    known = [point for point in points if point is not None]
    bottom = low if low is not None else min(known, default=0.0)
    span = max(known, default=0.0) - bottom
    top = len(levels) * height - 1
    heights = [None if point is None else _level(point, bottom, span, top) for point in points]
    return ["".join(_piece(level, line, levels) for level in heights) for line in reversed(range(height))]


def _level(value: float, bottom: float, span: float, top: int) -> int:
    share = (value - bottom) / span if span > 0 else 0.0
    return round(_within(share) * top)


def _within(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _piece(level: int | None, line: int, levels: str) -> str:
    """Return what a column shows in a line, counted from the bottom."""
    if level is None or level < line * len(levels):
        return " "
    return levels[min(level - line * len(levels), len(levels) - 1)]


def _averaged(values: Sequence[float | None], width: int) -> list[float | None]:
    """Return one point for each character: the values themselves, or the means of as many groups as there is room."""
    count = len(values)
    if count <= width:
        return [_mean([value]) for value in values]
    return [_mean(values[i * count // width : (i + 1) * count // width]) for i in range(width)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None
