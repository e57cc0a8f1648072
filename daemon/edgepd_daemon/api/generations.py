"""The routes of generations: list, show and compare them, switch between them, keep, delete, import and merge."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from edgepd_daemon import describing
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.errors import refusal
from edgepd_daemon.api.own import Number
from edgepd_daemon.api.security import over_unix_socket
from edgepd_daemon.generations import Switched
from edgepd_profiles.registry import Generation

router = APIRouter(prefix="/edgepd/v1/generations", tags=["edgepd"])

MAX_MERGED = 64
MAX_RANK = 1024


class RollbackRequest(BaseModel):
    """Where to go back to; by default to what was active before."""

    model_config = ConfigDict(extra="forbid")
    to: Number | None = None


class ActivateRequest(BaseModel):
    """Which generation to activate, and optionally which one must be active now."""

    model_config = ConfigDict(extra="forbid")
    generation: Number
    expected: Number | None = None


class PinRequest(BaseModel):
    """Whether a generation and its files are to be kept."""

    model_config = ConfigDict(extra="forbid")
    pinned: bool


class ImportRequest(BaseModel):
    """The file to import: an adapter or a model, by its absolute path."""

    model_config = ConfigDict(extra="forbid")
    path: Annotated[str, Field(min_length=1, max_length=4096)]


class MergeRequest(BaseModel):
    """Which live generations to merge, with which weights (by default their mean) and up to which rank (exactly)."""

    model_config = ConfigDict(extra="forbid")
    generations: Annotated[list[Number], Field(max_length=MAX_MERGED)]
    weights: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=MAX_MERGED)] | None = None
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)] | None = None


@router.get("")
def list_generations(services: Access) -> dict[str, Any]:
    """List all generations of the served model, the oldest first; `previous` is what a rollback would go to."""
    generations = services.generations
    active = generations.active()
    return {
        "active": active.id,
        "previous": None if active.kind == "base" else generations.previous().id,
        "generations": [_described(services, g) for g in generations.listing()],
    }


@router.post("/rollback")
def rollback(body: RollbackRequest, services: Access) -> dict[str, Any]:
    """Go back to an earlier generation."""
    return _switched(services.generations.rollback(body.to))


@router.post("/activate")
def activate(body: ActivateRequest, services: Access) -> dict[str, Any]:
    """Make a generation serve all new requests."""
    return _switched(services.generations.activate(body.generation, body.expected))


@router.post("/import", response_model=None)
def import_generation(body: ImportRequest, services: Access, request: Request) -> dict[str, Any] | JSONResponse:
    """Copy an adapter or model file of this machine into a new candidate. Over the Unix socket only."""
    if not over_unix_socket(request.scope):
        sentence = "files are imported over the Unix socket only; use `edgepd adapters import` on this machine"
        return refusal(request.url.path, sentence, code="forbidden", status=403)
    # Loads numpy, as all of these.
    from edgepd_daemon.generation_files.importing import import_file  # noqa: PLC0415

    return {"generation": _described(services, import_file(services.generations, Path(body.path)))}


@router.post("/merge")
def merge_generations(body: MergeRequest, services: Access) -> dict[str, Any]:
    """Merge live generations of one model file into a new candidate."""
    from edgepd_daemon.generation_files.merging import merge  # noqa: PLC0415

    made = merge(services.generations, body.generations, body.weights, body.rank)
    return {"generation": _described(services, made)}


@router.get("/{generation_id}")
def show_generation(generation_id: Number, services: Access) -> dict[str, Any]:
    """Show one generation: where it comes from, its files, and the verdict on it in one sentence."""
    return describing.shown(services.generations, services.generations.get(generation_id))


@router.delete("/{generation_id}")
def delete_generation(generation_id: Number, services: Access) -> dict[str, Any]:
    """Delete a generation's files. Those that serve, are pinned, or are needed by another one stay (409)."""
    removed = services.generations.delete(generation_id)
    return {"generation": _described(services, removed.generation), "freed_bytes": removed.freed_bytes}


@router.post("/{generation_id}/pin")
def pin_generation(generation_id: Number, body: PinRequest, services: Access) -> dict[str, Any]:
    """Keep a generation's files whatever comes after it, or stop doing so."""
    return {"generation": _described(services, services.generations.pin(generation_id, body.pinned))}


@router.get("/{a}/diff/{b}")
def diff_generations(a: Number, b: Number, services: Access) -> dict[str, Any]:
    """Say what is different in generation `b` from generation `a`: examples, settings, scores, tensors."""
    from edgepd_daemon.generation_files.comparing import changed_tensors  # noqa: PLC0415

    generations = services.generations
    first, second = generations.get(a), generations.get(b)
    tensors = changed_tensors(generations, first, second)
    return describing.differences(first, second) | {"tensors": tensors}


def _described(services: Access, generation: Generation) -> dict[str, Any]:
    return describing.described(services.generations, generation)


def _switched(switched: Switched) -> dict[str, Any]:
    return asdict(switched)
