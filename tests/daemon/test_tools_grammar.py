"""What models may write with tools: llama.cpp accepts the grammars, follows them, and never ends the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgepd.errors import RequestError
from edgepd_daemon.engine.types import Grammar
from edgepd_daemon.tools import families
from edgepd_daemon.tools.families import Family
from edgepd_daemon.tools.format import ToolFormat
from edgepd_daemon.tools.types import Tool
from tests.daemon.llama_grammar import verdicts

WEATHER = Tool(
    "get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["city"],
    },
)
NOW = Tool("now", parameters={"type": "object", "properties": {}})
TOOLS = [WEATHER, NOW]
OSLO = '{"city": "Oslo"}'
DS, SEP, DS_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


def call(arguments: str = OSLO, name: str = "get_weather", key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


# family, one call, two calls, a call with arguments that the schema does not allow
WRITTEN: list[tuple[Family, str, str, str]] = [
    (
        family,
        f"<tool_call>\n{call()}\n</tool_call>",
        f"<tool_call>\n{call()}\n</tool_call>\n<tool_call>\n{call('{}', 'now')}\n</tool_call>",
        f"<tool_call>{call('{}')}</tool_call>",
    )
    for family in (families.HERMES, families.GENERIC)
] + [
    (
        families.LLAMA_3,
        call(key="parameters"),
        f"{call(key='parameters')}; {call('{}', 'now', 'parameters')}",
        call('{"city": 1}', key="parameters"),
    ),
    (
        families.MISTRAL,
        f"[TOOL_CALLS] [{call()}]",
        f"[TOOL_CALLS][{call()}, {call('{}', 'now')}]",
        f"[TOOL_CALLS][{call('{}')}]",
    ),
    (
        families.MINISTRAL,
        f"[TOOL_CALLS]get_weather[ARGS]{OSLO}",
        f"[TOOL_CALLS]get_weather[ARGS]{OSLO}[TOOL_CALLS]now[ARGS]{{}}",
        "[TOOL_CALLS]get_weather[ARGS]{}",
    ),
    (
        families.PHI_4_MINI,
        f"<|tool_call|>{call()}<|/tool_call|>",
        f"<|tool_call|>{call()}<|/tool_call|><|tool_call|>{call('{}', 'now')}<|/tool_call|>",
        f"<|tool_call|>{call('{}')}<|/tool_call|>",
    ),
    (
        families.GRANITE,
        f"<|tool_call|>[{call()}]",
        f"<|tool_call|>[{call()}, {call('{}', 'now')}]",
        f"<|tool_call|>[{call('{}')}]",
    ),
    (
        families.NEMOTRON,
        f"<TOOLCALL>[{call()}]</TOOLCALL>",
        f"<TOOLCALL>[{call()}, {call('{}', 'now')}]</TOOLCALL>",
        f"<TOOLCALL>[{call('{}')}]</TOOLCALL>",
    ),
    (
        families.DEEPSEEK,
        f"<｜tool▁calls▁begin｜>{DS}get_weather{SEP}{OSLO}{DS_END}<｜tool▁calls▁end｜>",
        f"{DS}get_weather{SEP}{OSLO}{DS_END}{DS}now{SEP}{{}}{DS_END}",
        f"{DS}get_weather{SEP}{{}}{DS_END}",
    ),
]


def grammar(family: Family, choice: str, tools: list[Tool] = TOOLS, *, parallel: bool = True) -> Grammar:
    found = ToolFormat(family).grammar(tools, choice, parallel=parallel)
    assert found is not None
    return found


@pytest.mark.parametrize(("family", "one", "two", "wrong"), WRITTEN, ids=lambda value: getattr(value, "name", ""))
def test_calls_of_a_family(tmp_path: Path, family: Family, one: str, two: str, wrong: str) -> None:
    required, single = grammar(family, "required"), grammar(family, "required", parallel=False)
    chosen = grammar(family, "get_weather")
    auto = grammar(family, "auto")
    jobs = [
        (required, one, "accepted"),
        (required, two, "accepted"),
        (required, wrong, "refused"),
        (required, "Hello", "refused"),
        (required, "", "incomplete"),
        (single, one, "accepted"),
        (single, two, "refused"),
        (chosen, one, "accepted"),
        (chosen, two, "refused"),  # the second calls another tool
        (auto, "", "accepted"),
        (auto, "Hello {there} <b> [x] \n", "accepted"),
        (auto, one, "accepted"),
        (auto, two, "accepted"),
        (auto, wrong, "refused"),
        (auto, one[: len(one) // 2], "incomplete"),
    ]
    jobs += [(auto, "I look.\n" + one, "accepted"), (auto, "I look.\n" + wrong, "refused")] if not family.bare else []
    found = verdicts(tmp_path, [(g, text) for g, text, _ in jobs])
    assert [(text, verdict) for (_, text, _), verdict in zip(jobs, found, strict=True)] == [
        (text, wanted) for _, text, wanted in jobs
    ]


def test_a_lazy_grammar_survives_what_it_does_not_expect(tmp_path: Path) -> None:
    """llama.cpp ends the process if the text from the trigger on does not fit the grammar."""
    odd = [
        "<tool_call>",
        "<tool_call>hello",
        "<tool_call> \n \n \n \n{",
        '<tool_call>{"n',
        "<tool_call>[",
        "x<tool_call>\n",
    ]
    odd += [
        "<tool_call>{'",
        "{",
        '{"name',
        '{"name": 5}',
        "<tool_call><tool_call>{",
        '{\n"name" : ',
        "hello he<tool_call>the",
    ]
    for family in (families.HERMES, families.LLAMA_3, families.MISTRAL, families.MINISTRAL, families.DEEPSEEK):
        texts = [text.replace("<tool_call>", family.opening[0]) for text in odd]
        assert len(verdicts(tmp_path, [(grammar(family, "auto"), text) for text in texts])) == len(odd)


def test_the_grammar_of_one_tool() -> None:
    clock = Tool("clock", parameters={"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}})
    assert grammar(families.HERMES, "auto", [clock]) == Grammar(
        gbnf='root ::= marked-call ("\\n"? marked-call)*\n'
        'ws ::= ("\\n" [ \\t]{0,20} | " ")?\n'
        'clock-arguments ::= "{" ws ("\\"zone\\"" ":" ws ("\\"UTC\\"" | "\\"CET\\"") ws )? "}"\n'
        'call-clock ::= "\\"clock\\"" ws "," ws "\\"arguments\\"" ":" ws clock-arguments ws "}"\n'
        'call ::= "{" [ \\t\\r\\n]{0,4} "\\"name\\":" [ \\t\\r\\n]{0,4} call-clock\n'
        'marked-call ::= "<tool_call>" [ \\t\\r\\n]{0,4} call ws "</tool_call>"\n',
        triggers=('(<tool_call>[ \\t\\r\\n]{0,4}(?:\\{[ \\t\\r\\n]{0,4}"?)?)$',),
    )


def test_qwen_coder_is_free_unless_a_call_is_required(tmp_path: Path) -> None:
    form = ToolFormat(families.QWEN_CODER)
    assert form.grammar(TOOLS, "auto") is None
    start = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
    jobs = [(grammar(families.QWEN_CODER, "now"), text) for text in (start, start.replace("now", "get_weather"))]
    assert verdicts(tmp_path, jobs) == ["accepted", "refused"]


@pytest.mark.parametrize("choice", ["none", "auto", "required"])
def test_without_tools_anything_goes(choice: str) -> None:
    assert ToolFormat(families.HERMES).grammar([], choice) is None


def test_no_choice_no_grammar() -> None:
    assert ToolFormat(families.HERMES).grammar(TOOLS, "none") is None


def test_a_tool_that_is_not_there_cannot_be_chosen() -> None:
    with pytest.raises(RequestError, match="tool_choice names the tool 'later'"):
        ToolFormat(families.HERMES).grammar(TOOLS, "later")


DEEP: dict[str, Any] = {}
for _ in range(200):
    DEEP = {"properties": {"a": DEEP}}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"type": "object"},
        {"type": "string"},
        {"properties": 5},
        {"properties": {"x": {"type": "unknown"}}},
        {"properties": {"x": {"$ref": "#/nope"}}},
        {"$ref": "#"},
        DEEP,
        {"description": "x" * 100_000},
    ],
)
def test_tools_with_any_schema_can_be_called(tmp_path: Path, parameters: dict[str, Any]) -> None:
    chosen = grammar(families.HERMES, "required", [Tool("f", parameters=parameters)])
    arguments = '{"x": [1]}'
    written = f"<tool_call>\n{call(arguments, 'f')}\n</tool_call>"
    assert verdicts(tmp_path, [(chosen, written)]) == ["accepted"]


def test_keywords_that_cannot_be_kept_are_left_out_for_tools(tmp_path: Path) -> None:
    parameters = {
        "properties": {"n": {"type": "integer", "multipleOf": 5}, "s": {"type": "string", "pattern": "(?=a)"}}
    }
    chosen = grammar(families.HERMES, "required", [Tool("f", parameters=parameters)])
    texts = [f"<tool_call>{call(a, 'f')}</tool_call>" for a in ('{"n": 3, "s": "x"}', '{"n": "x"}')]
    assert verdicts(tmp_path, [(chosen, text) for text in texts]) == ["accepted", "refused"]


def test_many_tools_with_odd_names(tmp_path: Path) -> None:
    tools = [Tool(f'tool "{i}"\\é', parameters=WEATHER.parameters) for i in range(60)]
    chosen = grammar(families.HERMES, "auto", tools)
    assert verdicts(tmp_path, [(chosen, "hello"), (chosen, "<tool_call>\n")]) == ["accepted", "incomplete"]
