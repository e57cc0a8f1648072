"""The routes of feedback: all five channels, and what they have brought in.

Active and passive feedback is posted; implicit feedback is found in the questions themselves by rules that can be
read here; surveys and the questions about single answers are asked for by apps and answered here.
"""

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
from edgepd_daemon.api.viewing import LAST, App, interaction_id
from edgepd_daemon.services import Services
from edgepd_profiles import channels, feedback, implicit, interactions, questions, surveys
from edgepd_profiles.interactions import Interaction

router = APIRouter(prefix="/edgepd/v1", tags=["edgepd"])

DAY = 86_400.0
MAX_DWELL_MS = 86_400_000
GIVEN = ("thumb", "edit", "preferred_over", "rating", "comment", "copied", "dwell_ms", "abandoned")


class FeedbackRequest(BaseModel):
    """Feedback on one answer, exactly one kind of it; the last three are what an app observed."""

    model_config = ConfigDict(extra="forbid")
    interaction_id: str = Field(LAST, max_length=200)
    thumb: int | None = Field(None, description="1 or -1")
    edit: str | None = Field(None, description="the answer as it should have been")
    preferred_over: str | None = Field(None, max_length=200, description="the id of an answer that is not as good")
    rating: int | None = Field(None, description="1 to 5")
    comment: str | None = Field(None, description="anything, in your own words")
    copied: Literal[True] | None = None
    dwell_ms: Annotated[int, Field(ge=0, le=MAX_DWELL_MS)] | None = Field(None, description="how long it was read")
    abandoned: Literal[True] | None = None
    source: str = Field("user", max_length=200)
    app: str | None = Field(None, max_length=200)


class SurveyAnswer(BaseModel):
    """An answer to a survey question: a value from 1 (worst) to 5, a text, or both; or that it was skipped."""

    model_config = ConfigDict(extra="forbid")
    value: Annotated[int, Field(ge=1, le=5)] | None = None
    text: str | None = Field(None, max_length=10_000)
    skipped: bool = False
    app: str | None = Field(None, max_length=200)


class QuestionAnswer(BaseModel):
    """What the user says of the answer that was asked about. With an `edit`, that is the answer as it should be."""

    model_config = ConfigDict(extra="forbid")
    outcome: Literal["accepted", "bad", "skipped"] | None = None
    edit: str | None = None
    app: str | None = Field(None, max_length=200)


@router.post("/feedback")
async def give_feedback(body: FeedbackRequest, services: Access) -> dict[str, Any]:
    """Store feedback. Giving the same again changes nothing; giving another of the same kind replaces it."""
    if sum(getattr(body, name) is not None for name in GIVEN) != 1:
        raise RequestError(f"give exactly one of {', '.join(f'`{name}`' for name in GIVEN)}")
    row = await asyncio.to_thread(interaction_id, services, body.interaction_id, body.app)
    worse = body.preferred_over
    loser = "" if worse is None else await asyncio.to_thread(interaction_id, services, worse, body.app)
    await asyncio.wrap_future(services.store.write(lambda conn: _store(conn, row, loser, body)))
    return {"interaction_id": row, "feedback": await asyncio.to_thread(feedback_on, services, row)}


@router.delete("/feedback/{interaction}")
async def undo_feedback(interaction: str, services: Access, kind: str | None = None, app: App = None) -> dict[str, Any]:
    """Take feedback back, of one kind or all of it."""
    row = await asyncio.to_thread(interaction_id, services, interaction, app)
    removed = await asyncio.wrap_future(services.store.write(lambda c: feedback.remove(c, row, kind)))
    return {"interaction_id": row, "removed": removed}


@router.get("/feedback/channels")
def list_channels(
    services: Access, days: Annotated[float, Query(gt=0, le=36_500)] = 30.0, app: App = None
) -> dict[str, Any]:
    """Tell for each channel how often it could have been used, how often it was, and how satisfied that shows you."""
    with services.store.read() as conn:
        found = channels.report(conn, time.time() - days * DAY, app)
    return {"days": days, "channels": [asdict(report) for report in found]}


@router.get("/feedback/rules")
def list_rules() -> dict[str, Any]:
    """List the rules by which a question is taken for a correction of the answer before it."""
    return {"rules": implicit.rules()}


@router.get("/surveys/next")
async def next_survey(services: Access, app: App = None) -> dict[str, Any]:
    """Return the question that may be asked now, if surveys are on: at most one a day."""
    enabled = services.settings.profile.surveys
    write = services.store.write(lambda c: surveys.next_question(c, app, time.time(), enabled))
    found = await asyncio.wrap_future(write)
    return {"survey": None if found is None else {"id": found.id, "question": found.question}}


@router.post("/surveys/{survey}")
async def answer_survey(survey: str, body: SurveyAnswer, services: Access) -> dict[str, Any]:
    """Answer a survey question, or skip it."""
    if body.skipped == (body.value is not None or body.text is not None):
        raise RequestError("give `value` (1 to 5) or `text`, or `skipped`: true alone")

    def write(conn: sqlite3.Connection) -> surveys.Survey:
        surveys.get(conn, survey, body.app)
        return surveys.skip(conn, survey) if body.skipped else surveys.answer(conn, survey, body.value, body.text)

    return {"survey": asdict(await asyncio.wrap_future(services.store.write(write)))}


@router.get("/questions/next")
async def next_question(services: Access, app: App = None) -> dict[str, Any]:
    """Return the answer about which it is most useful to ask, as long as today's limit is not reached."""
    per_day = services.settings.profile.questions_per_day
    now = time.time()

    def write(conn: sqlite3.Connection) -> tuple[Interaction | None, str, int]:
        found = questions.next_question(conn, per_day, now, app)
        reason = questions.reason(conn, found.id) if found else ""
        return found, reason, questions.left_today(conn, per_day, now)

    found, reason, left = await asyncio.wrap_future(services.store.write(write))
    if found is None:
        return {"question": None}
    shown = {"interaction": found.id, "prompt": found.prompt, "response": found.response}
    return {"question": shown | {"reason": reason, "left_today": left}}


@router.post("/questions/{interaction}")
async def answer_question(interaction: str, body: QuestionAnswer, services: Access) -> dict[str, Any]:
    """Say of the answer that was asked about whether it was good; the feedback is stored as any other."""
    if (body.edit is None) == (body.outcome is None):
        raise RequestError("give either `outcome` (accepted, bad or skipped) or `edit`, the answer as it should be")

    def write(conn: sqlite3.Connection) -> None:
        interactions.get(conn, interaction, body.app)
        questions.settle(conn, interaction, "corrected" if body.edit is not None else str(body.outcome))
        if body.edit is not None:
            feedback.set_edit(conn, interaction, body.edit, "review")
        elif body.outcome != "skipped":
            feedback.set_thumb(conn, interaction, 1 if body.outcome == "accepted" else -1, "review")

    await asyncio.wrap_future(services.store.write(write))
    return {"interaction_id": interaction, "feedback": await asyncio.to_thread(feedback_on, services, interaction)}


def feedback_on(services: Services, row: str) -> list[dict[str, Any]]:
    """Return the feedback on one interaction as the API shows it."""
    with services.store.read() as conn:
        return [{k: v for k, v in asdict(f).items() if k != "interaction"} for f in feedback.of(conn, row)]


def _store(conn: sqlite3.Connection, row: str, loser: str, body: FeedbackRequest) -> None:
    if body.edit is not None:
        feedback.set_edit(conn, row, body.edit, body.source)
    elif body.thumb is not None:
        feedback.set_thumb(conn, row, body.thumb, body.source)
    elif body.preferred_over is not None:
        feedback.prefer(conn, row, loser, body.source)
    elif body.rating is not None:
        feedback.set_rating(conn, row, body.rating, body.source)
    elif body.comment is not None:
        feedback.set_comment(conn, row, body.comment, body.source)
    elif body.dwell_ms is not None:
        feedback.note(conn, row, "dwell", body.dwell_ms, source=body.source)
    else:
        feedback.note(conn, row, "copied" if body.copied else "abandoned", source=body.source)
