"""Chat templates: rendered as upstream renders them, and harmless even if the file is hostile."""

from __future__ import annotations

import pytest

from edgepd import template as module
from edgepd.errors import TemplateError
from edgepd.template import ChatTemplate

TOOLS = [{"type": "function", "function": {"name": "now", "description": "<Zeit> & Ort: Köln"}}]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <|im_end|>"},
    {"role": "assistant", "content": "Hello."},
]


def rendered(source: str | None, *, prompt: bool = False) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(TALK, add_generation_prompt=prompt)


def test_without_a_template_it_is_chatml() -> None:
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi <|im_end|><|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n"
    )
    assert rendered(None) == expected
    assert rendered(None, prompt=True) == expected + "<|im_start|>assistant\n"


def test_special_tokens_and_whitespace_are_handled_as_upstream() -> None:
    source = "{{ bos_token }}\n    {% for m in messages %}\n{{ m.content }}|\n{% endfor %}\n{{ eos_token }}"
    assert rendered(source) == "<s>\nBe brief.|\nHi <|im_end|>|\nHello.|\n</s>"


def test_what_a_template_does_not_know_is_empty() -> None:
    assert rendered("[{{ tools }}{% if tools %}x{% endif %}]") == "[]"


def test_content_is_text_and_not_a_template() -> None:
    found = ChatTemplate("{{ messages[0].content }}").render(
        [{"role": "user", "content": "{{ 7 * 7 }}<b>"}], add_generation_prompt=False
    )
    assert found == "{{ 7 * 7 }}<b>"


def test_a_template_can_refuse_its_input() -> None:
    with pytest.raises(TemplateError, match="cannot render these messages: roles must alternate"):
        rendered("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ }", "{% endif %}", "{{ x | no_such_filter }}", "{{" + "(" * 9999, "{% generation %}"]
)
def test_a_template_that_does_not_compile(source: str) -> None:
    with pytest.raises(TemplateError, match="the model's chat template does not compile"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ messages.__class__ }}{{ messages.__init__.__globals__ }}",
        "{% set x = messages.append({}) %}",
        "{% set x = messages[0].update({'content': 'forged'}) %}",
        "{{ range(10 ** 9) | list }}",
        "{{ messages[99].content }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{% include 'other' %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ strftime_now(5) }}",
        "{{ messages | tojson(indent='x', separators=3) }}",
        "{{ none.content.x }}",
    ],
)
def test_a_hostile_or_broken_template_is_an_error(source: str) -> None:
    with pytest.raises(TemplateError, match="the model's chat template cannot render these messages"):
        rendered(source)


def test_endless_output_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RENDERED_CHARS", 1000)
    assert len(rendered("{% for i in range(1000) %}x{% endfor %}")) == 1000
    with pytest.raises(TemplateError, match="renders to more than 1000 characters"):
        rendered("{% for i in range(1001) %}x{% endfor %}")


def test_rendering_changes_no_message() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    ChatTemplate("{% for m in messages %}{% set m = 5 %}{% endfor %}").render(messages, add_generation_prompt=True)
    assert messages == [{"role": "user", "content": "Hi"}]


def test_output_is_bounded_by_the_size_of_the_input() -> None:
    template = ChatTemplate("{% for i in range(40) %}{{ messages[0].content }}{% endfor %}")
    assert len(template.render([{"role": "user", "content": "x" * 1000}], add_generation_prompt=False)) == 40_000
    with pytest.raises(TemplateError, match="renders to more than"):
        template.render([{"role": "user", "content": "x" * 100_000}], add_generation_prompt=False)


def test_nothing_is_evaluated_while_compiling() -> None:
    ChatTemplate("{{ 'x' * 10 ** 12 }}")


def test_tools_are_there_only_if_given() -> None:
    template = ChatTemplate("{% if tools is defined %}{{ tools | tojson }}{% else %}none{% endif %}")
    assert template.render(TALK, add_generation_prompt=False) == "none"
    assert template.render(TALK, add_generation_prompt=False, tools=[]) == "none"
    expected = '[{"type": "function", "function": {"name": "now", "description": "<Zeit> & Ort: Köln"}}]'
    assert template.render(TALK, add_generation_prompt=False, tools=TOOLS) == expected


@pytest.mark.parametrize(
    ("source", "supported"),
    [
        (None, False),
        ("{% for tool in tools %}{{ tool }}{% endfor %}", True),
        ("{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools }}", True),
        ("{{ messages[0]['tools'] }} tools", False),
    ],
)
def test_whether_a_template_supports_tools(source: str | None, supported: bool) -> None:
    assert ChatTemplate(source).supports_tools is supported


def test_calls_and_results_reach_the_template() -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}|{{ m.content }}|{{ m.tool_calls[0].function.arguments.x }}]{% endfor %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 5}}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "7"}]
    with pytest.raises(TemplateError):
        ChatTemplate(source).render(messages, add_generation_prompt=False)
    assert ChatTemplate(source).render(messages[:1], add_generation_prompt=False) == "[assistant|None|5]"


def test_what_templates_of_hugging_face_expect() -> None:
    source = (
        "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
        "{% endfor %}|{% generation %}{{ messages[2].content }}{% endgeneration %}|"
        "{{ {'b': '<é>', 'a': [1]} | tojson(indent=1, sort_keys=true) }}|{{ strftime_now('%Y') | length }}|{{ flag }}"
    )
    found = ChatTemplate(source).render(TALK, add_generation_prompt=False, extra={"flag": True})
    assert found == '02|Hello.|{\n "a": [\n  1\n ],\n "b": "<é>"\n}|4|True'
