"""The engine as the rest of the daemon sees it: submit, cancel, prepare, tokenise, embed, unload.

The idea: all methods may be called from any thread; they post commands to the engine thread (see loop.py) or use a
loaded model's tokenizer, which is safe beside it.
What this does not do: resolve the names of models, or know what a client asked for.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgepd.errors import BusyError, ContextOverflowError, ModelError, RequestError
from edgepd_daemon.engine.hosts import Hosts
from edgepd_daemon.engine.loop import EngineLoop, load_adapter
from edgepd_daemon.engine.saved import SavedStates
from edgepd_daemon.engine.types import (
    Counters,
    EngineSizes,
    EngineStatus,
    Event,
    Failed,
    Finished,
    LoadedModel,
    Request,
    Version,
)
from edgepd_daemon.tools.format import ToolFormat, tool_format

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgepd.chat import MakeTemplate
    from edgepd.llama import ModelFacts
    from edgepd_daemon.engine.host import ModelHost

T = TypeVar("T")

log = logging.getLogger(__name__)

END_SECONDS = 60.0  # what the thread gets for the step that is under way and for saving the conversations
STOPPED = "the engine has stopped; restart the daemon"


class Engine:
    """Generates answers on a thread of its own."""

    def __init__(
        self,
        sizes: EngineSizes,
        *,
        max_queue: int,
        make_template: MakeTemplate,
        keep_alive: float = math.inf,
        saved: SavedStates | None = None,
        check_model: Callable[[Path], None] | None = None,
    ) -> None:
        """Prepare an engine; `start` starts its thread. `keep_alive` is in seconds.

        `check_model` is asked before a model file is opened, on the thread that wants it, and raises ModelError.
        """
        self.max_queue = max_queue
        self.on_submit: Callable[[], object] = _nothing  # called by any thread before a request is queued
        self._counters = Counters()
        self._hosts = Hosts(sizes, self._counters, make_template, check_model)
        nothing = SavedStates(Path(os.devnull), 0, sizes, "")  # a place where no file can be
        self._loop = EngineLoop(self._hosts, saved or nothing, self._counters, keep_alive, self._left_queue)
        self._queued = 0  # requests submitted and not yet admitted; guarded by _lock
        self._lock = threading.Lock()
        self._loading = threading.Lock()  # held while a thread opens a model file, so that none is opened twice
        self._closed = False  # no further commands are taken; guarded by _lock
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def stop(self) -> None:
        """End all answers as cancelled, save the conversations, free every model and stop the thread."""

        def halt() -> None:
            self._loop.stopping = True

        if self.alive:
            with contextlib.suppress(ModelError):  # the thread is ending by itself just now
                self._post(halt)
            for host in self._hosts.all():
                host.interrupt()
            self._thread.join(END_SECONDS)
            if self.alive:
                log.critical("the engine does not end; the daemon ends without it")

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    @property
    def context_tokens(self) -> int:
        """The context window of one conversation, in tokens."""
        return self._hosts.sizes.context_tokens

    @property
    def slots(self) -> int:
        """How many answers can be generated at the same time."""
        return self._hosts.sizes.slots

    def beat(self) -> float:
        """Return when the engine thread turned last, in monotonic seconds; now, if it has nothing to do."""
        return self._loop.beat()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests whose version was prepared: all, or none. Raises BusyError or ContextOverflowError."""
        self.on_submit()
        self._check_length(max((len(r.prompt) for r in requests), default=0))
        with self._lock:
            # A batch of requests that is larger than the whole queue may still come when nobody waits.
            if self._queued and self._queued + len(requests) > self.max_queue:
                raise _queue_full(self._queued)
            self._queued += len(requests)
        submitted = time.monotonic()

        def push() -> None:
            self._loop.end_background()
            for request in requests:
                self._loop.waiting.push(request, submitted)

        self._post(push)
        self._interrupt_background()

    def warm(self, version: Version, prompt: list[int], read_at: float) -> Future[Finished | None]:
        """Compute the beginning of a prompt that may be wanted, while nobody asks anything; it is no use of the model.

        `read_at` is the monotonic time from which on what it is made of was read. The future gets how it ended:
        `length` if it is all there now, `cancelled` if somebody asked something; or None if it was not begun, because
        there is something else to do, it is there already, no slot can be spared, or something was forgotten since.
        An engine that fails at it gives its EdgepdError. Raises ContextOverflowError, or ModelError once stopped.
        """
        self._check_length(len(prompt))
        done: Future[Finished | None] = Future()
        done.set_running_or_notify_cancel()  # whoever stops waiting for it must not make the engine's thread stumble

        def emit(event: Event) -> None:
            if isinstance(event, Failed):
                done.set_exception(event.error)
            elif isinstance(event, Finished):
                done.set_result(event)

        def begin() -> None:
            if not self._loop.warm(Request(prompt, version, 1, emit, persist=False, background=True), read_at):
                done.set_result(None)

        self._post(begin)
        return done

    def cancel(self, request: Request) -> None:
        """End a request early, in its prefill too; it gets `Finished("cancelled")` unless it has ended already."""
        with contextlib.suppress(ModelError):  # an engine that has stopped has ended every request
            self._post(lambda: self._loop.cancel(request))
            # After the command, so that the step that is interrupted is followed by it. A step that only decodes is
            # over in milliseconds, and other answers have a share in it.
            for host in self._hosts.all():
                if host.prefills(request):
                    host.interrupt()

    def prepare(self, version: Version, keep_alive: float | None = None) -> None:
        """Load what `version` needs, without disturbing answers that are running. Blocks until done.

        It then stays for `keep_alive` seconds, by default as long as the setting says. The model file is opened on
        the calling thread, only the adapter on the engine's. Raises ModelError or AdapterError; then nothing has
        changed.
        """
        self._post(self._loop.end_background)
        self._interrupt_background()
        with self._loading:
            if self._call(lambda: self._touch(version, keep_alive)):
                return
            host = self._hosts.open(version.model)
            host.keep_alive = keep_alive
            try:
                self._call(lambda: self._loop.take_in(host, version))
            except BaseException:
                host.close()
                raise

    def keep(self, version: Version) -> None:
        """Make this version the active one: others are closed soon once they are idle."""

        def set_kept() -> None:
            self._loop.kept = version

        self._call(set_kept)

    def is_prepared(self, version: Version) -> bool:
        """Whether a request of this version could be admitted now."""
        return self._loop.is_prepared(version)

    def unload(self, path: Path | None = None) -> None:
        """Unload a model, or all, soon after nothing runs on it. Its conversations are saved."""

        def expire() -> None:
            for host in self._hosts.all():
                if path in (None, host.path):
                    host.keep_alive = 0.0

        self._call(expire)

    def forget_conversations(self) -> int:
        """Drop every conversation from memory and from disk; return how many were on disk.

        One that is being answered goes on, but is not saved. Raises OSError if a file cannot be removed.
        """
        return self._call(self._loop.forget_conversations)

    def set_threads(self, threads: int) -> None:
        """Use `threads` from the next step on, also for models that are loaded later."""

        def change() -> None:
            self._hosts.sizes = replace(self._hosts.sizes, threads=threads)
            for host in self._hosts.all():
                host.set_threads(threads)

        self._call(change)

    def set_keep_alive(self, seconds: float) -> None:
        """Change how long a model stays loaded after its last request, in seconds."""

        def change() -> None:
            self._loop.keep_alive = seconds

        self._call(change)

    def encode(
        self, version: Version, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Return the prompt's tokens in the chat format of a prepared version's model.

        Raises TemplateError if the model's template refuses the messages, BusyError if the model was just unloaded.
        """
        with self._used(version) as host:
            text = host.chat.template.render(messages, add_generation_prompt=True, tools=tools)
            return host.model.tokenize_prompt(text)

    def tokenize(self, version: Version, text: str) -> list[int]:
        """Return the tokens of a bare text, control tokens recognised."""
        with self._used(version) as host:
            return host.model.tokenize_prompt(text)

    def detokenize(self, version: Version, tokens: Sequence[int]) -> str:
        """Return the text of tokens. Raises RequestError for tokens that the model does not have."""
        self._check_tokens(version, max(tokens, default=0), min(tokens, default=0))
        with self._used(version) as host:
            return host.model.detokenize(tokens)

    def _check_tokens(self, version: Version, largest: int, smallest: int) -> None:
        """llama.cpp ends the process when it is asked about a token that does not exist."""
        with self._used(version) as host:
            n_vocab = host.model.n_vocab
        if smallest < 0 or largest >= n_vocab:
            wrong = smallest if smallest < 0 else largest
            raise RequestError(f"token {wrong} does not exist; this model has the tokens 0 to {n_vocab - 1}")

    def tool_format(self, version: Version) -> ToolFormat:
        """Return how a prepared version's model is shown tools and calls them."""
        with self._used(version) as host:
            return tool_format(host.facts.template, host.chat.template.supports_tools)

    def model_facts(self, version: Version) -> ModelFacts:
        """Return what a prepared version's model file says about itself."""
        with self._used(version) as host:
            return host.facts

    def embed(
        self,
        version: Version,
        inputs: list[list[int]],
        keep_alive: float | None = None,
        observe: Callable[[npt.NDArray[np.float32]], None] | None = None,
    ) -> Future[list[npt.NDArray[np.float32]]]:
        """Return a future of one vector, shape (n_embd,), of length 1, for each tokenised input.

        Embeddings take turns with answers and with each other, batch by batch. `keep_alive` as in `prepare`; `observe`
        gets the hidden states of inputs that fit into one batch. Raises ContextOverflowError, or RequestError for
        tokens that the model does not have.
        """
        self._check_tokens(version, max(max(tokens) for tokens in inputs), min(min(tokens) for tokens in inputs))
        longest = max(len(tokens) for tokens in inputs)
        if longest > self.context_tokens:
            raise ContextOverflowError(
                f"an input has {longest} tokens, but the context window holds {self.context_tokens}; split it"
            )
        future: Future[list[npt.NDArray[np.float32]]] = Future()

        def push() -> None:
            self._loop.end_background()
            host = self._hosts.get(version.model)
            if host is None:
                future.set_exception(BusyError("the model was unloaded just now; try again"))
            else:
                host.embed(inputs, future, keep_alive, observe)

        self._post(push)
        self._interrupt_background()
        return future

    def status(self) -> EngineStatus:
        """Return a snapshot. Never waits for the engine thread."""
        hosts = self._hosts.all()
        now = time.monotonic()
        versions = [v for h in hosts for v in h.active_versions()]
        loading = self._hosts.loading_percent
        return EngineStatus(
            state=self._state(bool(hosts), loading),
            loading_percent=loading,
            queued=self._queued,
            active=sum(a is not None and not a.request.background for h in hosts for a in [s.answer for s in h.slots]),
            slots=self.slots,
            threads=self._hosts.sizes.threads,
            versions_in_use=sorted({v.generation for v in versions}),
            models=[LoadedModel(str(h.path), h.facts.size_bytes, self._loop.expires_in(h, now)) for h in hosts],
            **asdict(self._counters),
        )

    def _state(self, loaded: bool, loading: float | None) -> str:
        if not self.alive:
            return "failed"
        if loaded:
            return "ready"
        return "unloaded" if loading is None else "loading"

    def _used(self, version: Version) -> contextlib.AbstractContextManager[ModelHost]:
        if self._closed:
            raise ModelError(STOPPED)
        if host := self._hosts.get(version.model):
            host.touched_at = time.monotonic()
        return self._hosts.using(version.model)

    def _touch(self, version: Version, keep_alive: float | None) -> bool:
        """Say whether a model is loaded, with the adapter, and keep it from being closed as idle for a while."""
        host = self._hosts.get(version.model)
        if host is None:
            return False
        load_adapter(host, version)
        host.used_at = time.monotonic()
        if keep_alive is not None:
            host.keep_alive = keep_alive
        return True

    def _check_length(self, tokens: int) -> None:
        if tokens >= self.context_tokens:
            raise ContextOverflowError(
                f"the prompt has {tokens} tokens, but the context window holds {self.context_tokens} "
                "with at least one for the answer; shorten the conversation or raise serve.context_tokens"
            )

    def _interrupt_background(self) -> None:
        """Stop the batch of a prompt that nobody waits for. After the command that ends it, as in `cancel`."""
        for host in self._hosts.all():
            if host.warms():
                host.interrupt()

    def _left_queue(self) -> None:
        with self._lock:
            self._queued -= 1

    def _call(self, job: Callable[[], T]) -> T:
        """Run `job` on the engine thread and return its result."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(job())
            except Exception as error:  # noqa: BLE001 - the edge of the thread: whoever waits gets it
                future.set_exception(error)

        self._post(run)
        return future.result()

    def _post(self, command: Callable[[], None]) -> None:
        """Hand a command to the engine thread. Raises ModelError once it takes no more."""
        with self._lock:
            if self._closed:
                raise ModelError(STOPPED)
            self._loop.commands.put(command)

    def _run(self) -> None:
        try:
            self._loop.run()
        finally:
            with self._lock:
                self._closed = True
            while not self._loop.commands.empty():
                self._loop.commands.get_nowait()()
            self._loop.shut_down()


def _nothing() -> None:
    """Nobody wants to know of requests."""


def _queue_full(queued: int) -> BusyError:
    error = BusyError(f"{queued} requests are waiting already; try again later")
    error.queued = queued
    return error
