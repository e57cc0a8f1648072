"""What watches the daemon: health, metrics, status; and what adjusts it while it runs.

The idea: every answer here is a snapshot that waits for nothing, so a daemon that is loading, draining or whose
engine has died can still say so.
What this does not do: hold any of the numbers (see metrics.py and the parts themselves).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import psutil
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from edgepd import __version__
from edgepd_daemon import reload
from edgepd_daemon.api import prediction
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.budget import View, brief, summary
from edgepd_daemon.cores import physical_cores
from edgepd_daemon.engine.types import EngineStatus
from edgepd_daemon.metrics import CONTENT_TYPE, Snapshot
from edgepd_daemon.services import Services
from edgepd_daemon.training_progress import progress_fields
from edgepd_profiles import examples, feedback, recent, runs
from edgepd_profiles.rows import finite

router = APIRouter(tags=["edgepd"])

CURVE_POINTS = 200  # of a run that can have ten thousand steps; no terminal is wider


class ServingRequest(BaseModel):
    """What can be adjusted without changing the settings; it holds until the next restart."""

    model_config = ConfigDict(extra="forbid")
    threads: Annotated[int, Field(ge=0, le=256)]  # 0 means the number of physical cores


class Health(BaseModel):
    """How the daemon is. `ready` says whether a request would be taken now; a model is loaded by the first one."""

    status: str
    live: bool
    ready: bool
    loading_percent: float | None
    version: str
    pid: int
    uptime_s: float
    model: str
    generation: int


@router.get("/healthz", response_model=Health, responses={503: {"model": Health}})
async def healthz(services: Access) -> JSONResponse:
    """Say whether the daemon can answer: `ready`, `loading`, `unloaded`, and with 503 `failed` or `draining`."""
    engine = services.engine.status() if services.engine.alive else None
    status = "failed" if engine is None else "draining" if services.draining else engine.state
    health = Health(
        status=status,
        live=engine is not None,
        ready=_ready(services, engine),
        loading_percent=engine.loading_percent if engine else None,
        version=__version__,
        pid=os.getpid(),
        uptime_s=_uptime(services),
        model=services.generations.base.name,
        generation=services.generations.current.generation,
    )
    return JSONResponse(health.model_dump(), 503 if status in ("failed", "draining") else 200)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(services: Access, budget: View) -> Response:
    """Show the daemon's numbers in Prometheus' text form."""
    engine = services.engine.status() if services.engine.alive else None
    with services.store.read() as conn:
        ended = conn.execute("SELECT state, count(*) FROM runs WHERE state != 'running' GROUP BY state").fetchall()
    snapshot = Snapshot(
        version=__version__,
        model=services.generations.base.name,
        generation=services.generations.current.generation,
        uptime_s=_uptime(services),
        ready=_ready(services, engine),
        engine=engine,
        training=services.trainer.run is not None,
        progress=services.trainer.progress,
        budget=budget,
        runs={**dict.fromkeys(runs.FINAL_STATES, 0), **dict(ended)},
        predicted=services.foresight.predicted(),
        warmings=services.warmer.warmings,
    )
    return Response(services.metrics.render(snapshot), media_type=CONTENT_TYPE)


@router.post("/edgepd/v1/reload")
async def reload_settings(services: Access) -> dict[str, Any]:
    """Read the settings again; apply what can change while the daemon runs and name what needs a restart."""
    return asdict(await asyncio.to_thread(reload.reload, services))


@router.put("/edgepd/v1/serving")
async def adjust_serving(body: ServingRequest, services: Access) -> dict[str, Any]:
    """Change the number of threads that the engine computes with, until the next restart or reload."""
    threads = body.threads or physical_cores()
    await asyncio.to_thread(services.engine.set_threads, threads)
    return {"threads": threads}


@router.get("/edgepd/v1/status")
def status(services: Access, budget: View) -> dict[str, Any]:
    """Show what the daemon is doing, and what is wrong."""
    generations, version = services.generations, services.generations.current
    predicted = services.foresight.predicted()
    with services.store.read() as conn:
        learnable = examples.training_examples(conn, services.settings.train.accepted_weight)
        counts = feedback.counts(conn)
        stored = conn.execute("SELECT count(*) FROM interactions").fetchone()[0]
        last = runs.runs(conn, 1)
        foreseen = prediction.described(services, conn, predicted)
    serving = generations.get(version.generation)
    return {
        "version": __version__,
        "pid": os.getpid(),
        "uptime_s": _uptime(services),
        "draining": services.draining,
        "socket": str(services.paths.socket),
        "tcp_port": services.settings.serve.tcp_port or None,
        "model": {
            "name": generations.base.name,
            "sha256": generations.base.sha256,
            "path": str(generations.base.path),
        },
        "generation": {
            name: getattr(serving, name) for name in ("id", "kind", "model_file", "adapter_file", "activated_at")
        },
        "engine": asdict(services.engine.status()),
        "profile": {"interactions": stored, **counts, "examples": len(learnable)},
        "training": {
            "run": asdict(last[0]) if last else None,
            "progress": progress_fields(services.trainer.progress),
        },
        "prediction": foreseen,
        "budget": summary(budget),
        "memory": _memory(),
        "needs_restart": list(services.needs_restart),
        "problems": services.problems,
    }


@router.get("/edgepd/v1/activity")
def activity(services: Access, budget: View) -> dict[str, Any]:
    """Show what is going on right now: a part of the status that is cheap enough to be asked for all the time."""
    engine, base, serving = services.engine.status(), services.generations.base, services.generations.current.generation
    predicted = services.foresight.predicted()
    with services.store.read() as conn:
        last = runs.runs(conn, 2)
        (kind,) = conn.execute("SELECT kind FROM generations WHERE id = ?", (serving,)).fetchone()
        generations = recent.generations(conn, base.sha256)
        given = recent.feedback(conn)
        foreseen = prediction.described(services, conn, predicted)
    going_on = last[0] if last and last[0].state == "running" else None
    ended = next((run for run in last if run.state != "running"), None)
    names = ("state", "loading_percent", "active", "queued", "slots", "tokens_generated")
    return {
        "model": base.name,
        "generation": {"id": serving, "kind": kind},
        "engine": {name: getattr(engine, name) for name in names},
        "training": {
            "run": asdict(going_on) if going_on else None,
            "progress": progress_fields(services.trainer.progress) if going_on else None,
            "last": asdict(ended) if ended else None,
        },
        "curve": thinned(services.trainer.curve) if going_on else [],
        "prediction": foreseen,
        "budget": brief(services, budget),
        "generations": generations,
        "feedback": given,
        "memory": _memory(),
        "problems": services.problems,
    }


def thinned(curve: Sequence[tuple[int, float]], most: int = CURVE_POINTS) -> list[list[float | None]]:
    """Return at most so many points of a curve, evenly chosen, the first and the last among them."""
    points = [*curve]  # it grows on another thread
    last = len(points) - 1
    chosen = points if last < most else [points[round(i * last / (most - 1))] for i in range(most)]
    return [[step, finite(loss)] for step, loss in chosen]


def _memory() -> dict[str, int]:
    return {"rss_bytes": psutil.Process().memory_info().rss}


def _ready(services: Services, engine: EngineStatus | None) -> bool:
    return engine is not None and not services.draining and engine.queued < services.settings.serve.max_queue


def _uptime(services: Services) -> float:
    return round(time.monotonic() - services.started_at, 1)
