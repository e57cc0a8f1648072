"""One loaded model file with its KV cache, its adapters and the answers that are being generated with it.

The idea: a host has a fixed number of slots, each one a llama.cpp sequence. A step takes one version (an adapter or
none), gathers the next tokens of all its answers and pieces of its prompts into one batch, and runs it. Invariants:
a batch never mixes versions; what a slot has in its KV cache is always a beginning of its answer's history, whatever
was interrupted.
What this does not do: decide which version steps next, or wait for anything. Only the engine thread calls it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from edgepd.chat import ChatFormat, MakeTemplate
from edgepd.errors import EdgepdError, RequestError
from edgepd.llama import Context, Entry, LoraAdapter, Model
from edgepd.llama.memory import trim
from edgepd_daemon.engine.embedder import Embedder, EmbedJob, Vector
from edgepd_daemon.engine.governor import Governor
from edgepd_daemon.engine.sampler import NO_TOKEN, Sampler, score
from edgepd_daemon.engine.saved import SavedStates
from edgepd_daemon.engine.slots import Answer, Place, Slot, place, place_ahead
from edgepd_daemon.engine.text import TextStream
from edgepd_daemon.engine.types import Counters, EngineSizes, Event, Failed, Finished, Request, Text, Version

# Tokens that a shift keeps in front. Attention collapses onto the first few (StreamingLLM, arXiv 2309.17453, §3).
SINK_TOKENS = 4


class ModelHost:
    """A model file, loaded and ready to generate."""

    def __init__(
        self,
        path: Path,
        sizes: EngineSizes,
        counters: Counters,
        make_template: MakeTemplate,
        progress: Callable[[float], None],
    ) -> None:
        """Load the model and allocate its KV cache. Raises ModelError or TemplateError. May run on any thread."""
        self.path = path
        self.sizes = sizes
        self.model = Model(path, progress=progress)
        try:
            self.facts = self.model.facts()
            self.chat = ChatFormat(self.model, make_template)
            self.context = Context(
                self.model,
                context_tokens=sizes.context_tokens,
                sequences=sizes.slots,
                batch_tokens=sizes.batch_tokens,
                threads=sizes.threads,
                kv_type=sizes.kv_type,
            )
        except EdgepdError:
            self.model.close()
            raise
        self.embedder = Embedder(self.model, sizes)
        self.slots = [Slot(i) for i in range(sizes.slots)]
        self.adapters: dict[Path, LoraAdapter] = {}
        self._adapter_used_at: dict[Path, float] = {}
        self.keep_alive: float | None = None  # what the last request asked for, in seconds
        self.used_at = self.touched_at = time.monotonic()  # by a request; by anybody who needs its tokenizer
        self._counters = counters
        self._governor = Governor(sizes.threads)
        self._threads = sizes.threads  # that the context uses

    def load_adapter(self, path: Path) -> None:
        """Load an adapter file beside the model, once. Raises AdapterError."""
        if path not in self.adapters:
            self.adapters[path] = LoraAdapter(self.model, path)
        self._adapter_used_at[path] = time.monotonic()

    def release_adapters(self, keep: set[Path], unused_since: float = math.inf) -> None:
        """Free the adapters that are not in `keep`, and that no running answer and nobody since then has used."""
        in_use = {s.answer.request.version.adapter for s in self.slots if s.answer} | keep
        old = [p for p in self.adapters if p not in in_use and self._adapter_used_at[p] < unused_since]
        for path in old:
            adapter = self.adapters.pop(path)
            if self.context.adapter is adapter:
                self.context.set_adapter(None)
            adapter.close()

    def free_slots(self) -> int:
        """Return how many further answers can be admitted."""
        return sum(s.answer is None for s in self.slots)

    def active_versions(self) -> list[Version]:
        """Return the versions with running answers, each once. Any thread."""
        answers = [s.answer for s in self.slots]
        return list(dict.fromkeys(a.request.version for a in answers if a is not None))

    def admit(self, request: Request, submitted: float) -> None:
        """Start an answer in the slot that serves it best; tell the request if it cannot be started."""
        try:
            sampler = Sampler(request.sampling, self.model, request.grammar, never_ends=request.ignore_end)
        except RequestError as error:
            request.emit(Failed(error))
            return
        sampler.prime(request.prompt)
        self._start(request, sampler, submitted, place(self.slots, request))
        self.keep_alive = request.keep_alive

    def warm(self, request: Request) -> bool:
        """Begin to compute a prompt that nobody waits for; return False if it is there, or no slot can be spared."""
        now = time.monotonic()
        chosen = place_ahead(self.slots, request, now)
        if chosen is None:
            return False
        self._start(request, Sampler(request.sampling, self.model, None), now, chosen)
        return True

    def warms(self) -> bool:
        """Whether a prompt that nobody waits for is being computed. Any thread."""
        return any(_in_background(s.answer) for s in self.slots)

    def end_background(self) -> None:
        """End what nobody waits for; what was computed of it stays."""
        for slot in self.slots:
            if _in_background(slot.answer):
                self.end(slot, "cancelled")

    def _start(self, request: Request, sampler: Sampler, submitted: float, chosen: Place) -> None:
        slot = chosen.slot
        slot.version = request.version
        slot.private = not request.persist
        slot.awaits = chosen.awaits
        slot.answer = Answer(
            request=request,
            sampler=sampler,
            text=TextStream(request.stop),
            submitted=submitted,
            admitted=time.monotonic(),
            cached_tokens=0,
            history=list(request.prompt),
            ahead=slot.ahead,
        )
        slot.ahead = request.background
        self._fill(slot, chosen.source, chosen.cached)

    def _fill(self, slot: Slot, source: Slot | None, cached: int) -> None:
        """Make the slot's cache hold the first `cached` tokens of its answer's history, copied from `source`."""
        if slot.answer is None:
            return
        if source is not None:
            self.context.copy(source.index, slot.index)
        slot.tokens = slot.answer.history[: self._forget_after(slot, cached)]
        slot.answer.cached_tokens = len(slot.tokens)

    def _forget_after(self, slot: Slot, kept: int) -> int:
        """Drop a slot's cells after the first `kept`; return how many are left, none where only all can be dropped."""
        if self.context.forget(slot.index, kept):
            return kept
        self.context.forget(slot.index)
        return 0

    def step(self, version: Version) -> None:
        """Run one batch for `version`. Raises ModelError."""
        self._switch(version)
        slots = [s for s in self.slots if s.answer and s.answer.request.version == version]
        self._copy_awaited(slots)
        entries, outputs = self._gather([s for s in slots if s.awaits is None])
        if not all(_in_background(s.answer) for s in slots):
            self.used_at = time.monotonic()
        if not entries:
            return
        if not self._decode(entries, only_decoding=len(outputs) == len(entries)):
            for slot in {e.sequence: self.slots[e.sequence] for e in entries}.values():
                del slot.tokens[self._forget_after(slot, len(slot.tokens)) :]
            return
        for entry in entries:
            self.slots[entry.sequence].tokens.append(entry.token)
        for slot in slots:
            if slot.answer and _in_background(slot.answer) and len(slot.tokens) == len(slot.answer.history):
                self.end(slot, "length")
        # All tokens are drawn before any is told: a listener that wakes up would take the interpreter lock in between.
        drawn = [
            (slot, index, slot.answer.sampler.sample(self.context, index)) for slot, index in outputs if slot.answer
        ]
        for slot, index, token in drawn:
            self._take(slot, index, token)
        self._counters.tokens_generated += len(outputs)

    def _decode(self, entries: list[Entry], *, only_decoding: bool) -> bool:
        """Run a batch with as many threads as the governor says, and tell it how long that took."""
        self._use_threads(self._governor.threads if only_decoding else self._governor.settled)
        wall, cpu = time.perf_counter(), time.process_time()
        decoded = self.context.decode(entries)
        if only_decoding and decoded and self.sizes.adapt_threads:
            self._governor.observe(len(entries), time.perf_counter() - wall, time.process_time() - cpu)
        return decoded

    def _use_threads(self, threads: int) -> None:
        if threads != self._threads:
            self.context.set_threads(threads)
            self._threads = threads

    def _switch(self, version: Version) -> None:
        wanted = self.adapters[version.adapter] if version.adapter else None
        if version.adapter:
            self._adapter_used_at[version.adapter] = time.monotonic()
        if (wanted, version.scale if wanted else 1.0) == (self.context.adapter, self.context.scale):
            return
        started = time.monotonic()
        self.context.set_adapter(wanted, version.scale if wanted else 1.0)
        self._counters.last_switch_ms = (time.monotonic() - started) * 1000
        self._counters.switches += 1

    def _copy_awaited(self, slots: list[Slot]) -> None:
        """Give the slots that waited for a neighbour's prefill a copy of it."""
        for slot in slots:
            if slot.awaits is None or slot.answer is None or not slot.awaits.done:
                continue
            neighbour, slot.awaits = slot.awaits.slot, None
            there = neighbour.reusable(slot.answer.request)
            if there > len(slot.tokens):
                self._fill(slot, neighbour, there)

    def _gather(self, slots: list[Slot]) -> tuple[list[Entry], list[tuple[Slot, int]]]:
        """Return the batch, and the slots that get a new token with the index of the entry that gives it."""
        decoding = [s for s in slots if s.answer and s.answer.decoding]
        prefilling = [s for s in slots if s.answer and not s.answer.decoding]
        entries: list[Entry] = []
        outputs: list[tuple[Slot, int]] = []
        for slot in decoding + prefilling:
            # Answers that are under way come first; the prompts share what is left, and take a smaller share of
            # the time when somebody is reading: a long prompt must not make the others' text stutter.
            room = self.context.batch_tokens - len(entries)
            if slot in prefilling:
                # In small pieces too if nobody waits for it: what is interrupted is lost, and somebody may come.
                share = self._prefill_room(bool(decoding) or _in_background(slot.answer))
                room = min(room, max(1, share // len(prefilling)))
            taken = _next_entries(slot, room)
            entries += taken
            if taken and taken[-1].wants_output:
                outputs.append((slot, len(entries) - 1))
        return entries, outputs

    def _prefill_room(self, others_decode: bool) -> int:
        return max(1, self.context.batch_tokens // 4) if others_decode else self.context.batch_tokens

    def _take(self, slot: Slot, index: int, token: int) -> None:
        """Add the token that was drawn to a slot's answer, emit its text, and end the answer where it ends."""
        answer = slot.answer
        if answer is None:
            return
        request = answer.request
        if answer.first_token is None:
            answer.first_token = time.monotonic()
        if token == NO_TOKEN:
            self.abandon(slot, Failed(RequestError("no token continues the answer as the grammar wants it")))
            return
        if self.model.is_end(token):
            self.end(slot, "stop")
            return
        answer.history.append(token)
        answer.completion_tokens += 1
        answer.pending_tokens += 1
        if request.logprobs is not None:
            answer.scored.append(score(self.model, self.context.logits(index), token, request.logprobs))
        _emit_text(answer, answer.text.feed(self._shown(token, request.markers)))
        if answer.text.stopped is not None:
            self.end(slot, "stop")
        elif answer.completion_tokens >= request.max_tokens or not self._has_room(slot):
            self.end(slot, "length")

    def _shown(self, token: int, markers: tuple[str, ...]) -> bytes:
        """Return the bytes that a token adds to the text: those of a control token only if it is a marker."""
        piece = self.model.piece(token)
        if not piece and markers:
            special = self.model.piece(token, special=True)
            return special if special.decode(errors="replace") in markers else piece
        return piece

    def _has_room(self, slot: Slot) -> bool:
        """Say whether the slot can take another token; shift its cache if the request allows it and it must."""
        window = self.sizes.context_tokens
        if len(slot.tokens) + 1 < window:
            return True
        if slot.answer is None or not slot.answer.request.shift:
            return False
        dropped = (len(slot.tokens) - SINK_TOKENS) // 2
        if dropped < 1 or not self.context.shift(slot.index, SINK_TOKENS, SINK_TOKENS + dropped):
            return False
        for tokens in (slot.tokens, slot.answer.history):
            del tokens[SINK_TOKENS : SINK_TOKENS + dropped]
        # What is left was computed in the sight of what is gone: nobody else may use it.
        slot.version = None
        return True

    def end(self, slot: Slot, reason: str) -> None:
        """Finish the answer in `slot`: flush its text, report its timings, keep its cache for the next turn."""
        answer = slot.answer
        if answer is None:
            return
        _emit_text(answer, answer.text.finish(), last=True)
        self._vacate(slot, Finished(reason, answer.timings(time.monotonic()), answer.text.stopped))

    def abandon(self, slot: Slot, event: Event) -> None:
        """End the answer in `slot` with `event` and drop its cache, whose state is not known any more."""
        self.context.forget(slot.index)
        slot.tokens = []
        self._vacate(slot, event)

    def _vacate(self, slot: Slot, event: Event) -> None:
        answer = slot.answer
        slot.answer = slot.awaits = None
        if not _in_background(answer):
            slot.used_at = self.used_at = time.monotonic()
        if answer is not None:
            answer.sampler.close()
            if not _in_background(answer):
                self._counters.prompt_tokens += len(answer.request.prompt)
                self._counters.cached_tokens += answer.cached_tokens
            answer.request.emit(event)

    def save_states(self, saved: SavedStates) -> None:
        """Write the conversations in the KV cache to disk."""
        if self.context.copying:
            return  # some slot's cells are not there yet; a cache may be lost
        for slot in sorted(self.slots, key=lambda s: s.used_at):
            if slot.version and slot.tokens and not slot.private and slot.answer is None:
                saved.save(slot.version, slot.tokens, self.context.state(slot.index))

    def restore_states(self, saved: SavedStates, version: Version) -> None:
        """Fill empty slots with conversations of `version` from disk."""
        empty = [s for s in self.slots if s.answer is None and not s.tokens]
        for slot, (tokens, state) in zip(empty, saved.load(version, len(empty)), strict=False):
            if self.context.restore(slot.index, state):
                slot.version, slot.tokens, slot.used_at = version, tokens, time.monotonic()

    def keep_private(self, request: Request) -> None:
        """Do not save the conversation of a request that is being answered."""
        for slot in self.slots:
            if slot.answer is not None and slot.answer.request is request:
                slot.private = True

    def forget_conversations(self) -> None:
        """Drop every conversation from the KV cache; one that is being answered goes on, but is not saved."""
        for slot in self.slots:
            if slot.answer is not None:
                slot.private = True
            elif slot.tokens:
                self.context.forget(slot.index)
                slot.tokens, slot.version = [], None

    def embed(
        self,
        inputs: list[list[int]],
        future: Future[list[Vector]],
        keep_alive: float | None,
        observe: Callable[[Vector], None] | None = None,
    ) -> None:
        """Queue inputs to embed."""
        self.used_at = time.monotonic()
        self.keep_alive = keep_alive
        self.embedder.push(EmbedJob(inputs, future, observe))

    def set_threads(self, threads: int) -> None:
        """Use `threads` from the next step on."""
        self._governor = Governor(threads)
        self.embedder.set_threads(threads)

    def prefills(self, request: Request) -> bool:
        """Whether the prompt of a request is being computed. Any thread."""
        answers = [s.answer for s in self.slots]
        return any(a is not None and a.request is request and not a.decoding for a in answers)

    def interrupt(self) -> None:
        """Stop the batch that is running. Any thread."""
        self.context.interrupt()
        self.embedder.interrupt()

    def close(self) -> None:
        """Free the adapters, the contexts and the model, in this order."""
        self.embedder.close()
        self.release_adapters(set())
        self.context.close()
        for adapter in self.adapters.values():
            adapter.close()
        self.model.close()
        trim()


def _next_entries(slot: Slot, room: int) -> list[Entry]:
    """Return the next tokens of a slot's history that are not in its cache, at most `room`."""
    if slot.answer is None:
        return []
    history, at = slot.answer.history, len(slot.tokens)
    end = min(at + room, len(history))
    last = None if _in_background(slot.answer) else len(history) - 1  # whose logits give the first token
    return [Entry(history[i], i, slot.index, i == last) for i in range(at, end)]


def _in_background(answer: Answer | None) -> bool:
    return answer is not None and answer.request.background


def _emit_text(answer: Answer, text: str, *, last: bool = False) -> None:
    if not text and not (last and answer.scored):
        return
    answer.request.emit(Text(text, answer.pending_tokens, tuple(answer.scored)))
    answer.pending_tokens = 0
    answer.scored = []
