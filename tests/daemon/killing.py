"""Generations over a real profile, registry and directory that can be killed at any point and started again.

The idea: a SIGKILL is a copy of the directory as it is at that moment, unclosed database included; the next start gets
the copy. `World.dies_at` names the point at which that happens inside an operation. The engine only remembers, but it
refuses files that are not what their version says; the child that opens files first is replaced by a flag.
What this does not do: serve or train.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgepd.errors import ModelError
from edgepd_daemon.booting import Boot
from edgepd_daemon.engine.types import Version
from edgepd_daemon.generations import Base, Generations
from edgepd_daemon.probing import Prober
from edgepd_daemon.shelf import Shelf
from edgepd_profiles.registry import Generation
from edgepd_profiles.store import Store
from edgepd_quant.adapter_file import Adapter, Kind, LowRank, write_adapter
from edgepd_quant.bake import bake
from edgepd_quant.types import GGMLType
from tests.tiny_gguf import write_gguf

# Where an operation can be killed: a file is written and not registered; it is loaded and nothing else has happened;
# the switch is in the profile and nobody knows yet; generations are given up and their files are still there.
POINTS = ("add", "load", "keep", "remove")
CRASHED = "llama.cpp crashed on it (SIGSEGV)"
TENSORS = {"blk.0.attn_q.weight": (16, 64), "blk.0.attn_k.weight": (8, 64)}
UNFINISHED = (".live-7.gguf.k3j1.tmp", "live-99.gguf", "imported-0123456789ab.gguf", ".baked-7.gguf.9x_a.tmp")


class Killed(BaseException):
    """The daemon died here: nothing in its code runs any more, whatever it catches."""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_base(path: Path) -> Path:
    """Write a model of a few kilobytes, which is enough for everything but llama.cpp."""
    rng = np.random.default_rng(0)
    tensors = {n: (rng.normal(size=shape).astype(np.float32), int(GGMLType.Q4_1)) for n, shape in TENSORS.items()}
    return write_gguf(path, {"general.architecture": "llama", "general.name": "tiny"}, tensors)


def small_adapter(seed: int, kind: Kind = "lora", base_sha256: str | None = None) -> Adapter:
    """Return a random adapter of the base, of rank 2, that no other seed gives."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (rows, columns) in TENSORS.items():
        width = columns if kind == "lora" else columns // 32
        a = rng.normal(0, 0.1, (2, width)).astype(np.float32)
        tensors[name] = LowRank(a, rng.normal(0, 0.1, (rows, 2)).astype(np.float32))
    return Adapter(kind, "llama", 2.0, tensors, {"base_sha256": base_sha256} if base_sha256 else {})


class WatchfulEngine:
    """Loads whatever has the contents that its version names, unless there is no memory."""

    def __init__(self, passing: Callable[[str], None]) -> None:
        self.loaded: list[Version] = []
        self.tried: list[Version] = []  # everything that was ever handed to it, loaded or not
        self.kept: Version | None = None
        self.no_memory = False
        self._passing = passing

    def is_prepared(self, version: Version) -> bool:
        return version in self.loaded

    def prepare(self, version: Version) -> None:
        self.tried.append(version)
        self._passing("load")
        found = "+".join(sha256(file) for file in (version.model, version.adapter) if file)
        assert found == version.fingerprint, f"the engine was given changed files of generation {version.generation}"
        if self.no_memory:
            raise ModelError("there is no memory for it; end other programs")
        self.loaded.append(version)

    def keep(self, version: Version) -> None:
        self._passing("keep")
        self.kept = version


class FlaggedProber(Prober):
    """Says of files that were never opened whether the child crashed over them; the base is above suspicion."""

    crashes = False

    def _ask(self, version: Version) -> str | None:
        alone = version.adapter is None and version.model.name == "tiny.gguf"
        return CRASHED if self.crashes and not alone else None


class MortalShelf(Shelf):
    """Can be killed before it removes files."""

    passing: Callable[[str], None]

    def remove_files(self, generation: Generation) -> int:
        self.passing("remove")
        return super().remove_files(generation)


class MortalGenerations(Generations):
    """Can be killed before a generation is registered."""

    passing: Callable[[str], None]

    def add(self, **fields: Any) -> Generation:
        self.passing("add")
        return super().add(**fields)


class World:
    """One run of the daemon after the other."""

    def __init__(self, root: Path) -> None:
        """Start the first run below `root`."""
        self.root = root
        path = write_base(root / "tiny.gguf")
        self.base = Base("tiny", path, sha256(path))
        self.outside = root / "outside"
        self.outside.mkdir()
        self.dies_at: str | None = None
        self._homes = 0
        self._left: Path | None = None  # what was on the disk when it was killed
        self._made = 0
        self.home = self._new_home()
        self.home.mkdir()
        self.start()

    def start(self) -> None:
        """Start as service.py does."""
        self.store = Store.open(self.home / "profile.db")
        self.boot = Boot(self.store, self.base.sha256)
        self.boot.__enter__()
        self.engine = WatchfulEngine(self._passing)
        self.prober = FlaggedProber(self.store)
        engine: Any = self.engine
        directory = self.home / "generations"
        self.generations = MortalGenerations(
            self.store, engine, self.base, directory, run=self.boot, prober=self.prober
        )
        self.generations.passing = self._passing
        self.generations.shelf = shelf = MortalShelf(self.store, directory)
        shelf.passing = self._passing
        self.generations.keep_retired = 1
        self.generations.boot()

    def stop(self) -> None:
        """End as after SIGTERM."""
        self.boot.__exit__(None, None, None)
        self.store.close()

    def kill(self, *, unfinished: bool = False) -> None:
        """End as after SIGKILL, now or at the point that was passed; `unfinished`: while files were written."""
        left = self._left or self._copied()
        self._left = None
        self.store.close()
        shutil.rmtree(self.home)
        self.home = left
        if unfinished:
            for name in UNFINISHED:
                (self.home / "generations" / name).write_bytes(b"GGUF")

    def flush(self) -> None:
        """Wait until everything that was queued is in the profile."""
        self.store.write(lambda conn: None).result()

    def write(self, *, live: bool) -> Path:
        """Write what a trainer would: an adapter upon what serves, or a model baked from the base."""
        self._made += 1
        path = self.generations.directory / f"{'live' if live else 'baked'}-{self._made}.gguf"
        if live:
            model = self.generations.model_sha256(self.generations.active())
            write_adapter(path, small_adapter(self._made, "lora", model))
        else:
            bake(self.base.path, small_adapter(self._made, "scale"), path)
        return path

    def foreign(self, what: str) -> Path:
        """Write a file that somebody might import."""
        self._made += 1
        path = self.outside / f"{what}-{self._made}.gguf"
        if what == "model":
            bake(self.base.path, small_adapter(self._made, "scale"), path)
        elif what == "nonsense":
            path.write_bytes(b"GGUF" + bytes(60))
        else:
            write_adapter(path, small_adapter(self._made, "lora" if what == "lora" else "scale"))
        return path

    def files(self) -> set[str]:
        return {file.name for file in self.generations.directory.iterdir()}

    def _passing(self, point: str) -> None:
        if point == self.dies_at:
            self.dies_at = None
            self._left = self._copied()
            raise Killed(point)

    def _copied(self) -> Path:
        """Copy all files as they are; what is queued for the profile is written first, or it would be torn."""
        self.flush()
        return Path(shutil.copytree(self.home, self._new_home()))

    def _new_home(self) -> Path:
        self._homes += 1
        return self.root / f"home{self._homes}"
