"""One loaded model file with its KV cache, its adapters and the answers that are being generated with it.

The idea: a host has a fixed number of slots, each one a llama.cpp sequence. A step takes one version (an adapter or
none), gathers the next tokens of all its answers and pieces of its prompts into one batch, and runs it. Invariants:
a batch never mixes versions; a slot's KV cells were all computed with the slot's version, so the longest common
prefix may be reused by a request of the same version and by no other.
What this does not do: decide which version steps next, or wait for anything. Only the engine thread calls it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from edgepd.chat import ChatFormat
from edgepd.llama import Context, Entry, LoraAdapter, Model
from edgepd_daemon.engine.sampler import Sampler
from edgepd_daemon.engine.text import TextStream
from edgepd_daemon.engine.types import Event, Finished, Request, Text, Timings, Version


@dataclass(eq=False)
class Answer:
    """An answer that is being generated in a slot."""

    request: Request
    sampler: Sampler
    text: TextStream
    submitted: float  # monotonic seconds, as all times here
    admitted: float
    cached_tokens: int
    next_token: int | None = None  # sampled but not yet in the KV cache
    completion_tokens: int = 0
    first_token: float | None = None

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
        )


@dataclass
class Slot:
    """One sequence of the context: what its KV cache holds and who uses it."""

    index: int
    version: Version | None = None
    tokens: list[int] = field(default_factory=list)
    answer: Answer | None = None
    used_at: float = 0.0

    def reusable(self, request: Request) -> int:
        """Return how many tokens of the request's prompt this slot's cache already holds."""
        if self.version != request.version or not request.reuse_cache:
            return 0
        # The last prompt token is always computed again: its logits start the answer.
        return min(len(os.path.commonprefix([self.tokens, request.prompt])), len(request.prompt) - 1)


class ModelHost:
    """A model file, loaded and ready to generate."""

    def __init__(self, path: Path, *, slots: int, context_tokens: int, batch_tokens: int, threads: int) -> None:
        """Load the model and allocate its KV cache. Raises ModelError. May run on any thread."""
        self.path = path
        self.model = Model(path)
        self.chat = ChatFormat(self.model)
        self.context = Context(
            self.model,
            context_tokens=context_tokens,
            sequences=slots,
            batch_tokens=batch_tokens,
            threads=threads,
        )
        self.slots = [Slot(i) for i in range(slots)]
        self.adapters: dict[Path, LoraAdapter] = {}
        self.used_at = time.monotonic()
        self.switches = 0
        self.last_switch_ms = 0.0

    def load_adapter(self, path: Path) -> None:
        """Load an adapter file beside the model, once. Raises AdapterError."""
        if path not in self.adapters:
            self.adapters[path] = LoraAdapter(self.model, path)

    def release_adapters(self, keep: set[Path]) -> None:
        """Free the adapters that are neither in `keep` nor used by a running answer."""
        in_use = {s.answer.request.version.adapter for s in self.slots if s.answer} | keep
        for path in [p for p in self.adapters if p not in in_use]:
            adapter = self.adapters.pop(path)
            if self.context.adapter is adapter:
                self.context.set_adapter(None)
            adapter.close()

    def free_slots(self) -> int:
        """Return how many further answers can be admitted."""
        return sum(s.answer is None for s in self.slots)

    def active_versions(self) -> list[Version]:
        """Return the versions with running answers, each once."""
        return list(dict.fromkeys(s.answer.request.version for s in self.slots if s.answer))

    def admit(self, request: Request, submitted: float) -> None:
        """Start an answer in the free slot whose cache serves it best."""
        free = [s for s in self.slots if s.answer is None]
        slot = max(free, key=lambda s: (s.reusable(request), -s.used_at))
        cached = slot.reusable(request)
        if not self.context.forget(slot.index, cached):
            cached = 0
            self.context.forget(slot.index)
        slot.version = request.version
        slot.tokens = request.prompt[:cached]
        slot.answer = Answer(
            request=request,
            sampler=Sampler(request.sampling, self.model.n_vocab),
            text=TextStream(request.stop),
            submitted=submitted,
            admitted=time.monotonic(),
            cached_tokens=cached,
        )

    def step(self, version: Version) -> int:
        """Run one batch for `version`; return how many tokens were generated. Raises ModelError."""
        self._switch(version)
        slots = [s for s in self.slots if s.answer and s.answer.request.version == version]
        entries: list[Entry] = []
        sampling: list[tuple[Slot, int]] = []  # slot and the index of its last entry
        # Answers that are under way come first: a long prompt must not make them stutter.
        for slot in sorted(slots, key=lambda s: s.answer is None or s.answer.next_token is None):
            entries += self._next_entries(slot, self.context.batch_tokens - len(entries))
            if entries and entries[-1].sequence == slot.index and entries[-1].wants_logits:
                sampling.append((slot, len(entries) - 1))
        self.context.decode(entries)
        for entry in entries:
            self.slots[entry.sequence].tokens.append(entry.token)
        for slot, index in sampling:
            self._sampled(slot, index)
        self.used_at = time.monotonic()
        return len(sampling)

    def _switch(self, version: Version) -> None:
        wanted = self.adapters[version.adapter] if version.adapter else None
        if wanted is self.context.adapter:
            return
        started = time.monotonic()
        self.context.set_adapter(wanted, version.scale)
        self.last_switch_ms = (time.monotonic() - started) * 1000
        self.switches += 1

    def _next_entries(self, slot: Slot, room: int) -> list[Entry]:
        """Return the next tokens of a slot's answer or prompt, at most `room`."""
        assert slot.answer is not None  # noqa: S101 - the caller filtered; this is for the type checker
        at = len(slot.tokens)
        if slot.answer.next_token is not None:
            return [Entry(slot.answer.next_token, at, slot.index, True)][:room]
        prompt = slot.answer.request.prompt
        end = min(at + room, len(prompt))
        return [Entry(prompt[i], i, slot.index, i == len(prompt) - 1) for i in range(at, end)]

    def _sampled(self, slot: Slot, index: int) -> None:
        """Choose the next token of a slot's answer, emit its text, and end the answer where it ends."""
        answer = slot.answer
        if answer is None:
            return
        request = answer.request
        token = answer.sampler.sample(self.context, index)
        if answer.first_token is None:
            answer.first_token = time.monotonic()
        if self.model.is_end(token) and not request.ignore_end:
            self.end(slot, "stop")
            return
        answer.next_token = token
        answer.completion_tokens += 1
        _emit_text(request, answer.text.feed(self.model.piece(token)))
        if answer.text.stopped:
            self.end(slot, "stop")
        elif answer.completion_tokens >= request.max_tokens or len(slot.tokens) + 1 >= self.context.tokens_per_sequence:
            self.end(slot, "length")

    def end(self, slot: Slot, reason: str) -> None:
        """Finish the answer in `slot`: flush its text, report its timings, keep its cache for the next turn."""
        answer = slot.answer
        if answer is None:
            return
        now = time.monotonic()
        _emit_text(answer.request, answer.text.finish())
        self._vacate(slot, Finished(reason, answer.timings(now)))

    def abandon(self, slot: Slot, event: Event) -> None:
        """End the answer in `slot` with `event` and drop its cache, whose state is not known any more."""
        self.context.forget(slot.index)
        slot.tokens = []
        self._vacate(slot, event)

    def _vacate(self, slot: Slot, event: Event) -> None:
        answer = slot.answer
        slot.answer = None
        slot.used_at = self.used_at = time.monotonic()
        if answer is not None:
            answer.sampler.close()
            answer.request.emit(event)

    def close(self) -> None:
        """Free the adapters, the context and the model, in this order."""
        self.release_adapters(set())
        self.context.close()
        for adapter in self.adapters.values():
            adapter.close()
        self.model.close()


def _emit_text(request: Request, text: str) -> None:
    if text:
        request.emit(Text(text))
