"""At most one short question a day, for those who asked to be asked.

The idea: surveys are the channel that ASLS finds the least liked (table 8), so they are rare and off by default. Each
question can be answered with 1 to 5, where 5 is best, and with words. An answer counts for the profile as feedback of
kind "survey" on the exchange that was the last one when it was asked.
The invariant: one question a day over all apps, none before MIN_EXCHANGES new answers, and the same one until it is
answered, skipped or a day old. Answering twice replaces, skipping takes the answer back.
What this does not do: train on anything: a survey is about many answers, none of which it names.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from dataclasses import dataclass

from edgepd.errors import ConflictError, NotFoundError, RequestError
from edgepd_profiles import feedback
from edgepd_profiles.rows import fetch

DAY_S = 24 * 60 * 60
MIN_EXCHANGES = 5  # answers since the last question, or in all before the first one
MAX_ANSWER_BYTES = 16 * 1024

QUESTIONS = (
    "How useful were the last answers to you, from 1 (not at all) to 5 (very)?",
    "How well did the last answers fit what you had asked, from 1 (badly) to 5 (exactly)?",
    "How right was the length of the last answers, from 1 (quite wrong) to 5 (just right)?",
    "How well did the tone of the last answers suit you, from 1 (not at all) to 5 (very well)?",
    "How much could you rely on what the last answers said, from 1 (not at all) to 5 (fully)?",
    "How often could you use the last answers without changing them, from 1 (never) to 5 (always)?",
    "Compared with some weeks ago, how are the answers now, from 1 (much worse) to 5 (much better)?",
)


@dataclass(frozen=True)
class Survey:
    """A question: `outcome` is None while it is open, else answered, skipped or expired. Times are unix seconds."""

    id: str
    app: str
    question: str
    asked_at: float
    outcome: str | None = None
    value: int | None = None
    text: str | None = None
    answered_at: float | None = None


def next_question(conn: sqlite3.Connection, app: str | None, now: float, enabled: bool) -> Survey | None:
    """Return what to ask in an app (None: the owner), or None if this is not the time. Call it in a transaction.

    An open question is returned again to the owner and to the app that it was asked in, until it is a day old.
    """
    if not enabled:
        return None
    conn.execute(
        "UPDATE surveys SET outcome = 'expired' WHERE outcome IS NULL AND (asked_at <= ? OR asked_at > ?)",
        (now - DAY_S, now + DAY_S),
    )
    last = _last(conn, now)
    if last is not None and last.asked_at > now - DAY_S:
        return last if last.outcome is None and app in (None, last.app) else None
    if not _enough_answers(conn, app, 0.0 if last is None else last.asked_at):
        return None
    asked = conn.execute("SELECT count(*) FROM surveys").fetchone()[0]
    survey = Survey(f"s_{secrets.token_hex(8)}", app or "", QUESTIONS[asked % len(QUESTIONS)], now)
    conn.execute(
        "INSERT INTO surveys (id, app, question, asked_at) VALUES (?, ?, ?, ?)",
        (survey.id, survey.app, survey.question, survey.asked_at),
    )
    return survey


def get(conn: sqlite3.Connection, survey_id: str, app: str | None = None) -> Survey:
    """Return one survey. Raises NotFoundError if it is unknown, or if `app` is given and was not the one asked."""
    rows = fetch(conn, "SELECT * FROM surveys WHERE id = ?", (survey_id,))
    if not rows or app not in (None, rows[0]["app"]):
        raise NotFoundError(f"survey '{survey_id}' is not known; `edgepd survey` asks the open one")
    return Survey(**rows[0])


def answer(
    conn: sqlite3.Connection, survey_id: str, value: int | None, text: str | None, *, at: float | None = None
) -> Survey:
    """Store an answer: a number from 1 to 5, words, or both. The same again changes nothing, another one replaces it.

    Raises RequestError if there is neither or one is unusable, NotFoundError for an unknown survey, ConflictError for
    one that has expired.
    """
    text = (text or "").strip() or None
    if value is None and text is None:
        raise RequestError("the answer to a survey has neither a number nor words; give one, or skip the question")
    if value is not None and (isinstance(value, bool) or value not in (1, 2, 3, 4, 5)):
        raise RequestError(f"the answer to a survey is {value!r}, but must be a whole number from 1 (bad) to 5 (good)")
    if text is not None and len(text.encode(errors="replace")) > MAX_ANSWER_BYTES:
        raise RequestError(f"the answer to a survey is too long; at most {MAX_ANSWER_BYTES} bytes are allowed")
    survey = _open_to_change(conn, survey_id)
    if (survey.outcome, survey.value, survey.text) != ("answered", value, text):
        _settle(conn, survey, "answered", value, text, at)
    return get(conn, survey_id)


def skip(conn: sqlite3.Connection, survey_id: str, *, at: float | None = None) -> Survey:
    """Leave a question unanswered, or take its answer back.

    Raises NotFoundError for an unknown survey, ConflictError for one that has expired.
    """
    survey = _open_to_change(conn, survey_id)
    if survey.outcome != "skipped":
        _settle(conn, survey, "skipped", None, None, at)
    return get(conn, survey_id)


def _settle(
    conn: sqlite3.Connection, survey: Survey, outcome: str, value: int | None, text: str | None, at: float | None
) -> None:
    """Write what came of a survey, and make the feedback on the exchange it was asked after agree with it."""
    at = time.time() if at is None else at
    conn.execute(
        "UPDATE surveys SET outcome = ?, value = ?, text = ?, answered_at = ? WHERE id = ?",
        (outcome, value, text, at, survey.id),
    )
    judged = _asked_after(conn, survey)
    if judged is None:  # it was deleted, and nothing older is left
        return
    if value is not None:
        feedback.note(conn, judged, "survey", value, survey.id, "survey", at=at)
    elif any(f.kind == "survey" and f.text == survey.id for f in feedback.of(conn, judged)):
        feedback.remove(conn, judged, "survey")


def _asked_after(conn: sqlite3.Connection, survey: Survey) -> str | None:
    """Return the id of the last exchange that was there when a survey was asked, of its app or, for "", of all."""
    condition, parameters = _answers_of(survey.app)
    row = conn.execute(
        f"SELECT id FROM interactions WHERE {condition} AND created_at <= ? ORDER BY seq DESC LIMIT 1",  # noqa: S608
        (*parameters, survey.asked_at),
    ).fetchone()
    return None if row is None else str(row[0])


def _answers_of(app: str | None) -> tuple[str, tuple[str, ...]]:
    """Return an SQL condition for the exchanges of an app, or of all, that have an answer; and its parameters."""
    answered = "state NOT IN ('streaming', 'failed')"
    return (f"app = ? AND {answered}", (app,)) if app else (answered, ())


def _open_to_change(conn: sqlite3.Connection, survey_id: str) -> Survey:
    survey = get(conn, survey_id)
    if survey.outcome == "expired":
        raise ConflictError(f"survey '{survey_id}' is more than a day old, so it is closed; answer the next one")
    return survey


def _last(conn: sqlite3.Connection, now: float) -> Survey | None:
    """Return the last survey; one from more than a day ahead was asked by a wrong clock, and must not delay others."""
    rows = fetch(
        conn, "SELECT * FROM surveys WHERE asked_at <= ? ORDER BY asked_at DESC, rowid DESC LIMIT 1", (now + DAY_S,)
    )
    return Survey(**rows[0]) if rows else None


def _enough_answers(conn: sqlite3.Connection, app: str | None, since: float) -> bool:
    """Say whether the newest MIN_EXCHANGES answers that an app can see of its own came after `since`."""
    condition, parameters = _answers_of(app)
    rows = conn.execute(
        f"SELECT created_at FROM interactions WHERE {condition} ORDER BY seq DESC LIMIT {MIN_EXCHANGES}",  # noqa: S608
        parameters,
    ).fetchall()
    return len(rows) == MIN_EXCHANGES and all(created_at > since for (created_at,) in rows)
