"""What a follow-up says of the answer before it, without the user saying so.

The idea: the same messages again mean that another answer was wanted ("regenerated"); a short follow-up that asks for
another form means that this one was not right ("corrected"), and the rule that noticed it says which form is liked.
The rules can be read by the user (correction_rules.py). The sign lies on the earlier exchange as feedback of the
channel "implicit", so it can be seen, weighed and removed like any other.
The invariant: only an answer that was there to be seen gets a sign: not one that failed, was empty, was still
streaming, or was asked for at the same time as the other. Few signs are false; many corrections are missed.
What this does not do: take a question that is asked again later in a conversation for a regeneration: "give me another
joke" is not a complaint about the last one. Nothing here is trained on as it stands; it counts in the profile.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any, NamedTuple

from edgepd_profiles import correction_rules, feedback, interactions
from edgepd_profiles.correction_rules import RULES, rules
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.rows import canonical_json, last_user_text

__all__ = ["FOLLOWS_WITHIN_S", "RULES", "Sign", "detect", "follow_ups", "rules"]

FOLLOWS_WITHIN_S = 30 * 60  # an app without conversations: what comes later is something else
MAX_LOOKED_AT = 4  # the newest exchanges of such an app, which may hold several conversations at once
SAME = "same messages"  # the rule of what was regenerated
SOURCE = "rules"


class Sign(NamedTuple):
    """What was noticed: "regenerated" or "corrected", and by which rule."""

    kind: str
    rule: str


def detect(previous: Interaction, messages: list[dict[str, Any]]) -> Sign | None:
    """Return what `messages`, which were sent after the answer of `previous`, say of that answer.

    That they follow is for the caller to know. After an answer that ends in a question, only a follow-up that begins
    with "no" or says that it is wrong counts: "in German, please" may be what was asked for.
    """
    if previous.kind != "chat" or previous.state not in ("done", "cancelled") or not previous.response.strip():
        return None
    if _spoken(messages) == _spoken(previous.messages):
        return Sign("regenerated", SAME)
    if previous.state != "done" or not messages or messages[-1].get("role") != "user":
        return None
    text = last_user_text(messages)
    rule = correction_rules.match(text)
    if rule is None or text.strip() == last_user_text(previous.messages).strip():
        return None
    answers = previous.response.rstrip(" \n*_)").endswith("?")
    refuses = text.strip().casefold().startswith(("no,", "no ", "nope", "nein", "non,", "non ")) or rule in (
        "wrong",
        "again",
    )
    return Sign("corrected", rule) if refuses or not answers else None


def follow_ups(conn: sqlite3.Connection, interaction: Interaction) -> Sign | None:
    """Note on the exchange that `interaction` follows what that says of it; return the sign, or None.

    It follows that one of the newest exchanges of its conversation whose messages and answer its own messages begin
    with, or are the same as, or else the newest. If its conversation is new, it follows one of the newest of its app in
    that way, within FOLLOWS_WITHIN_S. Call it in the transaction that begins `interaction`, before or after the row is
    written. Costs a look-up by index, and reads no messages but those of the last exchanges.
    """
    if interaction.kind != "chat":
        return None
    own = canonical_json(interaction.messages)
    found = _newest(conn, "conversation", interaction.conversation, interaction)
    if not found:
        since = interaction.created_at - FOLLOWS_WITHIN_S
        ofapp = _newest(conn, "app", interaction.app, interaction)
        found = [row for row in ofapp if row[1] >= since and _follows(row[2], own)][:1]
    followed = next((row for row in found if _follows(row[2], own)), found[0] if found else None)
    if followed is None:
        return None
    previous = interactions.get(conn, followed[0])
    if _together(previous, interaction):
        return None
    sign = detect(previous, interaction.messages)
    if sign is not None:
        feedback.note(conn, previous.id, sign.kind, text=sign.rule, source=SOURCE, at=interaction.created_at)
    return sign


def _newest(
    conn: sqlite3.Connection, column: str, value: str, interaction: Interaction
) -> list[tuple[str, float, str]]:
    """Return id, time and messages of the newest exchanges of a conversation or an app, without `interaction`."""
    rows = conn.execute(
        f"""
        SELECT id, created_at, messages FROM interactions WHERE {column} = ? AND app = ? AND id != ?
        ORDER BY seq DESC LIMIT ?
        """,  # noqa: S608
        (value, interaction.app, interaction.id, MAX_LOOKED_AT),
    )
    return [row for row in rows.fetchall() if row[1] <= interaction.created_at]


def _follows(before: str, own: str) -> bool:
    """Say whether messages (canonical JSON) are those before, perhaps with an answer and a question after them.

    The texts are compared, not what they mean, because a long conversation takes milliseconds to parse.
    """
    if own == before:
        return True
    if len(before) < 3 or not own.startswith(before[:-1] + ","):
        return False
    return [message.get("role") for message in json.loads("[" + own[len(before) :])] == ["assistant", "user"]


def _spoken(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages without instructions, which a client may change from one request to the next."""
    return [message for message in messages if message.get("role") not in ("system", "developer")]


def _together(previous: Interaction, interaction: Interaction) -> bool:
    """Say whether both were asked at once, such as several answers to one request: then neither was seen first."""
    half = (previous.duration_ms or 0.0) / 2000  # a client may read the last words before the clock has stopped
    return interaction.created_at <= previous.created_at + half
