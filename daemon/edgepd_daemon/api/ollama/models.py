"""Which models there are, which are loaded, and what changes them elsewhere.

The invariant: no route here loads a model.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from edgepd import __version__
from edgepd.errors import FormatError, NotFoundError, RequestError
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.common import refuse_half_characters
from edgepd_daemon.api.errors import refusal
from edgepd_daemon.api.ollama.facts import TEMPLATE_KEY, FileFacts, read_facts
from edgepd_daemon.api.ollama.fields import TAG, ShowBody, untagged
from edgepd_daemon.api.ollama.ndjson import json_response, rfc3339, unknown_model
from edgepd_daemon.generations import Generations
from edgepd_profiles.registry import Generation

router = APIRouter()

# The version of Ollama whose API is spoken here; clients refuse servers that are older than what they need.
OLLAMA_VERSION = "0.12.11"
CAPABILITIES = ["completion", "tools", "embedding"]
FOREVER_SECONDS = timedelta(days=106_751).total_seconds()  # what Ollama adds for a model that stays loaded

# Ollama's routes that change which models there are, and what does that here.
ELSEWHERE = (
    ("POST", "/api/pull", "add a model with `edgepd model add`"),
    ("POST", "/api/create", "add a model file with `edgepd model add FILE.gguf`"),
    ("DELETE", "/api/delete", "remove a model with `edgepd model remove NAME`"),
    ("POST", "/api/copy", "give a model another name with `edgepd model add FILE.gguf --name NAME`"),
    ("POST", "/api/push", "edgepd publishes nothing; what it has learned stays on this machine"),
    ("POST", "/api/blobs/{digest}", "add a model file with `edgepd model add FILE.gguf`"),
    ("HEAD", "/api/blobs/{digest}", "add a model file with `edgepd model add FILE.gguf`"),
)


@router.get("/", response_class=PlainTextResponse)
def alive() -> str:
    """Say that the daemon runs, where Ollama's clients look for that."""
    return "edgepd is running"


@router.head("/", include_in_schema=False)
def alive_head() -> Response:
    """Say the same without a body."""
    return Response()


@router.get("/api/version")
def version() -> dict[str, str]:
    """Return the version of Ollama's API that is spoken here, and edgepd's own."""
    return {"version": OLLAMA_VERSION, "edgepd": __version__}


@router.get("/api/tags", response_model=None)
def tags(services: Access) -> Response:
    """List what a request may name as its `model`, less what has no readable file."""
    generations = services.generations
    files: dict[Path, FileFacts | None] = {}
    models = []
    for name, generation in generations.names():
        path = generations.model_path(generation)
        if path not in files:
            files[path] = _facts_if_readable(path)
        if (facts := files[path]) is not None:
            models.append(_summary(generations, name, generation, facts))
    return json_response({"models": models})


@router.post("/api/show", response_model=None)
def show(body: ShowBody, services: Access) -> Response:
    """Describe one model from its file, without loading it."""
    name = body.model or body.name
    if not name:
        raise RequestError("`model` is missing; /api/tags lists the names that it can have")
    refuse_half_characters([name])
    try:
        generation = services.generations.named(untagged(name))
    except NotFoundError as error:
        raise unknown_model(name, error) from error
    facts = read_facts(services.generations.model_path(generation), verbose=bool(body.verbose))
    info = {key: value for key, value in facts.metadata.items() if key != TEMPLATE_KEY}
    shown = {
        "modelfile": f"# Served by edgepd.\nFROM {tagged(services.generations.base.name)}\n",
        "parameters": f"num_ctx {services.engine.context_tokens}",
        "template": facts.template,
        "details": facts.details(),
        "model_info": {**info, "general.parameter_count": facts.parameters},
        "capabilities": CAPABILITIES,
        "modified_at": rfc3339(generation.created_at),
        "generation": generation.id,
    }
    if licence := facts.metadata.get("general.license"):
        shown["license"] = licence
    return json_response(shown)


@router.get("/api/ps", response_model=None)
def ps(services: Access) -> Response:
    """List the models that are loaded; each under the first name that it has."""
    generations = services.generations
    named = generations.names()
    models = []
    for loaded in services.engine.status().models:
        for name, generation in named:
            path = generations.model_path(generation)
            if str(path) == str(loaded.path) and (facts := _facts_if_readable(path)) is not None:
                kept = FOREVER_SECONDS if loaded.expires_in_s is None else loaded.expires_in_s
                summary = _summary(generations, name, generation, facts)
                del summary["modified_at"]
                models.append(
                    {
                        **summary,
                        "size": loaded.size_bytes,
                        "size_vram": 0,
                        "expires_at": rfc3339(time.time() + min(kept, FOREVER_SECONDS)),
                        "context_length": services.engine.context_tokens,
                    }
                )
                break
    return json_response({"models": models})


def tagged(name: str) -> str:
    """Return a name as Ollama shows it, with a tag."""
    return name if ":" in name else f"{name}{TAG}"


def _summary(generations: Generations, name: str, generation: Generation, facts: FileFacts) -> dict[str, Any]:
    return {
        "name": tagged(name),
        "model": tagged(name),
        "modified_at": rfc3339(generation.created_at),
        "size": facts.size_bytes,
        "digest": _digest(generations, generation),
        "details": facts.details(),
        "generation": generation.id,
    }


def _digest(generations: Generations, generation: Generation) -> str:
    """Return a SHA-256 that tells apart all that answers differently: of the file, or of file and live adapter."""
    model = generations.model_sha256(generation)
    if generation.adapter_file is None:
        return model
    return hashlib.sha256(f"{model} {generation.file_sha256}".encode()).hexdigest()


def _facts_if_readable(path: Path) -> FileFacts | None:
    try:
        return read_facts(path)
    except FormatError:
        return None


def _refusal(path: str, instead: str) -> Callable[[], Awaitable[Response]]:
    async def refuse() -> Response:
        return refusal(path, f"{path} is not implemented here: {instead}", code="not_implemented", status=501)

    return refuse


for _method, _path, _instead in ELSEWHERE:
    router.add_api_route(_path, _refusal(_path, _instead), methods=[_method], include_in_schema=False)
