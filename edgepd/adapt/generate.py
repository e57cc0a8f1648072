"""Answers to many prompts at once, decoded several at a time.

The idea: one decode step with eight answers costs little more than with one, so as many run side by side, and a place
that becomes free is taken by the next prompt. The invariant: an answer depends on its own prompt and choices alone.
What this does not do: render prompts, or serve (the daemon's engine does).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgepd.errors import EdgepdError
from edgepd.llama import Context, Entry, LoraAdapter, Model

SEQUENCES = 8
CONTEXT_UNIT = 256  # llama.cpp pads the sum of all contexts to this, then rounds each one down

Choose = Callable[[npt.NDArray[np.float32], int], int]  # the next token, from logits (V,) and the number of the prompt


@dataclass
class Answer:
    """An answer: its tokens without the one that ended it, and whether there was one before the limit."""

    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    def text(self, model: Model) -> str:
        """Return the text. A cut may lie inside a character, whose first bytes are dropped."""
        return b"".join(map(model.piece, self.tokens)).decode("utf-8", errors="ignore")


class _Draft:
    """An answer that is being generated."""

    def __init__(self, number: int, prompt: Sequence[int], limit: int) -> None:
        self.number = number
        self.prompt = prompt
        self.limit = limit
        self.answer = Answer()

    def extend(self, token: int, *, ends: bool) -> bool:
        """Take in the next token; return whether that was the last."""
        self.answer.ended = ends
        if not ends:
            self.answer.tokens.append(token)
        return ends or len(self.answer.tokens) == self.limit


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    choose: Choose,
    threads: int,
    *,
    adapter: LoraAdapter | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Return an answer to each prompt, of at most so many tokens (at least 1) each.

    After each decode step `progress` is called with how many answers of how many are done. Raises ModelError if
    llama.cpp fails.
    """
    if not prompts:
        return []
    drafts = [_Draft(n, prompt, limit) for n, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))]
    longest = max(len(draft.prompt) for draft in drafts)
    sequences = min(SEQUENCES, len(drafts))
    with Context(
        model,
        context_tokens=-(-(longest + max(limits)) // CONTEXT_UNIT) * CONTEXT_UNIT,
        sequences=sequences,
        batch_tokens=longest + sequences,
        threads=threads,
    ) as context:
        context.set_adapter(adapter)
        desk = _Desk(context, drafts, sequences)
        while desk.busy:
            desk.step(choose, model)
            if progress is not None:
                progress(desk.done, len(drafts))
    return [draft.answer for draft in drafts]


class _Desk:
    """The answers that are being generated, those that wait for a place, and the places that are free."""

    def __init__(self, context: Context, drafts: Sequence[_Draft], sequences: int) -> None:
        self.done = 0
        self._context = context
        self._waiting = deque(drafts)
        self._running: dict[int, _Draft] = {}
        self._free = list(range(sequences))

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._waiting or self._running)

    def step(self, choose: Choose, model: Model) -> None:
        """Decode one batch, and extend each answer by the token that follows."""
        entries = self._entries()
        if not self._context.decode(entries):
            raise EdgepdError("generating answers was interrupted")
        for index, entry in enumerate(entries):
            if entry.wants_output:
                draft = self._running[entry.sequence]
                token = choose(self._context.logits(index), draft.number)
                if draft.extend(token, ends=model.is_end(token)):
                    del self._running[entry.sequence]
                    self._free.append(entry.sequence)
                    self.done += 1

    def _entries(self) -> list[Entry]:
        """Return the last token of each answer, and the prompt that comes next if there is a place for it."""
        entries = [
            Entry(d.answer.tokens[-1], len(d.prompt) + len(d.answer.tokens) - 1, sequence, True)
            for sequence, d in self._running.items()
        ]
        if self._waiting and self._free:  # one prompt per step, so that a batch has room for it
            sequence, draft = self._free.pop(), self._waiting.popleft()
            self._running[sequence] = draft
            self._context.forget(sequence)
            last = len(draft.prompt) - 1
            entries += [Entry(token, i, sequence, i == last) for i, token in enumerate(draft.prompt)]
        return entries
