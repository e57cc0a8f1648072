"""What is said of a history in counts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from edgepd_daemon.habits import AFTER_S, Habits

DAY = 86_400.0
HOUR = 3600.0


@dataclass(frozen=True)
class Event:
    at: float
    intent: str
    app: str = ""
    interaction: str | None = None
    utc_offset_s: int = 0


def at(day: int, hour: float) -> float:
    return day * DAY + hour * HOUR


def daily(intent: str, hour: float, days: int = 5) -> list[Event]:
    return [Event(at(day, hour), intent) for day in range(days)]


def reasons(events: list[Event], now: float, *intents: str) -> list[str]:
    habits = Habits(sorted(events, key=lambda e: e.at), now, 0)
    return [habits.reason(intent) for intent in intents]


def test_a_time_of_day() -> None:
    events = [*daily("mail", 9), *daily("film", 20), *daily("food", 12)]
    assert reasons(events, at(5, 9.1), "mail", "film") == ["usually at this time", "often at any time"]


def test_the_time_of_day_goes_round_midnight() -> None:
    events = [*daily("diary", 23.8), *daily("food", 12)]
    assert reasons(events, at(6, 0.1), "diary") == ["usually at this time"]


def test_local_time_counts() -> None:
    abroad = [Event(e.at, e.intent, utc_offset_s=6 * 3600) for e in daily("mail", 9)]  # 15:00 there
    assert reasons([*abroad, *daily("food", 12)], at(5, 15), "mail") == ["usually at this time"]


def test_what_follows_something() -> None:
    pairs = [
        e for day in range(4) for e in (Event(at(day, 7 + 3 * day), "mail"), Event(at(day, 7.2 + 3 * day), "news"))
    ]
    now = at(9, 4)
    assert reasons([*pairs, Event(now - 60, "mail")], now, "news", "mail") == [
        "usually after mail",
        "often at any time",
    ]


def test_what_was_long_ago_is_not_followed_by_anything() -> None:
    pairs = [
        e for day in range(4) for e in (Event(at(day, 7 + 3 * day), "mail"), Event(at(day, 7.2 + 3 * day), "news"))
    ]
    now = at(9, 4)
    assert reasons([*pairs, Event(now - AFTER_S - 1, "mail")], now, "news") == ["often at any time"]


def test_little_is_not_called_a_habit() -> None:
    rest = [Event(at(day, hour), "food") for day in range(9) for hour in (3, 11, 19)]
    events = [*rest, Event(at(1, 9), "mail"), Event(at(2, 9), "mail"), Event(at(3, 15), "film")]
    assert reasons(events, at(9, 9), "mail", "film", "dance") == ["seen 2 times", "seen once", "not seen yet"]


def test_what_is_as_usual_says_nothing_of_this_moment() -> None:
    events = [Event(at(day, hour), intent) for day in range(6) for hour in range(24) for intent in ("a", "b", "c")]
    assert reasons(events, at(6, 9), "a") == ["often at any time"]


def test_apps_are_likely_as_far_as_the_intent_is_a_question_to_the_model() -> None:
    events = [
        Event(1, "mail", "post", "i_1"),
        Event(2, "mail", "post"),
        Event(3, "mail", "post"),
        Event(4, "work", "ide", "i_2"),
        Event(5, "work", "post", "i_3"),
        Event(6, "food", "map"),
    ]
    habits = Habits(events, 7, 0)
    assert [habits.app_of(intent) for intent in ("mail", "food", "unheard of")] == ["post", None, None]
    assert habits.apps([("mail", 0.6), ("work", 0.3), ("food", 0.1)]) == [
        ("post", pytest.approx(0.6 / 3 + 0.15)),
        ("ide", pytest.approx(0.15)),
    ]


def test_without_a_history() -> None:
    habits = Habits([], 0, 0)
    assert (habits.reason("mail"), habits.app_of("mail"), habits.apps([("mail", 1.0)])) == ("not seen yet", None, [])
