"""Between SQL rows and Python values.

The idea: rows become dictionaries by column name, so that a migration may add columns in any order, and every
JSON column holds canonical text, so that equal values have equal text and can be hashed.
What this does not do: know any table.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any


def fetch(
    conn: sqlite3.Connection, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()
) -> list[dict[str, Any]]:
    """Return the rows of a query as dictionaries by column name."""
    cursor = conn.execute(sql, parameters)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value: keys sorted, no spaces, ASCII (so lone surrogates survive too).

    Raises ValueError for NaN and infinity, which JSON cannot hold; see `finite`.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def finite(value: Any) -> Any:
    """Return a copy in which every number that is not finite is None.

    A diverged training run has NaN among its numbers, and must still be recorded as rejected.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the last user message, or of a bare prompt; "" if there is none.

    Half a character, which JSON can hold and SQLite cannot, becomes a question mark.
    """
    for message in reversed(messages):
        if message.get("role") in ("user", "prompt"):
            return text_of(message.get("content")).encode(errors="replace").decode()
    return ""


def text_of(content: object) -> str:
    """Return the text of a message's content, which may come in parts."""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return "" if content is None else str(content)
