from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from edgepd.errors import ConflictError, NotFoundError, RequestError
from edgepd_profiles import feedback, surveys
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.surveys import DAY_S, Survey

Log = Callable[..., Interaction]


@pytest.fixture
def five(log: Log) -> None:
    """Five answers of the command line, at 1000 to 1004 s."""
    for n in range(5):
        log(f"i_{n}", created_at=1000.0 + n)


def asked(conn: sqlite3.Connection, now: float = 2000.0, app: str | None = None) -> Survey:
    found = surveys.next_question(conn, app, now, True)
    assert found is not None
    return found


def test_nothing_is_asked_unless_it_is_wanted(conn: sqlite3.Connection, five: None) -> None:
    assert surveys.next_question(conn, None, 2000.0, False) is None
    assert conn.execute("SELECT count(*) FROM surveys").fetchone() == (0,)
    asked(conn)
    assert surveys.next_question(conn, None, 2001.0, False) is None


def test_nothing_is_asked_before_there_are_five_answers(conn: sqlite3.Connection, log: Log) -> None:
    for n in range(4):
        log(f"i_{n}")
    log("i_streaming", state="streaming")
    log("i_failed", state="failed")
    assert surveys.next_question(conn, None, 2000.0, True) is None
    log("i_4", app="mail")
    assert surveys.next_question(conn, "cli", 2000.0, True) is None, "one of them is of another app"
    assert asked(conn).question == surveys.QUESTIONS[0]


def test_the_same_question_comes_until_it_is_answered(conn: sqlite3.Connection, five: None) -> None:
    first = asked(conn, 2000.0)
    assert first == Survey(first.id, "", surveys.QUESTIONS[0], 2000.0)
    assert asked(conn, 2000.0 + DAY_S - 1) == first
    surveys.answer(conn, first.id, 4, None, at=3000.0)
    assert surveys.next_question(conn, None, 2000.0 + DAY_S - 1, True) is None, "one a day"


def test_one_question_a_day_over_all_apps(conn: sqlite3.Connection, log: Log, five: None) -> None:
    for n in range(5):
        log(f"m_{n}", app="mail", created_at=1500.0)
    of_mail = asked(conn, app="mail")
    assert surveys.next_question(conn, "cli", 2001.0, True) is None
    assert asked(conn, 2001.0, "mail") == of_mail
    assert asked(conn, 2001.0, None) == of_mail, "the owner sees everything"
    surveys.skip(conn, of_mail.id)
    assert surveys.next_question(conn, "mail", 2002.0, True) is None


def test_a_question_expires_after_a_day_and_the_next_one_is_another(
    conn: sqlite3.Connection, log: Log, five: None
) -> None:
    first = asked(conn, 2000.0)
    assert surveys.next_question(conn, None, 2000.0 + DAY_S, True) is None, "nothing was answered since"
    assert surveys.get(conn, first.id).outcome == "expired"
    for n in range(5):
        log(f"j_{n}", created_at=2100.0)
    second = asked(conn, 2000.0 + DAY_S)
    assert (second.id != first.id, second.question) == (True, surveys.QUESTIONS[1])
    with pytest.raises(ConflictError, match=f"'{first.id}' is more than a day old"):
        surveys.answer(conn, first.id, 3, None)
    with pytest.raises(ConflictError, match=f"'{first.id}' is more than a day old"):
        surveys.skip(conn, first.id)


def test_an_answer_lies_on_the_last_exchange_before_the_question(
    conn: sqlite3.Connection, log: Log, five: None
) -> None:
    survey = asked(conn, 2000.0, "cli")
    log("i_later", created_at=2100.0)
    log("m_1", created_at=1900.0, app="mail")
    answered = surveys.answer(conn, survey.id, 4, " mostly fine ", at=2200.0)
    assert answered == Survey(survey.id, "cli", survey.question, 2000.0, "answered", 4, "mostly fine", 2200.0)
    noted = feedback.Feedback("i_4", "survey", 4, survey.id, "survey", 2200.0)
    assert feedback.of(conn, "i_4") == [noted]
    assert surveys.answer(conn, survey.id, 4, "mostly fine", at=2300.0) == answered
    assert feedback.counts(conn)["survey"] == 1


def test_an_answer_can_be_changed_and_taken_back(conn: sqlite3.Connection, five: None) -> None:
    survey = asked(conn)
    surveys.answer(conn, survey.id, 2, None, at=2200.0)
    surveys.answer(conn, survey.id, 5, None, at=2300.0)
    assert [(f.value, f.at) for f in feedback.of(conn, "i_4")] == [(5, 2300.0)]
    assert surveys.answer(conn, survey.id, None, "words alone").value is None
    assert feedback.of(conn, "i_4") == []
    surveys.answer(conn, survey.id, 1, None)
    skipped = surveys.skip(conn, survey.id, at=2400.0)
    assert (skipped.outcome, skipped.value, skipped.text, skipped.answered_at) == ("skipped", None, None, 2400.0)
    assert surveys.skip(conn, survey.id, at=2500.0) == skipped
    assert feedback.of(conn, "i_4") == []


def test_skipping_leaves_what_another_survey_said(conn: sqlite3.Connection, five: None) -> None:
    survey = asked(conn)
    feedback.note(conn, "i_4", "survey", 3, "s_other")
    surveys.skip(conn, survey.id)
    assert [f.text for f in feedback.of(conn, "i_4")] == ["s_other"]


def test_a_survey_outlives_its_exchanges(conn: sqlite3.Connection, five: None) -> None:
    survey = asked(conn)
    surveys.answer(conn, survey.id, 2, None)
    conn.execute("DELETE FROM interactions")
    assert surveys.answer(conn, survey.id, 3, None).value == 3
    assert feedback.counts(conn)["survey"] == 0


@pytest.mark.parametrize(
    ("value", "text", "problem"),
    [
        (None, None, "neither a number nor words"),
        (None, "  ", "neither a number nor words"),
        (0, None, "is 0, but must be"),
        (6, None, "is 6, but must be"),
        (True, None, "is True, but must be"),
        (3, "é" * 8193, "too long; at most 16384 bytes"),
    ],
)
def test_unusable_answers_are_refused(
    conn: sqlite3.Connection, five: None, value: int | None, text: str | None, problem: str
) -> None:
    survey = asked(conn)
    with pytest.raises(RequestError, match=problem):
        surveys.answer(conn, survey.id, value, text)
    assert surveys.get(conn, survey.id).outcome is None


def test_unknown_surveys_are_named(conn: sqlite3.Connection) -> None:
    with pytest.raises(NotFoundError, match="'s_nope' is not known"):
        surveys.answer(conn, "s_nope", 3, None)
    with pytest.raises(NotFoundError, match="'s_nope' is not known"):
        surveys.skip(conn, "s_nope")


def test_questions_are_short_and_say_what_the_numbers_mean() -> None:
    assert len(set(surveys.QUESTIONS)) == 7
    assert all(len(q) <= 100 and "from 1 (" in q and "to 5 (" in q for q in surveys.QUESTIONS)
