"""/v1/models: what a request may name as its `model`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from edgepd.errors import NotFoundError
from edgepd_daemon.api.access import Access
from edgepd_daemon.services import Services

router = APIRouter()


@router.get("/v1/models")
def models(services: Access) -> dict[str, Any]:
    """List what a request may name as its `model`."""
    return {"object": "list", "data": _listed(services)}


@router.get("/v1/models/{model:path}")
def model(model: str, services: Access) -> dict[str, Any]:
    """Show one of them."""
    listed = _listed(services)
    for entry in listed:
        if entry["id"] == model:
            return entry
    raise NotFoundError(f"model {model[:200]!r} is not known; use {', '.join(entry['id'] for entry in listed)}")


def _listed(services: Services) -> list[dict[str, Any]]:
    return [
        {"id": name, "object": "model", "created": int(g.created_at), "owned_by": "edgepd", "generation": g.id}
        for name, g in services.generations.names()
    ]
