"""A file from outside becomes a generation.

The idea: the file is copied first and only the copy is judged, so that nothing can change it in between. A LoRA becomes
a live generation, a delta that the block format can hold is baked into a copy of the base, and a whole model with the
tensors of the base is a baked generation as it is. The invariant: what is registered has passed the checks of its
header and shapes, and is opened by a child process before anything else; what is refused leaves no file behind.
What this does not do: judge whether the result is any good, or make it live.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepd.atomic import replacing
from edgepd.errors import AdapterError, ConflictError, FormatError, RequestError, StoreError
from edgepd_daemon.generation_files.checking import file_sha256, same_layout
from edgepd_daemon.generations import Generations
from edgepd_daemon.known import LOADABLE
from edgepd_profiles.registry import Generation
from edgepd_quant.adapter_file import OWN_PREFIX, TYPE_OF_KIND, check_adapter, read_adapter
from edgepd_quant.bake import DISK_MARGIN_BYTES, bake
from edgepd_quant.reader import GGUFFile

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Fit:
    """What a file is and what it belongs to: a LoRA or a delta to a model file, or a model that replaces the base."""

    kind: str  # as in adapter files, or "model"
    parent: Generation
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether it becomes the adapter of a live generation."""
        return self.kind == "lora"


def import_file(generations: Generations, source: Path) -> Generation:
    """Copy a file into a new candidate and return that.

    Raises RequestError for a path that names no file, AdapterError with the reason for a file that cannot be a
    generation of this base, ConflictError for one that is there already, StoreError when the disk has no room.
    """
    if not source.is_absolute():
        raise RequestError(f"{source} is not an absolute path; the daemon has another working directory than you")
    examine(generations, source)  # for an early refusal; what counts is the copy
    copied = _new_path(generations)
    baked = _new_path(generations)
    try:
        _copy(source, copied)
        fit = examine(generations, copied)
        result = copied
        if fit.kind not in ("lora", "model"):
            report = bake(generations.base.path, read_adapter(copied), baked)
            fit.config["max_relative_rounding"] = report.max_relative_rounding
            copied.unlink()
            result = baked
        made = _register(generations, fit, result, source.name)
    except BaseException:
        copied.unlink(missing_ok=True)
        baked.unlink(missing_ok=True)
        raise
    generations.verify(made)
    return made


def examine(generations: Generations, path: Path) -> Fit:
    """Say what a file is and what it belongs to. Raises AdapterError with the reason if that is nothing here."""
    try:
        with GGUFFile.open(path) as file, GGUFFile.open(generations.base.path) as base:
            if file.metadata.get("general.type") != "adapter":
                difference = same_layout(file, base)
                if difference is not None:
                    raise AdapterError(
                        f"{path} cannot be a generation of {generations.base.name}: {difference}; import an adapter "
                        f"or a model that was made from this one"
                    )
                return Fit("model", generations.original())
            if file.metadata.get("adapter.type") != TYPE_OF_KIND["lora"]:
                header = check_adapter(path, base, generations.base.sha256)
                return Fit(header.kind, generations.original())
            made_for = file.metadata.get(OWN_PREFIX + "base_sha256")
    except FormatError as error:
        raise AdapterError(f"it cannot be imported: {error}") from error
    except ValueError as error:  # a zero byte in the path
        raise RequestError(f"{str(path)!r} cannot be the name of a file: {error}") from error
    return _examine_lora(generations, path, made_for)


def _examine_lora(generations: Generations, path: Path, made_for: object) -> Fit:
    """Find the model file that a LoRA was made for: that of the active generation, or the base.

    One that was made elsewhere names none; it cannot have been made for a file that was baked here.
    """
    parent = generations.active()
    if made_for is None or made_for != generations.model_sha256(parent):
        parent = generations.original()
    with GGUFFile.open(generations.model_path(parent)) as model:
        check_adapter(path, model, generations.model_sha256(parent))
    return Fit("lora", parent)


def _register(generations: Generations, fit: Fit, file: Path, name: str) -> Generation:
    sha256 = file_sha256(file)
    if fit.kind == "model" and sha256 == generations.base.sha256:
        raise ConflictError(f"{name} is the base model itself, which is there already")
    for other in generations.listing():
        if other.file_sha256 == sha256 and other.state in LOADABLE:
            raise ConflictError(f"generation {other.id} has the very same contents; use that one")
    return generations.add(
        parent=fit.parent.id,
        kind="live" if fit.live else "baked",
        adapter_file=file.name if fit.live else None,
        model_file=fit.parent.model_file if fit.live else file.name,
        file_sha256=sha256,
        config={"origin": "imported", "name": name, "kind": fit.kind, **fit.config},
        reason=f"imported from {name}; nobody has measured whether it helps",
    )


def _copy(source: Path, target: Path) -> None:
    """Copy a regular file, as long as it is when it is opened. Raises RequestError or StoreError."""
    try:
        # Without blocking: opening a named pipe would wait for a writer.
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise RequestError(f"{source} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RequestError(f"{source} is not a regular file")
        needed = status.st_size + DISK_MARGIN_BYTES
        if (free := shutil.disk_usage(target.parent).free) < needed:
            raise StoreError(
                f"{target.parent} has {free} bytes free, but {needed} are needed; delete old generations with "
                "`edgepd adapters delete`"
            )
        with replacing(target) as out:
            left = status.st_size
            while left and (piece := file.read(min(COPY_BYTES, left))):
                out.write(piece)
                left -= len(piece)


def _new_path(generations: Generations) -> Path:
    return generations.directory / f"imported-{secrets.token_hex(6)}.gguf"
