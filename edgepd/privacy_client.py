"""The client's routes about what is kept: facts and recall, suggestions, forgetting, moving away, and backups.

The idea and the invariants are those of client.py, which joins these methods into `Client`. `app` is the program that
asks, and sees what it may see; None is the owner, who sees everything.
What this does not do: find what is to be forgotten, or verify that it is gone; the daemon does, and the receipt tells.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Literal

from edgepd.client_calls import Calls, Json, of_app
from edgepd.client_errors import encoded, segment

FACTS = "/edgepd/v1/facts"
SUGGESTIONS = "/edgepd/v1/suggestions"


class PrivacyCalls(Calls):
    """Facts, recall, suggestions, forgetting, export, import and backups. Methods raise what the daemon names."""

    def remember(self, text: str, app: str | None = None) -> Json:
        """Keep a fact and return it: {"id", "app", "text", "at"}. Raises RequestError for a secret or too long a text.

        Without `app` it is for every app to see.
        """
        return dict(self._call("POST", FACTS, content=encoded(of_app({"text": text}, app)))["fact"])

    def facts(self, app: str | None = None) -> list[Json]:
        """Return the facts."""
        return list(self._call("GET", FACTS, params=of_app({}, app))["facts"])

    def forget_fact(self, fact_id: int | str) -> Json:
        """Forget one fact and return the receipt as {"receipt"}."""
        return self._call("DELETE", f"{FACTS}/{segment(fact_id)}", timeout=None)

    def recall(self, query: str, limit: int | None = None, app: str | None = None) -> list[Json]:
        """Return facts and accepted answers that fit a query, best first.

        Each has "kind" (fact or answer), "text", "prompt", "id", "score" and "at".
        """
        params = of_app({"q": query} | ({} if limit is None else {"limit": limit}), app)
        return list(self._call("GET", "/edgepd/v1/recall", params=params)["found"])

    def suggestions(self, limit: int | None = None, app: str | None = None) -> list[Json]:
        """Return what the user is likely to ask next, likeliest first: {"id", "text", "reason"}.

        `foresee` (intent_client.py) returns these with what is likely to be done next.
        """
        params = of_app({} if limit is None else {"limit": limit}, app)
        return list(self._call("GET", SUGGESTIONS, params=params)["suggestions"])

    def settle_suggestion(self, suggestion_id: str, outcome: Literal["taken", "ignored"]) -> Json:
        """Say what became of a suggestion and return it."""
        body = encoded({"outcome": outcome})
        return dict(self._call("POST", f"{SUGGESTIONS}/{segment(suggestion_id)}", content=body)["suggestion"])

    def forget(self, selector: Json, *, dry_run: bool = False) -> Json:
        """Forget what a selector names, or only tell what that would be. Returns {"receipt", "dry_run"}.

        The selector is one of {"ids"}, {"search"}, {"since", "until"} (seconds since 1970; either may be left out),
        {"app_name"} and {"all": True}.
        """
        return self._post("/edgepd/v1/forget", selector | {"dry_run": dry_run})

    def receipts(self) -> list[Json]:
        """Return the receipts of what was forgotten, newest first."""
        return list(self._call("GET", "/edgepd/v1/receipts")["receipts"])

    def export(self, app: str | None = None) -> Generator[str, None, None]:
        """Yield everything that is kept, one JSON text for each line, in the OpenAI chat format."""
        return self._lines("/edgepd/v1/export", of_app({}, app))

    def import_lines(self, lines: Sequence[str]) -> Json:
        """Take in lines as `export` gives them. Returns {"added", "known", "facts", "events", "mapped_events",
        "refused": [{"line", "reason"}]}.

        `line` counts from 1 within `lines`.
        """
        return self._post("/edgepd/v1/import", {"lines": [*lines]})

    def backup(self) -> Json:
        """Make a backup of the profile. Returns {"path", "bytes"}."""
        return self._post("/edgepd/v1/backup", {})

    def backups(self) -> list[Json]:
        """Return the backups, newest first: {"path", "at", "bytes"}."""
        return list(self._call("GET", "/edgepd/v1/backups")["backups"])
