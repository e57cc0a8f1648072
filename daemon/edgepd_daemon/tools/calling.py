"""Grammars of tool calls: the name is one of the tools', the arguments conform to its schema.

The idea: with a free choice the grammar starts only behind the marker, by llama.cpp's lazy grammars; text before it
stays free. llama.cpp then feeds the grammar what it has from the marker on and ends the whole process if that does
not fit, so a trigger only fits a text that the grammar certainly accepts: the marker, a little white space and the
first characters of a call, and nothing behind them.
What this does not do: constrain the values of Qwen3-Coder's format, which are not JSON.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edgepd.errors import RequestError
from edgepd_daemon.engine.types import Grammar
from edgepd_daemon.gbnf.schema import SchemaWriter
from edgepd_daemon.gbnf.writer import Writer, any_of, json_literal, literal
from edgepd_daemon.structured import check_size, checked_grammar
from edgepd_daemon.tools.families import Family
from edgepd_daemon.tools.types import Tool

LEAD = r"[ \t\r\n]{0,4}"  # white space that a trigger and the grammar both take; a regular expression and GBNF alike


def call_grammar(family: Family, tools: Sequence[Tool], *, lazy: bool, parallel: bool) -> Grammar | None:
    """Return a grammar of calls of these tools; `lazy` leaves an answer without calls free."""
    if family.xml and lazy:
        return None
    try:
        gbnf = checked_grammar(_written(family, tools, parallel, with_schemas=True)).gbnf
    except RequestError:  # some schemas are too much; the client can still get its call
        gbnf = checked_grammar(_written(family, tools, parallel, with_schemas=False)).gbnf
    return Grammar(gbnf, _triggers(family) if lazy else ())


def _triggers(family: Family) -> tuple[str, ...]:
    """Return regular expressions that match at the end of a text at which the grammar can take over."""
    first = r"\[" if family.listed else r'\{[ \t\r\n]{0,4}"?'
    start = "" if family.separated else rf"{LEAD}(?:{first})?"
    triggers = [f"({re.escape(mark)}{start})$" for mark in family.opening]
    if family.bare:
        triggers.append(rf'^{LEAD}(\{{{LEAD}"name"(?::{LEAD}"?)?)$')
    return tuple(triggers)


def _written(family: Family, tools: Sequence[Tool], parallel: bool, *, with_schemas: bool) -> str:
    writer = Writer()
    opening = any_of(map(literal, family.opening))
    if family.xml:
        names = any_of(literal(tool.name) for tool in tools)
        return writer.text(f'{opening} "\\n<function=" {names} ">" .*')
    arguments = [(tool, _arguments(writer, tool) if with_schemas else writer.json("object")) for tool in tools]
    writer.json("ws")
    if family.separated:
        calls = any_of(f"{literal(tool.name)} {literal(family.separated)} {rule}" for tool, rule in arguments)
        one = f"{opening} {calls}{f' {literal(family.closing)}' if family.closing else ''}"
        several = f"({one})+" if parallel else one
        return writer.text(several + (f" {literal(family.ending)}?" if family.ending else ""))
    key = json_literal(family.arguments)
    named = any_of(
        writer.rule(f"call-{tool.name}", f'{json_literal(tool.name)} ws "," ws {key} ":" ws {rule} ws "}}"')
        for tool, rule in arguments
    )
    call = writer.rule("call", rf'"{{" {LEAD} "\"name\":" {LEAD} {named}')
    closing = f" ws {literal(family.closing)}" if family.closing else ""
    if family.listed:
        several = f'"[" ws {call} ws ("," ws {call} ws)*' if parallel else f'"[" ws {call} ws'
        return writer.text(f'{opening} {LEAD} {several} "]"{closing}')
    if family.bare:
        return writer.text(f"({opening} {LEAD})? {call}" + (f' (";" ws {call})*' if parallel else ""))
    one = writer.rule("marked-call", f"{opening} {LEAD} {call}{closing}")
    return writer.text(one + (f' ("\\n"? {one})*' if parallel else ""))


def _arguments(writer: Writer, tool: Tool) -> str:
    """Return a rule for the arguments of a tool. A schema that cannot be read allows any object."""
    schema: dict[str, Any] = {**tool.parameters, "type": "object"} if tool.parameters else {"type": "object"}
    hint = f"{tool.name}-arguments"
    try:
        check_size(schema)
        SchemaWriter(Writer(), schema, strict=False).write(hint)  # so that a failure leaves nothing behind
    except RequestError:
        return writer.json("object")
    return SchemaWriter(writer, schema, strict=False).write(hint)
