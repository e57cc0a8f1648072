"""Adapter generations: which version serves, and how another one takes its place.

The idea: the registry in the profile says which generation is active; this class turns a generation into the files
that the engine needs, checks those files before the engine touches them, and switches. Invariants: new requests get
`current` and keep the version they were admitted with; a switch that fails leaves everything as it was; the engine
never sees a file whose header, shapes or hash were not checked first, and that no child process has opened.
What this does not do: train, decide whether a candidate deserves to be active, or make generations (generation_files).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgepd.errors import AdapterError, ConflictError, EdgepdError, ModelError
from edgepd.settings import Keep
from edgepd_daemon.booting import Boot
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.types import Version
from edgepd_daemon.known import LOADABLE, Base, Known
from edgepd_daemon.probing import Prober
from edgepd_daemon.shelf import Removed, tidied
from edgepd_profiles import registry
from edgepd_profiles.registry import Generation
from edgepd_profiles.store import Store

__all__ = ["Base", "Generations", "Switched"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Signature = tuple[int, int, int] | None  # inode, size and time of change; None for a file that is not there


@dataclass(frozen=True)
class Switched:
    """A switch that was made. `prepare_ms` is how long loading took, while requests went on."""

    active: int
    previous: int
    prepare_ms: float


class Generations(Known):
    """All generations of one base model, and which of them serves. Methods block; call them on a worker thread."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        base: Base,
        directory: Path,
        *,
        run: Boot | None = None,
        prober: Prober | None = None,
    ) -> None:
        """Keep generation files in `directory`. `run` is this run of the daemon; without it none is recorded."""
        super().__init__(store, base, directory)
        self.keep_retired: int = Keep.retired  # how many that nobody needs are kept; a reload replaces it
        self.problem: str | None = None  # what is wrong with what serves, in a sentence for the user
        self._engine = engine
        self._run = run or Boot(store, base.sha256)
        self._prober = prober or Prober(store)
        self._switching = threading.Lock()
        self._current: Version | None = None
        self._kept: Version | None = None  # what the engine was told to keep loaded
        self._checked: dict[Path, Signature] = {}  # files that were found unchanged, as they were then

    def boot(self) -> None:
        """Find the active generation. Its files are checked and loaded when it is first needed."""
        self.shelf.open()
        self._store.write(lambda conn: registry.ensure_base(conn, self.base.sha256)).result()
        self._current = self.version(self.active())
        if (back := self._run.fallback) is not None:
            self.problem = (
                f"generation {back.from_id} was withdrawn after two unclean exits; generation {back.to_id} serves; "
                f"`edgepd adapters use {back.from_id}` tries again"
            )
            log.error("%s", self.problem)

    def close(self) -> None:
        """End what may be going on in a child process."""
        self._prober.close()

    @property
    def current(self) -> Version:
        """The version that new requests get."""
        if self._current is None:
            raise ModelError("the model is still loading; try again in a moment")
        return self._current

    def resolve(self, model: str) -> Version:
        """Turn the `model` of a request into a version that is loaded. Raises NotFoundError, or what loading raises."""
        if model in ("", "default", self.base.name):
            return self.loaded()
        return self.prepare(self.named(model))

    def loaded(self) -> Version:
        """Return the active version, loaded, or the base if that cannot be. Raises ModelError if neither can."""
        if self._kept == self.current and self._engine.is_prepared(self.current):
            return self.current
        with self._switching:
            generation = self.get(self.current.generation)
            try:
                version = self.prepare(generation)
            except EdgepdError as error:
                if generation.kind == "base":
                    raise
                self.problem = f"generation {generation.id} cannot be served, the base serves instead: {error}"
                log.error("%s", self.problem)
                version = self.prepare(self.original())
            self._keep(version)
        return version

    def prepare(self, generation: Generation) -> Version:
        """Verify a generation's files and load them into the engine. Raises as `verify`."""
        version = self.version(generation)
        if generation.state not in LOADABLE or not self._engine.is_prepared(version):
            self.verify(generation)
            if generation.state == "active":
                self._run.loading()
            self._engine.prepare(version)
        return version

    def verify(self, generation: Generation) -> None:
        """Check a generation's files, and let a child open them if none has yet. A candidate that fails is rejected.

        Raises ConflictError for one that has no files any more, AdapterError, or ModelError.
        """
        if generation.state not in LOADABLE:
            raise ConflictError(f"generation {generation.id} is {generation.state} and cannot serve")
        version = self.version(generation)
        files = [f for f in (version.model, version.adapter) if f]
        if any(f not in self._checked or self._checked[f] != _signature(f) for f in files):
            # Loads numpy, 12 MB that a daemon whom nobody has asked anything does without.
            from edgepd_daemon.generation_files.checking import check_files  # noqa: PLC0415

            check_files(generation, version, self.model_sha256(generation))
            self._checked |= {f: _signature(f) for f in files}
        reason = self._prober.problem(version)
        if reason is None:
            return
        if generation.state == "candidate":
            self.shelf.reject(generation.id, reason)
            raise AdapterError(f"generation {generation.id} was rejected: {reason}")
        if generation.kind == "base":
            advice = "install it again or choose another one with `edgepd model`"
        else:
            advice = "go to another generation with `edgepd adapters use`"
        raise ModelError(f"generation {generation.id} cannot be served: {reason}; {advice}")

    def activate(self, generation_id: int, expected: int | None = None) -> Switched:
        """Make a generation serve all new requests. Running answers end as they began.

        With `expected`, only if that one is active now. Raises NotFoundError, ConflictError, AdapterError or
        ModelError; then nothing has changed.
        """
        with self._switching:
            before = self.active().id
            wanted = before if expected is None else expected
            switched = self._switch(
                self.get(generation_id),
                before,
                lambda conn: registry.activate(conn, self.base.sha256, generation_id, wanted),
            )
        tidied(self.shelf, self.base.sha256, self.keep_retired)
        return switched

    def rollback(self, to: int | None = None) -> Switched:
        """Go back to `to`, or to the generation that was active before the present one."""
        return self.activate(self.previous().id if to is None else to)

    def withdraw(self, generation_id: int, reason: str) -> Switched | None:
        """Reject a generation that had been good enough, for the reason; if it is active, go back before.

        Returns the switch, None if it was not active any more. One that is stale or deleted stays that. Raises
        NotFoundError, ConflictError for the base, or what loading the other one raises.
        """
        with self._switching:
            state = self.get(generation_id).state
            switched = self._go_back(generation_id, reason) if state == "active" else None
        if switched is not None:
            self.shelf.remove_files(self.get(generation_id))
        elif state not in ("stale", "deleted"):
            self.shelf.reject(generation_id, reason)
        log.info("generation %d is withdrawn: %s", generation_id, reason)
        return switched

    def take_out(self, write: Callable[[sqlite3.Connection], T]) -> T:
        """Carry out a transaction that takes generations out of service, and serve what is active after it.

        Requests that come meanwhile wait for its end, so none is given what is taken out. What is active then is
        loaded by the next one. Returns what `write` does, and raises what it raises; then nothing has changed.
        """
        with self._switching:
            before = self.active().id
            self._kept = None  # whoever asks now has to wait for this lock
            result = self._store.write(write).result()
            active = self.active()
            if active.id != before:
                self._current = self.version(active)
                self._engine.keep(self._current)  # and let go of what was taken out
                self._run.switched()
                self.problem = None
                log.info("generation %d is active, before it was %d", active.id, before)
        return result

    def discard_files(self, generation_id: int) -> None:
        """Remove the files of a generation that was taken out, of any base model, unless another one needs them."""
        with self._store.read() as conn:
            generation = registry.get(conn, generation_id)
        self.shelf.remove_files(generation)

    def delete(self, generation_id: int) -> Removed:
        """Give a generation up, with its files. Raises NotFoundError, or ConflictError if it has to stay."""
        self.get(generation_id)
        return self.shelf.delete(generation_id)

    def pin(self, generation_id: int, pinned: bool) -> Generation:
        """Keep a generation and its files until further notice, or stop that. Raises NotFoundError, ConflictError."""
        self.get(generation_id)
        generation = self._store.write(lambda conn: registry.pin(conn, generation_id, pinned)).result()
        if not pinned:
            self.shelf.remove_files(generation)  # of one that was rejected meanwhile, only the pin had kept them
        return generation

    def add(self, **fields: Any) -> Generation:
        """Register a candidate of this base whose files are in place; `fields` as in registry.add."""
        sha256 = self.base.sha256
        return self._store.write(
            lambda conn: registry.add(conn, base_sha256=sha256, state="candidate", **fields)
        ).result()

    def note_scores(self, generation_id: int, scores: Mapping[str, Any], reason: str | None = None) -> Generation:
        """Add numbers that were measured later to those of a generation in any state."""
        return self._store.write(lambda conn: registry.merge_scores(conn, generation_id, scores, reason)).result()

    def note_probed(self, generation: Generation) -> None:
        """Note that another child process has opened the files of a generation, so that no probe is needed."""
        self._prober.note(self.version(generation))

    def answered(self, version: Version) -> None:
        """Note that an answer of a version came to its end. Never blocks."""
        self._run.answered(version.generation)

    def _go_back(self, generation_id: int, reason: str) -> Switched:
        """Switch from the active generation to the one before, or the base if that cannot be, and reject it."""

        def job(target: Generation) -> Switched:
            def write(conn: sqlite3.Connection) -> Generation:
                registry.activate(conn, self.base.sha256, target.id, generation_id)
                return registry.set_state(conn, generation_id, "rejected", reason=reason)

            return self._switch(target, generation_id, write)

        target = self.previous()
        try:
            return job(target)
        except (AdapterError, ModelError) as error:
            if target.kind == "base":
                raise
            log.error("generation %d cannot be gone back to, the base serves: %s", target.id, error)
            return job(self.original())

    def _switch(self, target: Generation, before: int, write: Callable[[sqlite3.Connection], object]) -> Switched:
        """Load a generation, make it the active one by `write`, and give it to new requests."""
        started = time.monotonic()
        version = self.prepare(target)
        prepare_ms = (time.monotonic() - started) * 1000
        self._store.write(write).result()
        self._keep(version)
        self._run.switched()
        self.problem = None
        log.info("generation %d is active, before it was %d", target.id, before)
        return Switched(target.id, before, prepare_ms)

    def _keep(self, version: Version) -> None:
        """Give a version to new requests, and let the engine keep it."""
        self._engine.keep(version)
        self._current = self._kept = version


def _signature(path: Path) -> Signature:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
