"""edgepd's own routes: feedback, interactions, training, generations. Health and status are in health.py."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from edgepd.errors import NotFoundError, RequestError
from edgepd_daemon.api.access import Access
from edgepd_daemon.generations import Switched
from edgepd_daemon.services import Services
from edgepd_daemon.trainer import progress_fields
from edgepd_profiles import feedback, interactions, runs

router = APIRouter(tags=["edgepd"])

Number = Annotated[int, Field(ge=1, le=2**63 - 1)]  # of a run or a generation; SQLite has no larger ones
LAST = "last"  # stands for the newest interaction wherever an interaction id is expected


class FeedbackRequest(BaseModel):
    """Feedback on one answer: a thumb or a corrected text."""

    model_config = ConfigDict(extra="forbid")
    interaction_id: str = Field(LAST, max_length=200)
    thumb: int | None = None
    edit: str | None = None
    source: str = Field("user", max_length=200)


class TrainingRequest(BaseModel):
    """What to train: `live` is the fast path, on top of what serves now; `baked` the normal one, from the base."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["live", "baked"] = "live"


class RollbackRequest(BaseModel):
    """Where to go back to; by default to what was active before."""

    model_config = ConfigDict(extra="forbid")
    to: Number | None = None


class ActivateRequest(BaseModel):
    """Which generation to activate, and optionally which one must be active now."""

    model_config = ConfigDict(extra="forbid")
    generation: Number
    expected: Number | None = None


@router.post("/edgepd/v1/feedback")
async def give_feedback(body: FeedbackRequest, services: Access) -> dict[str, Any]:
    """Store a thumb or an edit. Giving the same again changes nothing; giving another replaces it."""
    if (body.thumb is None) == (body.edit is None):
        raise RequestError("give either `thumb` (1 or -1) or `edit` (the corrected answer)")
    row = await asyncio.to_thread(_interaction_id, services, body.interaction_id)
    if body.edit is not None:
        edit = body.edit
        await asyncio.wrap_future(services.store.write(lambda c: feedback.set_edit(c, row, edit, body.source)))
    elif body.thumb is not None:
        thumb = body.thumb
        await asyncio.wrap_future(services.store.write(lambda c: feedback.set_thumb(c, row, thumb, body.source)))
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


@router.get("/edgepd/v1/generations")
def list_generations(services: Access) -> dict[str, Any]:
    """List all generations of the served model."""
    generations = services.generations
    return {"active": generations.active().id, "generations": [asdict(g) for g in generations.listing()]}


@router.post("/edgepd/v1/generations/rollback")
def rollback(body: RollbackRequest, services: Access) -> dict[str, Any]:
    """Go back to an earlier generation."""
    return _switched(services.generations.rollback(body.to))


@router.post("/edgepd/v1/generations/activate")
def activate(body: ActivateRequest, services: Access) -> dict[str, Any]:
    """Make a generation serve all new requests."""
    return _switched(services.generations.activate(body.generation, body.expected))


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


def _switched(switched: Switched) -> dict[str, Any]:
    return asdict(switched)
