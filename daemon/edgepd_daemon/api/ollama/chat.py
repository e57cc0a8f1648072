"""/api/chat: answer a conversation."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from edgepd_daemon.api.access import Access
from edgepd_daemon.api.common import client_of
from edgepd_daemon.api.ollama.fields import ChatBody
from edgepd_daemon.api.ollama.loading import load_or_unload
from edgepd_daemon.api.ollama.ndjson import CHAT, respond

router = APIRouter()


@router.post("/api/chat", response_model=None)
async def chat(body: ChatBody, services: Access, request: Request) -> Response:
    """Answer a conversation. The last object carries `interaction_id`, `generation` and `warnings`."""
    if not body.messages:
        return await load_or_unload(services, body, CHAT)
    limit, room = services.settings.serve.max_tokens, services.engine.context_tokens
    ask = await asyncio.to_thread(body.ask, limit, room, client_of(request))
    stream = body.stream is not False
    return await respond(services, request, CHAT, body.model, ask, stream=stream, notes=body.chosen.notes())
