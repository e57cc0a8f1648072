"""The routes of what is told and proposed: facts, recall, and suggestions of what to ask and to do next."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from edgepd.errors import RequestError
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.privacy import forgotten
from edgepd_daemon.api.viewing import App, MomentQuery
from edgepd_profiles import facts, interactions, suggestions
from edgepd_profiles.forgetting import Selector
from edgepd_profiles.suggestions import Suggestion

router = APIRouter(prefix="/edgepd/v1", tags=["edgepd"])

FactId = Annotated[int, Field(ge=1, le=2**63 - 1)]


class FactRequest(BaseModel):
    """What is to be remembered. With an app it is for that app alone, without one for all."""

    model_config = ConfigDict(extra="forbid")
    text: str
    app: str | None = Field(None, max_length=200)


class SuggestionOutcome(BaseModel):
    """What became of a suggestion that was shown."""

    model_config = ConfigDict(extra="forbid")
    outcome: Literal["taken", "ignored"]
    interaction: str | None = Field(None, max_length=200, description="of a suggestion that was taken: what came of it")
    app: str | None = Field(None, max_length=200)


@router.post("/facts")
async def remember(body: FactRequest, services: Access) -> dict[str, Any]:
    """Remember a fact; it is told to the model with the questions that it fits."""
    fact = await asyncio.wrap_future(services.store.write(lambda c: facts.remember(c, body.text, body.app or "")))
    return {"fact": asdict(fact)}


@router.get("/facts")
def list_facts(services: Access, app: App = None) -> dict[str, Any]:
    """List what is remembered."""
    with services.store.read() as conn:
        return {"facts": [asdict(fact) for fact in facts.listing(conn, app)]}


@router.delete("/facts/{fact}")
async def forget_fact(fact: FactId, services: Access, app: App = None) -> dict[str, Any]:
    """Forget a fact, everywhere. The answer is the receipt."""
    return await forgotten(services, Selector(facts=(fact,)), app, dry_run=False)


@router.get("/recall")
def search_known(
    services: Access,
    q: Annotated[str, Query(min_length=1, max_length=10_000)],
    limit: Annotated[int, Query(ge=1, le=100)] = 5,
    app: App = None,
) -> dict[str, Any]:
    """Find facts and accepted answers by their words."""
    return {"found": [asdict(found) for found in services.personaliser.recall(q, limit, app)]}


@router.get("/suggestions")
async def suggest(
    services: Access, limit: Annotated[int, Query(ge=1, le=20)] = 3, app: App = None, at: MomentQuery = None
) -> dict[str, Any]:
    """Propose what to ask next, and rank what is likely to be done next, now or `at` another time.

    A question that is returned counts as shown. `next` is empty without a history, and while `predicting` is false.
    """

    def write(conn: sqlite3.Connection) -> list[Suggestion]:
        return suggestions.suggest(conn, app or "", limit, time.time(), app)

    found = await asyncio.wrap_future(services.store.write(write))
    likely = await asyncio.to_thread(services.foresight.ranked, app, limit, at)
    return {
        "suggestions": [{"id": s.id, "text": s.text, "reason": s.reason} for s in found],
        "next": [{"intent": n.intent, "probability": n.probability, "reason": n.reason, "app": n.app} for n in likely],
        "predicting": services.settings.intent.enabled,
    }


@router.post("/suggestions/{suggestion}")
async def settle_suggestion(suggestion: str, body: SuggestionOutcome, services: Access) -> dict[str, Any]:
    """Say whether a suggestion was taken."""

    def write(conn: sqlite3.Connection) -> Suggestion:
        if body.outcome == "ignored" and body.interaction is not None:
            raise RequestError("`interaction` says where a suggestion was asked; leave it out for one that was ignored")
        if body.interaction is not None:
            interactions.get(conn, body.interaction, body.app)
        if body.outcome == "taken":
            return suggestions.taken(conn, suggestion, body.interaction, app=body.app)
        return suggestions.ignored(conn, suggestion, app=body.app)

    return {"suggestion": asdict(await asyncio.wrap_future(services.store.write(write)))}
