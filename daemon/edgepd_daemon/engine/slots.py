"""Slots: what each sequence of a context has in its KV cache, who uses it, and which one serves a request best.

The idea: a request continues in the slot that holds the beginning of its prompt. If that would throw away another
conversation, or the slot is busy, the common beginning is copied into a slot that can be spared. The invariant: the
cells of a slot are those of `tokens`, all computed with `version`, so they serve requests of that version only.
What this does not do: touch llama.cpp.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgepd_daemon.engine.sampler import Sampler
from edgepd_daemon.engine.text import TextStream
from edgepd_daemon.engine.types import Request, ScoredToken, Timings, Version

WORTH_COPYING = 32  # tokens; a copy moves a slot's whole cache, which takes as long as prefilling about this many
WORTH_WAITING = 64  # tokens that a neighbour is prefilling just now and that need not be prefilled twice
SPARE_S = 60.0  # a conversation that nobody has gone on with for so long makes room for a prompt that is computed ahead
SPARE_NEWEST_S = 600.0  # the same for the one that was used last


@dataclass(eq=False)
class Answer:
    """An answer that is being generated in a slot."""

    request: Request
    sampler: Sampler
    text: TextStream
    submitted: float  # monotonic seconds, as all times here
    admitted: float
    cached_tokens: int
    history: list[int]  # the prompt and what was generated; the KV cache holds a beginning of it
    ahead: bool = False  # whether the cached tokens were computed ahead
    completion_tokens: int = 0
    first_token: float | None = None
    pending_tokens: int = 0  # generated since the last text was emitted
    scored: list[ScoredToken] = field(default_factory=list)  # the same tokens with their scores, if asked for

    @property
    def decoding(self) -> bool:
        """Whether the prompt is done."""
        return self.first_token is not None

    def timings(self, now: float) -> Timings:
        """Return what the answer has cost so far."""
        first = self.first_token if self.first_token is not None else now
        return Timings(
            prompt_tokens=len(self.request.prompt),
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
            queue_ms=(self.admitted - self.submitted) * 1000,
            ttft_ms=(first - self.submitted) * 1000,
            decode_ms=(now - first) * 1000,
            ahead_tokens=self.cached_tokens if self.ahead else 0,
        )


@dataclass
class Slot:
    """One sequence of the context."""

    index: int
    version: Version | None = None
    tokens: list[int] = field(default_factory=list)
    answer: Answer | None = None
    used_at: float = 0.0
    private: bool = False  # holds text that must not be written to disk
    ahead: bool = False  # holds a prompt that was computed ahead, and that nobody has asked for yet
    awaits: Awaited | None = None

    def reusable(self, request: Request) -> int:
        """Return how many tokens of the request's prompt this slot's cache already holds."""
        if self.version != request.version or not request.reuse_cache:
            return 0
        return common(self.tokens, request.prompt)

    def expected(self, request: Request) -> int:
        """Return how many it will hold once the answer in it has its prompt done."""
        if self.answer is None or self.version != request.version or not request.reuse_cache:
            return 0
        return common(self.answer.request.prompt, request.prompt)


@dataclass(frozen=True)
class Awaited:
    """A slot that is prefilling the first `tokens` tokens of the same prompt."""

    slot: Slot
    answer: Answer
    tokens: int

    @property
    def done(self) -> bool:
        """Whether they are there, or will never be."""
        return self.slot.answer is not self.answer or len(self.slot.tokens) >= self.tokens


@dataclass(frozen=True)
class Place:
    """Where a request goes: the slot, how much of its prompt is there, and the slot to copy that from."""

    slot: Slot
    cached: int
    source: Slot | None = None
    awaits: Awaited | None = None


def place(slots: Sequence[Slot], request: Request) -> Place:
    """Choose a slot for a request; at least one must be free."""
    free = [s for s in slots if s.answer is None]
    nearest = max(free, key=lambda s: (s.reusable(request), -s.used_at))
    here = nearest.reusable(request)
    spare = min(free, key=lambda s: (bool(s.tokens), s.used_at))
    source = max(slots, key=lambda s: s.reusable(request))
    there = source.reusable(request)
    # A continued conversation reuses most of what its slot holds. Otherwise that is somebody else's.
    continues = here > 0 and 2 * here >= len(nearest.tokens)
    if here >= there and (continues or spare is nearest):
        chosen = Place(nearest, here)
    elif there >= WORTH_COPYING and source is not spare:
        chosen = Place(spare, there, source)
    else:
        chosen = Place(spare, spare.reusable(request))
    return _after_neighbour(slots, request, chosen)


def place_ahead(slots: Sequence[Slot], request: Request, now: float) -> Place | None:
    """Choose a slot for a prompt that is computed ahead; all slots must be free. None: it is there, or none is spare.

    At most one slot is used so. Which conversation would be given up next does not change by it: the slot keeps the
    time at which somebody used it.
    """
    source = max(slots, key=lambda s: s.reusable(request))
    there = source.reusable(request)
    if len(request.prompt) - there <= WORTH_COPYING:
        return None
    newest = max((s.used_at for s in slots if s.tokens and not s.ahead), default=now)

    def spare(slot: Slot) -> bool:
        unused_s = now - slot.used_at
        return slot.ahead or not slot.tokens or unused_s > (SPARE_S if slot.used_at < newest else SPARE_NEWEST_S)

    chosen = min(filter(spare, slots), key=lambda s: (not s.ahead, bool(s.tokens), s.used_at), default=None)
    if chosen is None:
        return None
    if there >= WORTH_COPYING and source is not chosen:
        return Place(chosen, there, source)
    return Place(chosen, chosen.reusable(request))


def _after_neighbour(slots: Sequence[Slot], request: Request, chosen: Place) -> Place:
    """Let a request wait for a neighbour that is prefilling the same beginning just now."""
    neighbour = max((s for s in slots if s.answer), key=lambda s: s.expected(request), default=None)
    if neighbour is None or neighbour.answer is None or neighbour.answer.decoding:
        return chosen
    expected = neighbour.expected(request)
    if expected - chosen.cached < WORTH_WAITING:
        return chosen
    return Place(chosen.slot, chosen.cached, chosen.source, Awaited(neighbour, neighbour.answer, expected))


def common(held: list[int], prompt: list[int]) -> int:
    """Return the length of the common beginning, without the last token of the prompt.

    That one is always computed again: its logits start the answer.
    """
    return min(len(os.path.commonprefix([held, prompt])), len(prompt) - 1)
