"""Lengths of time as requests and settings spell them, in Ollama's syntax.

The idea: Ollama's clients send numbers of seconds or Go's duration texts such as "5m" and "1h30m"; both become
seconds. What this does not do: decide what happens when the time is over.
"""

from __future__ import annotations

import math
import re

from edgepd.errors import RequestError

FOREVER = math.inf

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_DURATION = re.compile(rf"-?(?:{_PART.pattern})+", re.ASCII)
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?", re.ASCII)
_MAX_CHARACTERS = 40
_LARGE = 1e12  # seconds; more makes no difference


def parse_keep_alive(value: float | str | None) -> float | None:
    """Return how many seconds a model stays loaded after its last use.

    None means that the setting decides, `FOREVER` (for any negative value) that it stays, 0 that it goes at once. A
    text without a unit is a number of seconds. Raises RequestError for what is neither a number nor a duration.
    """
    if value is None:
        return None
    seconds = _seconds(value)
    if math.isnan(seconds):
        raise RequestError(f"`keep_alive` is {value!r}; give seconds, or a duration such as '5m', '1h30m' or '-1'")
    return FOREVER if seconds < 0 else min(seconds, _LARGE)


def _seconds(value: float | str) -> float:
    """Return the seconds that a value means, not-a-number if it means none."""
    if isinstance(value, bool):
        return math.nan
    if not isinstance(value, str):
        if -_LARGE < value < _LARGE:
            return float(value)
        return _LARGE if value > 0 else -_LARGE if value < 0 else math.nan  # no comparison holds for NaN
    text = value.strip()
    if len(text) > _MAX_CHARACTERS:
        return math.nan
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        return math.nan
    total = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return -total if text.startswith("-") else total
