"""Models that Ollama has already downloaded, `ollama:name[:tag]`: found through its manifests, not copied if
possible.

The idea: a manifest (JSON, media types of the OCI image format) names the digest of the GGUF blob; blobs are
named by their content and never changed, so a hard link is as good as a copy and costs no space.
The invariant: what is installed hashes to the digest in the manifest.
What this does not do: talk to Ollama, pull models, or apply what else its manifest holds (system prompt,
parameters).
Source of the layout: ollama/ollama, server/modelpath.go and server/manifest.go.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgepd.errors import ModelError, NotFoundError, RequestError
from edgepd.models.files import copy_hashed, hash_file
from edgepd.models.source import Progress, Source, name_from

DEFAULT_REGISTRY = "registry.ollama.ai"
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
MODEL_LAYER = "application/vnd.ollama.image.model"
ADAPTER_LAYER = "application/vnd.ollama.image.adapter"


def stores(env: Mapping[str, str]) -> list[Path]:
    """Return the directories in which Ollama keeps models, in the order in which they are searched."""
    chosen = env.get("OLLAMA_MODELS")
    # The second is the home of the service that Ollama's installer for Linux creates.
    return [Path(chosen)] if chosen else [Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]


def ollama_model(reference: str, env: Mapping[str, str] | None = None) -> Source:
    """Describe an Ollama model given as `[registry/][namespace/]name[:tag]`.

    Raises RequestError for a malformed reference, NotFoundError if no store has it, ModelError for a bad
    manifest.
    """
    relative, name = _manifest_path(reference)
    searched = stores(os.environ if env is None else env)
    for store in searched:
        manifest = store / "manifests" / relative
        if manifest.is_file():
            digest = _model_digest(manifest)
            return Source(name, f"ollama:{reference}", "unknown", digest, _writer(store, digest))
    raise NotFoundError(
        f"no Ollama model '{reference}' in {' or '.join(map(str, searched))}; 'ollama list' shows what there "
        "is, and OLLAMA_MODELS names another store"
    )


def _manifest_path(reference: str) -> tuple[Path, str]:
    """Return the path of the manifest inside a store, and the name for our catalog."""
    path, _, tag = reference.partition(":")
    parts = [*path.split("/"), tag or "latest"]
    if not 2 <= len(parts) <= 4 or not all(PART.fullmatch(part) for part in parts):
        raise RequestError(f"'ollama:{reference[:200]}' is not of the form ollama:name[:tag]")
    full = [DEFAULT_REGISTRY, "library"][: 4 - len(parts)] + parts
    return Path(*full), name_from("-".join(parts[-2:]))


def _model_digest(manifest: Path) -> str:
    """Return the SHA-256 of the model blob."""
    try:
        content: Any = json.loads(manifest.read_bytes())
        layers = {layer["mediaType"]: layer["digest"] for layer in content["layers"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{manifest}: this Ollama manifest cannot be read: {error!r}") from error
    if ADAPTER_LAYER in layers:
        raise ModelError(f"{manifest}: this Ollama model is a base with an adapter, which edgepd cannot take over")
    match = DIGEST.fullmatch(str(layers.get(MODEL_LAYER)))
    if not match:
        raise ModelError(f"{manifest}: this Ollama manifest names no model file ({MODEL_LAYER})")
    return match[1]


def _writer(store: Path, digest: str) -> Callable[[Path, Progress], str]:
    def write(target: Path, progress: Progress) -> str:
        blob = store / "blobs" / f"sha256-{digest}"
        try:
            total = blob.stat().st_size
            try:
                target.hardlink_to(blob)
            except OSError:  # another file system, or a blob of another user: then it costs a copy
                with blob.open("rb") as file:
                    return copy_hashed([file], target, lambda done: progress(done, total))
            return hash_file(target, lambda done: progress(done, total))
        except (FileNotFoundError, PermissionError) as error:
            raise ModelError(f"{blob}: this Ollama model file cannot be read: {error.strerror}") from error

    return write
