"""What is known of all generations of one base model: their rows, their names, their files.

The idea: names that clients use, rows of the registry and files on disk are three views of the same thing; this module
turns one into another. The invariant: it only reads, and an id of another base model is not known here.
What this does not do: check or load files, or change anything (see generations.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgepd.errors import ModelError, NotFoundError
from edgepd_daemon.engine.types import Version
from edgepd_daemon.shelf import Shelf
from edgepd_profiles import registry
from edgepd_profiles.registry import Generation
from edgepd_profiles.store import Store

SERVABLE = ("active", "retired")  # states of generations that are offered to clients
LOADABLE = (*SERVABLE, "candidate")  # of those that have their files

_NUMBERED = re.compile(r"(?P<model>.+)@(?P<generation>[0-9]{1,9})")


@dataclass(frozen=True)
class Base:
    """The base model that is served: its name in the catalog, its file and its hash."""

    name: str
    path: Path
    sha256: str


class Known:
    """The generations of one base model, as the profile and the directory have them. Methods block shortly."""

    def __init__(self, store: Store, base: Base, directory: Path) -> None:
        """`directory` has the files of all generations but the base's own."""
        self.base = base
        self.directory = directory
        self.shelf = Shelf(store, directory)
        self._store = store

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
            return self.original()
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
        named = [("default", self.active()), ("base", self.original())]
        return named + [(f"{self.base.name}@{g.id}", g) for g in servable]

    def previous(self) -> Generation:
        """Return what a rollback goes to. Raises ConflictError if the base is active."""
        with self._store.read() as conn:
            return registry.previous(conn, self.base.sha256)

    def original(self) -> Generation:
        """Return the generation that is the base itself."""
        return next(g for g in self.listing() if g.kind == "base")

    def model_path(self, generation: Generation) -> Path:
        """Return the model file of a generation: a baked one, or the base itself."""
        return self.directory / generation.model_file if generation.model_file else self.base.path

    def adapter_path(self, generation: Generation) -> Path | None:
        """Return the adapter file of a generation, if it has one."""
        return self.directory / generation.adapter_file if generation.adapter_file else None

    def own_file(self, generation: Generation) -> Path | None:
        """Return the file that a generation added (the base: the model itself), None if it is gone."""
        return self.base.path if generation.kind == "base" else self.shelf.own_file(generation)

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

    def version(self, generation: Generation) -> Version:
        """Return what exactly a generation is computed with."""
        adapter = self.adapter_path(generation)
        contents = [self.model_sha256(generation)]
        if adapter is not None:
            contents.append(str(generation.file_sha256))
        return Version(generation.id, self.model_path(generation), adapter, fingerprint="+".join(contents))
