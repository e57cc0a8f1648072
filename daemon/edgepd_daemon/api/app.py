"""The FastAPI application: its routes and how they reach the daemon's parts."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from edgepd import __version__
from edgepd_daemon.api import errors, openai, own
from edgepd_daemon.services import Services


def create_app(services: Services | None) -> FastAPI:
    """Return the application. Without services it can only describe itself."""
    app = FastAPI(title="edgepd", version=__version__, docs_url=None, redoc_url=None)
    app.state.services = services
    app.include_router(openai.router)
    app.include_router(own.router)
    errors.install(app)
    return app


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document of the socket API."""
    return create_app(None).openapi()
