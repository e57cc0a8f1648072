"""What a person's history says of each intent that may be next, as numbers: the features that scorer.py weighs.

The idea: every intent has left traces: how often it came, how long ago, at which hours, after what. They are the same
questions for any intent of any person, so what a population teaches about them holds for names that it never saw, and
they follow the person event by event, without tuning. The invariant: only what happened before the moment counts.
What this does not do: weigh the features, or know what an intent is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from edgepd.intent.schema import DAY_S, SLOTS_PER_DAY, THURSDAY, Event
from edgepd.intent.weights_file import Floats

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

NEWEST = 512  # events that are looked at: what is older says nothing that these do not, and would cost time
SATURDAY = 5
WEEK_H, DAY_H = 168.0, 24.0
HALF_LIFE_H = 72.0  # of an event, where recent ones count more
HOUR_WIDTH = 3.0  # half hours: standard deviation within which times of day are alike
PRIOR = 0.25  # of an event, that every candidate has more than it had
NEVER = 7.0  # log hours, about six weeks: for what has not happened (again)

# Of each candidate, then those of the moment, which are the same for all of them.
OF_CANDIDATE = (
    *("share", "count", "since", "never", "between", "at this hour", "at this hour on such a day", "after the last"),
    *(
        "after the last two",
        "is the last",
        "is the last but one",
        "on this weekday",
        "lately",
        "days since",
        "weeks since",
    ),
)
OF_MOMENT = ("gap", "events", "sine of day", "cosine of day", "weekend", "second sine", "second cosine", "candidates")
FEATURES = len(OF_CANDIDATE) + len(OF_MOMENT)


@dataclass(frozen=True)
class Past:
    """The events of one person in order of time, each array (N,)."""

    code: Ints  # number of the intent among the candidates
    hour: Doubles  # unix time in hours
    slot: Ints  # half hour of the local day
    weekday: Ints
    between: Doubles  # hours since the event before of the same intent; not a number for the first

    @classmethod
    def of(cls, events: Sequence[Event], codes: Mapping[str, int]) -> Past:
        """Return that of events, all of whose intents have a code."""
        at = np.array([event.at for event in events], float)
        local = np.floor(at + np.array([event.utc_offset_s for event in events], float)).astype(np.int64)
        code = np.array([codes[event.intent] for event in events], np.int64)
        hour = at / 3600
        between = np.full(len(code), np.nan)
        order = np.argsort(code, kind="stable")  # the events of each intent side by side, in order of time
        same = np.diff(code[order], prepend=-1) == 0
        between[order[same]] = np.diff(hour[order], prepend=0.0)[same]
        return cls(code, hour, local % DAY_S * SLOTS_PER_DAY // DAY_S, (local // DAY_S + THURSDAY) % 7, between)

    def __len__(self) -> int:
        """The number of events."""
        return len(self.code)

    def before(self, place: int) -> Past:
        """Return the newest events before the one at `place`, as views."""
        first = max(0, place - NEWEST)
        return Past(*(getattr(self, field.name)[first:place] for field in fields(self)))

    def last(self, back: int) -> int:
        """Return the code of the last event (1), or of the one before (2); -1 if there is none."""
        return int(self.code[-back]) if len(self) >= back else -1


def features(past: Past, candidates: int, at: float, utc_offset_s: int) -> Floats:
    """Return the features (candidates, FEATURES) of each candidate for being next at `at`, in unix seconds.

    The codes of `past` are below `candidates`, and `past` ends before `at`; a clock that was set back counts as no
    time.
    """
    local = np.floor(at + utc_offset_s)
    slot, weekday = int(local % DAY_S * SLOTS_PER_DAY // DAY_S), int(local // DAY_S + THURSDAY) % 7
    age = np.maximum(at / 3600 - past.hour, 0.0)
    found = np.empty((candidates, FEATURES))
    found[:, : len(OF_CANDIDATE)] = _of_candidates(past, candidates, slot, weekday, age)
    found[:, len(OF_CANDIDATE) :] = _of_moment(past, slot, weekday, age)
    return found.astype(np.float32)


def _of_candidates(past: Past, candidates: int, slot: int, weekday: int, age: Doubles) -> Doubles:
    code = past.code

    def count(where: npt.NDArray[np.bool_] | None = None, weights: Doubles | None = None) -> Doubles:
        chosen = code if where is None else code[where]
        given = weights if weights is None or where is None else weights[where]
        return np.bincount(chosen, given, candidates).astype(float)

    counts = count()
    share = (counts + PRIOR) / (len(code) + PRIOR * candidates)
    since, between = np.full(candidates, np.nan), np.full(candidates, np.nan)
    since[code], between[code] = age, past.between  # of several, the last one stays
    apart = np.abs(past.slot - slot)
    alike = np.exp(-0.5 * (np.minimum(apart, SLOTS_PER_DAY - apart) / HOUR_WIDTH) ** 2)
    at_hour = count(weights=alike)
    on_such = count((past.weekday >= SATURDAY) == (weekday >= SATURDAY), alike)
    one, two = past.last(1), past.last(2)
    follows = np.zeros(len(code), bool)
    follows[1:] = code[:-1] == one
    after = _smoothed(count(follows), share, 1.0)
    follows[2:] &= code[:-2] == two
    follows[:2] = False
    lately = count(weights=0.5 ** (age / HALF_LIFE_H))
    numbers, never = np.arange(candidates), np.isnan(since)
    hours = np.where(never, 0.0, since)
    columns = (
        *(np.log(share), np.log1p(counts), _log_hours(since), counts == 0, _log_hours(between)),
        *(np.log(_smoothed(at_hour, share, 0.3)), np.log(_smoothed(on_such, share, 0.3)), np.log(after)),
        *(np.log(_smoothed(count(follows), after, 1.0)), numbers == one, numbers == two),
        np.log(_smoothed(count(past.weekday == weekday), share, 1.0)),
        np.log((lately + 0.05) / (lately.sum() + 0.05 * candidates)),
        *(np.where(never, 0.0, np.cos(2 * np.pi * hours / period)) for period in (DAY_H, WEEK_H)),
    )
    return np.stack(columns, axis=1)


def _smoothed(counts: Doubles, prior: Doubles, strength: float) -> Doubles:
    """Return the shares of counts, drawn towards a prior that weighs as much as `strength` events."""
    found: Doubles = (counts + strength * prior) / (counts.sum() + strength)
    return found


def _log_hours(hours: Doubles) -> Doubles:
    found: Doubles = np.where(np.isnan(hours), NEVER, np.log1p(hours))
    return found


def _of_moment(past: Past, slot: int, weekday: int, age: Doubles) -> list[float]:
    angle = 2 * np.pi * slot / SLOTS_PER_DAY
    return [
        *(float(np.log1p(age[-1])) if len(past) else NEVER, float(np.log1p(len(past)))),
        *(float(np.sin(angle)), float(np.cos(angle)), float(weekday >= SATURDAY)),
        *(float(np.sin(2 * angle)), float(np.cos(2 * angle)), float(np.log1p(len(np.unique(past.code))))),
    ]
