"""The files of a generation, checked before llama.cpp opens them."""

from __future__ import annotations

import hashlib

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
    with version.adapter.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != generation.file_sha256:
        raise AdapterError(
            f"{version.adapter} has changed since it was written: SHA-256 is {found[:12]}…, "
            f"expected {str(generation.file_sha256)[:12]}…; go to another generation with `edgepd adapters use`"
        )
