"""The engine thread: takes requests, steps the hosts in turn, and switches versions between steps.

The idea: everything that touches llama.cpp happens on one thread, which alternates between running the commands
that other threads post and stepping one version of one host. A swap is therefore nothing but new requests carrying
another version: answers that are running go on with theirs, turn by turn.
Invariants: each request ends with exactly one `Finished` or `Failed`; a host is closed only when none of its slots
is in use and it is not kept.
What this does not do: tokenise, render templates, or know what a generation is beyond its version record.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar

from edgepd.errors import BusyError, ContextOverflowError, EdgepdError, ModelError
from edgepd.template import Message
from edgepd_daemon.engine.host import ModelHost, Slot
from edgepd_daemon.engine.types import EngineStatus, Failed, Finished, Request, Timings, Version

log = logging.getLogger(__name__)

T = TypeVar("T")

STOPPED = "the engine has stopped; restart the daemon"
IDLE_CLOSE_SECONDS = 30.0  # a model that is not the active one is closed after this long without a request


class Engine:
    """Generates answers on a thread of its own. All public methods may be called from any thread."""

    def __init__(self, *, slots: int, context_tokens: int, batch_tokens: int, threads: int, max_queue: int) -> None:
        """Prepare an engine; `start` starts its thread."""
        self.context_tokens = context_tokens
        self._open_host = partial(
            ModelHost, slots=slots, context_tokens=context_tokens, batch_tokens=batch_tokens, threads=threads
        )
        self._max_queue = max_queue
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: deque[tuple[Request, float]] = deque()
        self._queued = 0  # requests submitted and not yet admitted; guarded by _lock
        self._lock = threading.Lock()
        self._loading = threading.Lock()  # held while a thread opens a model file, so that none is opened twice
        self._open_hosts = threading.Lock()  # held while another thread uses a host's tokenizer, and to close hosts
        self._hosts: dict[Path, ModelHost] = {}
        self._kept: Version | None = None
        self._turn = 0
        self._tokens_generated = 0
        self._stopping = False
        self._closed = False  # no further commands are taken; guarded by _lock
        self._died: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def stop(self) -> None:
        """End all answers as cancelled, free every model and stop the thread."""

        def halt() -> None:
            self._stopping = True

        if self.alive:
            with contextlib.suppress(ModelError):  # the thread is ending by itself just now
                self._post(halt)
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Queue a request whose version was prepared. Raises BusyError or ContextOverflowError at once."""
        if len(request.prompt) >= self.context_tokens:
            raise ContextOverflowError(
                f"the prompt has {len(request.prompt)} tokens, but the context window holds {self.context_tokens} "
                "with at least one for the answer; shorten the conversation or raise serve.context_tokens"
            )
        with self._lock:
            if self._queued >= self._max_queue:
                raise BusyError(f"{self._queued} requests are waiting already; try again later")
            self._queued += 1
        submitted = time.monotonic()
        self._post(lambda: self._waiting.append((request, submitted)))

    def cancel(self, request: Request) -> None:
        """End a request early; it gets `Finished("cancelled")` unless it has ended already."""
        self._post(lambda: self._cancel(request))

    def prepare(self, version: Version) -> None:
        """Load what `version` needs, without disturbing answers that are running. Blocks until done.

        The model file is opened on the calling thread, only the adapter on the engine's. Raises ModelError or
        AdapterError; then nothing has changed.
        """
        with self._loading:
            if self._call(lambda: self._touch(version.model)):
                self._call(lambda: self._load_adapter(self._hosts[version.model], version))
                return
            host = self._open_host(version.model)
            try:
                self._call(lambda: self._take_in(host, version))
            except BaseException:
                host.close()
                raise

    def keep(self, version: Version) -> None:
        """Hold this version's model and adapter in memory; others are closed once they are idle."""

        def set_kept() -> None:
            self._kept = version

        self._call(set_kept)

    def status(self) -> EngineStatus:
        """Return a snapshot. Raises ModelError if the engine has stopped."""
        return self._call(self._snapshot)

    def encode(self, version: Version, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's tokens in the chat format of a prepared version's model.

        Raises TemplateError if the model's template refuses the messages, BusyError if the model was just unloaded.
        """
        with self._open_hosts:
            if self._closed:
                raise ModelError(STOPPED)
            host = self._hosts.get(version.model)
            if host is None:
                raise BusyError("the model was unloaded just now; try again")
            host.used_at = time.monotonic()
            return host.chat.prompt(messages)

    def is_prepared(self, version: Version) -> bool:
        """Whether a request of this version could be admitted now."""
        host = self._hosts.get(version.model)
        return host is not None and (version.adapter is None or version.adapter in host.adapters)

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
            self._commands.put(command)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take_commands()
                self._admit()
                self._step()
                self._close_idle()
        except BaseException as error:  # noqa: BLE001 - the edge of the thread: whoever waits must be told
            log.exception("the engine thread died")
            self._died = error
        finally:
            self._shut_down()

    def _take_commands(self) -> None:
        """Run what other threads posted; sleep here when there is nothing to generate."""
        busy = bool(self._waiting) or any(h.active_versions() for h in self._hosts.values())
        try:
            command = self._commands.get_nowait() if busy else self._commands.get(timeout=IDLE_CLOSE_SECONDS / 3)
            while True:
                command()
                command = self._commands.get_nowait()
        except queue.Empty:
            return

    def _admit(self) -> None:
        """Move waiting requests into free slots, oldest first."""
        for _ in range(len(self._waiting)):
            request, submitted = self._waiting.popleft()
            host = self._hosts.get(request.version.model)
            if host is not None and host.free_slots() == 0:
                self._waiting.append((request, submitted))
                continue
            with self._lock:
                self._queued -= 1
            if host is None or not self.is_prepared(request.version):
                request.emit(Failed(BusyError("the model was unloaded just now; try again")))
            else:
                self._admit_to(host, request, submitted)

    def _admit_to(self, host: ModelHost, request: Request, submitted: float) -> None:
        try:
            host.admit(request, submitted)
        except BaseException:
            self._waiting.appendleft((request, submitted))  # so that it is told too when the thread ends
            raise

    def _step(self) -> None:
        """Let the version whose turn it is generate its next tokens."""
        turns = [(host, version) for host in self._hosts.values() for version in host.active_versions()]
        if not turns:
            return
        self._turn = (self._turn + 1) % len(turns)
        host, version = turns[self._turn]
        try:
            self._tokens_generated += host.step(version)
        except EdgepdError as error:
            log.error("generation %d failed: %s", version.generation, error)
            for slot in _slots_of(host, version):
                host.abandon(slot, Failed(error))

    def _cancel(self, request: Request) -> None:
        for waiting in [w for w in self._waiting if w[0] is request]:
            self._waiting.remove(waiting)
            with self._lock:
                self._queued -= 1
            elapsed = (time.monotonic() - waiting[1]) * 1000
            request.emit(Finished("cancelled", Timings(len(request.prompt), 0, 0, elapsed, elapsed, 0.0)))
        for host in self._hosts.values():
            for slot in host.slots:
                if slot.answer is not None and slot.answer.request is request:
                    host.end(slot, "cancelled")

    def _touch(self, path: Path) -> bool:
        """Say whether a model is loaded, and keep it from being closed as idle for a while."""
        host = self._hosts.get(path)
        if host is not None:
            host.used_at = time.monotonic()
        return host is not None

    def _load_adapter(self, host: ModelHost, version: Version) -> None:
        if version.adapter is not None:
            host.load_adapter(version.adapter)

    def _take_in(self, host: ModelHost, version: Version) -> None:
        """Take over a host that another thread opened, unless the adapter it was opened for is refused."""
        self._load_adapter(host, version)
        self._hosts[host.path] = host

    def _close_idle(self) -> None:
        now = time.monotonic()
        kept_adapter = {self._kept.adapter} if self._kept and self._kept.adapter else set()
        wanted = {request.version.model for request, _ in self._waiting}
        for path, host in list(self._hosts.items()):
            if now - host.used_at < IDLE_CLOSE_SECONDS or path in wanted or host.active_versions():
                continue
            if self._kept is None or path == self._kept.model:
                host.release_adapters(kept_adapter)
            else:
                with self._open_hosts:
                    del self._hosts[path]
                    host.close()
                log.info("closed %s, idle for %d s", path.name, now - host.used_at)

    def _snapshot(self) -> EngineStatus:
        hosts = list(self._hosts.values())
        return EngineStatus(
            queued=len(self._waiting),
            active=sum(len(h.slots) - h.free_slots() for h in hosts),
            versions_in_use=sorted({v.generation for h in hosts for v in h.active_versions()}),
            models=[h.path.name for h in hosts],
            switches=sum(h.switches for h in hosts),
            last_switch_ms=max((h.last_switch_ms for h in hosts), default=0.0),
            tokens_generated=self._tokens_generated,
        )

    def _shut_down(self) -> None:
        """Tell everyone who waits, then free everything."""
        with self._lock:
            self._closed = True
        while not self._commands.empty():
            self._commands.get_nowait()()
        died = None if self._died is None else ModelError("the engine failed; see the daemon's log")
        for request, _ in self._waiting:
            request.emit(Failed(died or BusyError("the daemon is shutting down")))
        for host in self._hosts.values():
            for slot in host.slots:
                if died is not None:
                    host.abandon(slot, Failed(died))
                else:
                    host.end(slot, "cancelled")
        with self._open_hosts:
            for host in self._hosts.values():
                host.close()
            self._hosts.clear()


def _slots_of(host: ModelHost, version: Version) -> list[Slot]:
    return [s for s in host.slots if s.answer is not None and s.answer.request.version == version]
