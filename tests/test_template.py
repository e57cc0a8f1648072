"""Chat templates: rendered as upstream renders them, and harmless even if the file is hostile."""

from __future__ import annotations

import pytest

from edgepd import template as module
from edgepd.errors import TemplateError
from edgepd.template import ChatTemplate

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


@pytest.mark.parametrize("source", ["{% for %}", "{{ }", "{% endif %}", "{{ x | no_such_filter }}"])
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
