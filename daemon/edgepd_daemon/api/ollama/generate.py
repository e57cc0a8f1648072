"""/api/generate: answer one prompt, through the chat template or, with `raw`, as it is."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from edgepd_daemon.api.access import Access
from edgepd_daemon.api.common import client_of
from edgepd_daemon.api.ollama.fields import GenerateBody
from edgepd_daemon.api.ollama.loading import load_or_unload
from edgepd_daemon.api.ollama.ndjson import GENERATE, respond

router = APIRouter()


@router.post("/api/generate", response_model=None)
async def generate(body: GenerateBody, services: Access, request: Request) -> Response:
    """Answer one prompt. The last object carries `interaction_id`, `generation` and `warnings`."""
    if not body.prompt:
        return await load_or_unload(services, body, GENERATE)
    limit, room = services.settings.serve.max_tokens, services.engine.context_tokens
    ask = await asyncio.to_thread(body.ask, limit, room, client_of(request))
    stream = body.stream is not False
    return await respond(services, request, GENERATE, body.model, ask, stream=stream, notes=body.chosen.notes())
