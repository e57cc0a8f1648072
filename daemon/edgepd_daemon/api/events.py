"""The routes of events: what apps say has happened, and which intent each event belongs to.

The idea: an event belongs to the local time at which it happened, so its sender says when, and how far local time was
ahead of UTC then, or leaves that to this machine. The invariants: a request is stored as a whole or not at all; the
same event of an app at the same time is stored once; nothing is stored while prediction is switched off, or for an app
that is not stored. An app may say what its events are for, but what the user's map says of an event stands above that.
What this does not do: predict (foresight.py; /suggestions shows it), or learn from what was sent.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from edgepd.errors import ConflictError, RequestError
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.viewing import App, Limit
from edgepd_profiles import events
from edgepd_profiles.event_rules import MAX_OFFSET_S, Rules

router = APIRouter(prefix="/edgepd/v1", tags=["edgepd"])

MAX_EVENTS = 1000  # in one request
LATEST = 1e11  # unix seconds, as everywhere in this API

Name = Annotated[str, Field(min_length=1, max_length=200)]


class Happened(BaseModel):
    """One event: something that the user has done, somewhere, for some purpose."""

    model_config = ConfigDict(extra="forbid")
    event: Name = Field(description="what happened, such as `mail:open` or `cafe`")
    intent: Name | None = Field(
        None, description="what it is for; without it the event itself; the user's map of events stands above both"
    )
    context: str = Field("", max_length=200, description="where, or any other word about the circumstances")
    at: (
        Annotated[float, Field(strict=True, ge=0, le=LATEST)]
        | Annotated[str, Field(min_length=1, max_length=64)]
        | None
    ) = Field(None, description="unix seconds, or ISO 8601 as 2026-01-31T18:00:00+01:00; without it now")
    utc_offset_s: Annotated[int, Field(ge=-MAX_OFFSET_S, le=MAX_OFFSET_S)] | None = Field(
        None, description="how far local time was ahead of UTC then; without it as `at` or this machine says"
    )


class EventsRequest(BaseModel):
    """Events in any order, from one app."""

    model_config = ConfigDict(extra="forbid")
    events: Annotated[list[Happened], Field(min_length=1, max_length=MAX_EVENTS)]
    app: str | None = Field(None, max_length=200, description="the app that they come from")


class MapRequest(BaseModel):
    """An event, and the intent that it belongs to from now on."""

    model_config = ConfigDict(extra="forbid")
    event: Name
    intent: Name
    app: str | None = Field(None, max_length=200, description="who asks; the map is the user's, so no app may")


@router.post("/events")
async def add_events(body: EventsRequest, services: Access) -> dict[str, Any]:
    """Store what has happened. The same event of an app at the same time is stored once, so sending again is safe."""
    if not services.settings.intent.enabled:
        raise ConflictError(
            "prediction is switched off (intent.enabled), so no event was stored; set intent.enabled = true in "
            "config.toml, then: edgepd daemon reload"
        )
    time.tzset()  # the user may have travelled since the start
    now = time.time()
    times = [when(happened, number, now) for number, happened in enumerate(body.events)]

    new = [
        events.New(
            at=at,
            event=each.event,
            intent=each.intent or each.event,
            context=each.context,
            utc_offset_s=offset,
            app=body.app or "",
        )
        for each, (at, offset) in zip(body.events, times, strict=True)
    ]

    await asyncio.to_thread(_check, new, now)

    def write(conn: sqlite3.Connection) -> tuple[list[int], int]:
        newest = events.newest_seq(conn)
        seqs = events.add(conn, new)
        return seqs, sum(seq > newest for seq in set(seqs))

    seqs, added = await asyncio.wrap_future(services.store.write(write))
    if added:
        services.warmer.wake()
    return {"seqs": seqs, "new": added}


@router.get("/events")
def list_events(services: Access, limit: Limit = 20, app: App = None) -> dict[str, Any]:
    """List the newest events, the newest first."""
    with services.store.read() as conn:
        return {"events": [asdict(event) for event in reversed(events.history(conn, limit, app))]}


@router.get("/events/map")
def show_map(services: Access, app: App = None) -> dict[str, Any]:
    """Show which intent the user has given to which event; an app is told nothing, because the map names all apps'."""
    _refuse_apps(app)
    with services.store.read() as conn:
        return {"map": events.known(conn)}


@router.put("/events/map")
async def map_event(body: MapRequest, services: Access) -> dict[str, Any]:
    """Say which intent an event belongs to, whatever its sender says; also where it is stored already."""
    _refuse_apps(body.app)
    await asyncio.wrap_future(services.store.write(lambda conn: events.map_event(conn, body.event, body.intent)))
    return {"event": body.event, "intent": body.intent}


@router.delete("/events/map")
async def unmap_event(
    services: Access,
    event: Annotated[str, Query(min_length=1, max_length=200, description="the event")],
    app: App = None,
) -> dict[str, Any]:
    """Take an event off the map: it is for what its sender says again, or for itself."""
    _refuse_apps(app)
    await asyncio.wrap_future(services.store.write(lambda conn: events.remove_map(conn, event)))
    return {"event": event}


def when(happened: Happened, number: int, now: float) -> tuple[float, int]:
    """Return the unix seconds of an event, and by how many seconds local time was ahead of UTC then.

    A time that does not say in which zone it is counts as local to this machine (of an hour that a clock change gives
    twice, the first one) unless `utc_offset_s` is given. Raises RequestError, which names event `number` of the list.
    """
    at, offset_s = happened.at, happened.utc_offset_s
    if isinstance(at, str):
        return _read(at, offset_s, f"events[{number}].at")
    moment = now if at is None else at
    return moment, events.local_offset(moment) if offset_s is None else offset_s


def _check(new: Sequence[events.New], now: float) -> None:
    """Raise RequestError for an event that cannot be stored, with its number in the list, which the profile lacks."""
    rules = Rules(now)
    for number, each in enumerate(new):
        try:
            rules.check(each)
        except RequestError as error:
            raise RequestError(f"events[{number}]: {error}") from error


def _read(text: str, offset_s: int | None, field: str) -> tuple[float, int]:
    """Read ISO 8601, as datetime.fromisoformat of Python 3.11 does."""
    given = text.strip()
    try:
        if _is_day(given):
            raise RequestError(f"{field}: '{text}' is a day; give the time of day too, such as {given}T18:00")
        told = datetime.fromisoformat(given)
        own = told.utcoffset()
        if own is not None and offset_s not in (None, int(own.total_seconds())):
            raise RequestError(
                f"{field}: '{text}' is {int(own.total_seconds())} s ahead of UTC, but utc_offset_s is {offset_s}; "
                "give only one of them"
            )
        if own is None and offset_s is not None:
            at = told.replace(tzinfo=UTC).timestamp() - offset_s
        else:
            at = told.timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise RequestError(
            f"{field}: '{text}' is no time; write 2026-01-31T18:00, 2026-01-31T18:00+01:00, or unix seconds as a number"
        ) from error
    if not 0 <= at <= LATEST:
        raise RequestError(f"{field}: '{text}' is before 1970 or too far ahead; give the time at which it happened")
    if own is not None:
        return at, int(own.total_seconds())
    return at, events.local_offset(at) if offset_s is None else offset_s


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _refuse_apps(app: str | None) -> None:
    if app is not None:
        raise RequestError(
            f"the map of events is the user's, not that of app '{app}'; send `intent` with each event instead"
        )
