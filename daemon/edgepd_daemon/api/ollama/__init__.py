"""The Ollama dialect: what its clients call, answered by the served model and its generations.

What this does not do: download, create or delete models; the command line does that.
"""

from __future__ import annotations

from fastapi import APIRouter

from edgepd_daemon.api.ollama import chat, embed, generate, models

router = APIRouter(tags=["ollama"])
router.include_router(chat.router)
router.include_router(generate.router)
router.include_router(embed.router)
router.include_router(models.router)
