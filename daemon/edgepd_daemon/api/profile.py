"""The routes of the profile: what is known of the user, what is selected for learning, and what apps may do."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from edgepd.errors import RequestError
from edgepd.settings import Profile as ProfileSettings
from edgepd_daemon.api.access import Access
from edgepd_daemon.api.viewing import App
from edgepd_daemon.personal import Proven, channel_weights
from edgepd_daemon.services import Services
from edgepd_daemon.training_jobs import keep_examples
from edgepd_profiles import apps, profile, profile_text
from edgepd_profiles.apps import App as AppRow
from edgepd_profiles.selection import kept

router = APIRouter(prefix="/edgepd/v1", tags=["edgepd"])

Word = Annotated[str, Field(min_length=1, max_length=200)]
PIECE = 50  # exchanges that one transaction folds
FOLDED = 2000  # exchanges that are folded into the profile before it is shown, at most
NUMBER = re.compile(r"[+-]?\d{1,9}(?:\.\d{1,9})?")
YES_OR_NO = {"yes": True, "true": True, "no": False, "false": False}


class FeatureRequest(BaseModel):
    """A feature of the profile and the value that it shall have."""

    model_config = ConfigDict(extra="forbid")
    kind: Word
    name: Word
    value: bool | float | Annotated[str, Field(min_length=1, max_length=500)] = Field(
        description="a number, yes or no (also as text), or a few words for the model to read"
    )
    app: str | None = Field(None, max_length=200)

    def read(self) -> float | str:
        """Return the value; a text that is a number, yes or no stands for that."""
        if not isinstance(self.value, str):
            return self.value
        text = self.value.strip().casefold()
        return float(text) if NUMBER.fullmatch(text) else YES_OR_NO.get(text, self.value)


class PinnedRequest(BaseModel):
    """A feature of the profile, and whether it is to stay as it is."""

    model_config = ConfigDict(extra="forbid")
    kind: Word
    name: Word
    pinned: bool
    app: str | None = Field(None, max_length=200)


class AppRequest(BaseModel):
    """What an app may do; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")
    app: str | None = Field(None, max_length=200, description="who asks; an app can only speak for itself")
    shared: bool | None = Field(None, description="whether other apps may see what comes from it")
    stored: bool | None = Field(None, description="whether its exchanges are stored")
    teaches: bool | None = Field(None, description="whether feedback on its exchanges is trained on")


@router.get("/profile")
async def show_profile(services: Access, app: App = None) -> dict[str, Any]:
    """Show what is known of the user: five groups of features, each with its weight and evidence."""
    return await _shown(services, app)


@router.put("/profile/features")
async def edit_feature(body: FeatureRequest, services: Access) -> dict[str, Any]:
    """Set a feature by hand; that stands over what was observed."""
    value = body.read()
    await asyncio.wrap_future(
        services.store.write(lambda c: profile.edit(c, body.app or "", body.kind, body.name, value))
    )
    return await _shown(services, body.app)


@router.post("/profile/features/pin")
async def pin_feature(body: PinnedRequest, services: Access) -> dict[str, Any]:
    """Keep a feature as it is now, whatever is observed later, or stop that."""
    await _fold(services)
    await asyncio.wrap_future(
        services.store.write(lambda c: profile.pin(c, body.app or "", body.kind, body.name, body.pinned))
    )
    return await _shown(services, body.app)


@router.delete("/profile")
async def reset_profile(services: Access, kind: str | None = None, app: App = None) -> dict[str, Any]:
    """Begin the profile, or one group of it, anew. Interactions and feedback stay."""
    await asyncio.wrap_future(services.store.write(lambda c: profile.reset(c, app, kind)))
    return await _shown(services, app)


@router.get("/profile/selection")
async def show_selection(services: Access, app: App = None) -> dict[str, Any]:
    """Show which exchanges are kept for learning and for questions, each with the reason."""
    select = services.settings.select
    for pool in ("examples", "questions"):
        await asyncio.to_thread(keep_examples, services.store, select, pool)
    return await asyncio.to_thread(_selected, services, app)


@router.get("/apps")
def list_apps(services: Access, app: App = None) -> dict[str, Any]:
    """List the apps that have been seen or named, with what each may do; an app is told of those that it sees."""
    with services.store.read() as conn:
        counts, seen = apps.counts(conn), apps.visible(conn, app)
        found = [row for row in apps.listing(conn) if seen is None or row.name in seen]
    return {"apps": [asdict(row) | {"interactions": counts.get(row.name, 0)} for row in found]}


@router.put("/apps/{name}")
async def change_app(name: Word, body: AppRequest, services: Access) -> dict[str, Any]:
    """Change what an app may do. What was stored before stays."""
    if body.shared is None and body.stored is None and body.teaches is None:
        raise RequestError("give at least one of `shared`, `stored` and `teaches`")
    if body.app not in (None, name):
        raise RequestError(f"app '{body.app}' cannot change what app '{name}' may do; only its user can")

    def write(conn: sqlite3.Connection) -> AppRow:
        return apps.change(conn, name, shared=body.shared, stored=body.stored, teaches=body.teaches)

    return {"app": asdict(await asyncio.wrap_future(services.store.write(write)))}


async def _shown(services: Services, app: str | None) -> dict[str, Any]:
    """Return the profile with what has been said until now, and have it told to the model from now on."""
    await _fold(services)
    services.personaliser.renew()
    return await asyncio.to_thread(_described, services, app)


def _described(services: Services, app: str | None) -> dict[str, Any]:
    wanted = services.settings.profile
    proven = services.personaliser.proven()
    used = services.personaliser.prompt(app, wanted, proven)
    with services.store.read() as conn:
        found = profile.read(conn, app, channel_weights(wanted), time.time())
        embedding = profile.user_embedding(conn, app)
    return {
        "app": app,
        "exchanges": found.exchanges,
        "groups": {kind: [asdict(feature) for feature in group] for kind, group in found.groups.items()},
        "prompt": used or profile_text.describe(found),
        "prompt_used": used is not None,
        "why": _why(wanted, proven, used),
        "embedding": {"dimensions": len(embedding)} if embedding else None,
    }


def _why(wanted: ProfileSettings, proven: Proven, used: str | None) -> str:
    """Say why the model is told of the profile, or is not."""
    if wanted.prompt != "auto":
        return f"the setting profile.prompt is '{wanted.prompt}'"
    if used is None or proven.profile:
        return proven.why
    return f"what you set by hand is always told; of the rest, {proven.why}"


async def _fold(services: Services) -> None:
    """Take into the profile what has been said since the last time, in pieces, between which answers are recorded."""
    half_life = services.settings.profile.half_life_days
    for _ in range(0, FOLDED, PIECE):
        write = services.store.write(lambda c: profile.catch_up(c, half_life, PIECE))
        if not await asyncio.wrap_future(write):
            return


def _selected(services: Services, app: str | None) -> dict[str, Any]:
    pools: dict[str, list[dict[str, Any]]] = {}
    with services.store.read() as conn:
        for pool in ("examples", "questions"):
            found = [asdict(each) for each in kept.listing(conn, pool, app)]
            pools[pool] = [{name: each[name] for name in each if name != "pool"} for each in found]
    select = services.settings.select
    return {"policy": select.policy, "slots": select.slots, "pools": pools}
