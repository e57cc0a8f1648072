"""What goes into the engine and what comes out of it.

The idea: plain frozen records cross the thread boundary, nothing else. The invariant: every submitted request gets
exactly one `Finished` or `Failed`, after any number of `Text`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgepd.errors import EdgepdError


@dataclass(frozen=True)
class Version:
    """Exactly what an answer is computed with: a model file and at most one adapter.

    Files never change once they are written, so equal versions give equal KV caches. `generation` is the number
    that users see; `fingerprint` names the contents of the files and outlives the process.
    """

    generation: int
    model: Path
    adapter: Path | None = None
    scale: float = 1.0
    fingerprint: str = ""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 means greedy decoding. Names and defaults as in llama.cpp."""

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64  # tokens that the penalties look back on; -1 means the whole context
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0  # 0 switches DRY off
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: tuple[tuple[int, float], ...] = ()  # pairs of token and what is added to its logit
    seed: int | None = None


@dataclass(frozen=True)
class Grammar:
    """What an answer may consist of, in llama.cpp's GBNF; its root rule is `root`.

    With `triggers`, regular expressions that are searched for in the text so far, the grammar binds only from the
    first capture group of the first match on, as llama.cpp's lazy grammars do. An expression must match at the end of
    the text only, where the grammar certainly fits: llama.cpp ends the process when it does not.
    """

    gbnf: str
    triggers: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenScore:
    """A token and the natural logarithm of the probability that the model, before any sampling, gave it."""

    token: int
    piece: bytes
    logprob: float


@dataclass(frozen=True)
class ScoredToken(TokenScore):
    """A token of the answer with the most likely tokens at its place, the likeliest first."""

    top: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Timings:
    """What an answer cost. Times in milliseconds, measured with the monotonic clock from submission."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_ms: float
    ttft_ms: float
    decode_ms: float
    ahead_tokens: int = 0  # of the cached ones, those that were computed ahead, before anybody had asked

    @property
    def prefill_ms(self) -> float:
        """From leaving the queue to the first token."""
        return self.ttft_ms - self.queue_ms

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed after the first token; 0 if there was only one."""
        return (self.completion_tokens - 1) / self.decode_ms * 1000 if self.decode_ms > 0 else 0.0


@dataclass(frozen=True)
class Text:
    """A piece of the answer: whole characters, the number of tokens since the piece before, and their scores.

    Scores are there only if the request asked for them; then the text may be empty.
    """

    text: str
    tokens: int = 1
    scored: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of an answer: reason is `stop`, `length` or `cancelled`; `stop` is the stop string that was met."""

    reason: str
    timings: Timings
    stop: str | None = None


@dataclass(frozen=True)
class Failed:
    """The answer could not be generated or completed."""

    error: EdgepdError


Event = Text | Finished | Failed


@dataclass(frozen=True, eq=False)
class Request:
    """One answer to generate, pinned to a version at admission.

    `emit` is called on the engine thread and must not block.
    """

    prompt: list[int]
    version: Version
    max_tokens: int
    emit: Callable[[Event], None]
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    ignore_end: bool = False  # go on to the length limit: tokens that end an answer are never drawn
    reuse_cache: bool = True  # without, the whole prompt is prefilled again
    grammar: Grammar | None = None
    markers: tuple[str, ...] = ()  # control tokens that belong into the text, because they begin a tool call
    logprobs: int | None = None  # how many alternatives to score at each place; None scores nothing
    shift: bool = False  # when the context is full: forget the oldest half of it and go on, instead of ending
    client: str = ""  # whom to be fair to
    keep_alive: float | None = None  # seconds, or inf, for which the model stays loaded; None is the setting's
    persist: bool = True  # whether the conversation's KV cache may be written to disk
    background: bool = False  # nobody waits for it: its prompt alone is computed, until anybody asks something


@dataclass(frozen=True)
class EngineSizes:
    """How much a loaded model can do at a time. Context and batch in tokens."""

    slots: int
    context_tokens: int
    batch_tokens: int
    threads: int
    kv_type: str = "f16"
    adapt_threads: bool = True  # decode with fewer while other programs want the processor


@dataclass
class Counters:
    """What the engine has done since the daemon started. Only the engine thread writes."""

    switches: int = 0
    last_switch_ms: float = 0.0
    tokens_generated: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens that were not computed again
    cancelled: int = 0
    loads: int = 0
    unloads: int = 0


@dataclass(frozen=True)
class EngineStatus:
    """A snapshot for status reports. The last eight are those of `Counters`."""

    state: str = "unloaded"  # unloaded, loading, ready or failed
    loading_percent: float | None = None
    queued: int = 0
    active: int = 0
    slots: int = 0
    threads: int = 0
    versions_in_use: list[int] = field(default_factory=list)
    models: list[LoadedModel] = field(default_factory=list)
    switches: int = 0
    last_switch_ms: float = 0.0
    tokens_generated: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens that were not computed again
    cancelled: int = 0
    loads: int = 0
    unloads: int = 0


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory. `expires_in_s` is None for one that stays."""

    path: str
    size_bytes: int
    expires_in_s: float | None
