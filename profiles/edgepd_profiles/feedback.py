"""What the user said about an exchange, or showed by what he did.

The idea: at most one row per interaction and kind; feedback_kinds.py says which kinds there are. A thumb is +1 or -1, a
rating 1 to 5, an edit is the text that the answer should have been, a comment is about it, and "preferred" lies on the
better of two answers to one prompt and names the other one. The rest is observed: by apps, by surveys, from what
was asked next, from suggestions.
The invariant: setting the same again changes nothing, not even the time, so a repeated request cannot reorder the
training data; setting something else replaces; everything can be removed. The sums of the profile change in the same
transaction (profile.refolded).
What this does not do: judge the feedback. An edit equal to the answer stays an edit.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from edgepd.errors import ConflictError, RequestError
from edgepd_profiles import interactions, profile
from edgepd_profiles.feedback_kinds import CHANNELS, COLUMNS, KINDS, Feedback, channel_of, satisfaction
from edgepd_profiles.rows import fetch

__all__ = [
    "CHANNELS",
    "KINDS",
    "MAX_COMMENT_BYTES",
    "MAX_EDIT_BYTES",
    "Feedback",
    "channel_of",
    "counts",
    "note",
    "of",
    "prefer",
    "remove",
    "satisfaction",
    "set_comment",
    "set_edit",
    "set_rating",
    "set_thumb",
]

MAX_EDIT_BYTES = 1024 * 1024
MAX_COMMENT_BYTES = 16 * 1024
MAX_DWELL_MS = 24 * 60 * 60 * 1000  # whoever looks at one answer for a day has left it open
MAX_MARK = 200  # characters of what comes with an observation: the name of a rule, an id


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
    return _set(conn, Feedback(interaction_id, "thumb", value, None, source, _clock(at)))


def set_rating(
    conn: sqlite3.Connection,
    interaction_id: str,
    value: int,
    source: str = "user",
    *,
    at: float | None = None,
) -> Feedback:
    """Store a rating, from 1 (bad) to 5 (good). Raises as `set_thumb` does."""
    _refuse_unless_rating(value)
    return _set(conn, Feedback(interaction_id, "rating", value, None, source, _clock(at)))


def set_edit(
    conn: sqlite3.Connection, interaction_id: str, text: str, source: str = "user", *, at: float | None = None
) -> Feedback:
    """Store what the answer should have been, word for word as given.

    Raises RequestError for a text that is empty, not valid Unicode or over MAX_EDIT_BYTES, NotFoundError for
    an unknown interaction, ConflictError for one that is still streaming.
    """
    if not text.strip():
        raise RequestError("the corrected answer is empty; give the text as it should have been")
    _refuse_unstorable("the corrected answer", text, MAX_EDIT_BYTES)
    return _set(conn, Feedback(interaction_id, "edit", None, text, source, _clock(at)))


def set_comment(
    conn: sqlite3.Connection, interaction_id: str, text: str, source: str = "user", *, at: float | None = None
) -> Feedback:
    """Store what the user says of the answer in his own words. Raises as `set_edit` does, above MAX_COMMENT_BYTES."""
    if not text.strip():
        raise RequestError("the comment is empty; say what was good or bad about the answer")
    _refuse_unstorable("the comment", text, MAX_COMMENT_BYTES)
    return _set(conn, Feedback(interaction_id, "comment", None, text, source, _clock(at)))


def prefer(
    conn: sqlite3.Connection, winner: str, loser: str, source: str = "user", *, at: float | None = None
) -> Feedback:
    """Store that the answer of `winner` is better than that of `loser`, both of them ids of interactions.

    It takes the place of an earlier preference for `winner` over another, and of the opposite one if there is one; and
    of the guess that one was asked again because it was bad, for it was asked again to have two.
    Call it in a transaction. Raises NotFoundError for an unknown interaction, ConflictError for one that is still
    streaming, RequestError if both are one or if they answer different messages.
    """
    if winner == loser:
        raise RequestError(f"interaction '{winner}' cannot be preferred to itself; give the ids of two answers")
    for one in (winner, loser):
        _refuse_unless_ended(conn, one)
    if interactions.get(conn, winner).messages != interactions.get(conn, loser).messages:
        raise RequestError(
            f"interactions '{winner}' and '{loser}' answer different messages; prefer one of two answers to the same"
        )
    _delete(conn, loser, "kind = 'preferred' AND text = ?", winner)
    for one in (winner, loser):
        _delete(conn, one, "kind = ?", "regenerated")
    return _set(conn, Feedback(winner, "preferred", None, loser, source, _clock(at)))


def note(
    conn: sqlite3.Connection,
    interaction_id: str,
    kind: str,
    value: int | None = None,
    text: str | None = None,
    source: str = "app",
    *,
    at: float | None = None,
) -> Feedback:
    """Store what was observed: any kind but the active ones, which have functions of their own.

    `value` is the milliseconds of a dwell or the 1 to 5 of a survey, and nothing else has one; `text` is a short mark
    such as the rule that noticed it, never words of the user. "copied" and "abandoned" contradict each other: the later
    one stands. Raises RequestError for another kind or value, and else as `set_thumb` does.
    """
    if kind in CHANNELS["active"] or kind not in KINDS:
        observed = ", ".join(k for k in KINDS if k not in CHANNELS["active"])
        raise RequestError(f"'{kind}' is not something that is observed; use one of {observed}")
    if kind == "dwell":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_DWELL_MS:
            raise RequestError(f"a dwell is {value!r}, but must be 0 to {MAX_DWELL_MS} milliseconds")
    elif kind == "survey":
        _refuse_unless_rating(value)
    elif value is not None:
        raise RequestError(f"'{kind}' has the value {value!r}, but takes none")
    if text is not None and len(text) > MAX_MARK:
        raise RequestError(f"the mark of '{kind}' has {len(text)} characters, but at most {MAX_MARK} are allowed")
    _refuse_unless_ended(conn, interaction_id)
    if opposite := {"copied": "abandoned", "abandoned": "copied"}.get(kind):
        _delete(conn, interaction_id, "kind = ?", opposite)
    return _set(conn, Feedback(interaction_id, kind, value, text, source, _clock(at)))


def remove(conn: sqlite3.Connection, interaction_id: str, kind: str | None = None) -> int:
    """Undo the feedback of one kind, or all of it; return how many rows went (0 if there were none).

    Raises RequestError for an unknown kind and NotFoundError for an unknown interaction.
    """
    if kind is not None and kind not in KINDS:
        raise RequestError(f"feedback kind '{kind}' is not known; use one of {', '.join(KINDS)}")
    interactions.get(conn, interaction_id)
    return _delete(conn, interaction_id, "kind = coalesce(?, kind)", kind)


def of(conn: sqlite3.Connection, interaction_id: str) -> list[Feedback]:
    """Return the feedback on one interaction, ordered by kind. Raises NotFoundError if it is unknown."""
    interactions.get(conn, interaction_id)
    rows = fetch(conn, f"SELECT {COLUMNS} FROM feedback WHERE interaction = ? ORDER BY kind", (interaction_id,))  # noqa: S608
    return [_from_row(row) for row in rows]


def counts(conn: sqlite3.Connection) -> dict[str, int]:
    """Return how many there are of each kind, thumbs up and down apart ("thumb_up", "thumb_down")."""
    found = dict(
        conn.execute(
            """
            SELECT CASE WHEN kind != 'thumb' THEN kind WHEN value = 1 THEN 'thumb_up' ELSE 'thumb_down' END, count(*)
            FROM feedback GROUP BY 1
            """
        ).fetchall()
    )
    return {name: found.get(name, 0) for name in ("thumb_up", "thumb_down", *(k for k in KINDS if k != "thumb"))}


def _set(conn: sqlite3.Connection, given: Feedback) -> Feedback:
    _refuse_unless_ended(conn, given.interaction)
    key = (given.interaction, given.kind)
    known = fetch(conn, f"SELECT {COLUMNS} FROM feedback WHERE (interaction, kind) = (?, ?)", key)  # noqa: S608
    before = [_from_row(row) for row in known]
    if before and _content(before[0]) == _content(given):
        return before[0]
    with profile.refolded(conn, given.interaction):
        conn.execute(
            f"INSERT OR REPLACE INTO feedback ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608 - our own names
            (*key, given.value, given.text, given.source, given.at),
        )
    return given


def _delete(conn: sqlite3.Connection, interaction_id: str, condition: str, value: str | None) -> int:
    """Delete the feedback on one exchange that meets a condition with one parameter; return how many rows went."""
    where = f"FROM feedback WHERE interaction = ? AND {condition}"
    if not conn.execute(f"SELECT 1 {where} LIMIT 1", (interaction_id, value)).fetchone():
        return 0
    with profile.refolded(conn, interaction_id):
        return conn.execute(f"DELETE {where}", (interaction_id, value)).rowcount


def _refuse_unless_ended(conn: sqlite3.Connection, interaction_id: str) -> None:
    """Raise NotFoundError for an unknown interaction, and ConflictError for one that is still streaming."""
    row = conn.execute("SELECT state FROM interactions WHERE id = ?", (interaction_id,)).fetchone()
    # `get` says what is wrong, but reads the messages, which may be long.
    if (interactions.get(conn, interaction_id).state if row is None else row[0]) == "streaming":
        raise ConflictError(
            f"interaction '{interaction_id}' is still streaming; wait for the end of the answer or stop it"
        )


def _refuse_unless_rating(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 5:
        raise RequestError(f"a rating is {value!r}, but must be a whole number from 1 (bad) to 5 (good)")


def _refuse_unstorable(name: str, text: str, most: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError(f"{name} has half a character at position {error.start}") from error
    if size > most:
        raise RequestError(f"{name} has {size} bytes, but at most {most} are allowed")


def _content(given: Feedback) -> tuple[int | None, str | None, str]:
    return given.value, given.text, given.source


def _clock(at: float | None) -> float:
    return time.time() if at is None else at


def _from_row(row: dict[str, Any]) -> Feedback:
    return Feedback(**row)
