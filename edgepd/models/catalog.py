"""The catalog of installed models: one GGUF file and one JSON sidecar per model in a single directory.

The idea: the directory is the database. `<name>.gguf` is the model, `<name>.json` says where it came from,
`selected` holds the name of the one in use. The invariant: a model is listed only if its file was complete,
hashed and checked; files get their final names by rename after fsync, the sidecar last, and model files are
read-only from then on.
What this does not do: understand GGUF beyond its magic (the caller passes `check`), or load anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepd.atomic import replacing, sync_directory
from edgepd.errors import ConflictError, FormatError, ModelError, NotFoundError, RequestError, StoreError
from edgepd.models.hub import hub_file
from edgepd.models.ollama import ollama_model
from edgepd.models.source import NAME, Progress, Source, check_name, local_file
from edgepd.models.wheels import package_source, packages

DEFAULT_MODEL = "smollm2-135m-instruct-q4_1"
SCRATCH_PREFIX = ".adding-"
HOW_TO_ADD = "run: edgepd model add default"


@dataclass(frozen=True)
class Installed:
    """One installed model. `added_at` is in seconds since 1970; `source` is what it was added from."""

    name: str
    path: Path
    size_bytes: int
    sha256: str
    source: str
    licence: str
    added_at: float


class Catalog:
    """The installed models in `models_dir`. Safe to use from several processes at once."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir

    def add(
        self,
        source: str,
        progress: Progress | None = None,
        *,
        check: Callable[[Path], None] | None = None,
        accept_terms: bool = False,
        name: str | None = None,
    ) -> Installed:
        """Install a model and return it; one that is installed already is returned as it is.

        `source` is 'default', 'gemma3-270m', 'hf:org/repo/file.gguf', 'ollama:name[:tag]' or the path of a
        .gguf file. `progress(done_bytes, total_bytes)` is called while bytes arrive. `check(path)` raises
        ModelError to refuse a file before it becomes part of the catalog. Raises ModelError, NotFoundError or
        RequestError for a bad source, ConflictError if the name is taken by another model, StoreError if the
        disk refuses.
        """
        found = resolve(source)
        if name is not None:
            found = dataclasses.replace(found, name=check_name(name))
        if found.terms and not accept_terms:
            raise ModelError(
                f"model {found.name} comes under the {found.licence}: read {found.terms} and, if you agree, "
                f"run: edgepd model add {source} --accept-terms"
            )
        try:
            with self._locked():
                present = self._present(found.name)
                if present and found.sha256 == present.sha256:
                    return present
                return self._install(found, present, progress or (lambda _done, _total: None), check)
        except OSError as error:
            raise StoreError(f"model {found.name} cannot be written to {self.models_dir}: {error}") from error

    def list(self) -> list[Installed]:
        """Return the installed models by name. Raises ModelError if a sidecar cannot be read."""
        names = sorted(path.stem for path in self.models_dir.glob("*.json") if NAME.fullmatch(path.stem))
        return [self._read(name) for name in names]

    def find(self, name: str) -> Installed:
        """Return the model called `name`, where 'default' means the selected one.

        Raises NotFoundError with the known names, or ModelError if the file is missing or has changed its
        size.
        """
        if name == "default":
            return self.selected()
        check_name(name)
        if not self._sidecar(name).is_file():
            known = ", ".join(model.name for model in self.list()) or "none"
            raise NotFoundError(f"model '{name}' is not installed (installed: {known}); {HOW_TO_ADD}")
        model = self._read(name)
        try:
            size = model.path.stat().st_size
        except FileNotFoundError as error:
            raise ModelError(f"{model.path} is missing; {_how_to_mend(model)}") from error
        if size != model.size_bytes:
            raise ModelError(
                f"{model.path} has {size} bytes instead of {model.size_bytes}, so it is damaged; {_how_to_mend(model)}"
            )
        return model

    def use(self, name: str) -> Installed:
        """Select the model that 'default' stands for from now on."""
        model = self.find(name)
        with self._locked(), replacing(self._selection) as file:
            file.write(f"{model.name}\n".encode())
        return model

    def selected(self) -> Installed:
        """Return the model that `use` selected; else the default one, else the only one.

        Raises ModelError if there is none, or several and no choice was made.
        """
        try:
            chosen = self._selection.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            names = [model.name for model in self.list()]
            if not names:
                raise ModelError(f"no model is installed; {HOW_TO_ADD}") from None
            if DEFAULT_MODEL not in names and len(names) > 1:
                raise ModelError(
                    f"several models are installed ({', '.join(names)}) and none is selected; "
                    "run: edgepd model use NAME"
                ) from None
            return self.find(DEFAULT_MODEL if DEFAULT_MODEL in names else names[0])
        try:
            return self.find(chosen)
        except (NotFoundError, RequestError) as error:
            raise ModelError(
                f"the selected model is gone: {error}, or select another: edgepd model use NAME"
            ) from error

    def remove(self, name: str) -> None:
        """Delete a model, and the selection if it is the selected one. Who has it open keeps its data."""
        check_name(name)
        if not self._sidecar(name).is_file():
            self.find(name)  # raises NotFoundError
        with self._locked():
            self._sidecar(name).unlink(missing_ok=True)
            (self.models_dir / f"{name}.gguf").unlink(missing_ok=True)
            if self._selection.is_file() and self._selection.read_text(encoding="utf-8").strip() == name:
                self._selection.unlink()
            sync_directory(self.models_dir)

    @property
    def _selection(self) -> Path:
        return self.models_dir / "selected"

    def _sidecar(self, name: str) -> Path:
        return self.models_dir / f"{name}.json"

    def _read(self, name: str) -> Installed:
        sidecar = self._sidecar(name)
        try:
            fields = json.loads(sidecar.read_bytes())
            return Installed(name=name, path=self.models_dir / f"{name}.gguf", **fields)
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"{sidecar} cannot be read ({error}); run: edgepd model remove {name}, then add it again"
            ) from error

    def _present(self, name: str) -> Installed | None:
        """Return the model if it is installed and sound, so that a damaged one can simply be added again."""
        try:
            return self.find(name)
        except (NotFoundError, ModelError):
            return None

    def _install(
        self,
        source: Source,
        present: Installed | None,
        progress: Progress,
        check: Callable[[Path], None] | None,
    ) -> Installed:
        """Write the model in a scratch directory, check it there, then give it its names."""
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=self.models_dir))
        try:
            written = scratch / f"{source.name}.gguf"
            sha256 = source.write(written, progress)
            _check_content(written, source, sha256, check)
            if present and present.sha256 != sha256:
                raise ConflictError(
                    f"another model is already installed as '{source.name}' (from {present.source}); "
                    f"run: edgepd model remove {source.name}, or add this one under another name"
                )
            if present:
                return present
            if written.stat().st_nlink == 1:  # a hard link shares its mode with a file that is not ours
                written.chmod(0o400)
            size_bytes = written.stat().st_size
            written.replace(self.models_dir / written.name)
            sync_directory(self.models_dir)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        model = Installed(
            source.name,
            self.models_dir / written.name,
            size_bytes,
            sha256,
            source.origin,
            source.licence,
            time.time(),
        )
        fields = {key: value for key, value in dataclasses.asdict(model).items() if key not in ("name", "path")}
        with replacing(self._sidecar(model.name)) as file:
            file.write(json.dumps(fields, indent=2).encode())
        return model

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the catalog for one change, and clear away what a killed `add` has left."""
        self.models_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.models_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock_exclusively(lock, self.models_dir)
            for leftover in self.models_dir.glob(SCRATCH_PREFIX + "*"):
                shutil.rmtree(leftover)
            yield
        finally:
            os.close(lock)


def _lock_exclusively(lock: int, models_dir: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConflictError(
            f"another process is changing {models_dir} (a download?); wait for it and try again"
        ) from None


def resolve(source: str) -> Source:
    """Turn what the user wrote into a source. Raises RequestError, NotFoundError or ModelError."""
    known = packages()
    if "\0" in source or not source:
        raise RequestError(f"model source {source[:80]!r} is empty or holds a NUL character")
    if source in known:
        return package_source(known[source])
    if source.startswith("hf:"):
        return hub_file(source.removeprefix("hf:"))
    if source.startswith("ollama:"):
        return ollama_model(source.removeprefix("ollama:"))
    if "/" not in source and not source.endswith(".gguf"):
        raise NotFoundError(
            f"'{source[:80]}' is no known model; known are {', '.join(known)}, hf:org/repo/file.gguf, "
            "ollama:name[:tag] and the path of a .gguf file"
        )
    try:
        return local_file(Path(source).expanduser())
    except OSError as error:  # for example a name of 4 kB
        raise RequestError(f"'{source[:80]}...' cannot be opened: {error.strerror}") from error


def _check_content(path: Path, source: Source, sha256: str, check: Callable[[Path], None] | None) -> None:
    """Refuse a file that is not what the source promised. Messages name the source, not the scratch file."""
    if source.sha256 is not None and sha256 != source.sha256:
        raise ModelError(
            f"{source.origin} holds a file with SHA-256 {sha256} instead of {source.sha256}; it was not installed"
        )
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise FormatError(source.origin, 0, "this is not a GGUF file; edgepd runs only models in that format")
    if check is not None:
        try:
            check(path)
        except FormatError as error:
            raise FormatError(source.origin, error.offset, error.problem) from error


def _how_to_mend(model: Installed) -> str:
    return f"run: edgepd model remove {model.name}, then add it again (it came from {model.source})"
