"""Several JSON schemas that must hold together (`allOf`, siblings of `$ref` or `anyOf`) as one.

The invariant: a document that conforms to the result conforms to each. What this does not do: combine keywords
whose conjunction has no keyword, such as two patterns; that is a RequestError.
"""

from __future__ import annotations

import json
from typing import Any

from edgepd.errors import RequestError
from edgepd_daemon.gbnf.form import ANNOTATIONS, Schema

_LARGER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_SMALLER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")


def merged(schemas: list[Schema]) -> Schema:
    """Return one schema for all; they hold no `$ref` and no `allOf` at their top."""
    result: Schema = {}
    for schema in schemas:
        for key, value in schema.items():
            if key in ANNOTATIONS:
                continue
            result[key] = _both(key, result[key], value) if key in result else value
    return result


def _both(key: str, some: Any, other: Any) -> Any:
    """Return the value of a keyword that demands what two values demand."""
    if some == other:
        return some
    if key == "properties":
        return {name: _both_schemas(some.get(name), other.get(name)) for name in {**some, **other}}
    if key == "required":
        return [*some, *(name for name in other if name not in some)]
    if key in _LARGER:
        return max(some, other)
    if key in _SMALLER:
        return min(some, other)
    if key == "enum":
        allowed = [json.dumps(value, sort_keys=True) for value in other]
        return [value for value in some if json.dumps(value, sort_keys=True) in allowed]
    if key == "type":
        return _both_types(some, other)
    if key in ("items", "additionalProperties"):
        return _both_schemas(some, other)
    raise RequestError(f"the JSON schema demands {key!r} twice in an `allOf`, which is not supported")


def _both_schemas(some: Any, other: Any) -> Any:
    """Return a schema for both; None and true allow everything."""
    if some is None or some is True:
        return other
    if other is None or other is True:
        return some
    return False if some is False or other is False else {"allOf": [some, other]}


def _both_types(some: Any, other: Any) -> Any:
    first, second = ([value] if isinstance(value, str) else value for value in (some, other))
    common = [t for t in first if t in second or (t == "integer" and "number" in second)]
    common += [t for t in second if t == "integer" and "number" in first and t not in common]
    return common[0] if len(common) == 1 else common
