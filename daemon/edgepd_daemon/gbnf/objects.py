"""JSON objects with given properties as GBNF.

The idea: properties come in their order, those that are not required may be missing. Once one has been written each
further one brings its comma, so only the beginning has alternatives, and each starts with another name.
"""

from __future__ import annotations

import json

from edgepd_daemon.gbnf.writer import Writer, character_class, json_literal, literal

Property = tuple[str, str, bool]  # name, expression of its value, whether it is required


def object_body(writer: Writer, hint: str, properties: list[Property], others: str | None) -> str:
    """Return an expression for an object. `others` is the expression of the values of further properties, if any."""
    members = [f'{json_literal(name)} ":" ws {value} ws' for name, value, _ in properties]
    following = [
        f'"," ws {member}' if required else f'("," ws {member})?'
        for member, (_, _, required) in zip(members, properties, strict=True)
    ]
    leading = next((i for i, (_, _, required) in enumerate(properties) if required), None)
    beginnings = members if leading is None else members[: leading + 1]
    choices: list[str] = []
    if others is not None:
        key = other_key(writer, hint, [name for name, _, _ in properties])
        other = writer.rule(f"{hint}-other", f'{key} ":" ws {others} ws')
        following.append(f'("," ws {other})*')
        choices += [f"{other} {following[-1]}"] if leading is None else []
    rest = " ".join(following[len(beginnings) :])
    for index in range(len(beginnings) - 1, -1, -1):
        choices.insert(0, f"{beginnings[index]} {rest}")
        rest = writer.rule(f"{hint}-rest", f"{following[index]} {rest}") if index else ""
    if not choices:
        return '"{" ws "}"'
    return f'"{{" ws ({" | ".join(choices)}){"?" if leading is None else ""} "}}"'


def other_key(writer: Writer, hint: str, names: list[str]) -> str:
    """Return an expression for a JSON string without escapes that is none of the names."""
    plain = writer.json("plain")
    spelled = sorted({name for name in names if json.dumps(name, ensure_ascii=False) == f'"{name}"'})
    return rf'"\"" {_unlike(writer, f"{hint}-key", spelled, plain)} "\""'


def _unlike(writer: Writer, hint: str, names: list[str], plain: str) -> str:
    """Return an expression for any plain text but the names."""
    branches: dict[str, list[str]] = {}
    for name in names:
        if name:
            branches.setdefault(name[0], []).append(name[1:])
    if not names:
        return f"{plain}*"
    used = [(ord(c), ord(c)) for c in branches]
    reserved = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)]
    choices = [f"{character_class([*reserved, *used], negated=True)} {plain}*"]
    choices += [f"{literal(c)} {_unlike(writer, hint, rest, plain)}" for c, rest in branches.items()]
    choices += [] if "" in names else ['""']
    return writer.rule(hint, " | ".join(choices))
