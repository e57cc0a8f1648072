"""The client's routes about events, and about what is likely next.

The idea and the invariants are those of client.py, which joins these methods into `Client`. `app` is the program that
asks, and sees what it may see; None is the owner, who sees everything.
What this does not do: predict, or split what is too much for one request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgepd.client_calls import Calls, Json, of_app
from edgepd.client_errors import encoded

EVENTS = "/edgepd/v1/events"
MOST_EVENTS = 1000  # that the daemon takes at once


class IntentCalls(Calls):
    """Events, the user's map of them, and what comes next. Methods raise what the daemon names."""

    def add_events(self, events: Sequence[Mapping[str, Any]], app: str | None = None) -> Json:
        """Store events, MOST_EVENTS at most. Returns {"seqs", "new"}: how many were not known yet.

        Each has an "event" and may have "intent", "context", "at" (unix seconds or ISO 8601; else now) and
        "utc_offset_s". Raises ConflictError while prediction is switched off, or if the app is not stored.
        """
        return self._call("POST", EVENTS, content=encoded(of_app({"events": [*events]}, app)))

    def events(self, limit: int | None = None, app: str | None = None) -> list[Json]:
        """Return the newest events, newest first."""
        params = of_app({} if limit is None else {"limit": limit}, app)
        return list(self._call("GET", EVENTS, params=params)["events"])

    def event_map(self) -> dict[str, str]:
        """Return which intent the user has given to which event."""
        return dict(self._call("GET", f"{EVENTS}/map")["map"])

    def map_event(self, event: str, intent: str) -> Json:
        """Give an event an intent, also where it is stored already. Returns {"event", "intent"}."""
        return self._call("PUT", f"{EVENTS}/map", content=encoded({"event": event, "intent": intent}))

    def unmap_event(self, event: str) -> Json:
        """Take an event off the map. Returns {"event"}. Raises NotFoundError if it is not on it."""
        return self._call("DELETE", f"{EVENTS}/map", params={"event": event})

    def foresee(self, limit: int | None = None, app: str | None = None, at: float | None = None) -> Json:
        """Return {"suggestions", "next", "predicting"}: the questions, and the intents that are likely next.

        The questions are those of `suggestions`; each of "next" has "intent", "probability", "reason" and "app".
        "predicting" is false while prediction is switched off. `at` is unix seconds; None is now.
        """
        given = {"limit": limit, "at": at}
        params = of_app({name: value for name, value in given.items() if value is not None}, app)
        return self._call("GET", "/edgepd/v1/suggestions", params=params)
