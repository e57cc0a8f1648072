"""Structured answers: documents conform, what cannot be kept is refused, and llama.cpp agrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgepd.errors import RequestError
from edgepd_daemon.engine.types import Grammar
from edgepd_daemon.structured import checked_grammar, json_grammar, schema_grammar
from tests.daemon.llama_grammar import verdicts

Schema = dict[str, Any] | bool


def judged(tmp_path: Path, cases: list[tuple[Schema, list[str], list[str]]]) -> list[tuple[str, str, str]]:
    """Return (schema, text, verdict) wherever llama.cpp does not do as the case says."""
    jobs = [(schema_grammar(schema), text, want) for schema, good, bad in cases for text, want in _wanted(good, bad)]
    found = verdicts(tmp_path, [(grammar, text) for grammar, text, _ in jobs])
    schemas = [json.dumps(schema) for schema, good, bad in cases for _ in good + bad]
    return [
        (schema, text, verdict)
        for schema, (_, text, accepted), verdict in zip(schemas, jobs, found, strict=True)
        if (verdict == "accepted") != accepted
    ]


def _wanted(good: list[str], bad: list[str]) -> list[tuple[str, bool]]:
    return [(text, True) for text in good] + [(text, False) for text in bad]


def test_any_json_object(tmp_path: Path) -> None:
    good = ["{}", '{"a":1}', '{"a": [1, {"b": null}], "c": "x\\n\\u00e9 \U0001f600"}', '{\n  "a": -1.5e+3\n}']
    bad = ["[]", "1", '{"a":01}', '{"a":1,}', '{"a":"\n"}', '{"a" 1}', "{} ", '{"a":"\\x"}', '{"a":1']
    found = verdicts(tmp_path, [(json_grammar(), text) for text in good + bad])
    assert found == ["accepted"] * 4 + ["refused"] * 8 + ["incomplete"]


def test_objects(tmp_path: Path) -> None:
    integer, text = {"type": "integer"}, {"type": "string"}
    both = {"a": integer, "b": text}
    cases: list[tuple[Schema, list[str], list[str]]] = [
        (
            {"type": "object", "properties": both, "required": ["b"]},
            ['{"b":"x"}', '{"a":1,"b":"x"}', '{ "a": 1, "b": "x" }', '{\n  "a": 1,\n  "b": "x"\n}'],
            ["{}", '{"a":1}', '{"b":"x","a":1}', '{"b":"x","c":1}', '{"a":"x","b":"x"}'],
        ),
        (
            {"properties": {**both, "c": {"type": "null"}}},
            ["{}", '{"a":1}', '{"b":"x"}', '{"c":null}', '{"a":1,"c":null}', '{"a":1,"b":"","c":null}'],
            ['{,"b":"x"}', '{"a":1,}', '{"a":1 "b":""}', '{"c":null,"a":1}'],
        ),
        (
            {
                "properties": {"ab": integer, "ac": text},
                "required": ["ab"],
                "additionalProperties": {"type": "boolean"},
            },
            ['{"ab":1}', '{"ab":1,"ac":"x","z":true,"a":false,"abc":true,"":true}'],
            ['{"ab":1,"ac":true}', '{"ab":1,"z":1}', '{"ab":1,"ab":true}'],
        ),
        ({"type": "object", "additionalProperties": integer}, ["{}", '{"a":1,"b":2}'], ['{"a":"x"}']),
        ({"properties": {"a": integer}, "additionalProperties": True}, ['{"q":[1],"r":2}'], ['{"a":"x"}']),
        ({"type": "object", "properties": {}}, ["{}", "{ }"], ['{"a":1}']),
        ({"type": "object"}, ["{}", '{"a":1}'], ["[]"]),
        ({"required": ["x"]}, ['{"x":[1]}'], ["{}", '{"y":1}']),
        ({"properties": {'a"b\n\\': integer}}, ['{"a\\"b\\n\\\\":1}'], ['{"a":1}']),
    ]
    assert judged(tmp_path, cases) == []


def test_values(tmp_path: Path) -> None:
    cases: list[tuple[Schema, list[str], list[str]]] = [
        ({"enum": ['a"b', "c\nd", "\\", 1, None, {"x": [1]}]}, ['"a\\"b"', '"c\\nd"', '"\\\\"', "1", "null"], ["2"]),
        ({"const": {"a": [1, "é"]}}, ['{"a":[1,"é"]}'], ['{"a":[]}']),
        ({"enum": [f"word{i}" for i in range(300)]}, ['"word7"', '"word299"'], ['"word300"', '"word"', '"word07"']),
        ({"type": ["string", "null"]}, ['"x"', "null"], ["1"]),
        ({"type": "string", "nullable": True}, ['"x"', "null"], ["1"]),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}, {"type": "string"}]}, ["1", "1.5", '"x"'], ["null"]),
        ({}, ["1", '"x"', "[]", "{}", "true"], ["x"]),
        (True, ["1"], ["x"]),
        ({"type": "string", "minLength": 2, "maxLength": 4}, ['"ab"', '"abcd"', '"a\\n"'], ['"a"', '"abcde"']),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2024-13-01"', '"24-01-01"']),
        ({"type": "string", "format": "date-time"}, ['"2024-02-29T10:00:00Z"'], ['"2024-02-29"']),
        ({"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"x"']),
        ({"type": "string", "format": "email"}, ['"anything"'], ["1"]),
        ({"type": "boolean"}, ["true", "false"], ["null"]),
    ]
    assert judged(tmp_path, cases) == []


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 5), (-5, 5), (10, 250), (-250, -17), (3, None), (None, -3), (None, 99), (1, 100000), (7, 7), (199, 1203)],
)
def test_whole_numbers_keep_their_bounds(tmp_path: Path, low: int | None, high: int | None) -> None:
    schema = (
        {"type": "integer"} | ({} if low is None else {"minimum": low}) | ({} if high is None else {"maximum": high})
    )
    near = sorted({b + d for b in (low, high) if b is not None for d in (-100, -10, -2, -1, 0, 1, 2, 10, 100)} | {0, 1})
    good = [str(n) for n in near if (low is None or n >= low) and (high is None or n <= high)]
    bad = [str(n) for n in near if str(n) not in good] + ["1.5", "00", "1e3", ""]
    assert judged(tmp_path, [(schema, good, bad)]) == []


@pytest.mark.parametrize(
    "bounds",
    [
        {"minimum": 0, "maximum": 1},
        {"minimum": 0.1, "maximum": 0.9},
        {"exclusiveMinimum": 0},
        {"minimum": 0, "exclusiveMinimum": True},
        {"minimum": -2.5, "maximum": 3.75},
        {"maximum": -0.25},
        {"minimum": 10.5},
        {"minimum": 0, "exclusiveMaximum": 1},
    ],
)
def test_numbers_keep_their_bounds(tmp_path: Path, bounds: dict[str, Any]) -> None:
    def fits(number: float) -> bool:
        above = number > 0 if bounds.get("exclusiveMinimum") is not None else number >= bounds.get("minimum", -1e9)
        return above and number <= bounds.get("maximum", 1e9) and number < bounds.get("exclusiveMaximum", 1e9)

    near = [n / 100 for n in (-301, -251, -250, -249, -26, -25, -24, -1, 1, 9, 10, 11, 50, 89, 90, 91, 99, 100)]
    near += [1.01, 3.74, 3.75, 3.76, 10.49, 10.5, 10.51, 200.0]
    good = [str(n) for n in near if fits(n)]
    bad = [str(n) for n in near if not fits(n)]
    assert judged(tmp_path, [({"type": "number", **bounds}, good, bad)]) == []


def test_arrays(tmp_path: Path) -> None:
    integer = {"type": "integer"}
    cases: list[tuple[Schema, list[str], list[str]]] = [
        (
            {"type": "array", "items": integer, "minItems": 2, "maxItems": 3},
            ["[1,2]", "[1, 2, 3]"],
            ["[1]", "[1,2,3,4]"],
        ),
        ({"type": "array", "items": integer, "maxItems": 1}, ["[]", "[1]"], ["[1,2]", '["x"]']),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        ({"type": "array"}, ["[]", '[1,"x",[]]'], ["[1,]"]),
        ({"prefixItems": [integer, {"type": "string"}], "items": False}, ['[1,"x"]'], ["[1]", '[1,"x",2]']),
        ({"prefixItems": [integer], "items": {"type": "null"}, "maxItems": 3}, ["[1,null,null]"], ["[1,2]"]),
        ({"type": "array", "items": [integer, integer], "additionalItems": False}, ["[1,2]"], ["[1,2,3]"]),
    ]
    assert judged(tmp_path, cases) == []


def test_patterns(tmp_path: Path) -> None:
    def matching(pattern: str) -> dict[str, Any]:
        return {"type": "string", "pattern": pattern}

    cases: list[tuple[Schema, list[str], list[str]]] = [
        (matching(r"^[a-z]{2,3}-\d+$"), ['"ab-1"', '"abc-123"'], ['"a-1"', '"ab-"', '"abcd-1"']),
        (matching(r"^https?://"), ['"http://x"', '"https://"'], ['"ftp://"']),
        (matching(r"\.com$"), ['"a.com"'], ['"a.org"', '"acom"']),
        (matching(r"[a-z]+"), ['"Aa1"'], ['"A1"']),
        (matching('^(a|b"\\\\)*[^x]$'), ['"ab\\"\\\\y"', '"\\n"'], ['"x"']),
        (matching(r"^(?:yes|no)\?$"), ['"yes?"', '"no?"'], ['"yes"', '"maybe?"']),
        (matching(r"^\u00e9\x41.$"), ['"éAx"'], ['"eAx"']),
        (matching(r"^\w+\s\S+$"), ['"a_1 é"'], ['"a"']),
    ]
    assert judged(tmp_path, cases) == []


def test_parts_that_refer_to_others(tmp_path: Path) -> None:
    node = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {}}, "required": ["v", "next"]}
    node["properties"]["next"] = {"anyOf": [{"$ref": "#/$defs/My_Node"}, {"type": "null"}]}  # type: ignore[index]
    expression = {
        "anyOf": [
            {
                "properties": {"kind": {"const": kind}, "l": {"$ref": "#/$defs/E"}, "r": {"$ref": "#/$defs/E"}},
                "required": ["kind", "l", "r"],
            }
            for kind in ("add", "mul")
        ]
        + [{"type": "number"}]
    }
    one = {"properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]}
    other = {"properties": {"a": {"maximum": 5}, "b": {"type": "string"}}, "required": ["b"]}
    cases: list[tuple[Schema, list[str], list[str]]] = [
        (
            {"$ref": "#/$defs/My_Node", "$defs": {"My_Node": node}},
            ['{"v":1,"next":{"v":2,"next":null}}'],
            ['{"v":1}', '{"v":1,"next":{}}'],
        ),
        ({"properties": {"c": {"type": "array", "items": {"$ref": "#"}}}}, ['{"c":[{"c":[]},{}]}'], ['{"c":[1]}']),
        ({"$defs": {"a/b": {"type": "null"}}, "$ref": "#/$defs/a~1b"}, ["null"], ["1"]),
        (
            {"$ref": "#/$defs/E", "$defs": {"E": expression}},
            ['{"kind":"add","l":1,"r":{"kind":"mul","l":2,"r":3}}'],
            ['{"kind":"sub","l":1,"r":2}'],
        ),
        ({"allOf": [one, other]}, ['{"a":4,"b":"x"}'], ['{"a":6,"b":"x"}', '{"a":2,"b":"x"}', '{"a":4}']),
        (
            {"properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
            ['{"a":1}', '{"b":1}'],
            ["{}"],
        ),
    ]
    assert judged(tmp_path, cases) == []


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (False, "allows nothing"),
        ({"type": "foo"}, "unknown type 'foo'"),
        ({"type": 5}, "'type' has to be the name of a type"),
        ({"properties": 5}, "'properties' has to be an object"),
        ({"required": [["x"]]}, "'required' has to be a list of names"),
        ({"enum": []}, "'enum' at 'document' is empty"),
        ({"oneOf": []}, "'oneOf' at 'document' has no alternative"),
        ({"anyOf": [1]}, "neither an object nor a truth value"),
        ({"not": {}}, "keyword 'not' cannot be kept"),
        ({"type": "integer", "multipleOf": 2}, "keyword 'multipleOf' cannot be kept"),
        ({"type": "array", "uniqueItems": True}, "keyword 'uniqueItems' cannot be kept"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "'maxItems' at 'document' is less"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "'maxLength' at 'document' is less"),
        ({"type": "string", "minLength": 100000}, "demands at least 100000"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "leave no number"),
        ({"type": "number", "minimum": float("nan")}, "'minimum' has to be a number"),
        ({"type": "string", "pattern": "(?=a)b"}, "looking around is not supported"),
        ({"type": "string", "pattern": "["}, "a character class is not closed"),
        ({"type": "string", "pattern": "^a|b$"}, "one of several alternatives"),
        ({"type": "string", "pattern": "^(a+)+$"}, "too ambiguous"),
        ({"type": "string", "pattern": "^a$", "maxLength": 3}, "'pattern' cannot be kept together"),
        ({"required": ["x"], "additionalProperties": False}, "requires the property 'x' and does not allow it"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "demands 'pattern' twice"),
        ({"$ref": "#/nope"}, "refers to '#/nope', which is not there"),
        ({"$ref": "https://example.com/x"}, "only parts of itself"),
        ({"$ref": "#"}, "can call itself before it has read anything"),
        ({"allOf": [{"$ref": "#"}]}, "refer to each other without an end"),
        ({"description": "x" * 70_000}, "larger than 64 KiB"),
        ({"const": {1, 2}}, "is not JSON"),
    ],
)
def test_what_cannot_be_kept_is_refused(schema: Any, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        schema_grammar(schema)


def test_bombs_of_schemas_are_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"properties": {"a": deep}}
    with pytest.raises(RequestError, match="nested more than 64 deep"):
        schema_grammar(deep)
    doubling: dict[str, Any] = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    with pytest.raises(RequestError, match="without an end"):
        schema_grammar({"$defs": {**doubling, "d40": {}}, "$ref": "#/$defs/d0"})
    late = {"properties": {"l": {"$ref": "#"}, "kind": {"const": 1}}, "required": ["l", "kind"]}
    later = {"properties": {"l": {"$ref": "#"}, "kind": {"const": 2}}, "required": ["l", "kind"]}
    with pytest.raises(RequestError, match="too ambiguous"):  # each level doubles what it may have been
        schema_grammar({"anyOf": [late, later, {"type": "null"}]})


def test_an_ordinary_schema_gives_this_grammar() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    assert schema_grammar(schema).gbnf == (
        "root ::= document\n"
        'string ::= "\\"" char* "\\""\n'
        'char ::= plain | "\\\\" (["\\\\/bfnrt] | "u" hex hex hex hex)\n'
        'plain ::= [^"\\\\\\x00-\\x1F]\n'
        "hex ::= [0-9a-fA-F]\n"
        'ws ::= ("\\n" [ \\t]{0,20} | " ")?\n'
        'document ::= "{" ws ("\\"city\\"" ":" ws string ws ) "}"\n'
    )


def test_a_grammar_of_a_client_is_passed_on_as_it_is() -> None:
    text = 'root ::= "yes" | "no"\n'
    assert checked_grammar(text) == Grammar(text)
