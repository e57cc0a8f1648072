"""From an exchange to token ids with a mark where supervision starts.

The idea: prompt and answer are tokenised by the same code that serving uses, and only the answer and its
end-of-turn token are supervised. The invariant: a prompt token is never a target.
What this does not do: truncate; an example that does not fit is skipped with the reason, because half an
answer teaches the wrong ending.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgepd.errors import TrainingError
from edgepd.messages import Message


class Format(Protocol):
    """The part of edgepd.chat.ChatFormat that is needed here."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of the conversation so far, ready for the assistant's turn."""

    def answer(self, text: str) -> list[int]:
        """Return the tokens of an answer, the end-of-turn token included."""


@dataclass(frozen=True)
class Example:
    """One exchange to learn from, as job.JobExample."""

    id: str
    messages: Sequence[Message]
    response: str
    weight: float = 1.0
    rejected: str | None = None
    desirable: bool = True
    reward: float = 0.0
    conversation: str = ""


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example; tokens[supervised_from:] are the targets, each of this weight.

    `rejected` holds the tokens of the same prompt with the answer that is wanted less.
    """

    id: str
    tokens: tuple[int, ...]
    supervised_from: int
    weight: float = 1.0
    rejected: tuple[int, ...] | None = None
    desirable: bool = True

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return len(self.tokens) - self.supervised_from


@dataclass(frozen=True)
class Batch:
    """The examples of one optimiser step. General ones (the paper's D_G) are imitated, whatever the objective."""

    examples: tuple[Encoded, ...]
    general: bool = False


@dataclass(frozen=True)
class Skipped:
    """An example that is not trained on, and why."""

    id: str
    reason: str


def encode(chat: Format, example: Example, max_tokens: int) -> Encoded:
    """Encode one example. Raises TrainingError with the reason if it is empty or longer than max_tokens."""
    if not example.response.strip():
        raise TrainingError(f"example {example.id}: the answer is empty")
    prompt, answer = chat.prompt(example.messages), chat.answer(example.response)
    rejected = None if example.rejected is None else (*prompt, *chat.answer(example.rejected))
    length = max(len(prompt) + len(answer), len(rejected or ()))
    if length > max_tokens:
        raise TrainingError(f"example {example.id}: {length} tokens exceed the training limit of {max_tokens}")
    return Encoded(example.id, (*prompt, *answer), len(prompt), example.weight, rejected, example.desirable)


def encode_all(chat: Format, examples: Iterable[Example], max_tokens: int) -> tuple[list[Encoded], list[Skipped]]:
    """Encode what can be encoded, in order, and say what was skipped and why."""
    encoded: list[Encoded] = []
    skipped: list[Skipped] = []
    for example in examples:
        try:
            encoded.append(encode(chat, example, max_tokens))
        except TrainingError as error:
            skipped.append(Skipped(example.id, str(error)))
    return encoded, skipped
