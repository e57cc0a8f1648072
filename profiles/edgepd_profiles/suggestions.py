"""What the user is likely to ask next, and what came of saying it.

The idea: questions that were asked before are scored (suggestion_scores.py says how), and the best are shown with a
reason. Each that was shown is stored, and is taken when it is asked within the hour, and ignored otherwise.
The invariants: looked at are the newest NEWEST exchanges that the viewer may see, however long the history. Never
suggested is what is longer than MAX_CHARS or has a secret. A suggestion goes with the exchange that it repeats. Those
that are open are among the OPEN newest of their app, so that `settle` looks at no more.
What this does not do: complete a sentence, or guess what was never asked.
"""

from __future__ import annotations

import heapq
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

from edgepd import secrets
from edgepd.errors import NotFoundError
from edgepd_profiles import apps, feedback
from edgepd_profiles.interactions import new_id
from edgepd_profiles.retrieval import about
from edgepd_profiles.rows import canonical_json, fetch
from edgepd_profiles.suggestion_scores import Asked, Key, scored

NEWEST = 2000
MAX_CHARS = 300
MAX_SHOWN = 20
OPEN = 20  # suggestions of an app that can be open at once
OPEN_S = 3600.0
REMEMBERED = 500  # newest suggestions of an app among which those ignored are counted
NEARLY = 0.8  # share of all content words that a question and a suggestion have in common if that was taken

_EXCHANGES = """
    SELECT i.id, i.app, i.created_at, CASE WHEN length(i.prompt) <= :chars THEN trim(i.prompt) ELSE '' END,
           instr(i.messages, '"role":"assistant"') = 0,
           i.state IN ('cancelled', 'interrupted', 'failed')
               OR EXISTS (SELECT 1 FROM feedback AS f WHERE f.interaction = i.id AND f.kind = 'abandoned')
    FROM interactions AS i WHERE i.seq IN (SELECT value FROM json_each(:seqs)) AND i.kind = 'chat' ORDER BY i.seq
"""
_SHOWN = """
    SELECT id, text, shown_at, outcome FROM suggestions WHERE app = ? ORDER BY shown_at DESC, rowid DESC LIMIT ?
"""


@dataclass(frozen=True)
class Suggestion:
    """A question that was suggested: `source` is the interaction in which it was asked last.

    `outcome` is None while it is open, then taken or ignored.
    """

    id: str
    text: str
    reason: str
    source: str | None
    outcome: str | None = None


def suggest(
    conn: sqlite3.Connection, app: str, k: int, now: float, viewer: str | None = None, *, zone: tzinfo | None = None
) -> list[Suggestion]:
    """Return at most `k` questions (and MAX_SHOWN) that are likely next in `app`, the likeliest first, and store them.

    One that is open keeps its id and its hour. Call it in a transaction. `zone` is what days and hours are told in;
    None is the machine's.
    """
    shown = fetch(conn, _SHOWN, (app, REMEMBERED))
    waiting = {about(row["text"]): row["id"] for row in shown if _is_open(row, now)}
    found: list[Suggestion] = []
    for question in scored(_newest(conn, viewer), app, now, zone, _ignored(shown, now)):
        if len(found) >= min(k, MAX_SHOWN):
            break
        if not secrets.find(question.last.text):
            found.append(_show(conn, app, question.last, question.reason, now, waiting.get(question.key)))
    for n, row in enumerate(fetch(conn, _SHOWN, (app, OPEN + MAX_SHOWN))):
        if row["outcome"] is None and (n >= OPEN or not _is_open(row, now)):
            _set(conn, row["id"], "ignored", now)
    return found


def settle(conn: sqlite3.Connection, app: str, prompt: str, now: float) -> str | None:
    """Mark the open suggestion that `prompt` is, or nearly is, as taken, and those older than OPEN_S as ignored.

    Return the id of the one that was taken, if any. Call it in the transaction that begins an exchange.
    """
    rows = [row for row in fetch(conn, _SHOWN, (app, OPEN)) if row["outcome"] is None]
    if not rows:
        return None
    asked = about(prompt) if len(prompt) <= 2 * MAX_CHARS else frozenset()
    best, found = NEARLY, None
    for row in rows:
        if not _is_open(row, now):
            _set(conn, row["id"], "ignored", now)
            continue
        words = about(row["text"])
        shared = len(words & asked) / max(1, len(words | asked))
        if shared > best or (shared == best and found is None):
            best, found = shared, str(row["id"])
    if found is not None:
        _set(conn, found, "taken", now)
    return found


def taken(
    conn: sqlite3.Connection,
    suggestion_id: str,
    interaction: str | None = None,
    *,
    app: str | None = None,
    at: float | None = None,
) -> Suggestion:
    """Store that a suggestion was asked; if `interaction` is given, where that was, as feedback on that exchange.

    Doing it again changes nothing, and a later `ignored` takes its place. Raises NotFoundError for an unknown
    suggestion, or if `app` is given and it is another one's, and what feedback.note raises.
    """
    get(conn, suggestion_id, app)
    now = time.time() if at is None else at
    _set(conn, suggestion_id, "taken", now)
    if interaction is not None:
        feedback.note(conn, interaction, "taken", text=suggestion_id, at=now)
    return get(conn, suggestion_id)


def ignored(
    conn: sqlite3.Connection, suggestion_id: str, *, app: str | None = None, at: float | None = None
) -> Suggestion:
    """Store that a suggestion was not wanted; else as `taken`."""
    get(conn, suggestion_id, app)
    _set(conn, suggestion_id, "ignored", time.time() if at is None else at)
    return get(conn, suggestion_id)


def get(conn: sqlite3.Connection, suggestion_id: str, app: str | None = None) -> Suggestion:
    """Return one suggestion. Raises NotFoundError if it is unknown, or if `app` is given and it is another one's."""
    rows = fetch(
        conn,
        """
        SELECT id, text, reason, source, outcome FROM suggestions
        WHERE id = :id AND (:app IS NULL OR app = :app)
        """,
        {"id": suggestion_id, "app": app},
    )
    if not rows:
        raise NotFoundError(f"suggestion '{suggestion_id}' is not known; `edgepd suggest` shows new ones")
    return Suggestion(**rows[0])


def _newest(conn: sqlite3.Connection, viewer: str | None) -> list[Asked]:
    """Return the newest exchanges that are seen, in the order of asking.

    Each app is asked for its newest, which an index gives at once; all of them together would have to be sorted.
    """
    seen = apps.visible(conn, viewer)
    if seen is None:
        seqs = [seq for (seq,) in conn.execute("SELECT seq FROM interactions ORDER BY seq DESC LIMIT ?", (NEWEST,))]
    else:
        of_app = "SELECT seq FROM interactions WHERE app = ? ORDER BY seq DESC LIMIT ?"
        seqs = heapq.nlargest(NEWEST, (seq for name in seen for (seq,) in conn.execute(of_app, (name, NEWEST))))
    rows = conn.execute(_EXCHANGES, {"chars": MAX_CHARS, "seqs": canonical_json(seqs)})
    return [Asked(name, app, at, text, bool(first), bool(cut)) for name, app, at, text, first, cut in rows]


def _ignored(shown: list[dict[str, Any]], now: float) -> Counter[Key]:
    """Return how often each question was ignored since it was last taken. `shown` has the newest first."""
    counts: Counter[Key] = Counter()
    wanted: set[Key] = set()
    for row in shown:
        key = about(row["text"])
        if row["outcome"] == "taken":
            wanted.add(key)
        elif key not in wanted and not _is_open(row, now):
            counts[key] += 1
    return counts


def _is_open(row: dict[str, Any], now: float) -> bool:
    return row["outcome"] is None and row["shown_at"] > now - OPEN_S


def _show(conn: sqlite3.Connection, app: str, asked: Asked, reason: str, now: float, waiting: str | None) -> Suggestion:
    if waiting is not None:
        conn.execute("UPDATE suggestions SET reason = ? WHERE id = ?", (reason, waiting))
        return get(conn, waiting)
    name = "s_" + new_id().removeprefix("i_")
    conn.execute(
        "INSERT INTO suggestions (id, app, text, reason, source, shown_at) VALUES (?, ?, ?, ?, ?, ?)",
        (name, app, asked.text, reason, asked.id, now),
    )
    return Suggestion(name, asked.text, reason, asked.id)


def _set(conn: sqlite3.Connection, suggestion_id: str, outcome: str, now: float) -> None:
    conn.execute(
        "UPDATE suggestions SET outcome = :outcome, outcome_at = :now WHERE id = :id AND outcome IS NOT :outcome",
        {"id": suggestion_id, "outcome": outcome, "now": now},
    )
