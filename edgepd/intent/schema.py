"""What is known of what a user does: events in time, the names in them, and the moment at which to predict.

The idea: an event has a time, a context and a name, and belongs to an intent (PITuning, section 2.2). A model knows
names as numbers; the vocabulary gives each name a slot in the order of first appearance, so that what a population
taught about slots holds for any names. The invariant: slot 0 is what is unknown, and a slot never changes its name.
What this does not do: store events (edgepd_profiles.events), or read files of them (data.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

MINUTES_PER_SLOT = 30
SLOTS_PER_DAY = 48
DAY_S = 86_400
THURSDAY = 3  # 1970-01-01, with Monday as 0


@dataclass(frozen=True)
class Event:
    """One thing that happened: `at` in unix seconds, local time was `utc_offset_s` ahead of UTC then."""

    at: float
    event: str
    intent: str
    context: str = ""
    utc_offset_s: int = 0


@dataclass(frozen=True)
class Moment:
    """A local time as a model sees it: `weekday` 0 (Monday) to 6, `slot` 0 to 47 of half an hour."""

    weekday: int
    slot: int


def moment(at: float, utc_offset_s: int) -> Moment:
    """Return the local weekday and half hour of a unix time; any finite time is valid, also before 1970."""
    local = math.floor(at + utc_offset_s)
    days, seconds = divmod(local, DAY_S)
    return Moment((days + THURSDAY) % 7, seconds // (60 * MINUTES_PER_SLOT))


@dataclass
class Names:
    """A bounded list of names; the slot of a name is its place, counted from 1. Slot 0: unknown, or no room left."""

    room: int
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise ValueError for more names than room, or a name that is there twice."""
        self._slots = {name: slot for slot, name in enumerate(self.names, start=1)}
        if len(self.names) > self.room or len(self._slots) != len(self.names):
            raise ValueError(f"{len(self.names)} names, not all different, for {self.room} slots")

    def slot(self, name: str) -> int:
        """Return the slot of a name, 0 if it has none."""
        return self._slots.get(name, 0)

    def learn(self, name: str) -> int:
        """Return the slot of a name, which gets the next free one if it has none; 0 if there is no room or no name."""
        if name and name not in self._slots and len(self.names) < self.room:
            self.names.append(name)
            self._slots[name] = len(self.names)
        return self.slot(name)


@dataclass
class Vocabulary:
    """The names that a model knows of events, intents and contexts."""

    events: Names
    intents: Names
    contexts: Names

    @classmethod
    def empty(cls, events: int, intents: int, contexts: int) -> Self:
        """Return one with so much room for each."""
        return cls(Names(events), Names(intents), Names(contexts))

    def learn(self, events: Sequence[Event]) -> Self:
        """Give every name of these events a slot, in this order, as far as there is room."""
        for names, said in (
            (self.events, (event.event for event in events)),
            (self.intents, (event.intent for event in events)),
            (self.contexts, (event.context for event in events)),
        ):
            for name in dict.fromkeys(said):  # most events are not the first of their name
                names.learn(name)
        return self

    def copy(self) -> Vocabulary:
        """Return one of its own with the same names."""
        return Vocabulary(*(Names(n.room, list(n.names)) for n in (self.events, self.intents, self.contexts)))


def in_order(events: Sequence[Event]) -> bool:
    """Return whether none of these events comes before the one ahead of it."""
    return all(a.at <= b.at for a, b in zip(events, events[1:], strict=False))
