"""The OpenAI dialect: chat completions, completions, responses, embeddings and models.

The idea: each route translates its body into an `Ask`, which knows no dialect, and what comes of it back. Invariants:
a field that would change the answer and cannot be honoured is refused by name, as is a field that nobody knows, unless
it is null; a field that only OpenAI's own service has a use for (`user`, `metadata`, ...) is accepted and ignored.
What this does not do: compute anything, or know how answers are recorded.
"""

from __future__ import annotations

from fastapi import APIRouter

from edgepd_daemon.api.openai import chat, completions, embeddings, models, responses

router = APIRouter(tags=["openai"])
for part in (chat, completions, responses, embeddings, models):
    router.include_router(part.router)
