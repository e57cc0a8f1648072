"""How models are told about tools: the family by the template, and the conversation as the template wants it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgepd_daemon.tools.format import tool_format
from edgepd_daemon.tools.types import Tool

WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'}}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "yes"},
]
HERMES, MISTRAL, DEEPSEEK = "{{ tools }}<tool_call>", "{{ tools }}[TOOL_CALLS]", "<｜tool▁call▁begin｜><｜tool▁sep｜>"


@pytest.mark.parametrize(
    ("template", "supports_tools", "name"),
    [
        (None, False, "generic"),
        ("<tool_call>", False, "generic"),
        ("{{ tools }}", True, "generic"),
        (HERMES, True, "hermes"),
        ("<tool_call>\n<function=example>\n<parameter=x>", True, "qwen3-coder"),
        ("<tool_call>{{ name }}<arg_key>", True, "generic"),
        ("<|start_header_id|>ipython<|end_header_id|>", True, "llama-3"),
        ("<|python_tag|>", True, "llama-3"),
        (MISTRAL, True, "mistral"),
        ("[TOOL_CALLS]name[ARGS]{}", True, "ministral"),
        ("<|tool_call|>{}<|/tool_call|>", True, "phi-4-mini"),
        ("<|tool_call|>", True, "granite"),
        ("<TOOLCALL>[", True, "nemotron"),
        (DEEPSEEK, True, "deepseek"),
        (DEEPSEEK + "```json", True, "generic"),
    ],
)
def test_the_family_is_recognised_by_the_template(template: str | None, supports_tools: bool, name: str) -> None:
    assert tool_format(template, supports_tools).name == name


def test_without_tools_in_the_template_everything_becomes_text() -> None:
    before = json.dumps(TALK)
    form = tool_format(None, False)
    system, *rest = form.messages([{"role": "system", "content": "Be brief."}, *TALK], [WEATHER])
    assert system == {
        "role": "system",
        "content": "Be brief.\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters":'
        ' {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}\n</tools>\n\n'
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call>"
        ' XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
    }
    assert rest == [
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>',
        },
        {"role": "user", "content": "<tool_response>\nyes\n</tool_response>"},
    ]
    assert json.dumps(TALK) == before
    assert form.template_tools([WEATHER]) is None


def test_results_in_a_row_are_one_turn_and_the_instructions_open_the_conversation() -> None:
    results = [{"role": "tool", "content": "1"}, {"role": "tool", "content": None}]
    found = tool_format(None, False).messages([TALK[0], *results], [WEATHER])
    assert [m["role"] for m in found] == ["system", "user", "user"]
    assert found[2]["content"] == "<tool_response>\n1\n</tool_response>\n<tool_response>\n\n</tool_response>"


def test_a_template_that_refuses_system_messages_gets_the_instructions_from_the_user() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (message,) = tool_format(source, False).messages([{"role": "user", "content": "Rain?"}], [WEATHER])
    assert message["role"] == "user"
    assert message["content"].startswith("# Tools")
    assert message["content"].endswith("</tool_call>\n\nRain?")


def test_without_tools_in_the_request_nothing_is_said_about_them() -> None:
    found = tool_format(None, False).messages(TALK, [])
    assert [m["role"] for m in found] == ["user", "assistant", "user"]


def test_templates_with_tools_get_arguments_as_objects_and_text_instead_of_nothing() -> None:
    form = tool_format(HERMES, True)
    found = form.messages(TALK, [WEATHER])
    assert found[1]["content"] == ""
    assert found[1]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Köln"}}
    assert found[2] == {"role": "tool", "tool_call_id": "call_1", "content": "yes", "name": "get_weather"}
    assert form.template_tools([WEATHER]) == [
        {
            "type": "function",
            "function": {"name": "get_weather", "description": "Weather of a city", "parameters": WEATHER.parameters},
        }
    ]
    assert TALK[1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Köln"}'


def test_deepseek_gets_arguments_as_text() -> None:
    found = tool_format(DEEPSEEK, True).messages(TALK, [WEATHER])
    assert found[1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Köln"}'


def test_arguments_that_are_no_json_stay_as_they_are() -> None:
    call = {"id": "x", "function": {"name": "f", "arguments": "{oops"}}
    found = tool_format(HERMES, True).messages([{"role": "assistant", "content": "", "tool_calls": [call]}], [WEATHER])
    assert found[0]["tool_calls"][0]["function"]["arguments"] == "{oops"


def test_mistral_gets_ids_of_nine_letters_or_digits_that_match() -> None:
    found = tool_format(MISTRAL, True).messages(TALK, [WEATHER])
    made = found[1]["tool_calls"][0]["id"]
    assert len(made) == 9
    assert made.isalnum()
    assert found[2]["tool_call_id"] == made
    kept = {"role": "tool", "tool_call_id": "abcDEF123", "content": ""}
    assert tool_format(MISTRAL, True).messages([kept], [WEATHER]) == [kept]


def test_the_markers_are_known_to_the_engine() -> None:
    assert tool_format(HERMES, True).markers == ("<tool_call>", "</tool_call>")
    assert tool_format(MISTRAL + "[ARGS]", True).markers == ("[TOOL_CALLS]", "[ARGS]")
