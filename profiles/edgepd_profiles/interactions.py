"""Exchanges with the model, as they happened.

The idea: a row is written at the first token (`begin`), brought up to date while the answer streams
(`update`) and closed once (`finish`), so that a crash loses at most the text since the last update.
The invariant: only a row in state `streaming` changes; every other state is final. Who names a viewer gets only what
that app may see (apps.py); what it may not see is as unknown to it as what is not there.
What this does not do: decide what is logged at all (`log.interactions`), or scrub secrets.
"""

from __future__ import annotations

import heapq
import json
import secrets
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from edgepd.errors import ConflictError, NotFoundError
from edgepd_profiles import apps
from edgepd_profiles.rows import canonical_json, fetch, last_user_text

FINAL_STATES = ("done", "cancelled", "failed", "interrupted")
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True)
class Interaction:
    """One exchange: the messages that were sent and the response. Times are unix seconds."""

    id: str
    conversation: str
    created_at: float
    app: str
    model: str
    generation: int
    messages: list[dict[str, Any]]
    kind: str = "chat"  # or tools, completion
    response: str = ""
    state: str = "streaming"
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: float | None = None
    duration_ms: float | None = None
    prompt: str = ""  # the text of the last user message, which `begin` finds out
    personal: dict[str, Any] = field(default_factory=dict)  # what of the profile was put before the question


def new_id() -> str:
    """Return "i_" and a ULID: 48 bits of unix milliseconds, then 80 random bits, in Crockford's base 32.

    Ids sort by time (github.com/ulid/spec).
    """
    number = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    return "i_" + "".join(CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def begin(conn: sqlite3.Connection, interaction: Interaction) -> None:
    """Store a new interaction, usually in state `streaming`.

    The `prompt` that is given does not count: it is taken from the messages.
    Raises sqlite3.IntegrityError if the id is taken.
    """
    conn.execute(
        """
        INSERT INTO interactions
            (id, conversation, created_at, app, model, generation, messages, kind, response, state, finish_reason,
             prompt_tokens, completion_tokens, ttft_ms, duration_ms, prompt, personal)
        VALUES (:id, :conversation, :created_at, :app, :model, :generation, :messages, :kind, :response, :state,
                :finish_reason, :prompt_tokens, :completion_tokens, :ttft_ms, :duration_ms, :prompt, :personal)
        """,
        asdict(interaction)
        | {
            "messages": canonical_json(interaction.messages),
            # JSON may hold half a character, which a database column cannot; the messages keep it.
            "prompt": last_user_text(interaction.messages),
            "personal": canonical_json(interaction.personal),
        },
    )


def update(conn: sqlite3.Connection, interaction_id: str, response: str, completion_tokens: int) -> None:
    """Replace the text of an answer that is still streaming.

    Raises NotFoundError for an unknown id and ConflictError for an interaction that has ended.
    """
    changed = conn.execute(
        "UPDATE interactions SET response = ?, completion_tokens = ? WHERE id = ? AND state = 'streaming'",
        (response, completion_tokens, interaction_id),
    ).rowcount
    if not changed:
        raise _not_streaming(conn, interaction_id)


def finish(
    conn: sqlite3.Connection,
    interaction_id: str,
    response: str,
    state: str,
    finish_reason: str | None,
    *,
    prompt_tokens: int,
    completion_tokens: int,
    ttft_ms: float | None,
    duration_ms: float | None,
) -> None:
    """Give a streaming interaction its final state (one of FINAL_STATES), text and numbers.

    Raises NotFoundError for an unknown id and ConflictError for an interaction that has ended already.
    """
    if state not in FINAL_STATES:
        raise ValueError(f"interaction state {state!r} is not final; use one of {', '.join(FINAL_STATES)}")
    changed = conn.execute(
        """
        UPDATE interactions SET response = ?, state = ?, finish_reason = ?, prompt_tokens = ?,
            completion_tokens = ?, ttft_ms = ?, duration_ms = ?
        WHERE id = ? AND state = 'streaming'
        """,
        (
            response,
            state,
            finish_reason,
            prompt_tokens,
            completion_tokens,
            ttft_ms,
            duration_ms,
            interaction_id,
        ),
    ).rowcount
    if not changed:
        raise _not_streaming(conn, interaction_id)


def get(conn: sqlite3.Connection, interaction_id: str, viewer: str | None = None) -> Interaction:
    """Return one interaction. Raises NotFoundError if there is none, or none that the viewer sees."""
    condition, parameters = apps.visible_sql(viewer)
    rows = fetch(
        conn,
        f"SELECT * FROM interactions WHERE id = ? AND {condition}",  # noqa: S608 - no text of a user in it
        (interaction_id, *parameters),
    )
    if not rows:
        raise _unknown(interaction_id)
    return _from_row(rows[0])


def seq_of(conn: sqlite3.Connection, interaction_id: str, viewer: str | None = None) -> int:
    """Return the place of an interaction in the order of arrival, for `recent`. Raises NotFoundError as `get` does."""
    condition, parameters = apps.visible_sql(viewer)
    row = conn.execute(
        f"SELECT seq FROM interactions WHERE id = ? AND {condition}",  # noqa: S608 - no text of a user in it
        (interaction_id, *parameters),
    ).fetchone()
    if not row:
        raise _unknown(interaction_id)
    return int(row[0])


def latest(conn: sqlite3.Connection, viewer: str | None = None) -> Interaction:
    """Return the interaction that began last, failed ones apart.

    Raises NotFoundError if there is none that the viewer sees.
    """
    for seq in _newest(conn, 1, viewer, None, "state != 'failed'"):
        return by_seq(conn, [seq])[seq]
    raise NotFoundError("there is no interaction yet; ask something first, for example with `edgepd ask`")


def recent(
    conn: sqlite3.Connection, limit: int, viewer: str | None = None, *, before_seq: int | None = None
) -> list[Interaction]:
    """Return at most `limit` interactions that a viewer sees, the newest first; with `before_seq` those before it."""
    seqs = _newest(conn, limit, viewer, before_seq, "1")
    found = by_seq(conn, seqs)
    return [found[seq] for seq in seqs]


def in_conversation(conn: sqlite3.Connection, conversation: str) -> list[Interaction]:
    """Return the interactions of one conversation, the oldest first, whoever took part in it."""
    rows = fetch(conn, "SELECT * FROM interactions WHERE conversation = ? ORDER BY seq", (conversation,))
    return [_from_row(row) for row in rows]


def by_seq(conn: sqlite3.Connection, seqs: Iterable[int]) -> dict[int, Interaction]:
    """Return the interactions at these places in the order of arrival; those that are gone are left out."""
    places = json.dumps(list(seqs))
    rows = fetch(conn, "SELECT * FROM interactions WHERE seq IN (SELECT value FROM json_each(?))", (places,))
    return {row["seq"]: _from_row(row) for row in rows}


def mark_interrupted(conn: sqlite3.Connection) -> int:
    """Close what an earlier process left streaming, keeping the partial text; return how many there were."""
    return conn.execute("UPDATE interactions SET state = 'interrupted' WHERE state = 'streaming'").rowcount


def _from_row(row: dict[str, Any]) -> Interaction:
    fields = {name: value for name, value in row.items() if name != "seq"}
    return Interaction(**fields | {name: json.loads(row[name]) for name in ("messages", "personal")})


def _newest(
    conn: sqlite3.Connection, limit: int, viewer: str | None, before_seq: int | None, condition: str
) -> list[int]:
    """Return the places of the newest interactions, the newest first.

    Each app is asked by itself, so that the index finds them; with all in one query SQLite would sort the history.
    """
    before = (1 << 63) - 1 if before_seq is None else before_seq
    names = apps.visible(conn, viewer)
    query = "SELECT seq FROM interactions WHERE {} AND seq < ? AND {} ORDER BY seq DESC LIMIT ?"
    if names is None:
        return [seq for (seq,) in conn.execute(query.format("1", condition), (before, limit))]
    found = (row for name in names for row in conn.execute(query.format("app = ?", condition), (name, before, limit)))
    return heapq.nlargest(limit, (seq for (seq,) in found))


def _unknown(interaction_id: str) -> NotFoundError:
    return NotFoundError(
        f"interaction '{interaction_id}' is not known; `GET /edgepd/v1/interactions` lists the recent ones"
    )


def _not_streaming(conn: sqlite3.Connection, interaction_id: str) -> ConflictError:
    state = get(conn, interaction_id).state
    return ConflictError(f"interaction '{interaction_id}' is already {state}; only a streaming one can change")
