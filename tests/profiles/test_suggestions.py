from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from edgepd.errors import NotFoundError
from edgepd_profiles import apps, feedback, suggestions
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.suggestions import MAX_CHARS, Suggestion

DAY = 86_400.0
NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC).timestamp()  # a Monday morning
WEATHER = "What is the weather in Oslo?"

Ask = Callable[..., None]


@pytest.fixture
def ask(log: Callable[..., Interaction]) -> Ask:
    count = iter(range(1000))

    def ask_one(prompt: str, at: float, *, app: str = "cli", earlier: str | None = None, **more: object) -> None:
        messages = [{"role": "user", "content": prompt}]
        if earlier is not None:
            messages = [{"role": "user", "content": earlier}, {"role": "assistant", "content": "So."}, *messages]
        name = f"i{next(count)}"
        log(name, conversation=name, messages=messages, created_at=at, app=app, **more)

    return ask_one


def suggested(conn: sqlite3.Connection, now: float = NOW, app: str = "cli", viewer: str | None = None) -> list[str]:
    found = suggestions.suggest(conn, app, 9, now, viewer, zone=UTC)
    return [f"{one.text} {one.reason}" for one in found]


def test_nothing_is_suggested_from_nothing(conn: sqlite3.Connection, ask: Ask) -> None:
    assert suggested(conn) == []
    ask(WEATHER, NOW - DAY)
    assert suggested(conn) == [], "what was asked once and answered gives no reason"


def test_a_weekly_habit(conn: sqlite3.Connection, ask: Ask) -> None:
    for weeks in (1, 2, 4, 5):
        ask(WEATHER, NOW - 7 * weeks * DAY)
    assert suggested(conn) == [f"{WEATHER} you asked this on 4 of the last 5 Monday mornings"]
    assert suggested(conn, NOW + 0.5 * DAY) == [f"{WEATHER} you asked this on 4 different days"]


def test_a_daily_habit_in_other_words(conn: sqlite3.Connection, ask: Ask) -> None:
    for days, prompt in ((1, WEATHER), (2, "please tell me the weather in oslo"), (3, "Weather in Oslo")):
        ask(prompt, NOW - days * DAY)
    (found,) = suggestions.suggest(conn, "cli", 9, NOW, zone=UTC)
    assert (found.text, found.reason) == ("Weather in Oslo", "you asked this on 3 of the last 5 mornings")
    assert found.source == "i2"


def test_what_was_asked_today_is_no_habit_any_more(conn: sqlite3.Connection, ask: Ask) -> None:
    for days in range(1, 6):
        ask(WEATHER, NOW - days * DAY)
    ask(WEATHER, NOW - 1800)
    assert suggested(conn) == []


def test_what_was_just_asked_is_not_suggested(conn: sqlite3.Connection, ask: Ask) -> None:
    ask(WEATHER, NOW - 60, state="interrupted")
    assert suggested(conn) == []
    assert suggested(conn, NOW + 3600) == [f"{WEATHER} you asked this, and its answer was not finished"]


def test_what_followed_the_last_question_before(conn: sqlite3.Connection, ask: Ask) -> None:
    for days in (9, 8, 6):
        ask("Summarise my notes of the day", NOW - days * DAY)
        if days != 8:
            ask("Turn that into a mail", NOW - days * DAY + 300, earlier="Summarise my notes of the day")
    ask("Summarise my notes of the day", NOW - 100)
    assert suggested(conn) == ["Turn that into a mail you asked this 2 of the 3 times after what you asked last"]
    assert suggested(conn, app="mail") == []
    assert suggested(conn, NOW + 3600) == [], "half an hour later it is no follow-up"


def test_what_is_asked_within_conversations_is_no_habit(conn: sqlite3.Connection, ask: Ask) -> None:
    for days in range(1, 6):
        ask("shorter, thanks", NOW - days * DAY, earlier=WEATHER)
    assert suggested(conn) == []


def test_what_the_user_left_is_unfinished_for_two_days(conn: sqlite3.Connection, ask: Ask) -> None:
    ask(WEATHER, NOW - DAY)
    feedback.note(conn, "i0", "abandoned")
    assert suggested(conn) == [f"{WEATHER} you asked this, and its answer was not finished"]
    assert suggested(conn, NOW + 2 * DAY) == []
    ask(WEATHER, NOW - DAY + 60)
    assert suggested(conn, NOW + 7200) == [], "it was asked again and answered"


def test_secrets_and_long_texts_are_not_suggested(conn: sqlite3.Connection, ask: Ask) -> None:
    for days in range(1, 6):
        ask("Log me in with the password: correct-horse-9", NOW - days * DAY)
        ask("weather " * (MAX_CHARS // 7), NOW - days * DAY)
    assert suggested(conn) == []


def test_an_app_gets_nothing_of_another_ones(conn: sqlite3.Connection, ask: Ask) -> None:
    for days in range(1, 6):
        ask(WEATHER, NOW - days * DAY, app="diary")
    assert suggested(conn, app="mail", viewer="mail") == []
    apps.change(conn, "diary", shared=True)
    assert len(suggested(conn, app="mail", viewer="mail")) == 1
    assert len(suggested(conn, app="diary", viewer="diary")) == 1


def test_only_the_newest_exchanges_are_looked_at(
    conn: sqlite3.Connection, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for days in range(6, 1, -1):
        ask(WEATHER, NOW - days * DAY)
    ask("Why?", NOW - DAY)
    assert len(suggested(conn)) == 1
    monkeypatch.setattr(suggestions, "NEWEST", 2)
    assert suggested(conn, NOW + 60) == []
    assert suggested(conn, NOW + 60, viewer="cli") == []


@pytest.fixture
def shown(conn: sqlite3.Connection, ask: Ask) -> Suggestion:
    for days in range(1, 6):
        ask(WEATHER, NOW - days * DAY)
    (one,) = suggestions.suggest(conn, "cli", 9, NOW, zone=UTC)
    return one


def outcomes(conn: sqlite3.Connection) -> list[str | None]:
    return [outcome for (outcome,) in conn.execute("SELECT outcome FROM suggestions ORDER BY shown_at, rowid")]


def test_an_open_suggestion_keeps_its_id(conn: sqlite3.Connection, shown: Suggestion) -> None:
    assert suggestions.suggest(conn, "cli", 9, NOW + 60, zone=UTC) == [shown]
    assert outcomes(conn) == [None]


def test_asking_what_was_suggested_takes_it(conn: sqlite3.Connection, shown: Suggestion) -> None:
    assert suggestions.settle(conn, "cli", "Why is the sky blue?", NOW + 10) is None
    assert suggestions.settle(conn, "mail", WEATHER, NOW + 10) is None, "another app's"
    assert suggestions.settle(conn, "cli", "weather in oslo", NOW + 10) == shown.id
    assert suggestions.settle(conn, "cli", "weather in oslo", NOW + 20) is None
    assert suggestions.get(conn, shown.id).outcome == "taken"


def test_after_an_hour_it_was_ignored(conn: sqlite3.Connection, shown: Suggestion) -> None:
    assert suggestions.settle(conn, "cli", "Why?", NOW + 3599) is None
    assert outcomes(conn) == [None]
    assert suggestions.settle(conn, "cli", WEATHER, NOW + 3600) is None
    assert outcomes(conn) == ["ignored"]
    assert suggestions.get(conn, shown.id).outcome == "ignored"


def test_what_was_ignored_three_times_is_left_alone_until_it_is_taken(
    conn: sqlite3.Connection, shown: Suggestion
) -> None:
    for hours in (1, 2):
        assert len(suggested(conn, NOW + hours * 3600)) == 1
    assert suggested(conn, NOW + 3 * 3600 - 1) != []
    assert suggested(conn, NOW + 3 * 3600) == []
    assert outcomes(conn) == ["ignored"] * 3
    conn.execute("UPDATE suggestions SET outcome = 'taken' WHERE shown_at > ?", (NOW + 7000,))
    assert len(suggested(conn, NOW + 3 * 3600)) == 1
    assert shown.outcome is None


def test_the_user_may_say_what_came_of_it(conn: sqlite3.Connection, shown: Suggestion) -> None:
    assert suggestions.taken(conn, shown.id, at=NOW + 5).outcome == "taken"
    assert suggestions.taken(conn, shown.id, "i0", app="cli", at=NOW + 9).outcome == "taken"
    assert conn.execute("SELECT outcome_at FROM suggestions").fetchone() == (NOW + 5,)
    assert [(f.kind, f.text) for f in feedback.of(conn, "i0")] == [("taken", shown.id)]
    assert suggestions.ignored(conn, shown.id, at=NOW + 9).outcome == "ignored"
    with pytest.raises(NotFoundError, match="suggestion 's_x' is not known"):
        suggestions.taken(conn, "s_x")
    with pytest.raises(NotFoundError):
        suggestions.ignored(conn, shown.id, app="mail")


def test_no_more_than_twenty_are_open(conn: sqlite3.Connection, ask: Ask) -> None:
    for n in range(30):
        ask(f"Report number {n}", NOW - DAY, state="interrupted")
    first = suggestions.suggest(conn, "cli", 20, NOW, zone=UTC)
    assert len(first) == 20
    for one in first:
        suggestions.ignored(conn, one.id, at=NOW)
    suggestions.suggest(conn, "cli", 20, NOW + 1, zone=UTC)
    assert outcomes(conn).count(None) <= 20


def test_it_goes_with_the_exchange_that_it_repeats(conn: sqlite3.Connection, shown: Suggestion) -> None:
    conn.execute("DELETE FROM interactions WHERE id = ?", (shown.source,))
    assert outcomes(conn) == []
