"""What the user said about an exchange.

The idea: at most one row per interaction and kind. A thumb is +1 or -1, an edit is the text that the answer
should have been, and "preferred" lies on the better of two answers to one prompt and names the other one. The
invariant: setting the same again changes nothing, not even the time, so a repeated request cannot reorder the
training data; setting something else replaces; everything can be removed.
What this does not do: judge the feedback. An edit equal to the answer stays an edit.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from edgepd.errors import ConflictError, RequestError
from edgepd_profiles import interactions
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.rows import fetch

KINDS = ("thumb", "edit", "preferred")
MAX_EDIT_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Feedback:
    """One piece of feedback: `value` for a thumb, `text` for an edit, or for a preference the id of the other answer.

    `at` is unix seconds.
    """

    interaction: str
    kind: str
    value: int | None
    text: str | None
    source: str
    at: float


def set_thumb(
    conn: sqlite3.Connection,
    interaction_id: str,
    value: int,
    source: str = "user",
    *,
    at: float | None = None,
) -> Feedback:
    """Store a thumb up (+1) or down (-1).

    Raises RequestError for another value, NotFoundError for an unknown interaction, ConflictError for one
    that is still streaming.
    """
    if isinstance(value, bool) or value not in (1, -1):
        raise RequestError(f"a thumb is {value!r}, but must be 1 (good) or -1 (bad)")
    return _set(conn, Feedback(interaction_id, "thumb", value, None, source, time.time() if at is None else at))


def set_edit(
    conn: sqlite3.Connection, interaction_id: str, text: str, source: str = "user", *, at: float | None = None
) -> Feedback:
    """Store what the answer should have been, word for word as given.

    Raises RequestError for a text that is empty, not valid Unicode or over MAX_EDIT_BYTES, NotFoundError for
    an unknown interaction, ConflictError for one that is still streaming.
    """
    if not text.strip():
        raise RequestError("the corrected answer is empty; give the text as it should have been")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError(f"the corrected answer has half a character at position {error.start}") from error
    if size > MAX_EDIT_BYTES:
        raise RequestError(f"the corrected answer has {size} bytes, but at most {MAX_EDIT_BYTES} are allowed")
    return _set(conn, Feedback(interaction_id, "edit", None, text, source, time.time() if at is None else at))


def prefer(
    conn: sqlite3.Connection, winner: str, loser: str, source: str = "user", *, at: float | None = None
) -> Feedback:
    """Store that the answer of `winner` is better than that of `loser`, both of them ids of interactions.

    It takes the place of an earlier preference for `winner` over another, and of the opposite one if there is one.
    Call it in a transaction. Raises NotFoundError for an unknown interaction, ConflictError for one that is still
    streaming, RequestError if both are one or if they answer different messages.
    """
    if winner == loser:
        raise RequestError(f"interaction '{winner}' cannot be preferred to itself; give the ids of two answers")
    better, worse = _ended(conn, winner), _ended(conn, loser)
    if better.messages != worse.messages:
        raise RequestError(
            f"interactions '{winner}' and '{loser}' answer different messages; prefer one of two answers to the same"
        )
    conn.execute("DELETE FROM feedback WHERE interaction = ? AND kind = 'preferred' AND text = ?", (loser, winner))
    return _set(conn, Feedback(winner, "preferred", None, loser, source, time.time() if at is None else at))


def remove(conn: sqlite3.Connection, interaction_id: str, kind: str | None = None) -> int:
    """Undo the feedback of one kind, or all of it; return how many rows went (0 if there were none).

    Raises RequestError for an unknown kind and NotFoundError for an unknown interaction.
    """
    if kind is not None and kind not in KINDS:
        raise RequestError(f"feedback kind '{kind}' is not known; use one of {', '.join(KINDS)}")
    interactions.get(conn, interaction_id)
    return conn.execute(
        "DELETE FROM feedback WHERE interaction = :id AND (:kind IS NULL OR kind = :kind)",
        {"id": interaction_id, "kind": kind},
    ).rowcount


def of(conn: sqlite3.Connection, interaction_id: str) -> list[Feedback]:
    """Return the feedback on one interaction, ordered by kind. Raises NotFoundError if it is unknown."""
    interactions.get(conn, interaction_id)
    rows = fetch(conn, "SELECT * FROM feedback WHERE interaction = ? ORDER BY kind", (interaction_id,))
    return [_from_row(row) for row in rows]


def counts(conn: sqlite3.Connection) -> dict[str, int]:
    """Return how many thumbs up, thumbs down, edits and preferences there are."""
    up, down, edits, preferred = conn.execute(
        """
        SELECT count(*) FILTER (WHERE kind = 'thumb' AND value = 1),
               count(*) FILTER (WHERE kind = 'thumb' AND value = -1),
               count(*) FILTER (WHERE kind = 'edit'),
               count(*) FILTER (WHERE kind = 'preferred')
        FROM feedback
        """
    ).fetchone()
    return {"thumb_up": up, "thumb_down": down, "edit": edits, "preferred": preferred}


def _set(conn: sqlite3.Connection, given: Feedback) -> Feedback:
    _ended(conn, given.interaction)
    conn.execute(
        """
        INSERT INTO feedback (interaction, kind, value, text, source, at) VALUES (?, ?, ?, ?, ?, ?)
        ON CONFLICT (interaction, kind) DO UPDATE
            SET value = excluded.value, text = excluded.text, source = excluded.source, at = excluded.at
            WHERE (value, text, source) IS NOT (excluded.value, excluded.text, excluded.source)
        """,
        (given.interaction, given.kind, given.value, given.text, given.source, given.at),
    )
    row = fetch(conn, "SELECT * FROM feedback WHERE interaction = ? AND kind = ?", (given.interaction, given.kind))
    return _from_row(row[0])


def _ended(conn: sqlite3.Connection, interaction_id: str) -> Interaction:
    """Return an interaction that can be judged. Raises NotFoundError, and ConflictError if it is still streaming."""
    found = interactions.get(conn, interaction_id)
    if found.state == "streaming":
        raise ConflictError(f"interaction '{found.id}' is still streaming; wait for the end of the answer or stop it")
    return found


def _from_row(row: dict[str, Any]) -> Feedback:
    return Feedback(**row)
