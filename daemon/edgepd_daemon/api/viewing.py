"""Who looks: the app that a request to edgepd's own routes comes from, and the interactions that it may name.

An app sees what is its own, what has no name, and what other apps share; who names no app is the owner, and sees all.
A name is no proof: every program of the same user could read the profile's file as well.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from edgepd.errors import NotFoundError
from edgepd_daemon.services import Services
from edgepd_profiles import interactions

LAST = "last"  # stands for the newest interaction wherever an interaction id is expected
App = Annotated[str | None, Query(max_length=200, description="the app that asks; without it the owner does")]
Limit = Annotated[int, Query(ge=1, le=1000)]
MomentQuery = Annotated[float | None, Query(ge=0, le=1e11, description="unix seconds")]


def interaction_id(services: Services, given: str, app: str | None) -> str:
    """Return the id itself, or that of the newest interaction for `last`. Raises NotFoundError."""
    with services.store.read() as conn:
        if given == LAST:
            return interactions.latest(conn, app).id
        if not given:
            raise NotFoundError("the interaction id is empty; use 'last' for the newest interaction")
        return interactions.get(conn, given, app).id
