"""Adapter generations: which version serves, and how another one takes its place.

The idea: the registry in the profile says which generation is active; this class turns a generation into the files
that the engine needs, checks those files before the engine touches them, and switches. Invariants: new requests get
`current` and keep the version they were admitted with; a switch that fails leaves everything as it was; the engine
never sees an adapter whose header, shapes or hash were not checked first.
What this does not do: train, or decide whether a candidate deserves to be active.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from edgepd.errors import AdapterError, ConflictError, EdgepdError, ModelError, NotFoundError
from edgepd_daemon.engine.loop import Engine
from edgepd_daemon.engine.types import Version
from edgepd_profiles import registry
from edgepd_profiles.registry import Generation
from edgepd_profiles.store import Store
from edgepd_quant.adapter_file import check_adapter
from edgepd_quant.reader import GGUFFile

log = logging.getLogger(__name__)

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
        self.problem: str | None = None  # why the active generation could not be loaded at start

    def boot(self) -> None:
        """Load the active generation, or the base if that is not possible. Raises ModelError if neither is."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_leftovers()
        base = self._store.write(lambda conn: registry.ensure_base(conn, self.base.sha256)).result()
        generation = self.active()
        try:
            version = self.prepare(generation)
        except EdgepdError as error:
            if generation.kind == "base":
                raise
            self.problem = f"generation {generation.id} cannot be served, the base serves instead: {error}"
            log.error("%s", self.problem)
            version = self.prepare(base)
        self._engine.keep(version)
        self._current = version

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

    def resolve(self, model: str) -> Version:
        """Turn the `model` of a request into a prepared version.

        Known are `default` and the base's name (the active generation), `base`, and `NAME@GENERATION`.
        Raises NotFoundError, or what preparing raises.
        """
        if model in ("", "default", self.base.name):
            return self.current
        if model == "base":
            return self.prepare(self._base_generation())
        numbered = _NUMBERED.fullmatch(model)
        if numbered is None or numbered["model"] not in ("default", self.base.name):
            raise NotFoundError(
                f"model '{model}' is not known; use 'default', 'base', '{self.base.name}' or "
                f"'{self.base.name}@GENERATION'"
            )
        return self.prepare(self.get(int(numbered["generation"])))

    def prepare(self, generation: Generation) -> Version:
        """Check a generation's files and load them into the engine. Raises AdapterError or ModelError."""
        if generation.state not in ("active", "retired", "candidate"):
            raise ConflictError(f"generation {generation.id} is {generation.state} and cannot serve")
        version = self._version(generation)
        if not self._engine.is_prepared(version):
            self._check(generation, version)
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
        return Version(generation.id, self.model_path(generation), adapter)

    def _check(self, generation: Generation, version: Version) -> None:
        """Refuse files that are missing, changed or made for another base, before llama.cpp opens them."""
        model_sha256 = self.model_sha256(generation)
        with GGUFFile.open(version.model) as model:
            if generation.model_file and (found := model.sha256()) != model_sha256:
                raise ModelError(f"{version.model} has changed since it was baked: SHA-256 is {found[:12]}…")
            if version.adapter is None:
                return
            check_adapter(version.adapter, model, model_sha256)
        with version.adapter.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != generation.file_sha256:
            raise AdapterError(
                f"{version.adapter} has changed since it was written: SHA-256 is {found[:12]}…, "
                f"expected {str(generation.file_sha256)[:12]}…; go to another generation with `edgepd adapters use`"
            )
