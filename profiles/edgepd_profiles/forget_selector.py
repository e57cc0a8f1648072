"""What a user names to be forgotten.

The idea: exactly one way of naming it, so that a request means one thing. The invariant: what it says of itself holds
no text of the user but the name of an app, because receipts and logs keep it.
What this does not do: find what is named (see forget_plan.py and forget_events.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from edgepd.errors import RequestError

LEAST_SEARCH = 2  # characters of a search; a single letter is in nearly everything


@dataclass(frozen=True)
class Selector:
    """What is to be forgotten, in exactly one way; `since` <= time < `until`, either of them may be missing.

    A time names what began then, and exchanges that a correction or comment was given on then.
    """

    ids: tuple[str, ...] = ()
    facts: tuple[int, ...] = ()
    search: str | None = None
    since: float | None = None
    until: float | None = None
    app: str | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        """Raise RequestError unless exactly one way is used, and properly."""
        in_time = self.since is not None or self.until is not None
        ways = (bool(self.ids or self.facts), self.search is not None, in_time, self.app is not None, self.everything)
        if sum(ways) != 1:
            raise RequestError("give exactly one of ids, a text to search for, a time, an app, or everything")
        if self.search is not None and len(self.search.strip()) < LEAST_SEARCH:
            raise RequestError(f"the text to search for must have at least {LEAST_SEARCH} characters")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise RequestError(f"the time from {self.since} to {self.until} is empty; `since` must be before `until`")

    @property
    def what(self) -> str:
        """What is named, in words that hold no text of the user but the name of an app."""
        if self.search is not None:
            return "what contains a text"
        if self.app is not None:
            return f"what came from the app '{self.app}'"
        if self.everything:
            return "everything"
        if self.ids or self.facts:
            return "what was named by its id"
        return f"the time from {self.since or 'the beginning'} to {self.until or 'now'}"
