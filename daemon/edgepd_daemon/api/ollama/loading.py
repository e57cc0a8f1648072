"""Requests that ask nothing: they load a model or unload it."""

from __future__ import annotations

import asyncio

from fastapi.responses import Response

from edgepd.errors import NotFoundError
from edgepd_daemon.api.ollama.fields import Body, untagged
from edgepd_daemon.api.ollama.ndjson import Form, json_response, now, unknown_model
from edgepd_daemon.services import Services


async def load_or_unload(services: Services, body: Body, form: Form) -> Response:
    """Load the model, or with `keep_alive` 0 unload it if it is loaded. Raises EdgepdError."""
    body.refuse_unsupported(services.engine.context_tokens)
    unload = body.keep_alive_seconds() == 0
    try:
        if unload:
            await asyncio.to_thread(_unload, services, untagged(body.model))
        else:
            await asyncio.to_thread(_load, services, untagged(body.model), body.keep_alive_seconds())
    except NotFoundError as error:
        raise unknown_model(body.model, error) from error
    reason = "unload" if unload else "load"
    head = {"model": body.model, "created_at": now()}
    return json_response({**head, **form.body(""), "done": True, "done_reason": reason})


def _load(services: Services, name: str, keep_alive: float | None) -> None:
    services.engine.prepare(services.generations.resolve(name), keep_alive)


def _unload(services: Services, name: str) -> None:
    # Not by `resolve`, which would load the model first.
    generations = services.generations
    services.engine.unload(generations.model_path(generations.named(name)))
