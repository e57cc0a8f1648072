"""edgepd's own routes for interactions and training.

See also feedback.py, profile.py, facts.py, privacy.py, generations.py, and health.py for the status.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from edgepd.errors import RequestError
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.feedback import feedback_on
from edgepd_daemon.api.viewing import App, Limit, MomentQuery, interaction_id
from edgepd_daemon.training_progress import progress_fields
from edgepd_profiles import history, interactions, runs

router = APIRouter(tags=["edgepd"])

Number = Annotated[int, Field(ge=1, le=2**63 - 1)]  # of a run or a generation; SQLite has no larger ones


class TrainingRequest(BaseModel):
    """What to train: `live` is the fast path, on top of what serves now; `baked` the normal one, from the base.

    `intent` tunes the model of what comes next to the events.
    """

    model_config = ConfigDict(extra="forbid")
    kind: Literal["live", "baked", "intent"] = "live"


@router.get("/edgepd/v1/interactions")
def list_interactions(
    services: Access,
    limit: Limit = 20,
    q: Annotated[str | None, Query(min_length=1, max_length=10_000, description="words to search for")] = None,
    since: MomentQuery = None,
    until: MomentQuery = None,
    before: Annotated[str | None, Query(max_length=200, description="an id: only older interactions")] = None,
    app: App = None,
) -> dict[str, Any]:
    """List the newest interactions, or those that contain words, the best match first."""
    if q is not None and before is not None:
        raise RequestError("`before` goes through the newest interactions; narrow a search with `until`")
    if q is None and (since is not None or until is not None):
        raise RequestError("`since` and `until` narrow a search; give `q` as well")
    with services.store.read() as conn:
        if q is not None:
            found = history.search(conn, q, limit, app, since=since, until=until)
            return {"interactions": [asdict(f.interaction) | {"score": f.score, "snippet": f.snippet} for f in found]}
        before_seq = None if before is None else interactions.seq_of(conn, before, app)
        rows = interactions.recent(conn, limit, app, before_seq=before_seq)
        return {"interactions": [asdict(row) for row in rows]}


@router.get("/edgepd/v1/interactions/{interaction}")
def show_interaction(interaction: str, services: Access, app: App = None) -> dict[str, Any]:
    """Show one interaction with the feedback on it."""
    row = interaction_id(services, interaction, app)
    with services.store.read() as conn:
        return {**asdict(interactions.get(conn, row)), "feedback": feedback_on(services, row)}


@router.post("/edgepd/v1/training", status_code=202)
async def start_training(body: TrainingRequest, services: Access) -> dict[str, Any]:
    """Start a training run; it ends by itself, and a good result goes live by itself."""
    services.supervisor.refuse_if_paused()
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
