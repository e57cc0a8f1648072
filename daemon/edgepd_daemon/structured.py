"""Structured answers: JSON, JSON that conforms to a schema, and grammars that clients write themselves.

The idea: each function returns a grammar that the engine can follow, or says in a RequestError why it cannot. What
comes from a client is bounded before it is read and what comes out has been checked, because llama.cpp hangs or
ends the process on some grammars (`gbnf.rules` and `gbnf.growth` say on which).
What this does not do: promise a finished document. An answer that reaches its length limit ends in the middle.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from edgepd.errors import RequestError
from edgepd_daemon.engine.types import Grammar
from edgepd_daemon.gbnf.growth import refuse_growth
from edgepd_daemon.gbnf.rules import read_rules
from edgepd_daemon.gbnf.schema import SchemaWriter
from edgepd_daemon.gbnf.writer import Writer

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 64
CHECKED = 32  # grammars whose check is remembered, also if they failed; clients send the same one again and again


def json_grammar() -> Grammar:
    """Return the grammar of any JSON object."""
    writer = Writer()
    return Grammar(writer.text(writer.json("object")))


def schema_grammar(schema: dict[str, Any] | bool) -> Grammar:
    """Return a grammar of documents that conform to a JSON schema. Raises RequestError if that cannot be kept."""
    check_size(schema)
    writer = Writer()
    root = SchemaWriter(writer, schema, strict=True).write("document")
    return checked_grammar(writer.text(root))


def checked_grammar(gbnf: str) -> Grammar:
    """Return a grammar written in GBNF. Raises RequestError if it is malformed or llama.cpp would not survive it."""
    problem = _problem(gbnf)
    if problem is not None:
        raise RequestError(problem)
    return Grammar(gbnf)


def check_size(schema: Any) -> None:
    """Raise RequestError if a schema is nested too deeply or too large."""
    level = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [inner for part in level if isinstance(part, dict | list) for inner in _inside(part)]
        if not level:
            break
    else:
        raise RequestError(f"the JSON schema is nested more than {MAX_SCHEMA_DEPTH} deep")
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise RequestError(f"the JSON schema is not JSON: {error}") from error
    if len(text) > MAX_SCHEMA_BYTES:
        raise RequestError(f"the JSON schema is larger than {MAX_SCHEMA_BYTES // 1024} KiB")


def _inside(part: dict[str, Any] | list[Any]) -> list[Any]:
    return list(part.values()) if isinstance(part, dict) else part


@lru_cache(maxsize=CHECKED)
def _problem(gbnf: str) -> str | None:
    """Return what is wrong with a grammar, None if it is sound."""
    try:
        refuse_growth(read_rules(gbnf))
    except RequestError as error:
        return str(error)
    return None
