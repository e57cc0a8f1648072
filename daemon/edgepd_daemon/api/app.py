"""The FastAPI application: its routes, its guards, and how they reach the daemon's parts."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp, Receive, Scope, Send

from edgepd import __version__
from edgepd.settings import Serve
from edgepd_daemon.api import (
    budget,
    errors,
    events,
    facts,
    feedback,
    generations,
    health,
    ollama,
    openai,
    own,
    privacy,
    profile,
)
from edgepd_daemon.api.limits import Limits
from edgepd_daemon.api.security import TcpGuard
from edgepd_daemon.services import Services

METHODS = ("get", "put", "post", "delete", "head", "patch")


def create_app(services: Services | None) -> FastAPI:
    """Return the application. Without services it can only describe itself."""
    app = FastAPI(title="edgepd", version=__version__, docs_url=None, redoc_url=None)
    app.state.services = services
    for part in (openai, ollama, own, feedback, profile, facts, events, privacy, generations, budget, health):
        app.include_router(part.router)
    errors.install(app)
    app.add_middleware(JsonBodies)
    app.add_middleware(Limits, serve=lambda: services.settings.serve if services else Serve())
    # Added last, so it comes first: who may not ask at all is not waited for either.
    app.add_middleware(TcpGuard, token=services.token if services else None)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


class JsonBodies:
    """Takes every body for JSON, whatever the client calls it, because `curl -d` calls it a form.

    That is safe here: the Unix socket is its owner's, and the loopback port wants a token and no web page (TcpGuard).
    """

    def __init__(self, app: ASGIApp) -> None:
        """Called by Starlette."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on with the content type of JSON."""
        if scope["type"] == "http":
            kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
            scope = {**scope, "headers": [*kept, (b"content-type", b"application/json")]}
        await self._app(scope, receive, send)


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document of the socket API."""
    return create_app(None).openapi()


def _described(app: FastAPI) -> dict[str, Any]:
    """Return the document with the errors that this API really gives, instead of FastAPI's own 422."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        schemas |= errors.SCHEMAS
        for path, operations in document["paths"].items():
            for method in METHODS:
                if method in operations:
                    responses = operations[method].setdefault("responses", {})
                    responses.pop("422", None)
                    responses["default"] = errors.described(path)
        app.openapi_schema = document
    return app.openapi_schema
