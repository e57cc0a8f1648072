"""Generations over a real profile, registry and directory, with an engine that only remembers what it was told.

Files are real where a test makes real ones, and a few bytes where it does not; `Kept.checks` says which are checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgepd_daemon.booting import Boot
from edgepd_daemon.engine.types import Version
from edgepd_daemon.generations import Base, Generations
from edgepd_profiles import registry
from edgepd_profiles.registry import Generation
from edgepd_profiles.store import Store


class FakeEngine:
    """Remembers which versions it has loaded and which one it is to keep; loads whatever has its files."""

    def __init__(self, *, checks: bool) -> None:
        """Without `checks` every version counts as loaded, so that its files are never looked at."""
        self.loaded: list[Version] = []
        self.kept: Version | None = None
        self._checks = checks

    def is_prepared(self, version: Version) -> bool:
        return not self._checks or version in self.loaded

    def prepare(self, version: Version) -> None:
        self.loaded.append(version)

    def keep(self, version: Version) -> None:
        self.kept = version


class FakeProber:
    """Passes everything but the versions of generations in `bad`."""

    def __init__(self) -> None:
        self.bad: dict[int, str] = {}
        self.asked: list[int] = []
        self.noted: list[Version] = []

    def problem(self, version: Version) -> str | None:
        self.asked.append(version.generation)
        return self.bad.get(version.generation)

    def note(self, version: Version) -> None:
        self.noted.append(version)

    def close(self) -> None:
        pass


class Kept:
    """The parts, and short ways to make generations."""

    def __init__(self, store: Store, base: Base, directory: Path, run: Boot | None, *, checks: bool) -> None:
        """Use `kept`."""
        self.store = store
        self.engine = FakeEngine(checks=checks)
        self.prober = FakeProber()
        parts: Any = (store, self.engine, base, directory)
        prober: Any = self.prober
        self.run = run
        self.generations = Generations(*parts, run=run, prober=prober)
        self.generations.boot()

    def file(self, name: str, content: bytes = b"12345") -> Path:
        """Write a file into the directory of the generations."""
        path = self.generations.directory / name
        path.write_bytes(content)
        return path

    def add(self, kind: str, path: Path, **fields: Any) -> Generation:
        """Register a file that is in the directory as a candidate."""
        live = kind == "live"
        values = {
            "parent": self.generations.active().id,
            "adapter_file": path.name if live else None,
            "model_file": None if live else path.name,
            "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        return self.generations.add(kind=kind, **values | fields)

    def live(self, name: str = "a.gguf", **fields: Any) -> int:
        """Add a live candidate whose file has five bytes."""
        return self.add("live", self.file(name), **fields).id

    def baked(self, name: str = "m.gguf", **fields: Any) -> int:
        """Add a baked candidate whose file has five bytes."""
        return self.add("baked", self.file(name), **fields).id

    def states(self) -> dict[int, str]:
        return {g.id: g.state for g in self.generations.listing()}

    def files(self) -> list[str]:
        return sorted(file.name for file in self.generations.directory.iterdir())

    def set_state(self, generation_id: int, state: str) -> None:
        self.store.write(lambda conn: registry.set_state(conn, generation_id, state)).result()


@contextmanager
def kept(
    directory: Path, base: Base | None = None, *, checks: bool = False, recorded: bool = False, crash: bool = False
) -> Iterator[Kept]:
    """Generations below a directory; `recorded` as a run of the daemon, whose end is missing after a `crash`."""
    base = base or Base("tiny", directory / "tiny.gguf", "ab" * 32)
    with Store.open(directory / "profile.db") as store:
        if not recorded:
            yield Kept(store, base, directory / "generations", None, checks=checks)
            return
        with Boot(store, base.sha256) as run:
            run.clean = not crash
            yield Kept(store, base, directory / "generations", run, checks=checks)
