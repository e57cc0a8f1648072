"""The files of generations in one directory: how long each is kept, and what it weighs.

The idea: the registry decides, the files follow. A generation is first given up in the profile and its files are
removed after that; what a crash leaves in between has no claim any more and goes at the next start. The invariant: no
file that a generation may still need is removed, neither by its own nor by another generation's end.
What this does not do: write files, or know the base model's, which belongs to the catalog.

A file may be removed while an answer still uses it: on Linux a mapped file lives on until the last mapping is gone,
and of an adapter llama.cpp has read all it needs.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgepd.errors import ConflictError, EdgepdError
from edgepd_profiles import registry
from edgepd_profiles.registry import Generation
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Removed:
    """A generation that was given up, and the bytes of the files that went with it."""

    generation: Generation
    freed_bytes: int


class Shelf:
    """The directory with the files of all generations, of any base model. Methods block."""

    def __init__(self, store: Store, directory: Path) -> None:
        """Touch nothing yet."""
        self.directory = directory
        self._store = store

    def open(self) -> None:
        """Make the directory; remove what was never registered, or given up, when the daemon was interrupted."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = self._names_in_use()
        for file in self.directory.iterdir():
            if file.is_file() and file.name not in known:
                log.info("removing %s, which no generation has", file.name)
                file.unlink()

    def path(self, name: str) -> Path:
        """Return where a file of this name is."""
        return self.directory / name

    def own_file(self, generation: Generation) -> Path | None:
        """Return the file that a generation added, None if it has none or it is gone."""
        name = generation.model_file if generation.kind == "baked" else generation.adapter_file
        return self.path(name) if name and self.path(name).is_file() else None

    def delete(self, generation_id: int) -> Removed:
        """Give a generation up, and its files. Raises NotFoundError, or ConflictError if it has to stay."""
        return self._give_up(lambda conn: registry.delete(conn, generation_id))

    def reject(self, generation_id: int, reason: str) -> Removed:
        """Reject a generation for the reason, and remove its files. Raises NotFoundError or ConflictError."""
        return self._give_up(lambda conn: registry.set_state(conn, generation_id, "rejected", reason=reason))

    def tidy(self, base_sha256: str, keep: int) -> list[Removed]:
        """Delete the retired generations that nobody needs, but the newest `keep`."""
        removed = []
        # More than once, because a baked model may go when the last adapter upon it has gone.
        while expendable := self._expendable(base_sha256, keep):
            for generation in expendable:
                try:
                    removed.append(self.delete(generation.id))
                except ConflictError as error:  # a client was faster: it is needed again, or deleted already
                    log.info("generation %d stays: %s", generation.id, error)
                    return removed
                log.info("generation %d is old and was deleted", generation.id)
        return removed

    def remove_files(self, generation: Generation) -> int:
        """Remove those files of a generation that no generation may need any more; return their bytes."""
        known = self._names_in_use()
        freed = 0
        for name in (generation.adapter_file, generation.model_file):
            if name is None or name in known:
                continue
            try:
                size = self.path(name).stat().st_size
                self.path(name).unlink()
                freed += size
            except FileNotFoundError:
                continue
            except OSError as error:  # the next start tries again
                log.warning("%s cannot be removed: %s", name, error.strerror)
        return freed

    def _give_up(self, job: Callable[[sqlite3.Connection], Generation]) -> Removed:
        generation = self._store.write(job).result()
        return Removed(generation, self.remove_files(generation))

    def _expendable(self, base_sha256: str, keep: int) -> list[Generation]:
        with self._store.read() as conn:
            return registry.expendable(conn, base_sha256, keep)

    def _names_in_use(self) -> set[str]:
        with self._store.read() as conn:
            return registry.file_names(conn)


def tidied(shelf: Shelf, base_sha256: str, keep: int) -> None:
    """Tidy up after a switch. A failure is logged: it must not look as if the switch had failed."""
    try:
        shelf.tidy(base_sha256, keep)
    except EdgepdError as error:
        log.warning("old generations were not deleted: %s", error)
