"""Asking the user about an answer: the annotation queue of Qin et al. (arXiv 2311.12275), at a polite rate.

The idea: pool `questions` keeps unjudged exchanges; the one asked about is the most useful of them, with the highest
sum of its ranks by entropy, domain score and dissimilarity. Each is asked once; what is not answered in a day is
taken for skipped, because asking again would nag.
The invariant: at most `per_day` different questions in any 24 hours; an open one comes again and counts once; what was
judged in any other way is not asked about.
What this does not do: store the answer. The caller gives feedback as for any exchange, then settles the question.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from typing import Any

from edgepd.errors import NotFoundError, RequestError
from edgepd_profiles import apps, interactions
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.rows import fetch
from edgepd_profiles.selection import kept
from edgepd_profiles.selection.arrivals import CANDIDATE

OUTCOMES = ("accepted", "corrected", "bad", "skipped")
DAY_S = 86_400.0
SCORES = ("entropy", "domain_score", "dissimilarity")


def next_question(conn: sqlite3.Connection, per_day: int, now: float, viewer: str | None = None) -> Interaction | None:
    """Return the exchange to ask about, or None: nothing is kept, enough was asked, or `per_day` is 0.

    The question is noted as asked at `now` (unix seconds), so call it in a transaction. An app that is not the owner
    is asked about what it sees only.
    """
    if per_day <= 0:
        return None
    conn.execute(
        "UPDATE questions SET outcome = 'skipped' WHERE outcome IS NULL AND asked_at NOT BETWEEN ? AND ?",
        (now - DAY_S, now + DAY_S),
    )
    candidates = _candidates(conn, viewer)
    still_open = [row for row in candidates if row["asked_at"] is not None]
    if still_open:
        return interactions.get(conn, max(still_open, key=lambda row: row["asked_at"])["id"])
    if not candidates or left_today(conn, per_day, now) == 0:
        return None
    ordered = {score: sorted(row[score] for row in candidates) for score in SCORES}

    def usefulness(row: dict[str, Any]) -> tuple[int, int]:
        return sum(bisect_left(ordered[score], row[score]) for score in SCORES), row["seq"]

    best = max(candidates, key=usefulness)
    conn.execute("INSERT OR REPLACE INTO questions (interaction, asked_at) VALUES (?, ?)", (best["id"], now))
    return interactions.get(conn, best["id"])


def left_today(conn: sqlite3.Connection, per_day: int, now: float) -> int:
    """Return how many new questions may still be asked in the 24 hours that end `now`."""
    # Not those from after `now`: the clock was wrong then, and would keep the next question away for as long.
    sql = "SELECT count(*) FROM questions WHERE asked_at > ? AND asked_at <= ?"
    asked = conn.execute(sql, (now - DAY_S, now)).fetchone()[0]
    return max(0, per_day - int(asked))


def reason(conn: sqlite3.Connection, interaction_id: str) -> str:
    """Return why this one is asked about, as a sentence without words of the user."""
    row = conn.execute(
        "SELECT reason, domain FROM bins WHERE pool = 'questions' AND interaction = ?", (interaction_id,)
    ).fetchone()
    if row is None:
        return "nothing was said about it yet"
    return f"nothing was said about it yet, and it was chosen for this: {kept.sentence(row[0], row[1], {})}"


def settle(conn: sqlite3.Connection, interaction_id: str, outcome: str) -> None:
    """Note what came of a question: it is not asked again, and its place is free. Settling again replaces the outcome.

    Raises RequestError for an unknown outcome and NotFoundError if that was not asked.
    """
    if outcome not in OUTCOMES:
        raise RequestError(f"the outcome of a question is {outcome!r}, but must be one of {', '.join(OUTCOMES)}")
    changed = conn.execute("UPDATE questions SET outcome = ? WHERE interaction = ?", (outcome, interaction_id)).rowcount
    if not changed:
        raise NotFoundError(
            f"nothing was asked about interaction '{interaction_id}'; `edgepd review` shows the open question"
        )
    conn.execute("DELETE FROM bins WHERE pool = 'questions' AND interaction = ?", (interaction_id,))


def _candidates(conn: sqlite3.Connection, viewer: str | None) -> list[dict[str, Any]]:
    """Return what is kept to be asked about or was asked, and was not judged since, with when it was asked."""
    visible, parameters = apps.visible_sql(viewer, "i.app")
    return fetch(
        conn,
        f"""
        SELECT i.id, i.seq, coalesce(b.entropy, 0) AS entropy, coalesce(b.domain_score, 0) AS domain_score,
            coalesce(b.dissimilarity, 0) AS dissimilarity, asked.asked_at
        FROM (
            SELECT interaction AS id FROM bins WHERE pool = 'questions'
            UNION SELECT interaction FROM questions WHERE outcome IS NULL
        ) JOIN interactions AS i USING (id)
            LEFT JOIN bins AS b ON b.pool = 'questions' AND b.interaction = i.id
            LEFT JOIN questions AS asked ON asked.interaction = i.id
        WHERE {CANDIDATE["questions"]} AND {visible}
        """,  # noqa: S608 - constants of ours
        parameters,
    )
