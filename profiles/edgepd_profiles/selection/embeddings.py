"""What the served model makes of an exchange, as a vector and its entropy.

The idea: one row per interaction, a unit vector in half precision (two bytes a number), which is all that a cosine
needs. A vector of another model counts as none, and is replaced when the exchange is embedded again.
The invariant: a row goes with its interaction.
What this does not do: run a model. `missing` says what to embed, whoever runs one brings it here.
"""

from __future__ import annotations

import sqlite3

import numpy as np
import numpy.typing as npt

from edgepd_profiles.rows import fetch
from edgepd_profiles.selection.arrivals import MAY_TEACH, changed_since, seen
from edgepd_profiles.selection.candidates import Vector
from edgepd_profiles.selection.scores import unit

STORED = np.dtype("<f2")
NEWEST = 500  # exchanges that may be asked about; older ones without feedback are not embedded
WAITING = 2000  # pieces of feedback that wait to be offered, at most
MAX_CHARACTERS = 1024  # of an exchange; a model reads its first 256 tokens


def store(
    conn: sqlite3.Connection,
    interaction_id: str,
    model_sha256: str,
    vector: npt.NDArray[np.floating],
    entropy: float,
) -> bool:
    """Store the mean-pooled state (d,) of an exchange and its entropy; return False if the exchange is gone.

    Only the direction of the vector is kept. Raises ValueError for a vector that has none: of another shape, zero, or
    with numbers that are not finite.
    """
    if vector.ndim != 1 or not np.isfinite(vector).all() or not np.any(vector):
        raise ValueError(f"the vector of '{interaction_id}' has no direction: its shape is {vector.shape}")
    blob = unit(vector).astype(STORED).tobytes()
    # Replaced and not updated: the row number says which model came last.
    return bool(
        conn.execute(
            """
            INSERT OR REPLACE INTO embeddings (interaction, model_sha256, vector, entropy)
            SELECT id, ?, ?, ? FROM interactions WHERE id = ?
            """,
            (model_sha256, blob, float(entropy), interaction_id),
        ).rowcount
    )


def vector(conn: sqlite3.Connection, interaction_id: str) -> Vector | None:
    """Return the unit vector (d,) of an exchange, or None if it has none."""
    row = conn.execute("SELECT vector FROM embeddings WHERE interaction = ?", (interaction_id,)).fetchone()
    return decode(row[0]) if row else None


def decode(blob: bytes) -> Vector:
    """Return a stored vector (d,) as float32."""
    return np.frombuffer(blob, dtype=STORED).astype(np.float32)


def current_model(conn: sqlite3.Connection) -> str | None:
    """Return the model whose vectors are compared: that of the newest one. None if there is none."""
    row = conn.execute("SELECT model_sha256 FROM embeddings ORDER BY rowid DESC LIMIT 1").fetchone()
    return row[0] if row else None


def missing(conn: sqlite3.Connection, model_sha256: str, limit: int) -> list[tuple[str, str]]:
    """Return (id, text) of at most `limit` exchanges that need a vector of this model, the newest first.

    Those matter that are kept, that have feedback which was not offered yet, and the newest; only ended chats of apps
    that may teach. The text is the question and the answer, both cut so that a long one leaves room for the other.
    The cost does not depend on the length of the history.
    """
    rows = fetch(
        conn,
        f"""
        WITH mattering (id) AS (
            SELECT interaction FROM bins
            UNION SELECT interaction FROM
                (SELECT interaction FROM feedback WHERE rowid > :seen ORDER BY rowid LIMIT {WAITING})
            UNION SELECT interaction FROM
                (SELECT interaction FROM feedback INDEXED BY feedback_by_time WHERE at > :changed ORDER BY at
                 LIMIT {WAITING})
            UNION SELECT id FROM (SELECT id FROM interactions ORDER BY seq DESC LIMIT {NEWEST})
        )
        SELECT i.id, substr(i.prompt, 1, :characters) AS prompt, substr(i.response, 1, :characters) AS response
        FROM mattering JOIN interactions AS i USING (id)
        WHERE i.state != 'streaming' AND i.kind = 'chat' AND {MAY_TEACH} AND trim(i.prompt || i.response) != ''
            AND NOT EXISTS (SELECT 1 FROM embeddings AS e WHERE e.interaction = i.id AND e.model_sha256 = :model)
        ORDER BY i.seq DESC LIMIT :limit
        """,  # noqa: S608 - constants of ours
        {
            "seen": seen(conn, "examples"),
            "changed": changed_since(conn),
            "characters": MAX_CHARACTERS,
            "model": model_sha256,
            "limit": limit,
        },
    )
    return [(row["id"], _text(row["prompt"], row["response"])) for row in rows]


def _text(prompt: str, response: str) -> str:
    room = max(MAX_CHARACTERS // 2, MAX_CHARACTERS - len(response))
    asked = prompt[:room]
    return f"{asked}\n{response[: MAX_CHARACTERS - len(asked)]}"
