"""An engine that says what the test tells it to (see scripted.py for the API around it).

What this does not do: tokenise like a model (one token is one UTF-8 byte of a prompt and one piece of an answer), or
obey sampling and grammars.
"""

from __future__ import annotations

import itertools
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgepd.errors import ContextOverflowError, EdgepdError, RequestError
from edgepd_daemon.engine.types import (
    EngineStatus,
    Failed,
    Finished,
    LoadedModel,
    Request,
    ScoredToken,
    Text,
    Timings,
    TokenScore,
    Version,
)
from edgepd_daemon.tools.format import ToolFormat, tool_format

Part = str | EdgepdError | threading.Event  # something to say, a failure, or something to wait for
VOCABULARY = 512
EMBEDDING_SIZE = 8
# Enough of Qwen's template for its family of tool calls to be recognised: <tool_call>{"name", "arguments"}</tool_call>
HERMES_TEMPLATE = (
    "{%- if tools %}<tools>{{ tools | tojson }}</tools> Return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>{%- endif %}{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "<|im_end|>\n{%- endfor %}"
)


@dataclass(frozen=True)
class ScriptedFacts:
    """What the engine says about the model."""

    architecture: str = "llama"
    parameters: int = 134_515_008
    n_ctx_train: int = 8192
    n_embd: int = EMBEDDING_SIZE
    n_vocab: int = VOCABULARY
    quantization: str = "Q4_1"
    template: str | None = HERMES_TEMPLATE
    metadata: dict[str, str] = field(default_factory=lambda: {"general.architecture": "llama"})


@dataclass
class _Script:
    parts: Iterable[Part]
    pace: float


class ScriptedEngine:
    """Stands in for the engine: same methods, answers from a queue."""

    def __init__(self, *, slots: int = 4, context_tokens: int = 2048) -> None:
        """With nothing in the queue, every answer is "OK."."""
        self.slots = slots
        self.context_tokens = context_tokens
        self.alive = True
        self.ready = True  # whether everything is loaded
        self.refuse: EdgepdError | None = None  # raised by the next submit
        self.facts: Any = ScriptedFacts()
        self.template_tools = True  # whether the model's template knows tools
        self.requests: list[Request] = []
        self.rendered: list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = []  # what encode was given
        self.embedded: list[list[int]] = []
        self.hold_embeddings = False  # whether embeddings never come
        self.held: list[Future[list[np.ndarray]]] = []
        self.finished: list[Finished] = []
        self.unloaded: list[Path | None] = []
        self.prepared: list[Version] = []
        self.loaded: list[LoadedModel] = []
        self.threads = 2
        self._scripts: deque[_Script] = deque()
        self._cancelled: dict[int, threading.Event] = {}
        self._running: list[threading.Thread] = []

    def enqueue(self, *answers: str | Sequence[Part], pace: float = 0.0) -> None:
        """Add answers. A text comes one character at a time, a list part by part, `pace` seconds apart."""
        for answer in answers:
            self._scripts.append(_Script(list(answer), pace))

    def enqueue_endless(self, piece: str = "x", *, pace: float = 0.002) -> None:
        """Add an answer that ends only by max_tokens or by being cancelled."""
        self._scripts.append(_Script(itertools.repeat(piece), pace))

    def close(self) -> None:
        """Cancel what runs and wait for its threads."""
        for cancelled in list(self._cancelled.values()):
            cancelled.set()
        for thread in self._running:
            thread.join(10)

    def submit(self, requests: Sequence[Request]) -> None:
        """Answer all of them, or raise and answer none."""
        if self.refuse is not None:
            error, self.refuse = self.refuse, None
            raise error
        for request in requests:
            self._check(request)
        for request in requests:
            self.requests.append(request)
            script = self._scripts.popleft() if self._scripts else _Script(["OK", "."], 0.0)
            self._cancelled[id(request)] = threading.Event()
            thread = threading.Thread(target=self._answer, args=(request, script), name="scripted", daemon=True)
            self._running.append(thread)
            thread.start()

    def cancel(self, request: Request) -> None:
        """End a request early."""
        if cancelled := self._cancelled.get(id(request)):
            cancelled.set()

    def prepare(self, version: Version, keep_alive: float | None = None) -> None:
        """Pretend to load a version."""
        self.prepared.append(version)

    def keep(self, version: Version) -> None:
        """Do nothing: nothing here is ever closed."""

    def status(self) -> EngineStatus:
        """Return a snapshot."""
        active = sum(thread.is_alive() for thread in self._running)
        return EngineStatus(
            state="ready", active=active, slots=self.slots, threads=self.threads, models=list(self.loaded)
        )

    def encode(
        self, version: Version, messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        """Return the bytes of role and content of each message, of its tool calls and of the tools."""
        self.rendered.append((list(messages), tools))
        text = "".join(f"{m['role']}: {m.get('content') or ''}{m.get('tool_calls') or ''}\n" for m in messages)
        return self.tokenize(version, f"{tools or ''}{text}")

    def tokenize(self, version: Version, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode())

    def detokenize(self, version: Version, tokens: Sequence[int]) -> str:
        """Return the text that the bytes spell. Raises RequestError for tokens that the vocabulary does not have."""
        _check_tokens(tokens)
        return bytes(t for t in tokens if t < 256).decode(errors="replace")

    def tool_format(self, version: Version) -> ToolFormat:
        """Return the real format of tool calls, by default that of Qwen and Hermes."""
        return tool_format(self.facts.template, self.template_tools)

    def is_prepared(self, version: Version) -> bool:
        """Say `ready`, whatever the version."""
        return self.ready

    def embed(
        self,
        version: Version,
        inputs: list[list[int]],
        keep_alive: float | None = None,
        observe: Callable[[np.ndarray], None] | None = None,
    ) -> Future[list[np.ndarray]]:
        """Return vectors of length 1 that depend on nothing but the tokens; the state of a token has a single 1."""
        done: Future[list[np.ndarray]] = Future()
        for tokens in inputs:
            if len(tokens) > self.context_tokens:
                raise _too_long(len(tokens), self.context_tokens)
        self.embedded += inputs
        self.prepared.append(version)
        if self.hold_embeddings:
            self.held.append(done)
            return done
        if observe is not None:
            for tokens in inputs:
                observe(np.eye(EMBEDDING_SIZE, dtype=np.float32)[np.array(tokens) % EMBEDDING_SIZE])
        counts = [np.bincount(np.array(t) % EMBEDDING_SIZE, minlength=EMBEDDING_SIZE) for t in inputs]
        done.set_result([(c / np.linalg.norm(c)).astype(np.float32) for c in counts])
        return done

    def set_threads(self, threads: int) -> None:
        """Remember the number."""
        self.threads = threads

    def unload(self, path: Path | None) -> None:
        """Remember what was unloaded."""
        self.unloaded.append(path)
        self.loaded = [m for m in self.loaded if path is not None and m.path != str(path)]

    def model_facts(self, version: Version) -> Any:
        """Return `facts`."""
        return self.facts

    def is_idle(self) -> bool:
        """Whether every answer has ended."""
        return not any(thread.is_alive() for thread in self._running)

    def _check(self, request: Request) -> None:
        if len(request.prompt) >= self.context_tokens:
            raise _too_long(len(request.prompt), self.context_tokens)
        _check_tokens([*request.prompt, *(token for token, _ in request.sampling.logit_bias)])

    def _answer(self, request: Request, script: _Script) -> None:
        started = time.monotonic()
        cancelled = self._cancelled[id(request)]
        parts, stop = _until_stop(script.parts, request)
        first, count, reason = 0.0, 0, "stop"
        for part in parts:
            if isinstance(part, threading.Event):
                while not part.wait(0.002) and not cancelled.is_set():
                    continue
            elif isinstance(part, EdgepdError):
                request.emit(Failed(part))
                return
            if cancelled.wait(script.pace) if script.pace else cancelled.is_set():
                reason, stop = "cancelled", None
                break
            if isinstance(part, str):
                if count == request.max_tokens:
                    reason, stop = "length", None
                    break
                first = first or time.monotonic()
                count += 1
                request.emit(Text(part, 1, _scored(part, request.logprobs)))
        now = time.monotonic()
        first = first or now
        finished = Finished(
            reason,
            Timings(len(request.prompt), 0, count, 0.0, (first - started) * 1000, (now - first) * 1000),
            stop,
        )
        self.finished.append(finished)
        request.emit(finished)


def _until_stop(parts: Iterable[Part], request: Request) -> tuple[Iterable[Part], str | None]:
    """Return what is said before the first stop string, and which that is. Endless answers have none."""
    if not request.stop or isinstance(parts, itertools.repeat):
        return parts, None
    said = list(parts)
    text = "".join(p for p in said if isinstance(p, str))
    found = [(text.find(stop), stop) for stop in request.stop if stop in text]
    if not found:
        return said, None
    room, stop = min(found)
    kept: list[Part] = []
    for part in said:
        if room <= 0:
            break
        kept.append(part[:room] if isinstance(part, str) else part)
        room -= len(part) if isinstance(part, str) else 0
    return kept, stop


def token_of(piece: str) -> int:
    """Return the token that a piece of an answer is."""
    data = piece.encode()
    return data[0] if len(data) == 1 else 256 + zlib.crc32(data) % (VOCABULARY - 256)


def _scored(piece: str, wanted: int | None) -> tuple[ScoredToken, ...]:
    """Give every token the log-probability -0.5 and alternatives at -1.5, -2.5 and so on."""
    if wanted is None:
        return ()
    token, data = token_of(piece), piece.encode()
    others = [TokenScore(97 + i, bytes([97 + i]), -0.5 - i) for i in range(1, wanted)]
    top = [TokenScore(token, data, -0.5), *others][:wanted]
    return (ScoredToken(token, data, -0.5, tuple(top)),)


def _check_tokens(tokens: Iterable[int]) -> None:
    for token in tokens:
        if not 0 <= token < VOCABULARY:
            raise RequestError(f"token {token} is not in the vocabulary, which has {VOCABULARY} tokens")


def _too_long(tokens: int, room: int) -> ContextOverflowError:
    return ContextOverflowError(f"the prompt has {tokens} tokens, but the context window holds {room}")
