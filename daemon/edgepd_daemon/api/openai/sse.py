"""Server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from edgepd_daemon.api.streams import encoded

DONE = "data: [DONE]\n\n"


def response(lines: AsyncIterator[str]) -> StreamingResponse:
    """Return the stream as a response."""
    return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def data(body: dict[str, Any]) -> str:
    """Return an object as an event without a name."""
    return f"data: {encoded(body)}\n\n"
