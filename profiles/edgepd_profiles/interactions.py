"""Exchanges with the model, as they happened.

The idea: a row is written at the first token (`begin`), brought up to date while the answer streams
(`update`) and closed once (`finish`), so that a crash loses at most the text since the last update.
The invariant: only a row in state `streaming` changes; every other state is final.
What this does not do: decide what is logged at all (`log.interactions`), or scrub secrets.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from dataclasses import asdict, dataclass
from typing import Any

from edgepd.errors import ConflictError, NotFoundError
from edgepd_profiles.rows import canonical_json, fetch

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


def new_id() -> str:
    """Return "i_" and a ULID: 48 bits of unix milliseconds, then 80 random bits, in Crockford's base 32.

    Ids sort by time (github.com/ulid/spec).
    """
    number = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    return "i_" + "".join(CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def begin(conn: sqlite3.Connection, interaction: Interaction) -> None:
    """Store a new interaction, usually in state `streaming`.

    Raises sqlite3.IntegrityError if the id is taken.
    """
    conn.execute(
        """
        INSERT INTO interactions
            (id, conversation, created_at, app, model, generation, messages, kind, response, state, finish_reason,
             prompt_tokens, completion_tokens, ttft_ms, duration_ms)
        VALUES (:id, :conversation, :created_at, :app, :model, :generation, :messages, :kind, :response, :state,
                :finish_reason, :prompt_tokens, :completion_tokens, :ttft_ms, :duration_ms)
        """,
        asdict(interaction) | {"messages": canonical_json(interaction.messages)},
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


def get(conn: sqlite3.Connection, interaction_id: str) -> Interaction:
    """Return one interaction. Raises NotFoundError."""
    rows = fetch(conn, "SELECT * FROM interactions WHERE id = ?", (interaction_id,))
    if not rows:
        raise NotFoundError(
            f"interaction '{interaction_id}' is not known; `GET /edgepd/v1/interactions` lists the recent ones"
        )
    return _from_row(rows[0])


def latest(conn: sqlite3.Connection) -> Interaction:
    """Return the interaction that began last, failed ones apart. Raises NotFoundError if there is none."""
    rows = fetch(conn, "SELECT * FROM interactions WHERE state != 'failed' ORDER BY seq DESC LIMIT 1")
    if not rows:
        raise NotFoundError("there is no interaction yet; ask something first, for example with `edgepd ask`")
    return _from_row(rows[0])


def recent(conn: sqlite3.Connection, limit: int) -> list[Interaction]:
    """Return at most `limit` interactions, the newest first."""
    return [_from_row(row) for row in fetch(conn, "SELECT * FROM interactions ORDER BY seq DESC LIMIT ?", (limit,))]


def mark_interrupted(conn: sqlite3.Connection) -> int:
    """Close what an earlier process left streaming, keeping the partial text; return how many there were."""
    return conn.execute("UPDATE interactions SET state = 'interrupted' WHERE state = 'streaming'").rowcount


def _from_row(row: dict[str, Any]) -> Interaction:
    fields = {name: value for name, value in row.items() if name != "seq"}
    return Interaction(**fields | {"messages": json.loads(row["messages"])})


def _not_streaming(conn: sqlite3.Connection, interaction_id: str) -> ConflictError:
    state = get(conn, interaction_id).state
    return ConflictError(f"interaction '{interaction_id}' is already {state}; only a streaming one can change")
