"""Writing GBNF: literals, character classes, named rules and the rules of JSON itself.

The invariant: every character has at most one meaning at a place, so that llama.cpp follows one path: white space
is allowed behind a token and never at two places in a row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from edgepd_daemon.gbnf.reader import Span

# What a model may put between the parts of a JSON document: nothing, a space, or a new line with an indent.
WHITESPACE = r'("\n" [ \t]{0,20} | " ")?'
DIGITS = "[0-9]{0,15}"  # bounded, or a model can go on with digits for ever

JSON_RULES: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> (body, rules that it needs)
    "ws": (WHITESPACE, ()),
    "null": ('"null"', ()),
    "boolean": ('"true" | "false"', ()),
    "integer": (f'"-"? ("0" | [1-9] {DIGITS})', ()),
    "number": (f'"-"? ("0" | [1-9] {DIGITS}) ("." [0-9]{{1,16}})? ([eE] [-+]? [0-9]{{1,2}})?', ()),
    "hex": ("[0-9a-fA-F]", ()),
    "plain": (r'[^"\\\x00-\x1F]', ()),
    "char": (r'plain | "\\" (["\\/bfnrt] | "u" hex hex hex hex)', ("plain", "hex")),
    "string": (r'"\"" char* "\""', ("char",)),
    "array": ('"[" ws (value ws ("," ws value ws)*)? "]"', ("ws", "value")),
    "member": ('string ":" ws value', ("string", "ws", "value")),
    "object": ('"{" ws (member ws ("," ws member ws)*)? "}"', ("ws", "member")),
    "value": (
        "object | array | string | number | boolean | null",
        ("object", "array", "string", "number", "boolean", "null"),
    ),
    "date": ('[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [1-2] [0-9] | "3" [0-1])', ()),
    "time": (
        '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})?'
        ' ("Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
        (),
    ),
    "uuid": ('hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}', ("hex",)),
}


class Writer:
    """Collects named rules. A body that is there already is not written twice."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}
        self._by_body: dict[str, str] = {}

    def json(self, name: str) -> str:
        """Return the name of one of JSON_RULES and write it with all that it needs."""
        if name not in self._rules:
            body, needed = JSON_RULES[name]
            self._rules[name] = body
            for other in needed:
                self.json(other)
        return name

    def reserve(self, hint: str) -> str:
        """Return a fresh name for a rule whose body follows later, with `define`."""
        base = re.sub(r"[^a-zA-Z0-9]+", "-", hint).strip("-")[:40] or "rule"
        name, number = base, 1
        while name in self._rules or name in JSON_RULES or name == "root":
            number += 1
            name = f"{base}-{number}"
        self._rules[name] = ""
        return name

    def define(self, name: str, body: str) -> None:
        """Write the body of a reserved name."""
        self._rules[name] = body

    def rule(self, hint: str, body: str) -> str:
        """Return the name of a rule with this body, a name like `hint` if it is new."""
        if body not in self._by_body:
            name = self.reserve(hint)
            self.define(name, body)
            self._by_body[body] = name
        return self._by_body[body]

    def has(self, name: str) -> bool:
        """Return whether there is a rule of this name."""
        return name in self._rules

    def text(self, root: str) -> str:
        """Return the whole grammar with this body of the rule `root`."""
        rules = {"root": root, **self._rules}
        return "".join(f"{name} ::= {body}\n" for name, body in rules.items())


def literal(text: str) -> str:
    """Return a GBNF literal of a text."""
    return '"' + "".join(_escaped(c, '"\\') for c in text) + '"'


def json_literal(value: Any) -> str:
    """Return a GBNF literal of a value in JSON."""
    return literal(json_text(value))


def json_text(value: Any) -> str:
    """Return a value in compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def character_class(spans: Iterable[Span], *, negated: bool = False) -> str:
    """Return a GBNF character class."""
    parts = []
    for low, high in spans:
        first, last = _in_class(low), _in_class(high)
        parts.append(first if low == high else f"{first}-{last}")
    return f"[{'^' if negated else ''}{''.join(parts)}]"


def any_of(alternatives: Iterable[str]) -> str:
    """Return a choice in parentheses, each alternative once; without them if there is only one."""
    unique = list(dict.fromkeys(alternatives))
    return unique[0] if len(unique) == 1 else f"({' | '.join(unique)})"


def one_of_texts(writer: Writer, hint: str, texts: Iterable[str]) -> str:
    """Return an expression for one of the texts. Common beginnings are shared, so that many texts stay cheap."""
    unique = list(dict.fromkeys(texts))
    if len(unique) <= 16:
        return any_of(map(literal, unique))
    start = _common_start(unique)
    groups: dict[str, list[str]] = {}
    for text in unique:
        rest = text[len(start) :]
        groups.setdefault(rest[:1], []).append(rest)
    choices = any_of(one_of_texts(writer, hint, group) for group in groups.values())
    return writer.rule(hint, f"{literal(start)} {choices}" if start else choices)


def _common_start(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


def _in_class(code: int) -> str:
    character = chr(code)
    return character if character.isascii() and character.isalnum() else _coded(code)


def _escaped(character: str, special: str) -> str:
    if character in special:
        return "\\" + character
    return character if " " <= character <= "~" or ord(character) > 0x9F else _coded(ord(character))


def _coded(code: int) -> str:
    return f"\\x{code:02X}" if code <= 0xFF else f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"
