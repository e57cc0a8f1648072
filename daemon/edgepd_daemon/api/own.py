"""edgepd's own routes: feedback, interactions, training. See also generations.py, and health.py for the status."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from edgepd.errors import NotFoundError, RequestError
from edgepd_daemon.api.access import Access
from edgepd_daemon.services import Services
from edgepd_daemon.trainer import progress_fields
from edgepd_profiles import feedback, interactions, runs

router = APIRouter(tags=["edgepd"])

Number = Annotated[int, Field(ge=1, le=2**63 - 1)]  # of a run or a generation; SQLite has no larger ones
LAST = "last"  # stands for the newest interaction wherever an interaction id is expected


class FeedbackRequest(BaseModel):
    """Feedback on one answer: a thumb, a corrected text, or that it is better than another answer."""

    model_config = ConfigDict(extra="forbid")
    interaction_id: str = Field(LAST, max_length=200)
    thumb: int | None = None
    edit: str | None = None
    preferred_over: str | None = Field(None, max_length=200)  # the id of the other answer
    source: str = Field("user", max_length=200)


class TrainingRequest(BaseModel):
    """What to train: `live` is the fast path, on top of what serves now; `baked` the normal one, from the base."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["live", "baked"] = "live"


@router.post("/edgepd/v1/feedback")
async def give_feedback(body: FeedbackRequest, services: Access) -> dict[str, Any]:
    """Store a thumb, an edit or a preference. Giving the same again changes nothing; giving another replaces it."""
    if sum(given is not None for given in (body.thumb, body.edit, body.preferred_over)) != 1:
        raise RequestError(
            "give either `thumb` (1 or -1) or `edit` (the corrected answer) or `preferred_over` (the id of another "
            "answer that is not as good)"
        )
    row = await asyncio.to_thread(_interaction_id, services, body.interaction_id)
    worse = body.preferred_over
    loser = "" if worse is None else await asyncio.to_thread(_interaction_id, services, worse)

    def write(conn: sqlite3.Connection) -> None:
        if body.edit is not None:
            feedback.set_edit(conn, row, body.edit, body.source)
        elif body.thumb is not None:
            feedback.set_thumb(conn, row, body.thumb, body.source)
        else:
            feedback.prefer(conn, row, loser, body.source)

    await asyncio.wrap_future(services.store.write(write))
    return {"interaction_id": row, "feedback": await asyncio.to_thread(_feedback_on, services, row)}


@router.delete("/edgepd/v1/feedback/{interaction_id}")
async def undo_feedback(interaction_id: str, services: Access, kind: str | None = None) -> dict[str, Any]:
    """Take feedback back, of one kind or all of it."""
    row = await asyncio.to_thread(_interaction_id, services, interaction_id)
    removed = await asyncio.wrap_future(services.store.write(lambda c: feedback.remove(c, row, kind)))
    return {"interaction_id": row, "removed": removed}


@router.get("/edgepd/v1/interactions")
def list_interactions(services: Access, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> dict[str, Any]:
    """List the newest interactions."""
    with services.store.read() as conn:
        return {"interactions": [asdict(i) for i in interactions.recent(conn, limit)]}


@router.get("/edgepd/v1/interactions/{interaction_id}")
def show_interaction(interaction_id: str, services: Access) -> dict[str, Any]:
    """Show one interaction with the feedback on it."""
    row = _interaction_id(services, interaction_id)
    with services.store.read() as conn:
        return {**asdict(interactions.get(conn, row)), "feedback": _feedback_on(services, row)}


@router.post("/edgepd/v1/training", status_code=202)
async def start_training(body: TrainingRequest, services: Access) -> dict[str, Any]:
    """Start a training run; it ends by itself, and a good result goes live by itself."""
    return {"run": asdict(await services.trainer.start(body.kind))}


@router.post("/edgepd/v1/training/plan")
async def plan_training(body: TrainingRequest, services: Access) -> dict[str, Any]:
    """Say what a training run would do and cost, or with 409 why it cannot be; nothing is trained."""
    return {"plan": await services.trainer.plan(body.kind)}


@router.get("/edgepd/v1/training")
def list_training(services: Access, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> dict[str, Any]:
    """List the newest training runs."""
    with services.store.read() as conn:
        return {"runs": [asdict(r) for r in runs.runs(conn, limit)]}


@router.get("/edgepd/v1/training/{run_id}")
def show_training(run_id: Number, services: Access) -> dict[str, Any]:
    """Show a run and, while it goes on, its progress."""
    with services.store.read() as conn:
        run = runs.get_run(conn, run_id)
    going_on = services.trainer.run is not None and services.trainer.run.id == run_id
    return {"run": asdict(run), "progress": progress_fields(services.trainer.progress) if going_on else None}


@router.delete("/edgepd/v1/training/{run_id}")
async def stop_training(run_id: Number, services: Access) -> dict[str, Any]:
    """Stop a run that is going on."""
    await services.trainer.stop(run_id)
    return await asyncio.to_thread(show_training, run_id, services)


def _interaction_id(services: Services, given: str) -> str:
    """Return the id itself, or that of the newest interaction for `last`. Raises NotFoundError."""
    with services.store.read() as conn:
        if given == LAST:
            return interactions.latest(conn).id
        if not given:
            raise NotFoundError("the interaction id is empty; use 'last' for the newest interaction")
        return interactions.get(conn, given).id


def _feedback_on(services: Services, row: str) -> list[dict[str, Any]]:
    with services.store.read() as conn:
        return [{k: v for k, v in asdict(f).items() if k != "interaction"} for f in feedback.of(conn, row)]
