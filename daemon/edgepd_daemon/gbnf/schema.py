"""JSON schemas as GBNF, so that an answer cannot but conform.

The idea: one rule for each part of the schema, properties in the order in which the schema has them. Unlike
`llama_cpp.llama_grammar`, which this replaces, it writes what JSON escapes correctly, keeps the bounds of numbers,
follows references by any name, and refuses what it cannot keep instead of leaving it out.
The invariant (`strict`): every document that the grammar allows conforms to the schema. It does not allow every
conforming document: properties that are not named come only if `additionalProperties` asks for them, the elements of
`prefixItems` all come, and upper bounds above 2000 on lengths are left to the length of the answer.
Without `strict`, which is for tools of clients that describe their arguments as they like, what cannot be kept is
left out. `format` and `oneOf` are kept as far as they can be: as shapes of dates and ids, and as `anyOf`.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from edgepd.errors import RequestError
from edgepd_daemon.gbnf.form import ANNOTATIONS, Schema, check_form
from edgepd_daemon.gbnf.merge import merged
from edgepd_daemon.gbnf.numbers import LEAST_STEP, integers_between, numbers_between
from edgepd_daemon.gbnf.objects import object_body
from edgepd_daemon.gbnf.pattern import string_like
from edgepd_daemon.gbnf.rules import MAX_REPETITIONS
from edgepd_daemon.gbnf.writer import Writer, any_of, json_literal, json_text, one_of_texts

MAX_VISITS = 5000  # parts of a schema, each counted as often as it is reached by another way
MAX_DEPTH = 64
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
UNSUPPORTED = (
    *("not", "if", "then", "else", "multipleOf", "patternProperties", "propertyNames", "contains", "minContains"),
    *("maxContains", "uniqueItems", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas"),
    *("dependencies", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef"),
)
HARMLESS = {"uniqueItems": False, "minProperties": 0, "minContains": 0}  # values that demand nothing
OF_TYPE = {  # keywords that show which type is meant where none is given
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}


class SchemaWriter:
    """Writes the rules of one schema into a grammar."""

    def __init__(self, writer: Writer, document: Any, *, strict: bool) -> None:
        """`document` is the whole schema, which references point into."""
        self._writer = writer
        self._document = document
        self._strict = strict
        self._references: dict[str, str] = {}
        self._visits = 0

    def write(self, hint: str) -> str:
        """Return the name of a rule for the whole schema. Raises RequestError if it cannot be kept."""
        expression = self._expression(self._document, hint, 0)
        return expression if self._writer.has(expression) else self._writer.rule(hint, expression)

    def _expression(self, schema: Any, hint: str, depth: int) -> str:
        self._visits += 1
        if self._visits > MAX_VISITS or depth > MAX_DEPTH:
            raise RequestError("the JSON schema is too large or its parts refer to each other too often; simplify it")
        if schema is True or schema == {}:
            return self._writer.json("value")
        if not isinstance(schema, dict):
            problem = "allows nothing" if schema is False else "is neither an object nor a truth value"
            raise RequestError(f"the JSON schema's part {hint!r} {problem}")
        check_form(schema)
        demands = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
        if "$ref" in demands and len(demands) == 1:
            return self._reference(demands["$ref"], depth)
        if "$ref" in demands or "allOf" in demands:
            return self._expression(self._flat(demands, 0), hint, depth + 1)
        for key in ("anyOf", "oneOf"):
            if key in demands:
                return self._union(demands, key, hint, depth)
        if demands.pop("nullable", False):
            return any_of([self._expression(demands, hint, depth + 1), self._writer.json("null")])
        self._check_keywords(demands)
        return self._typed(demands, hint, depth)

    def _reference(self, pointer: str, depth: int) -> str:
        """Return the rule of another part of the document, which may be an outer one."""
        if pointer not in self._references:
            name = self._writer.reserve(pointer.rsplit("/", 1)[-1])
            self._references[pointer] = name
            self._writer.define(name, self._expression(self._part(pointer), name, depth + 1))
        return self._references[pointer]

    def _part(self, pointer: str) -> Any:
        part = self._document
        steps = pointer.removeprefix("#").split("/")[1:]
        if not pointer.startswith("#") or (pointer != "#" and not pointer.startswith("#/")):
            raise RequestError(f"the JSON schema refers to {pointer!r}; only parts of itself (#/...) can be used")
        for step in steps:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(part, list) and key.isdecimal() and int(key) < len(part):
                part = part[int(key)]
            elif isinstance(part, dict) and key in part:
                part = part[key]
            else:
                raise RequestError(f"the JSON schema refers to {pointer!r}, which is not there")
        return part

    def _flat(self, schema: Any, depth: int) -> Schema:
        """Return the schema with `$ref` and `allOf` at its top worked in."""
        self._visits += 1
        if depth > MAX_DEPTH or self._visits > MAX_VISITS:
            raise RequestError("the JSON schema's `$ref` and `allOf` refer to each other without an end")
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            raise RequestError("a part of an `allOf` of the JSON schema allows nothing or is not a schema")
        check_form(schema)
        rest = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        parts = [self._part(schema["$ref"])] if "$ref" in schema else []
        parts += schema.get("allOf", [])
        return merged([*(self._flat(part, depth + 1) for part in parts), rest])

    def _union(self, schema: Schema, key: str, hint: str, depth: int) -> str:
        rest = {k: v for k, v in schema.items() if k != key}
        found = []
        for index, part in enumerate(schema[key]):
            if part is False:
                continue
            whole = {"allOf": [part, rest]} if rest else part
            found.append(self._expression(whole, f"{hint}-{index}", depth + 1))
        if not found:
            raise RequestError(f"the JSON schema's {key!r} at {hint!r} has no alternative")
        return any_of(found)

    def _check_keywords(self, schema: Schema) -> None:
        for key in UNSUPPORTED:
            if self._strict and key in schema and schema[key] != HARMLESS.get(key):
                raise RequestError(f"the JSON schema's keyword {key!r} cannot be kept; leave it out")

    def _typed(self, schema: Schema, hint: str, depth: int) -> str:
        if "const" in schema:
            return json_literal(schema["const"])
        if "enum" in schema:
            if not schema["enum"]:
                raise RequestError(f"the JSON schema's 'enum' at {hint!r} is empty")
            return one_of_texts(self._writer, hint, map(json_text, schema["enum"]))
        kind = schema.get("type") or next((t for t, keys in OF_TYPE.items() if any(k in schema for k in keys)), None)
        if kind is None:
            return self._writer.json("value")
        if isinstance(kind, list):
            return any_of(self._expression({**schema, "type": t}, f"{hint}-{t}", depth + 1) for t in kind)
        if kind not in TYPES:
            raise RequestError(f"the JSON schema has the unknown type {kind!r}; there are {', '.join(TYPES)}")
        if kind == "object":
            return self._object(schema, hint, depth)
        if kind == "array":
            return self._array(schema, hint, depth)
        if kind == "string":
            return self._string(schema, hint)
        return self._number(schema, kind, hint) if kind in ("number", "integer") else self._writer.json(str(kind))

    def _object(self, schema: Schema, hint: str, depth: int) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        extra = schema.get("additionalProperties")
        if "properties" not in schema and not required and extra in (None, True, {}):
            return self._writer.json("object")
        missing = [name for name in required if name not in properties]
        if missing and extra is False:
            raise RequestError(f"the JSON schema requires the property {missing[0]!r} and does not allow it")
        wanted = {**properties, **dict.fromkeys(missing, True if extra is None else extra)}
        values = [
            (name, self._expression(part, f"{hint}-{name}", depth + 1), name in required)
            for name, part in wanted.items()
            if part is not False or name in required
        ]
        others = None if extra in (None, False) else self._expression(extra, f"{hint}-other", depth + 1)
        self._writer.json("ws")
        return self._writer.rule(hint, object_body(self._writer, hint, values, others))

    def _array(self, schema: Schema, hint: str, depth: int) -> str:
        first, items = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(items, list):  # as it was before draft 2020-12
            first, items = items, schema.get("additionalItems", True)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most is not None and most < max(least, len(first)):
            raise RequestError(f"the JSON schema's 'maxItems' at {hint!r} is less than what has to be there")
        places = [self._expression(part, f"{hint}-{index}", depth + 1) for index, part in enumerate(first)]
        least, most = max(0, least - len(first)), None if most is None else most - len(first)
        self._writer.json("ws")
        if items is False or most == 0:
            if least:
                raise RequestError(f"the JSON schema's 'minItems' at {hint!r} is more than its 'items' allow")
            rest = ""
        else:
            item = self._writer.rule(f"{hint}-item", self._expression(items, f"{hint}-item", depth + 1))
            rest = self._further(item, least, most, first=not places)
        listed = ' "," ws '.join(f"{place} ws" for place in places)
        return self._writer.rule(hint, f'"[" ws {listed} {rest} "]"')

    def _further(self, item: str, least: int, most: int | None, *, first: bool) -> str:
        following = self._writer.rule(f"{item}-next", f'"," ws {item} ws')
        if not first:
            return following + _times(least, most)
        several = f"{item} ws {following}" + _times(max(0, least - 1), None if most is None else most - 1)
        return several if least else f"({several})?"

    def _string(self, schema: Schema, hint: str) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        shape = str(schema.get("format", ""))
        if "pattern" in schema:
            if self._strict and (least or most is not None):
                raise RequestError(
                    "the JSON schema's 'pattern' cannot be kept together with 'minLength' or 'maxLength'"
                )
            try:
                return self._writer.rule(hint, string_like(self._writer, str(schema["pattern"])))
            except RequestError:
                if self._strict:
                    raise
        if most is not None and most < least:
            raise RequestError(f"the JSON schema's 'maxLength' at {hint!r} is less than its 'minLength'")
        if shape in ("date", "time", "uuid"):
            return self._writer.rule(shape + "-string", rf'"\"" {self._writer.json(shape)} "\""')
        if shape == "date-time":
            parts = f'{self._writer.json("date")} "T" {self._writer.json("time")}'
            return self._writer.rule(shape + "-string", rf'"\"" {parts} "\""')
        if not least and most is None:
            return self._writer.json("string")
        return self._writer.rule("string", rf'"\"" {self._writer.json("char")}{_times(least, most)} "\""')

    def _number(self, schema: Schema, kind: str, hint: str) -> str:
        low, high = _bound(schema, "minimum", "exclusiveMinimum", 1), _bound(schema, "maximum", "exclusiveMaximum", -1)
        if low is None and high is None:
            return self._writer.json(kind)
        if kind == "integer":
            least, most = None if low is None else math.ceil(low), None if high is None else math.floor(high)
            body = integers_between(least, most)
        else:
            body = numbers_between(low, high)
        if body is None:
            raise RequestError(f"the JSON schema's bounds at {hint!r} leave no number")
        return self._writer.rule(hint, body)


def _times(least: int, most: int | None) -> str:
    if least >= MAX_REPETITIONS:
        raise RequestError(f"the JSON schema demands at least {least} of something; {MAX_REPETITIONS - 1} are possible")
    return f"{{{least},{'' if most is None or most >= MAX_REPETITIONS else most}}}"


def _bound(schema: Schema, key: str, exclusive: str, direction: int) -> Decimal | None:
    """Return the bound that a number has to keep, moved inwards if it may not be reached."""
    found = []
    for name in (key, exclusive):
        value = schema.get(name)
        if value is None or isinstance(value, bool):
            continue
        moved = name == exclusive or schema.get(exclusive) is True
        found.append(Decimal(str(value)) + (direction * LEAST_STEP if moved else 0))
    return (max if direction > 0 else min)(found) if found else None
