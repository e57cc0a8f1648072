"""The engine thread: takes requests, steps the models in turn, and switches versions between steps.

The idea: everything that generates with llama.cpp happens on one thread, which alternates between running the
commands that other threads post and stepping one version of one model. A swap is therefore nothing but new requests
carrying another version: answers that are running go on with theirs, turn by turn.
Invariants: each request ends with exactly one `Finished` or `Failed`; a model is closed only when none of its slots
is in use.
What this does not do: know what a generation is beyond its version record, or what a client asked for (see
`Engine`, which other threads use).
"""

from __future__ import annotations

import logging
import math
import queue
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgepd.errors import BusyError, EdgepdError, ModelError
from edgepd_daemon.engine.hosts import Hosts
from edgepd_daemon.engine.saved import SavedStates
from edgepd_daemon.engine.types import Counters, Failed, Finished, Request, Timings, Version
from edgepd_daemon.engine.waiting import WaitingQueue

if TYPE_CHECKING:
    from edgepd_daemon.engine.host import ModelHost
    from edgepd_daemon.engine.slots import Slot

log = logging.getLogger(__name__)

IDLE_CLOSE_SECONDS = 30.0  # a model that is not the active one is closed after this long without a request
GRACE_SECONDS = 2.0  # a model that was just made ready for a request is not closed before it can arrive
LONGEST_SLEEP_SECONDS = 5.0
TOKENIZING_SECONDS = 30.0  # the same at most for one whose tokenizer was used, which is not yet a use of the model
UNLOADED = "the model was unloaded just now; try again"


class EngineLoop:
    """What runs on the engine thread, and the little that other threads may see of it."""

    def __init__(
        self,
        hosts: Hosts,
        saved: SavedStates,
        counters: Counters,
        keep_alive: float,
        left_queue: Callable[[], None],
    ) -> None:
        """`keep_alive` is in seconds; `left_queue` is called once for each request."""
        self.hosts = hosts
        self.keep_alive = keep_alive
        self.kept: Version | None = None
        self.waiting = WaitingQueue()
        self.commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.stopping = False
        self.died: BaseException | None = None
        self._left_queue = left_queue
        self._saved = saved
        self._counters = counters
        self._turn = 0
        self._forgot_at = -math.inf  # when conversations were forgotten last, in monotonic seconds
        self._turned_at = time.monotonic()
        self._asleep = True

    def beat(self) -> float:
        """Return when the loop turned last, in monotonic seconds; now, if it has nothing to do. Any thread."""
        return time.monotonic() if self._asleep else self._turned_at

    def run(self) -> None:
        """Run until told to stop; then tell everyone who waits, and free everything."""
        try:
            while not self.stopping:
                self._turned_at = time.monotonic()
                # Before the commands are taken: one that is posted from here on interrupts the step again.
                for host in self.hosts.all():
                    host.context.resume()
                self._take_commands()
                self._admit()
                self._step()
                self._close_idle()
        except BaseException as error:  # noqa: BLE001 - the edge of the thread: whoever waits must be told
            log.exception("the engine thread died")
            self.died = error

    def _take_commands(self) -> None:
        """Run what other threads posted; sleep here when there is nothing to do."""
        busy = bool(self.waiting) or any(h.active_versions() or h.embedder.busy for h in self.hosts.all())
        try:
            if busy:
                command = self.commands.get_nowait()
            else:
                self._asleep = True
                try:
                    command = self.commands.get(timeout=self._sleep_seconds())
                finally:
                    self._asleep = False
                    self._turned_at = time.monotonic()
            while True:
                command()
                command = self.commands.get_nowait()
        except queue.Empty:
            return

    def _sleep_seconds(self) -> float:
        now = time.monotonic()
        left = [self.expires_in(host, now) for host in self.hosts.all()]
        return max(0.01, min([LONGEST_SLEEP_SECONDS, *(s for s in left if s is not None)]))

    def _admit(self) -> None:
        """Move waiting requests into free slots, as long as there are any."""
        while self.waiting:
            answers = [s.answer for h in self.hosts.all() for s in h.slots if s.answer]
            running = Counter(a.request.client for a in answers)
            chosen = self.waiting.pop(self._admissible, running)
            if chosen is None:
                return
            self._left_queue()
            host = self.hosts.get(chosen.request.version.model)
            if host is None or not self.is_prepared(chosen.request.version):
                chosen.request.emit(Failed(BusyError(UNLOADED)))
                continue
            try:
                host.admit(chosen.request, chosen.submitted)
                if chosen.submitted <= self._forgot_at:
                    host.keep_private(chosen.request)
            except BaseException:
                chosen.request.emit(Failed(ModelError("the engine failed; see the daemon's log")))
                raise

    def _admissible(self, request: Request) -> bool:
        host = self.hosts.get(request.version.model)
        return host is None or host.free_slots() > 0

    def warm(self, request: Request, read_at: float) -> bool:
        """Begin to compute a prompt that nobody waits for, if there is nothing else to do; return whether it began."""
        hosts = self.hosts.all()
        busy = bool(self.waiting) or any(h.active_versions() or h.embedder.busy for h in hosts)
        host = self.hosts.get(request.version.model)
        if read_at <= self._forgot_at:  # its text may have been forgotten since
            return False
        return host is not None and not busy and self.is_prepared(request.version) and host.warm(request)

    def end_background(self) -> None:
        """Make way for somebody who asks something."""
        for host in self.hosts.all():
            host.end_background()

    def is_prepared(self, version: Version) -> bool:
        """Whether a request of this version could be admitted now. Any thread."""
        host = self.hosts.get(version.model)
        return host is not None and (version.adapter is None or version.adapter in host.adapters)

    def _step(self) -> None:
        """Let the version, or the embeddings, whose turn it is have one batch."""
        turns: list[tuple[ModelHost, Version | None]] = []
        for host in self.hosts.all():
            turns += [(host, version) for version in host.active_versions()]
            turns += [(host, None)] if host.embedder.busy else []
        if not turns:
            return
        self._turn = (self._turn + 1) % len(turns)
        host, version = turns[self._turn]
        if version is None:
            host.used_at = time.monotonic()
            host.embedder.step()
            return
        try:
            host.step(version)
        except EdgepdError as error:
            log.error("generation %d failed: %s", version.generation, error)
            for slot in _slots_of(host, version):
                host.abandon(slot, Failed(error))

    def cancel(self, request: Request) -> None:
        """End a request that waits or runs as cancelled."""
        waiting = self.waiting.remove(request)
        if waiting is not None:
            self._left_queue()
            elapsed = (time.monotonic() - waiting.submitted) * 1000
            request.emit(Finished("cancelled", Timings(len(request.prompt), 0, 0, elapsed, elapsed, 0.0)))
            self._counters.cancelled += 1
        for host in self.hosts.all():
            for slot in host.slots:
                if slot.answer is not None and slot.answer.request is request:
                    host.end(slot, "cancelled")
                    self._counters.cancelled += 1

    def take_in(self, host: ModelHost, version: Version) -> None:
        """Take over a model that another thread opened, unless the adapter it was opened for is refused."""
        load_adapter(host, version)
        self.hosts.add(host)
        host.restore_states(self._saved, version)

    def forget_conversations(self) -> int:
        """Drop what is in the KV caches and what was saved of them; return how many saved ones there were."""
        self.end_background()
        self._forgot_at = time.monotonic()  # who waits now may bring it again, and is not saved either
        for host in self.hosts.all():
            host.forget_conversations()
        return self._saved.clear()

    def expires_in(self, host: ModelHost, now: float) -> float | None:
        """Return in how many seconds a model is to be unloaded, None if never. Any thread."""
        limit = self.keep_alive if host.keep_alive is None else host.keep_alive
        if self.kept is not None and host.path != self.kept.model:
            limit = min(limit, IDLE_CLOSE_SECONDS)
        if limit == math.inf:
            return None
        limit = max(limit, GRACE_SECONDS)
        return max(host.used_at + limit, host.touched_at + min(limit, TOKENIZING_SECONDS)) - now

    def _close_idle(self) -> None:
        now = time.monotonic()
        versions = [waiting.request.version for waiting in self.waiting] + ([self.kept] if self.kept else [])
        wanted = {waiting.request.version.model for waiting in self.waiting}
        for host in self.hosts.all():
            host.release_adapters({v.adapter for v in versions if v.adapter}, now - IDLE_CLOSE_SECONDS)
            if host.active_versions() or host.embedder.busy or host.path in wanted or self.hosts.in_use(host.path):
                continue
            host.embedder.close_idle(now)
            left = self.expires_in(host, now)
            if left is not None and left <= 0:
                self.close(host)

    def close(self, host: ModelHost) -> None:
        """Save a model's conversations and unload it."""
        host.save_states(self._saved)
        self.hosts.close(host)
        log.info("unloaded %s", host.path.name)

    def shut_down(self) -> None:
        """Tell everyone who waits, then free everything."""
        died = None if self.died is None else ModelError("the engine failed; see the daemon's log")
        for request, _ in self.waiting:
            request.emit(Failed(died or BusyError("the daemon is shutting down")))
        for host in self.hosts.all():
            host.embedder.fail(died or BusyError("the daemon is shutting down"))
            for slot in host.slots:
                if died is not None:
                    host.abandon(slot, Failed(died))
                else:
                    host.end(slot, "cancelled")
            if died is None:
                self.close(host)
            else:
                self.hosts.close(host)


def load_adapter(host: ModelHost, version: Version) -> None:
    """Load the adapter of a version, if it has one. Raises AdapterError."""
    if version.adapter is not None:
        host.load_adapter(version.adapter)


def _slots_of(host: ModelHost, version: Version) -> list[Slot]:
    return [s for s in host.slots if s.answer is not None and s.answer.request.version == version]
