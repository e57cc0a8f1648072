"""The client's routes about the user: feedback, the profile that comes of it, and what the user is asked.

The idea and the invariants are those of client.py, which joins these methods into `Client`. `app` is the program that
asks, and sees what it may see; None is the owner, who sees everything.
What this does not do: decide what an app may see; the daemon does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import quote

from edgepd.client_calls import Calls, Json, of_app
from edgepd.client_errors import encoded, segment
from edgepd.errors import RequestError

FeedbackKind = Literal[
    "thumb",
    "rating",
    "edit",
    "comment",
    "preferred",
    "copied",
    "dwell",
    "abandoned",
    "survey",
    "regenerated",
    "corrected",
    "taken",
    "ignored",
]
Outcome = Literal["accepted", "bad", "skipped"]

FEEDBACK = "/edgepd/v1/feedback"
PROFILE = "/edgepd/v1/profile"
OBSERVE_TIMEOUT_S = 2.0  # what is observed in passing is not worth a longer wait


class ProfileCalls(Calls):
    """Feedback, the profile, apps, selection, surveys and questions. Methods raise what the daemon names."""

    def thumb(self, interaction_id: str, thumb: Literal[1, -1], source: str | None = None) -> Json:
        """Judge an answer. `interaction_id` may be "last". Returns {"interaction_id", "feedback"}."""
        return self._feedback(interaction_id, {"thumb": thumb}, source)

    def rate(self, interaction_id: str, rating: int, source: str | None = None) -> Json:
        """Rate an answer from 1 (bad) to 5 (good). Returns as `thumb`."""
        return self._feedback(interaction_id, {"rating": rating}, source)

    def edit(self, interaction_id: str, text: str, source: str | None = None) -> Json:
        """Replace an answer by `text`. Returns as `thumb`."""
        return self._feedback(interaction_id, {"edit": text}, source)

    def comment(self, interaction_id: str, text: str, source: str | None = None) -> Json:
        """Say something about an answer in words. Returns as `thumb`."""
        return self._feedback(interaction_id, {"comment": text}, source)

    def prefer(self, winner: str, loser: str, source: str | None = None) -> Json:
        """Say that the answer `winner` is better than `loser`. Returns as `thumb`, of the winner."""
        return self._feedback(winner, {"preferred_over": loser}, source)

    def copied(self, interaction_id: str, source: str | None = None) -> Json:
        """Report that the user copied an answer. Returns as `thumb`."""
        return self._feedback(interaction_id, {"copied": True}, source, timeout=OBSERVE_TIMEOUT_S)

    def dwelt(self, interaction_id: str, dwell_ms: int, source: str | None = None) -> Json:
        """Report for how many milliseconds an answer was looked at. Returns as `thumb`."""
        return self._feedback(interaction_id, {"dwell_ms": dwell_ms}, source, timeout=OBSERVE_TIMEOUT_S)

    def abandoned(self, interaction_id: str, source: str | None = None) -> Json:
        """Report that the user left an answer before its end. Returns as `thumb`.

        Raises ConflictError while the daemon has not noticed the end of it yet.
        """
        return self._feedback(interaction_id, {"abandoned": True}, source, timeout=OBSERVE_TIMEOUT_S)

    def remove_feedback(self, interaction_id: str, kind: FeedbackKind | None = None) -> Json:
        """Take feedback back, all or one kind of it. Returns {"interaction_id", "removed"}."""
        params = {"kind": kind} if kind else {}
        return self._call("DELETE", f"{FEEDBACK}/{segment(interaction_id)}", params=params)

    def feedback_channels(self, days: float | None = None, app: str | None = None) -> Json:
        """Return {"days", "channels"}: how often each channel of feedback was used, and how content it shows you."""
        params = of_app({} if days is None else {"days": days}, app)
        return self._call("GET", f"{FEEDBACK}/channels", params=params)

    def feedback_rules(self) -> list[Json]:
        """Return the rules by which a follow-up counts as a correction: {"name", "pattern", "example"}."""
        return list(self._call("GET", f"{FEEDBACK}/rules")["rules"])

    def profile(self, app: str | None = None) -> Json:
        """Return {"app", "exchanges", "groups", "prompt", "prompt_used", "why", "embedding"}."""
        return self._call("GET", PROFILE, params=of_app({}, app))

    def edit_profile(self, kind: str, name: str, value: str, app: str | None = None) -> Json:
        """Set a feature by hand, over what was observed. Returns the profile."""
        body = of_app({"kind": kind, "name": name, "value": value}, app)
        return self._call("PUT", f"{PROFILE}/features", content=encoded(body))

    def pin_feature(self, kind: str, name: str, pinned: bool, app: str | None = None) -> Json:
        """Keep a feature as it is whatever is observed from now on, or stop doing so. Returns the profile."""
        body = of_app({"kind": kind, "name": name, "pinned": pinned}, app)
        return self._call("POST", f"{PROFILE}/features/pin", content=encoded(body))

    def reset_profile(self, kind: str | None = None, app: str | None = None) -> Json:
        """Begin the profile anew, or one group of it; the exchanges stay. Returns the profile."""
        return self._call("DELETE", PROFILE, params=of_app({} if kind is None else {"kind": kind}, app))

    def selection(self, app: str | None = None) -> Json:
        """Return {"policy", "slots", "pools": {"examples", "questions"}}: what was selected and why."""
        return self._call("GET", f"{PROFILE}/selection", params=of_app({}, app))

    def apps(self) -> list[Json]:
        """Return the apps that are known, each with "name", "shared", "stored", "teaches" and "interactions"."""
        return list(self._call("GET", "/edgepd/v1/apps")["apps"])

    def change_app(self, name: str, changes: Mapping[str, bool]) -> Json:
        """Change what an app may do: any of "shared", "stored", "teaches". Returns the app."""
        return dict(self._call("PUT", f"/edgepd/v1/apps/{_named(name)}", content=encoded(changes))["app"])

    def next_survey(self, app: str | None = None) -> Json | None:
        """Return the survey question that is pending, {"id", "question"}, if there is one."""
        found = self._call("GET", "/edgepd/v1/surveys/next", params=of_app({}, app))["survey"]
        return None if found is None else dict(found)

    def answer_survey(self, survey_id: str, value: int | None = None, text: str | None = None) -> Json:
        """Answer a survey question with 1 to 5, with words, or with neither, which skips it. Returns the survey."""
        body = {"value": value, "text": text, "skipped": value is None and text is None}
        return dict(self._call("POST", f"/edgepd/v1/surveys/{segment(survey_id)}", content=encoded(body))["survey"])

    def next_question(self) -> Json | None:
        """Return the answer that it is most useful to judge, if one is left today.

        It has "interaction", "prompt", "response", "reason" and "left_today".
        """
        found = self._call("GET", "/edgepd/v1/questions/next")["question"]
        return None if found is None else dict(found)

    def settle_question(self, interaction_id: str, outcome: Outcome) -> Json:
        """Say whether the answer that was asked about was good. Returns as `thumb`."""
        return self._settle(interaction_id, {"outcome": outcome})

    def correct_question(self, interaction_id: str, text: str) -> Json:
        """Say what the answer that was asked about should have been. Returns as `thumb`."""
        return self._settle(interaction_id, {"edit": text})

    def _settle(self, interaction_id: str, body: Json) -> Json:
        return self._call("POST", f"/edgepd/v1/questions/{segment(interaction_id)}", content=encoded(body))

    def _feedback(self, interaction_id: str, given: Json, source: str | None, **options: Any) -> Json:
        body = {"interaction_id": interaction_id, **given} | ({"source": source} if source else {})
        return self._call("POST", FEEDBACK, content=encoded(body), **options)


def _named(app: str) -> str:
    """Return an app's name as one part of a path. Raises RequestError for one that is none."""
    if not app or "/" in app or set(app) == {"."}:
        raise RequestError(f"{app!r} is not the name of an app; edgepd profile apps lists those that are known")
    return quote(app, safe="", errors="surrogateescape")
