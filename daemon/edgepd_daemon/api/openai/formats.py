"""What an answer must look like: `response_format`, `text.format` and `grammar`."""

from __future__ import annotations

from typing import Any

from edgepd.errors import RequestError
from edgepd_daemon.engine.types import Grammar
from edgepd_daemon.structured import checked_grammar, json_grammar, schema_grammar


def grammar_of(form: dict[str, Any] | None, gbnf: str | None, *, calls_tools: bool) -> Grammar | None:
    """Return what the answer is held to, None for free text. Raises RequestError. Slow: call it on a thread.

    `form` is {"type": "text" | "json_object" | "json_schema"} with the schema under `json_schema.schema`, as chat
    completions have it, or under `schema`, as responses have it.
    """
    kind = (form or {}).get("type", "text")
    if kind not in ("text", "json_object", "json_schema"):
        raise RequestError(
            f"the format of the answer is of type {str(kind)[:50]!r}; use text, json_object or json_schema"
        )
    if kind != "text" and gbnf is not None:
        raise RequestError("`grammar` and a JSON format exclude each other; give one of them")
    if calls_tools and (kind != "text" or gbnf is not None):
        raise RequestError(
            "tools and a JSON format or grammar exclude each other; set `tool_choice` to 'none' for such an answer"
        )
    if gbnf is not None:
        return checked_grammar(gbnf)
    return None if kind == "text" else _json(form or {}, kind)


def _json(form: dict[str, Any], kind: str) -> Grammar:
    holder = form.get("json_schema", form)
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if isinstance(schema, dict):
        return schema_grammar(schema)
    if kind == "json_schema" or schema is not None:
        raise RequestError("the JSON format has no schema; give it as an object under `json_schema.schema`")
    return json_grammar()
