"""The routes of privacy: forgetting with a receipt, taking everything out and in, and backups."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from edgepd.errors import RequestError
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.viewing import App
from edgepd_daemon.services import Services
from edgepd_profiles import backup, forgetting, portable
from edgepd_profiles.forgetting import Selector

router = APIRouter(prefix="/edgepd/v1", tags=["edgepd"])

MAX_LINES = 500
Moment = Annotated[float, Field(ge=0, le=1e11)]  # unix seconds
Id = Annotated[str, Field(min_length=1, max_length=200)]


class ForgetRequest(BaseModel):
    """What is to be forgotten: exactly one way of naming it. A `dry_run` says what would go, and changes nothing."""

    model_config = ConfigDict(extra="forbid")
    ids: Annotated[list[Id], Field(min_length=1, max_length=10_000)] | None = None
    search: str | None = Field(None, min_length=1, max_length=10_000, description="whatever contains this text")
    since: Moment | None = None
    until: Moment | None = None
    app_name: str | None = Field(None, max_length=200, description="whatever came from this app")
    all: bool = False
    dry_run: bool = False
    app: str | None = Field(None, max_length=200, description="who asks; an app forgets only what it may see")

    def selector(self) -> Selector:
        """Return what is named. Raises RequestError unless that is exactly one thing."""
        moments = self.since is not None or self.until is not None
        ways = [self.ids is not None, self.search is not None, moments, self.app_name is not None, self.all]
        if sum(ways) != 1:
            raise RequestError("give exactly one of `ids`, `search`, `since` and/or `until`, `app_name`, `all`")
        return Selector(
            ids=tuple(self.ids or ()),
            search=self.search,
            since=self.since,
            until=self.until,
            app=self.app_name,
            everything=self.all,
        )


class ImportRequest(BaseModel):
    """Lines of a JSONL file in the OpenAI chat format, as `export` writes them or as other programs do."""

    model_config = ConfigDict(extra="forbid")
    lines: Annotated[list[str], Field(max_length=MAX_LINES)]
    app: str | None = Field(None, max_length=200, description="whose it becomes; without it what each line says")


@router.post("/forget")
async def forget(body: ForgetRequest, services: Access) -> dict[str, Any]:
    """Forget exchanges, and whatever was learned from them. The answer, a receipt, comes when everything is gone."""
    return await forgotten(services, body.selector(), body.app, dry_run=body.dry_run)


@router.get("/receipts")
def list_receipts(services: Access) -> dict[str, Any]:
    """List what was forgotten, in numbers."""
    with services.store.read() as conn:
        return {"receipts": [asdict(receipt) for receipt in forgetting.receipts(conn)]}


@router.get("/export", response_class=StreamingResponse)
def export(services: Access, app: App = None) -> StreamingResponse:
    """Send everything that is stored as JSONL in the OpenAI chat format, with edgepd's own fields beside it."""
    return StreamingResponse(_lines(services, app), media_type="application/jsonl")


@router.post("/import")
async def import_lines(body: ImportRequest, services: Access) -> dict[str, Any]:
    """Take in exchanges, facts and events. What is known already is not taken twice; what cannot be used is named."""
    done = await asyncio.wrap_future(
        services.store.write(lambda conn: portable.import_lines(conn, body.lines, app=body.app))
    )
    return {
        "added": done.added,
        "known": done.known,
        "facts": done.facts,
        "events": done.events,
        "mapped_events": done.mapped,
        "refused": [{"line": line, "reason": reason} for line, reason in done.refused],
    }


@router.post("/backup")
async def make_backup(services: Access) -> dict[str, Any]:
    """Copy the profile, while it is in use, to a file beside it."""
    path = await asyncio.to_thread(services.forgetter.back_up)
    return {"path": str(path), "bytes": path.stat().st_size}


@router.get("/backups")
def list_backups(services: Access) -> dict[str, Any]:
    """List the backups, the newest first."""
    found = sorted(backup.listing(services.paths.backups_dir), key=lambda b: b.at, reverse=True)
    return {"backups": [{"path": str(b.path), "at": b.at, "bytes": b.bytes} for b in found]}


async def forgotten(services: Services, selector: Selector, app: str | None, *, dry_run: bool) -> dict[str, Any]:
    """Forget, and return the receipt as the API shows it."""
    forgetter = services.forgetter
    done = await (forgetter.would(selector, app) if dry_run else forgetter.forget(selector, app))
    if not dry_run:
        services.supervisor.forgotten(everything=selector.everything and app is None)
    return {"receipt": asdict(done.receipt) | {"active": done.active}, "dry_run": dry_run}


def _lines(services: Services, app: str | None) -> Iterator[str]:
    return (line + "\n" for line in portable.export(services.store.read, app))
