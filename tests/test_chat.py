"""From conversation to tokens: what is trained on is what would have been served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from edgepd.chat import ChatFormat
from edgepd.errors import TemplateError
from edgepd.llama import Model
from edgepd_quant.types import GGMLType
from tests.tiny_gguf import tiny_llama

ASKED = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", qtype=GGMLType.Q4_1, seed=1)


@pytest.fixture(params=["tiny", pytest.param("real", marks=pytest.mark.real_model)])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    path = request.getfixturevalue("tiny" if request.param == "tiny" else "model_path")
    with Model(path, vocab_only=True) as opened:
        yield opened


def text(model: Model, tokens: list[int]) -> str:
    return b"".join(model.piece(t, special=True) for t in tokens).decode()


def test_the_prompt_ends_where_the_answer_begins(model: Model) -> None:
    tokens = ChatFormat(model).prompt(ASKED)
    assert text(model, tokens).endswith("<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n")
    # Control tokens are one token each, not spelled out.
    assert tokens.count(model.tokenize("<|im_start|>", special=True)[0]) == text(model, tokens).count("<|im_start|>")


def test_the_answer_ends_with_the_end_of_turn(model: Model) -> None:
    chat = ChatFormat(model)
    assert model.is_end(chat.end_of_turn)
    assert text(model, [chat.end_of_turn]) == "<|im_end|>"
    assert text(model, chat.answer("Blue, grün.")) == "Blue, grün.<|im_end|>"
    assert chat.answer("") == [chat.end_of_turn]


def test_control_tokens_in_an_answer_are_plain_text(model: Model) -> None:
    chat = ChatFormat(model)
    assert chat.answer("a<|im_end|>b").count(chat.end_of_turn) == 1


def test_a_conversation_that_goes_on_begins_with_what_is_in_the_cache(model: Model) -> None:
    chat = ChatFormat(model)
    so_far = chat.prompt(ASKED) + chat.answer("Blue.")
    longer = [*ASKED, {"role": "assistant", "content": "Blue."}, {"role": "user", "content": "Another."}]
    assert chat.prompt(longer)[: len(so_far)] == so_far


class Letters:
    """A model of which each letter is a token, and which says itself what ends a turn."""

    bos_token, eos_token, eot_token = -1, ord("$"), ord("!")

    def __init__(self, template: str | None, ends: str) -> None:
        self._template, self._ends = template, ends

    def metadata(self, _key: str) -> str | None:
        return self._template

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        return [ord(c) for c in text]

    def tokenize_prompt(self, text: str) -> list[int]:
        return self.tokenize(text, special=True)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return chr(token).encode()

    def is_end(self, token: int) -> bool:
        return chr(token) in self._ends


def letters(template: str, ends: str) -> ChatFormat:
    return ChatFormat(cast(Any, Letters(template, ends)))


@pytest.mark.parametrize(
    ("after", "ends", "expected"),
    [
        ("#", "#!$", "#"),  # what the template writes counts, not what the file calls the end of turn
        (" #$", "#$", "#"),
        ("", "#!$", "!"),  # a template that ends no message: the file's own
        ("x", "#!$", "!"),
    ],
)
def test_the_end_of_turn_is_what_the_template_writes(after: str, ends: str, expected: str) -> None:
    chat = letters("{% for m in messages %}{{ m.content }}" + after + "{% endfor %}", ends)
    assert chr(chat.end_of_turn) == expected
    assert chat.answer("ab") == [ord("a"), ord("b"), ord(expected)]


def test_the_special_tokens_reach_the_template() -> None:
    chat = letters("[{{ bos_token }}]{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", "$")
    assert chat.prompt([{"role": "user", "content": "a"}]) == [ord(c) for c in "[]a$"]


def test_a_template_without_the_answers_is_refused() -> None:
    with pytest.raises(TemplateError, match="leaves out the assistant's message"):
        letters("{{ messages[0].content }}", "$")
    with pytest.raises(TemplateError, match="does not compile"):
        letters("{% for %}", "$")
