"""A conversation as the REPL keeps it: questions, answers, and what a request for the next answer holds.

The invariants: the history holds only turns that have an answer, so what is sent always alternates; what was said
incognito is sent incognito only, because the messages of a request are stored with its answer.
What this does not do: talk to the daemon, or to the user.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgepd.client import Json
from edgepd.errors import RequestError

Message = dict[str, str]
APP = "cli"  # what edgepd's own commands call themselves
INCOGNITO: Json = {"store": False, "personal": False}


@dataclass
class Turn:
    """One question and its answer. `interaction_id` is None if the daemon did not store it, as when `incognito`."""

    question: str
    answer: str = ""
    interaction_id: str | None = None
    generation: int | None = None
    model: str | None = None
    finish_reason: str | None = None
    timings: Json = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    incognito: bool = False

    def take(self, chunk: Json) -> str:
        """Add a chunk of a streamed answer and return its text."""
        choice = chunk["choices"][0]
        piece = str(choice["delta"].get("content") or "")
        self.answer += piece
        self.interaction_id = chunk.get("interaction_id") or self.interaction_id
        self.generation = self.generation if chunk.get("generation") is None else chunk["generation"]
        self.model = chunk.get("model") or self.model
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.timings = chunk.get("timings") or self.timings
        self.warnings = chunk.get("warnings") or self.warnings
        return piece


@dataclass
class Conversation:
    """The turns so far, oldest first. `failed` is a question that got no answer, and the turns before it.

    While `incognito`, nothing is stored and nothing of the profile is used.
    """

    model: str = "default"
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    turns: list[Turn] = field(default_factory=list)
    failed: tuple[str, list[Turn]] | None = None
    incognito: bool = False

    def request(self, question: str, turns: Sequence[Turn]) -> Json:
        """Return the request for an answer to `question` after `turns`."""
        request: Json = {"model": self.model, "app": APP, "conversation": self.id}
        request["messages"] = [*self._messages(turns), {"role": "user", "content": question}]
        if self.temperature is not None:
            request["temperature"] = self.temperature
        if self.max_tokens is not None:
            request["max_tokens"] = self.max_tokens
        return request | (INCOGNITO if self.incognito else {})

    def base_request(self) -> Json:
        """Return the request for the base model's answer to the last question, without anything learned of the user."""
        last = self.turns[-1]
        return self.request(last.question, self.turns[:-1]) | {"model": "base"} | INCOGNITO

    def turn(self, question: str) -> Turn:
        """Return a turn whose answer is still to come."""
        return Turn(question, incognito=self.incognito)

    def toggle_incognito(self) -> bool:
        """Begin or end incognito, and return whether it has begun. At its end the turns said in it are dropped."""
        self.incognito = not self.incognito
        if not self.incognito:
            self.turns = [turn for turn in self.turns if not turn.incognito]
            self.failed = None  # it may have been asked incognito, or after such turns
        return self.incognito

    def drop(self, turn: Turn) -> None:
        """Take a turn out, also from what a failed question would be asked again after."""
        self.turns = [each for each in self.turns if each is not turn]
        if self.failed is not None:
            question, before = self.failed
            self.failed = (question, [each for each in before if each is not turn])

    def resume(self, interaction: Json) -> None:
        """Take over the history that ends with `interaction`, which carries its feedback.

        Raises RequestError for one that other programs made and that is more than questions and answers.
        """
        messages = list(interaction["messages"])
        if messages and messages[0]["role"] == "system":
            system = messages.pop(0)["content"]
            self.system = system if self.system is None else self.system
        if [message["role"] for message in messages] != _alternating(len(messages)):
            raise RequestError(
                f"conversation '{self.id}' is not just questions and answers, so it cannot be gone on with here"
            )
        # Pairs of question and answer, then the last question, whose answer is the interaction's response.
        for asked, answered in zip(messages[:-1:2], messages[1::2], strict=True):
            self.turns.append(Turn(asked["content"], answered["content"]))
        edits = [feedback["text"] for feedback in interaction["feedback"] if feedback["kind"] == "edit"]
        answer = edits[-1] if edits else interaction["response"]
        self.turns.append(Turn(messages[-1]["content"], answer, interaction["id"], interaction["generation"]))

    def _messages(self, turns: Sequence[Turn]) -> list[Message]:
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return messages


def _alternating(count: int) -> list[str]:
    """Return the roles of so many messages, of which the first and the last are the user's."""
    return ["user", *["assistant", "user"] * (count // 2)]


def as_json(turn: Turn) -> dict[str, Any]:
    """Return what `edgepd chat --json` prints for an answer."""
    return {"event": "answer", **{name: value for name, value in vars(turn).items() if name != "question"}}
