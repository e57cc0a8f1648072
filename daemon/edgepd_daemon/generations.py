"""Adapter generations: which version serves, and how another one takes its place.

The idea: the registry in the profile says which generation is active; this class turns a generation into the files
that the engine needs, checks those files before the engine touches them, and switches. Invariants: new requests get
`current` and keep the version they were admitted with; a switch that fails leaves everything as it was; the engine
never sees an adapter whose header, shapes or hash were not checked first.
What this does not do: train, or decide whether a candidate deserves to be active.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from edgepd.errors import ConflictError, EdgepdError, ModelError, NotFoundError
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.types import Version
from edgepd_profiles import registry
from edgepd_profiles.registry import Generation
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

Signature = tuple[int, int, int] | None  # inode, size and time of change; None for a file that is not there

SERVABLE = ("active", "retired")  # states of generations that are offered to clients

_NUMBERED = re.compile(r"(?P<model>.+)@(?P<generation>[0-9]{1,9})")


@dataclass(frozen=True)
class Base:
    """The base model that is served: its name in the catalog, its file and its hash."""

    name: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Switched:
    """A switch that was made. `prepare_ms` is how long loading took, while requests went on."""

    active: int
    previous: int
    prepare_ms: float


class Generations:
    """All generations of one base model. Methods block; call them on a worker thread."""

    def __init__(self, store: Store, engine: Engine, base: Base, directory: Path) -> None:
        """Keep generation files in `directory`."""
        self.base = base
        self.directory = directory
        self._store = store
        self._engine = engine
        self._switching = threading.Lock()
        self._current: Version | None = None
        self._checked: dict[Path, Signature] = {}  # files that were found unchanged, as they were then
        self.problem: str | None = None  # why the active generation could not be loaded at start

    def boot(self) -> None:
        """Find the active generation. Its files are checked and loaded when it is first needed."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_leftovers()
        self._store.write(lambda conn: registry.ensure_base(conn, self.base.sha256)).result()
        self._current = self._version(self.active())

    @property
    def current(self) -> Version:
        """The version that new requests get."""
        if self._current is None:
            raise ModelError("the model is still loading; try again in a moment")
        return self._current

    def active(self) -> Generation:
        """Return the active generation as the registry has it."""
        with self._store.read() as conn:
            return registry.active(conn, self.base.sha256)

    def listing(self) -> list[Generation]:
        """Return all generations of this base, the oldest first."""
        with self._store.read() as conn:
            return registry.listing(conn, self.base.sha256)

    def get(self, generation_id: int) -> Generation:
        """Return one generation. Raises NotFoundError, also for one of another base model."""
        with self._store.read() as conn:
            generation = registry.get(conn, generation_id)
        if generation.base_sha256 != self.base.sha256:
            raise NotFoundError(f"generation {generation_id} belongs to another base model than {self.base.name}")
        return generation

    def named(self, model: str) -> Generation:
        """Return the generation that the `model` of a request means, without loading anything.

        Known are `default` and the base's name (the active generation), `base`, and `NAME@GENERATION`.
        Raises NotFoundError.
        """
        if model in ("", "default", self.base.name):
            return self.active()
        if model == "base":
            return self._base_generation()
        numbered = _NUMBERED.fullmatch(model)
        if numbered is None or numbered["model"] not in ("default", self.base.name):
            raise NotFoundError(
                f"model '{model}' is not known; use 'default', 'base', '{self.base.name}' or "
                f"'{self.base.name}@GENERATION'"
            )
        return self.get(int(numbered["generation"]))

    def names(self) -> list[tuple[str, Generation]]:
        """Return every name that a request may use and what it means; those that learn, the base, each by number."""
        servable = [g for g in self.listing() if g.state in SERVABLE]
        named = [("default", self.active()), ("base", self._base_generation())]
        return named + [(f"{self.base.name}@{g.id}", g) for g in servable]

    def resolve(self, model: str) -> Version:
        """Turn the `model` of a request into a version that is loaded. Raises NotFoundError, or what loading raises."""
        if model in ("", "default", self.base.name):
            return self.loaded()
        return self.prepare(self.named(model))

    def loaded(self) -> Version:
        """Return the active version, loaded, or the base if that cannot be. Raises ModelError if neither can."""
        if self._engine.is_prepared(self.current):
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
                version = self.prepare(self._base_generation())
            self._engine.keep(version)
            self._current = version
        return version

    def prepare(self, generation: Generation) -> Version:
        """Check a generation's files and load them into the engine. Raises AdapterError or ModelError."""
        if generation.state not in ("active", "retired", "candidate"):
            raise ConflictError(f"generation {generation.id} is {generation.state} and cannot serve")
        version = self._version(generation)
        if not self._engine.is_prepared(version):
            files = [f for f in (version.model, version.adapter) if f]
            if any(f not in self._checked or self._checked[f] != _signature(f) for f in files):
                # Loads numpy, 12 MB that a daemon whom nobody has asked anything does without.
                from edgepd_daemon.generation_files import check_files  # noqa: PLC0415

                check_files(generation, version, self.model_sha256(generation))
                self._checked |= {f: _signature(f) for f in files}
            self._engine.prepare(version)
        return version

    def activate(self, generation_id: int, expected: int | None = None) -> Switched:
        """Make a generation serve all new requests. Running answers end as they began.

        With `expected`, only if that one is active now. Raises NotFoundError, ConflictError, AdapterError or
        ModelError; then nothing has changed.
        """
        with self._switching:
            before = self.active().id
            generation = self.get(generation_id)
            started = time.monotonic()
            version = self.prepare(generation)
            prepare_ms = (time.monotonic() - started) * 1000
            wanted = before if expected is None else expected
            self._store.write(lambda c: registry.activate(c, self.base.sha256, generation_id, wanted)).result()
            self._engine.keep(version)
            self._current = version
            self.problem = None
        log.info("generation %d is active, before it was %d", generation_id, before)
        return Switched(generation_id, before, prepare_ms)

    def rollback(self, to: int | None = None) -> Switched:
        """Go back to `to`, or to the generation that was active before the present one."""
        if to is None:
            with self._store.read() as conn:
                to = registry.previous(conn, self.base.sha256).id
        return self.activate(to)

    def model_path(self, generation: Generation) -> Path:
        """Return the model file of a generation: a baked one, or the base itself."""
        return self.directory / generation.model_file if generation.model_file else self.base.path

    def model_sha256(self, generation: Generation) -> str:
        """Return the SHA-256 of a generation's model file."""
        if generation.model_file is None:
            return self.base.sha256
        for other in self.listing():
            if other.kind == "baked" and other.model_file == generation.model_file and other.file_sha256:
                return other.file_sha256
        raise ModelError(f"no baked generation has the file {generation.model_file}; use another generation")

    def model_id(self, version: Version) -> str:
        """Return the name under which a version is known to clients."""
        return f"{self.base.name}@{version.generation}"

    def _remove_leftovers(self) -> None:
        """Remove what a trainer wrote whose run was interrupted before it was registered, or that was rejected."""
        with self._store.read() as conn:
            known = registry.file_names(conn)
        for file in self.directory.iterdir():
            if file.is_file() and file.name not in known:
                log.info("removing %s, which no generation has", file.name)
                file.unlink()

    def _base_generation(self) -> Generation:
        return next(g for g in self.listing() if g.kind == "base")

    def _version(self, generation: Generation) -> Version:
        adapter = self.directory / generation.adapter_file if generation.adapter_file else None
        contents = [self.model_sha256(generation)]
        if adapter is not None:
            contents.append(str(generation.file_sha256))
        return Version(generation.id, self.model_path(generation), adapter, fingerprint="+".join(contents))


def _signature(path: Path) -> Signature:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
