"""keep_alive: numbers of seconds and Go's durations, as Ollama's clients send them."""

from __future__ import annotations

import math

import pytest

from edgepd.errors import RequestError
from edgepd_daemon.api.durations import FOREVER, parse_keep_alive


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (300, 300.0),
        (1.5, 1.5),
        ("0", 0.0),
        ("300", 300.0),
        ("5m", 300.0),
        (" 5m ", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("1m0.5s", 60.5),
        ("500ms", 0.5),
        ("0s", 0.0),
        (-1, math.inf),
        ("-1", math.inf),
        ("-1s", math.inf),
        ("-1h30m", math.inf),
        (10**400, 1e12),
        (-(10**400), math.inf),
        (float("inf"), 1e12),
    ],
)
def test_a_duration_becomes_seconds(value: float | str | None, seconds: float | None) -> None:
    assert parse_keep_alive(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", "m", "5 m", "5x", "5m!", "five", "1h-5m", "٣m", "1" * 50, "nan", "inf", float("nan"), True, False]
)
def test_anything_else_is_refused(value: float | str) -> None:
    with pytest.raises(RequestError, match="`keep_alive` is .*give seconds, or a duration such as '5m'"):
        parse_keep_alive(value)


def test_forever_is_what_the_engine_takes_for_it() -> None:
    assert math.inf == FOREVER
