"""Numbers between bounds, digit by digit.

The idea: a range of numbers of one length is a common beginning, then a range of digits, then any digits. Bounds
with a fraction are met exactly for what is written without an exponent, and nothing else is written.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from edgepd_daemon.gbnf.writer import any_of

MAX_DIGITS = 16  # before the point; a bound beyond that is none
LEAST_STEP = Decimal("0.000001")  # how far a number stays away from a bound that it may not reach
FRACTION = '("." [0-9]{1,15})?'
ANY_DIGITS = "[0-9]{0,12}"


def integers_between(low: int | None, high: int | None) -> str | None:
    """Return an expression for the whole numbers from low to high, None if there are none."""
    most = 10**MAX_DIGITS - 1
    low, high = max(-most, -most if low is None else low), min(most, most if high is None else high)
    found = []
    if high >= 0:
        found += _natural(max(low, 0), high)
    if low < 0:
        found += [f'"-" {any_of(choices)}' for choices in [_natural(max(1, -high), -low)] if choices]
    return any_of(found) if found else None


def numbers_between(low: Decimal | None, high: Decimal | None) -> str | None:
    """Return an expression for the numbers from low to high, None if there are none."""
    found = []
    zero = Decimal(0)
    if high is None or high >= 0:
        found += _decimals(max(low or zero, zero), high)
    if low is None or low < 0:
        magnitudes = _decimals(max(-high, zero) if high is not None else zero, None if low is None else -low)
        found += [f'"-" {any_of(magnitudes)}'] if magnitudes else []
    return any_of(found) if found else None


def _decimals(low: Decimal, high: Decimal | None) -> list[str]:
    """Return alternatives for the numbers from low, at least 0, to high."""
    low = low.quantize(LEAST_STEP, ROUND_CEILING)
    high = Decimal(10**MAX_DIGITS - 1) if high is None else high.quantize(LEAST_STEP, ROUND_FLOOR)
    if low > high:
        return []
    first, last = math.ceil(low), math.floor(high)
    if first > last:  # both between the same whole numbers
        return [f'"{last}." {_fractions(_fraction(low), _fraction(high))}']
    found = [f'"{first - 1}." {_at_least(_fraction(low))}'] if low < first else []
    found += [f"{any_of(whole)} {FRACTION}" for whole in [_natural(first, last - 1)] if whole]
    found.append(f'"{last}" ("." "0"{{1,15}})?')
    if high > last:
        found.append(f'"{last}." {_at_most(_fraction(high))}')
    return found


def _fraction(number: Decimal) -> str:
    """Return the digits behind the point, without zeros at the end."""
    return f"{number:f}".partition(".")[2].rstrip("0")


def _at_least(digits: str) -> str:
    """Return an expression for the fractions that are not below the given one."""
    if not digits:
        return ANY_DIGITS
    first = int(digits[0])
    above = [f"{_digits(first + 1, 9)} {ANY_DIGITS}"] if first < 9 else []
    return any_of([*above, f'"{first}" {_at_least(digits[1:])}'])


def _at_most(digits: str) -> str:
    """Return an expression for the fractions that are not above the given one."""
    if not digits:
        return '"0"{0,12}'
    first = int(digits[0])
    below = [f"{_digits(0, first - 1)} {ANY_DIGITS}"] if first else []
    rest = _at_most(digits[1:])
    return any_of([*below, f'"{first}" {f"({rest})?" if digits[1:] else rest}'])


def _fractions(low: str, high: str) -> str:
    """Return an expression for the fractions from low to high, of which neither is 0."""
    length = max(len(low), len(high))
    low, high = low.ljust(length, "0"), high.ljust(length, "0")
    if low == high:
        return f'"{low}" "0"{{0,9}}'
    same = next(i for i, (a, b) in enumerate(zip(low, high, strict=True)) if a != b)
    first, last = int(low[same]), int(high[same])
    lower, upper = low[same + 1 :].rstrip("0"), high[same + 1 :].rstrip("0")
    choices = [f"{_digits(first + 1, last - 1)} {ANY_DIGITS}"] if first + 1 < last else []
    choices += [f'"{first}" {_at_least(lower)}', f'"{last}" {f"({_at_most(upper)})?" if upper else _at_most("")}']
    return f'"{low[:same]}" {any_of(choices)}' if same else any_of(choices)


def _digits(first: int, last: int) -> str:
    return f'"{first}"' if first == last else f"[{first}-{last}]"


def _natural(low: int, high: int) -> list[str]:
    """Return alternatives for the whole numbers from low, at least 0, to high."""
    found = ['"0"'] if low <= 0 <= high else []
    free = []  # lengths at which any number will do
    for length in range(len(str(max(low, 1))), len(str(max(high, 0))) + 1):
        smallest, largest = 10 ** (length - 1), 10**length - 1
        start, end = max(low, smallest), min(high, largest)
        if (start, end) == (smallest, largest):
            free.append(length)
        elif start <= end:
            found.append(_same_length(str(start), str(end)))
    return [*found, f"[1-9] [0-9]{{{free[0] - 1},{free[-1] - 1}}}"] if free else found


def _same_length(low: str, high: str) -> str:
    """Return an expression for the digit strings from low to high, which are equally long."""
    if low == high:
        return f'"{low}"'
    same = next(i for i, (a, b) in enumerate(zip(low, high, strict=True)) if a != b)
    start, low, high = low[:same], low[same:], high[same:]
    left = len(low) - 1
    first, last = int(low[0]), int(high[0])
    found = []
    if low[1:].strip("0"):
        found.append(f'"{first}" {_same_length(low[1:], "9" * left)}')
        first += 1
    above = []
    if high[1:].strip("9"):
        above.append(f'"{last}" {_same_length("0" * left, high[1:])}')
        last -= 1
    if first <= last:
        found.append(_digits(first, last) + (f" [0-9]{{{left}}}" if left else ""))
    choices = any_of([*found, *above])
    return f'"{start}" {choices}' if start else choices
