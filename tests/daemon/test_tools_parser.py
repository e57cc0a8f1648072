"""Tool calls in what models write, however it is cut into pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd_daemon.tools import families
from edgepd_daemon.tools.families import Family
from edgepd_daemon.tools.parser import ToolParser
from edgepd_daemon.tools.types import Tool

F = '{"name": "f", "arguments": {"x": 1}}'
G = '{"name": "g", "arguments": {}}'
FX = ("f", '{"x":1}')
G0 = ("g", "{}")
Reading = tuple[str, list[tuple[str, str]]]
DS = "<｜tool▁call▁begin｜>f<｜tool▁sep｜>"
DS_END = "<｜tool▁call▁end｜>"

CASES: list[tuple[Family, str, str, list[tuple[str, str]]]] = [
    (families.HERMES, "", "", []),
    (families.HERMES, "Hello <b> {x}", "Hello <b> {x}", []),
    (families.HERMES, f"<tool_call>\n{F}\n</tool_call>", "", [FX]),
    (families.HERMES, f"<tool_call>{F}", "", [FX]),
    (families.HERMES, f"I look.\n<tool_call>\n{F}\n</tool_call>\n<tool_call>{G}</tool_call>\n", "I look.\n", [FX, G0]),
    (families.HERMES, f"<tool_call>[{F}, {G}]</tool_call>", "", [FX, G0]),
    (families.HERMES, f"\n <tool_call>{F}</tool_call>\nDone.", "\nDone.", [FX]),
    (families.HERMES, f"<tool_call>{F} bye", " bye", [FX]),
    (families.HERMES, " \n", " \n", []),
    (families.HERMES, '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [FX]),
    (families.HERMES, '<tool_call>{"name": "f", "parameters": {"x": 1}}</tool_call>', "", [FX]),
    (families.HERMES, '<tool_call>{"type": "function", "function": ' + F + "}</tool_call>", "", [FX]),
    (families.HERMES, '<tool_call>{"name": "g"}</tool_call>', "", [G0]),
    (
        families.HERMES,
        '<tool_call>{"name": "f", "arguments": {"s": "</tool_call> \\" } \\\\"}}</tool_call>',
        "",
        [("f", '{"s":"</tool_call> \\" } \\\\"}')],
    ),
    (families.HERMES, '<tool_call>{"name": "f", "arguments": {"s": "Köln"}}', "", [("f", '{"s":"Köln"}')]),
    (families.HERMES, '<tool_call>{"name": "f", "arguments": {"s": "\\ud83d"}}', "", [("f", '{"s":"\\ud83d"}')]),
    # What is not a call is text, all of it.
    (families.HERMES, "<tool_call>hello</tool_call>", "<tool_call>hello</tool_call>", []),
    (families.HERMES, '<tool_call>{"name": "f", "arguments": {', '<tool_call>{"name": "f", "arguments": {', []),
    (families.HERMES, "<tool_call>{oops}</tool_call>.", "<tool_call>{oops}</tool_call>.", []),
    (families.HERMES, '<tool_call>{"x": 1}</tool_call>', '<tool_call>{"x": 1}</tool_call>', []),
    (families.HERMES, '<tool_call>{"name": "f", "arguments": [1]}', '<tool_call>{"name": "f", "arguments": [1]}', []),
    (families.HERMES, f"<tool_call>[{F}, 1]", f"<tool_call>[{F}, 1]", []),
    (
        families.HERMES,
        '<tool_call>{"name": "f", "arguments": {"x": NaN}}',
        '<tool_call>{"name": "f", "arguments": {"x": NaN}}',
        [],
    ),
    (families.HERMES, '<tool_call>{"name": "\\ud83d"}', '<tool_call>{"name": "\\ud83d"}', []),
    (families.HERMES, "<tool_call>", "<tool_call>", []),
    (families.HERMES, "<tool_c", "<tool_c", []),
    (families.HERMES, f"<tool_call>x<tool_call>{F}</tool_call>", "<tool_call>x", [FX]),
    (families.HERMES, f'<tool_call>{{"a <tool_call>{F}</tool_call>', '<tool_call>{"a ', [FX]),
    (families.HERMES, "<tool_call>" + "[" * 5000, "<tool_call>" + "[" * 5000, []),
    (families.LLAMA_3, '{"name": "f", "parameters": {"x": 1}}', "", [FX]),
    (families.LLAMA_3, f'  {{"type": "function", "name": "g"}};\n{F}', "", [G0, FX]),
    (families.LLAMA_3, f"<|python_tag|>{F}; {G}", "", [FX, G0]),
    (families.LLAMA_3, f"{F} and", " and", [FX]),
    (families.LLAMA_3, f"Look: {F}", f"Look: {F}", []),
    (families.LLAMA_3, '{"title": "x"}', '{"title": "x"}', []),
    (families.LLAMA_3, '{"name": "Ann", "age": [1]', '{"name": "Ann", "age": [1]', []),
    (families.LLAMA_3, '{"names": 1}', '{"names": 1}', []),
    (families.LLAMA_3, " {", " {", []),
    (families.LLAMA_3, '<|python_tag|>brave.call(query="x")', '<|python_tag|>brave.call(query="x")', []),
    (families.MISTRAL, f"[TOOL_CALLS] [{F},\n {G}]", "", [FX, G0]),
    (families.MISTRAL, f"[TOOL_CALLS]{F}", "", [FX]),
    (families.MISTRAL, "[TOOL_CALLS]", "[TOOL_CALLS]", []),
    (families.MISTRAL, "[TOOL [x]", "[TOOL [x]", []),
    (families.MINISTRAL, '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[CALL_ID]123[ARGS]{}', "", [FX, G0]),
    (families.MINISTRAL, "[TOOL_CALLS]" + "n" * 300 + "[ARGS]{}", "[TOOL_CALLS]" + "n" * 300 + "[ARGS]{}", []),
    (families.MINISTRAL, "[TOOL_CALLS]f[ARGS]x", "[TOOL_CALLS]f[ARGS]x", []),
    (families.MINISTRAL, "[TOOL_CALLS][ARGS]{}", "[TOOL_CALLS][ARGS]{}", []),
    (families.PHI_4_MINI, f"<|tool_call|>{F}<|/tool_call|>", "", [FX]),
    (families.GRANITE, f"<|tool_call|>[{F}]", "", [FX]),
    (families.NEMOTRON, f"<TOOLCALL>[{F}, {G}]</TOOLCALL>", "", [FX, G0]),
    (families.DEEPSEEK, f'<｜tool▁calls▁begin｜>{DS}{{"x": 1}}{DS_END}<｜tool▁calls▁end｜>', "", [FX]),
    (families.DEEPSEEK, f'{DS}{{"x": 1}}{DS_END}\n{DS}{{"x":1}}{DS_END}', "", [FX, FX]),
    (
        families.QWEN_CODER,
        "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
        "",
        [FX],
    ),
    (
        families.QWEN_CODER,
        "<tool_call><function=g>\n</function></tool_call> <tool_call>\n<function=t>\n<parameter=code>\n"
        'a < "b"\n\n  c\n</parameter>\n<parameter=n>\n12\n</parameter></function>',
        "",
        [G0, ("t", '{"code":"a < \\"b\\"\\n\\n  c","n":"12"}')],
    ),
    (families.QWEN_CODER, "<tool_call>\n<function f>", "<tool_call>\n<function f>", []),
    (families.QWEN_CODER, "<tool_call><function=f>x</function>", "<tool_call><function=f>x</function>", []),
]
TOOLS = [Tool("t", parameters={"properties": {"n": {"type": "string"}}})]


def read(family: Family, pieces: Iterable[str]) -> Reading:
    """Return the text and the calls of an answer that comes in these pieces."""
    parser = ToolParser(family, TOOLS)
    parsed = [*map(parser.feed, pieces), parser.finish()]
    return "".join(p.text for p in parsed), [(c.name, c.arguments) for p in parsed for c in p.calls]


@pytest.mark.parametrize(("family", "answer", "text", "calls"), CASES)
def test_an_answer_is_read_the_same_whole_and_by_the_character(
    family: Family, answer: str, text: str, calls: list[tuple[str, str]]
) -> None:
    assert read(family, [answer]) == (text, calls)
    assert read(family, answer) == (text, calls)


@given(data=st.data(), case=st.sampled_from(CASES))
def test_any_cut_gives_the_same(data: st.DataObject, case: tuple[Family, str, str, list[tuple[str, str]]]) -> None:
    family, answer, text, calls = case
    cuts = sorted(data.draw(st.sets(st.integers(0, len(answer)), max_size=6)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert read(family, pieces) == (text, calls)


FRAGMENTS = ["<tool_call>", "</tool_call>", F, G, "[", "]", "{", "}", '"', "\\", " ", "\n", "x", "<", "tool", ";", ","]
FRAGMENTS += ["<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", DS, DS_END, "<function=f>", "</function>", '{"name', '"f"']
FAMILIES = sorted({case[0] for case in CASES}, key=lambda family: family.name)


@given(
    family=st.sampled_from(FAMILIES), parts=st.lists(st.sampled_from(FRAGMENTS), max_size=12), cut=st.integers(0, 200)
)
def test_anything_is_read_the_same_however_it_is_cut(family: Family, parts: list[str], cut: int) -> None:
    answer = "".join(parts)
    whole = read(family, [answer])
    assert read(family, answer) == whole
    assert read(family, [answer[:cut], answer[cut:]]) == whole


@given(family=st.sampled_from(FAMILIES), text=st.text(alphabet='ab <>[]{}"TOL_C|', max_size=60))
def test_an_answer_without_calls_comes_out_as_it_is(family: Family, text: str) -> None:
    assert read(family, text) == (text, [])


def test_text_passes_at_once_and_a_call_as_soon_as_it_is_complete() -> None:
    parser = ToolParser(families.HERMES)
    assert parser.feed("Let me see. ").text == "Let me see. "
    assert parser.feed("a < b <too").text == "a < b "
    assert parser.feed("l, no").text == "<tool, no"
    assert parser.feed(f"<tool_call>\n{F[:-1]}").text == ""
    assert parser.feed("}\n").calls == ()
    (call,) = parser.feed("</tool_call>").calls
    assert call.name == "f"
    assert parser.finish().calls == ()


def test_json_that_is_no_call_passes_as_soon_as_that_is_clear() -> None:
    parser = ToolParser(families.LLAMA_3)
    assert parser.feed("{").text == ""
    assert parser.feed('"na').text == ""
    assert parser.feed("tion").text == '{"nation'
    assert parser.feed('": 1}').text == '": 1}'


def test_ids_are_fresh_and_short_where_they_have_to_be() -> None:
    def ids(family: Family, answer: str) -> list[str]:
        return [call.id for call in ToolParser(family).feed(answer).calls]

    first, second = ids(families.HERMES, f"<tool_call>{F}</tool_call><tool_call>{F}</tool_call>")
    assert first != second
    assert re.fullmatch(r"call_[0-9a-f]{24}", first)
    (short,) = ids(families.MISTRAL, f"[TOOL_CALLS]{F}")
    assert re.fullmatch(r"[a-zA-Z0-9]{9}", short)
