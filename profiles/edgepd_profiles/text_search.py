"""Whether a row holds a text, whatever its case, and however its characters are composed or escaped.

The idea: SQL calls two functions of ours for the length of one search, so that it need not fetch rows that hold
nothing. The invariant: a row that holds the text is found; no index of words is asked, which would miss parts of words.
What this does not do: rank (see history.py), or know any table.
"""

from __future__ import annotations

import json
import sqlite3
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NOT_TEXT = ("role", "type")  # keys of messages whose values the API made


def folded(text: str) -> str:
    """Return a text as it is compared: without case, and with one form for each composed character."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


@contextmanager
def search_functions(conn: sqlite3.Connection, search: str | None) -> Iterator[None]:
    """Let SQL call holds(text) and holds_json(messages) inside."""
    if search is None:
        yield
        return
    wanted = folded(search.strip())
    functions: dict[str, Callable[[str | None], bool]] = {
        "holds": lambda text: text is not None and wanted in folded(text),
        "holds_json": _json_search(wanted),
    }
    for name, function in functions.items():
        conn.create_function(name, 1, function, deterministic=True)
    try:
        yield
    finally:
        for name in functions:  # what was searched for does not stay in memory
            conn.create_function(name, 1, None)


def _json_search(wanted: str) -> Callable[[str | None], bool]:
    """Return a function that says whether a text in messages holds what is wanted.

    Canonical JSON is ASCII. Where it has no escaped character, a text that it does not hold as it stands cannot be in
    it; this spares reading most rows.
    """
    escaped = json.dumps(wanted)[1:-1].lower()

    def holds(messages: str | None) -> bool:
        if messages is None or ("\\u" not in messages and escaped not in messages.lower()):
            return False
        return any(wanted in folded(text) for text in texts_of(json.loads(messages)))

    return holds


def texts_of(value: object) -> Iterator[str]:
    """Yield all texts in messages, and those in JSON that is itself a text, as in calls of tools."""
    if isinstance(value, str):
        yield value
        if "\\u" in value and value.lstrip()[:1] in ("{", "["):
            try:
                inside = json.loads(value)
            except (ValueError, RecursionError):  # it only looked like JSON
                return
            yield from texts_of(inside)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in NOT_TEXT:
                yield from texts_of(item)
