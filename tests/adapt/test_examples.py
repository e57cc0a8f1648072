"""Run: python -m pytest tests/adapt/test_examples.py"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from edgepd.adapt.batches import epoch_batches, micro_batches
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded, Example, encode, encode_all
from edgepd.adapt.objectives import SFT
from edgepd.chat import ChatFormat
from edgepd.errors import TrainingError
from edgepd.llama import Model
from edgepd.messages import Message
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType
from tests.tiny_gguf import tiny_llama


class ByteFormat:
    """Ids are bytes; `u:` and `a:` name who speaks, token 256 ends a turn."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        turns = [[*f"{message['role'][0]}:{message['content']}".encode(), 256] for message in messages]
        return [*(token for turn in turns for token in turn), *b"a:"]

    def answer(self, text: str) -> list[int]:
        return [*text.encode(), 256]


def example(response: str, name: str = "x") -> Example:
    return Example(name, [{"role": "user", "content": "hi"}], response, 0.5)


def test_only_the_answer_and_its_end_are_supervised() -> None:
    encoded = encode(ByteFormat(), example("yo"), 100)
    assert encoded == Encoded("x", (*b"u:hi", 256, *b"a:", *b"yo", 256), 7, 0.5)
    assert encoded.supervised == 3


def test_the_prompt_is_the_one_that_is_served(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m.gguf", qtype=GGMLType.Q4_0, seed=0)
    with Model(path, vocab_only=True) as model:
        encoded = encode(ChatFormat(model), example("hello <|im_end|>"), 200)
        prompt = model.tokenize("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", special=True)
    assert list(encoded.tokens[: encoded.supervised_from]) == prompt
    assert prompt[0] == 1
    # A control token's name in the answer is text; only the appended end of turn (token 2) is that token.
    assert encoded.tokens[encoded.supervised_from :].count(2) == 1
    assert encoded.tokens[-1] == 2


CONVERSATION = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "and then"},
    {"role": "user", "content": "the other"},
]


def test_no_gradient_comes_from_what_system_user_or_an_earlier_answer_said(tmp_path: Path) -> None:
    """Of the states after each token, only those that predict the answer and its end are moved."""
    path = tiny_llama(tmp_path / "m.gguf", qtype=GGMLType.Q4_0, seed=0)
    with Model(path, vocab_only=True) as vocabulary:
        encoded = encode(ChatFormat(vocabulary), Example("x", CONVERSATION, "he and"), 300)
        answer = vocabulary.tokenize("he and", special=False)
    assert encoded.tokens[encoded.supervised_from :] == (*answer, 2)
    states: list[torch.Tensor] = []
    with GGUFFile.open(path) as model:
        decoder = Decoder(model)
        decoder.adapt("lora", rank=2, alpha=4.0, seed=0)
        hidden = decoder.hidden

        def watched(sequences: Sequence[Sequence[int]]) -> torch.Tensor:
            states.append(hidden(sequences))
            states[-1].retain_grad()
            return states[-1]

        decoder.hidden = watched  # type: ignore[method-assign]
        for part in SFT().parts(decoder, [encoded], 0):
            torch.autograd.backward(part)
    assert len(states) == 1
    grad = states[0].grad
    assert grad is not None
    moved = (grad.abs().sum(1) > 0).tolist()
    before = len(encoded.tokens) - len(answer) - 1
    assert moved == [False] * (before - 1) + [True] * (len(answer) + 1)


def test_a_rejected_answer_follows_the_same_prompt() -> None:
    edit = Example("x", [{"role": "user", "content": "hi"}], "yes", rejected="no!!!", desirable=True)
    encoded = encode(ByteFormat(), edit, 100)
    assert encoded.rejected == (*b"u:hi", 256, *b"a:", *b"no!!!", 256)
    assert encoded.tokens[:7] == encoded.rejected[:7]
    assert encoded.supervised_from == 7
    with pytest.raises(TrainingError, match="13 tokens exceed the training limit of 12"):
        encode(ByteFormat(), edit, 12)
    assert not encode(ByteFormat(), Example("x", [], "no", desirable=False), 100).desirable


def test_what_does_not_fit_is_skipped_with_the_reason() -> None:
    examples = [example("yo", "fits"), example("y" * 50, "long"), example("  ", "empty")]
    encoded, skipped = encode_all(ByteFormat(), examples, 20)
    assert [e.id for e in encoded] == ["fits"]
    assert [(s.id, s.reason) for s in skipped] == [
        ("long", "example long: 58 tokens exceed the training limit of 20"),
        ("empty", "example empty: the answer is empty"),
    ]
    with pytest.raises(TrainingError, match="58 tokens"):
        encode(ByteFormat(), examples[1], 57)


def test_micro_batches_hold_like_lengths_within_the_budget() -> None:
    examples = [Encoded(str(n), tuple(range(n)), 1) for n in (9, 3, 30, 4, 10)]
    lengths = [[len(e.tokens) for e in micro] for micro in micro_batches(examples, 20)]
    assert lengths == [[3, 4], [9, 10], [30]]


def test_epoch_batches_are_even_and_follow_from_seed_and_epoch() -> None:
    examples = [Encoded(str(n), (1, 2), 1) for n in range(9)]
    first = epoch_batches(examples, 4, seed=0, epoch=1)
    assert [len(batch) for batch in first] == [3, 3, 3]
    assert sorted(e.id for batch in first for e in batch) == [str(n) for n in range(9)]
    assert first == epoch_batches(examples, 4, seed=0, epoch=1)
    assert first != epoch_batches(examples, 4, seed=0, epoch=2)
