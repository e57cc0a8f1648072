"""What the user's own history says about an intent: when it comes, after what, and from which app.

The idea: shares of counts, taken in one pass over the events. They are told to the user as the reason for a prediction,
in words that hold for what was counted, whatever the model thought of; and they say how much of an intent is questions
to the model of this computer, of which app.
What this does not do: predict (see foresight.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from edgepd.intent.schema import SLOTS_PER_DAY, moment

AFTER_S = 3 * 3600.0  # within which one thing comes after another
NEAR_SLOTS = 1  # half hours before and after the present one that are the same time of day
LEAST = 3  # times that something was seen before it is called a habit
USUALLY, OFTEN = 0.5, 0.2  # shares
ABOVE = 1.5  # times the share that the intent has of everything: else it says nothing about this moment


class Happened(Protocol):
    """An event as the profile holds it (edgepd_profiles.events.Stored)."""

    @property
    def at(self) -> float: ...  # noqa: D102 - unix seconds
    @property
    def utc_offset_s(self) -> int: ...  # noqa: D102 - how far local time was ahead of UTC
    @property
    def intent(self) -> str: ...  # noqa: D102
    @property
    def app(self) -> str: ...  # noqa: D102 - who sent it
    @property
    def interaction(self) -> str | None: ...  # noqa: D102 - the id of the exchange, if it was one


class Habits:
    """Counts of a history, as they matter at one moment."""

    def __init__(self, events: Sequence[Happened], at: float, utc_offset_s: int) -> None:
        """Count; `events` are in the order of time, and `at`, in unix seconds, is not before them."""
        now = moment(at, utc_offset_s).slot
        self._total = Counter(e.intent for e in events)
        self._here = Counter(e.intent for e in events if _near(moment(e.at, e.utc_offset_s).slot, now))
        last = events[-1] if events and at - events[-1].at <= AFTER_S else None
        self._last = last.intent if last is not None else None
        self._after = Counter(
            then.intent for first, then in pairwise(events) if first.intent == self._last and _follows(first, then)
        )
        self._apps: dict[str, Counter[str]] = defaultdict(Counter)
        for event in events:
            if event.interaction is not None:
                self._apps[event.intent][event.app] += 1

    def reason(self, intent: str) -> str:
        """Say in a few words why this intent may come now."""
        here = self._habit(self._here, intent), "at this time"
        after = self._habit(self._after, intent), f"after {self._last}"
        share, words = max(after, here, key=lambda found: found[0])
        if share >= OFTEN:
            return f"{'usually' if share >= USUALLY else 'often'} {words}"
        times, all_times = self._total[intent], self._total.total()
        if times >= LEAST and times >= OFTEN * all_times:
            return "often at any time"
        return "seen once" if times == 1 else f"seen {times} times" if times else "not seen yet"

    def app_of(self, intent: str) -> str | None:
        """Return the app whose questions to the model make up most of an intent; None if no question does."""
        found = self._apps.get(intent)
        return found.most_common(1)[0][0] if found else None

    def apps(self, ranked: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
        """Return with which probability the next event is a question of each app, the likeliest first."""
        likely: Counter[str] = Counter()
        for intent, probability in ranked:
            for app, times in self._apps.get(intent, Counter()).items():
                likely[app] += probability * times / self._total[intent]  # type: ignore[assignment]  # a float
        return sorted(likely.items(), key=lambda found: (-found[1], found[0]))

    def _habit(self, counted: Counter[str], intent: str) -> float:
        """Return the share that the intent has of what was counted, 0 if that is little or nothing special."""
        times, share = counted[intent], counted[intent] / max(1, counted.total())
        usual = self._total[intent] / max(1, self._total.total())
        return share if times >= LEAST and (share >= ABOVE * usual or share >= USUALLY) else 0.0


def _near(slot: int, now: int) -> bool:
    apart = abs(slot - now)
    return min(apart, SLOTS_PER_DAY - apart) <= NEAR_SLOTS


def _follows(first: Happened, then: Happened) -> bool:
    return 0 <= then.at - first.at <= AFTER_S
