"""The form of JSON schemas: what the value of each keyword has to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgepd.errors import RequestError

Schema = dict[str, Any]

ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "strict")
    + ("$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "$vocabulary", "discriminator", "id")
    + ("contentMediaType", "contentEncoding", "xml", "externalDocs")
)


def check_form(schema: Schema) -> None:
    """Raise RequestError if the value of a keyword is not of the kind that it has to be."""
    for key, (fits, wanted) in _FORMS.items():
        if key in schema and not fits(schema[key]):
            raise RequestError(f"the JSON schema's {key!r} has to be {wanted}, not {str(schema[key])[:80]!r}")


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_type(value: Any) -> bool:
    return _is_text(value) or (_is_texts(value) and bool(value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300


def _is_number_or_flag(value: Any) -> bool:
    return isinstance(value, bool) or _is_number(value)


_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("anyOf", "oneOf", "allOf", "enum", "prefixItems"), (_is_list, "a list")),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), (_is_count, "a whole number from 0")),
    **dict.fromkeys(("minimum", "maximum"), (_is_number, "a number")),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), (_is_number_or_flag, "a number")),
    **dict.fromkeys(("pattern", "format", "$ref"), (_is_text, "a text")),
    "properties": (_is_dict, "an object"),
    "required": (_is_texts, "a list of names"),
    "type": (_is_type, "the name of a type or a list of them"),
}
