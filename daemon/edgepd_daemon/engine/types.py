"""What goes into the engine and what comes out of it.

The idea: plain frozen records cross the thread boundary, nothing else. The invariant: every submitted request gets
exactly one `Finished` or `Failed`, after any number of `Text`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgepd.errors import EdgepdError


@dataclass(frozen=True)
class Version:
    """Exactly what an answer is computed with: a model file and at most one adapter.

    Files never change once they are written, so equal versions give equal KV caches. `generation` is the number
    that users see.
    """

    generation: int
    model: Path
    adapter: Path | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 means greedy decoding."""

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Timings:
    """What an answer cost. Times in milliseconds, measured with the monotonic clock from submission."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_ms: float
    ttft_ms: float
    decode_ms: float

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed after the first token; 0 if there was only one."""
        return (self.completion_tokens - 1) / self.decode_ms * 1000 if self.decode_ms > 0 else 0.0


@dataclass(frozen=True)
class Text:
    """A piece of the answer. Always whole characters."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The end of an answer: reason is `stop`, `length` or `cancelled`."""

    reason: str
    timings: Timings


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
    ignore_end: bool = False
    reuse_cache: bool = True  # without, the whole prompt is prefilled again


@dataclass(frozen=True)
class EngineStatus:
    """A snapshot for status reports."""

    queued: int
    active: int
    versions_in_use: list[int]
    models: list[str]
    switches: int = 0
    last_switch_ms: float = 0.0
    tokens_generated: int = 0
