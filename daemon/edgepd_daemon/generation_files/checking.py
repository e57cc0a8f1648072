"""The files of a generation, checked before llama.cpp opens them: headers, shapes, and that nothing has changed.

What this does not do: open them with llama.cpp (see probing.py).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgepd.errors import AdapterError, ModelError
from edgepd_daemon.engine.types import Version
from edgepd_profiles.registry import Generation
from edgepd_quant.adapter_file import check_adapter
from edgepd_quant.reader import GGUFFile


def check_files(generation: Generation, version: Version, model_sha256: str) -> None:
    """Raise ModelError or AdapterError for files that are missing, changed or made for another base."""
    with GGUFFile.open(version.model) as model:
        if generation.model_file and (found := model.sha256()) != model_sha256:
            raise ModelError(f"{version.model} has changed since it was baked: SHA-256 is {found[:12]}…")
        if version.adapter is None:
            return
        check_adapter(version.adapter, model, model_sha256)
    found = file_sha256(version.adapter)
    if found != generation.file_sha256:
        raise AdapterError(
            f"{version.adapter} has changed since it was written: SHA-256 is {found[:12]}…, "
            f"expected {str(generation.file_sha256)[:12]}…; go to another generation with `edgepd adapters use`"
        )


def same_layout(model: GGUFFile, base: GGUFFile) -> str | None:
    """Return in what a model differs from the base that must be equal in every generation, None if in nothing.

    That is the architecture, and the name, shape and type of every tensor.
    """
    key = "general.architecture"
    if model.metadata.get(key) != base.metadata.get(key):
        return f"its architecture is {model.metadata.get(key)!r}, not {base.metadata.get(key)!r}"
    for name, wanted in base.tensors.items():
        found = model.tensors.get(name)
        if found is None:
            return f"it has no tensor {name!r}"
        if (found.shape, found.qtype) != (wanted.shape, wanted.qtype):
            return (
                f"its tensor {name!r} is {found.shape} in {found.qtype.name}, not {wanted.shape} in {wanted.qtype.name}"
            )
    extra = next((name for name in model.tensors if name not in base.tensors), None)
    return None if extra is None else f"it has a tensor {extra!r} that the base has not"


def file_sha256(path: Path) -> str:
    """Hash a whole file, in hexadecimal, with flat memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
