"""The features of PITuning's appendix E, for trees.

The idea: every event of a user becomes one row for the moment just before it. The invariant: a row knows the moment and
the events ahead of it and nothing else, so neither its own label nor what comes later can leak into it.
What the paper leaves open: a category is an intent, the parts of the day begin at 6, 12 and 18 o'clock, and the place
is that of the event before, because the present one is as unknown as the event itself.
What this does not do: train (_intent_trees.py), or choose what is predicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edgepd.intent.data import Split
from edgepd.intent.schema import DAY_S, THURSDAY, Event

Array: TypeAlias = npt.NDArray[np.float64]
Codes: TypeAlias = npt.NDArray[np.int64]

HOUR_S = 3600
TOP_PLACES = 10
PREVIOUS = 3
MORNING, AFTERNOON, EVENING, MIDNIGHT = 6, 12, 18, 24
SATURDAY = 5


@dataclass(frozen=True)
class Scheme:
    """What the columns of a row stand for: the intents (also the classes, in this order) and the frequent places.

    `shares` adds what the appendix does not have: how often the user had each intent so far, and how many events.
    """

    intents: tuple[str, ...]
    places: tuple[str, ...] = ()
    shares: bool = False

    @classmethod
    def of(cls, sequences: Iterable[Sequence[Event]], intents: Sequence[str], *, shares: bool = False) -> Scheme:
        """Return the one whose places are the ten that these events name most often."""
        counts = Counter(event.context for event in chain.from_iterable(sequences) if event.context)
        places = sorted(counts, key=lambda place: (-counts[place], place))[:TOP_PLACES]
        return cls(tuple(intents), tuple(places), shares)

    @property
    def columns(self) -> list[str]:
        """Name the columns, without those of a neural model."""
        names = [
            "hour",
            "weekday",
            "timestamp",
            "morning",
            "afternoon",
            "evening",
            "weekend",
            "place",
            "frequent_place",
        ]
        names += [f"{what}_{n}" for what in ("t0", "t1") for n in range(len(self.intents))]
        names += [f"previous_{back}" for back in range(1, PREVIOUS + 1)]
        return names + ([f"share_{n}" for n in range(len(self.intents))] + ["events"] if self.shares else [])

    @property
    def categorical(self) -> list[str]:
        """Name the columns whose numbers are only names."""
        return ["place", *(f"previous_{back}" for back in range(1, PREVIOUS + 1))]

    def labels(self, events: Sequence[Event]) -> Codes:
        """Return the class of each event, -1 for an intent that is no class."""
        return _codes(self.intents, [event.intent for event in events])


def rows(events: Sequence[Event], scheme: Scheme, outputs: Array | None = None) -> Array:
    """Return a row for the moment of each event of one user, oldest first; what is not known is NaN.

    T0 and T1 (eq. 17, 18) and the timestamp are in hours. `outputs`, if given, are what a neural model says of each
    moment, (N, any) probabilities, and become further columns (the appendix's feature 1).
    """
    labels = scheme.labels(events)
    since, between = _gaps(labels, np.array([event.at / HOUR_S for event in events]), len(scheme.intents))
    parts = [_clock(events), _places(events, scheme), since, between]
    parts += [_earlier(labels.astype(float), back)[:, None] for back in range(1, PREVIOUS + 1)]
    if scheme.shares:
        parts.append(_shares(labels, len(scheme.intents)))
    return np.concatenate(parts if outputs is None else [*parts, outputs], axis=1)


def _codes(names: Sequence[str], values: Sequence[str]) -> Codes:
    places = {name: n for n, name in enumerate(names)}
    return np.array([places.get(value, -1) for value in values], dtype=np.int64)


def _clock(events: Sequence[Event]) -> Array:
    at = np.array([event.at for event in events], dtype=float)
    local = np.floor(at + np.array([event.utc_offset_s for event in events], dtype=float))
    hour = local % DAY_S // HOUR_S
    weekday = (local // DAY_S + THURSDAY) % 7
    parts_of_day = [
        (hour >= first) & (hour < last)
        for first, last in ((MORNING, AFTERNOON), (AFTERNOON, EVENING), (EVENING, MIDNIGHT))
    ]
    return np.stack([hour, weekday, at / HOUR_S, *parts_of_day, weekday >= SATURDAY], axis=1).astype(float)


def _places(events: Sequence[Event], scheme: Scheme) -> Array:
    places = _earlier(_codes(scheme.places, [event.context for event in events]).astype(float), 1)
    return np.stack([places, np.isfinite(places)], axis=1).astype(float)


def _earlier(codes: Array, back: int) -> Array:
    """Return what stood so many places ahead; NaN for what is unknown or before the beginning."""
    moved = np.full(len(codes), np.nan)
    moved[back:] = codes[: max(len(codes) - back, 0)]
    moved[moved < 0] = np.nan
    return moved


def _gaps(labels: Codes, hours: Array, classes: int) -> tuple[Array, Array]:
    """Return T0, since the last of each class, and T1, between the last two of each: both (N, C)."""
    here = labels[:, None] == np.arange(classes)
    last = _latest(here, hours)
    before_own = last[np.arange(len(labels)), labels]  # of a label that is no class it is not used
    second = _latest(here, before_own)
    with np.errstate(invalid="ignore"):  # never before, minus never before
        since, between = hours[:, None] - last, last - second
    return np.where(np.isfinite(since), since, np.nan), np.where(np.isfinite(between), between, np.nan)


def _latest(here: npt.NDArray[np.bool_], values: Array) -> Array:
    """Return, for each row and class, the largest value at an earlier row where the class is; else minus infinity."""
    so_far = np.maximum.accumulate(np.where(here, values[:, None], -np.inf), axis=0)
    return np.concatenate([np.full((1, here.shape[1]), -np.inf), so_far])[:-1]


def _shares(labels: Codes, classes: int) -> Array:
    counts = np.cumsum(labels[:, None] == np.arange(classes), axis=0)
    counts = np.concatenate([np.zeros((1, classes)), counts])[:-1]
    number = np.arange(len(labels), dtype=float)[:, None]
    return np.concatenate([counts / np.maximum(number, 1), number], axis=1)


@dataclass(frozen=True)
class Rows:
    """Rows and their classes, -1 for an intent that is no class."""

    features: Array
    labels: Codes

    @classmethod
    def of(cls, sequences: Iterable[Sequence[Event]], scheme: Scheme, outputs: Sequence[Array] | None = None) -> Rows:
        """Return the rows of several users, one after another; `outputs` are those of each user."""
        users = [events for events in sequences if events]
        given: Sequence[Array | None] = outputs if outputs is not None else [None] * len(users)
        parts = [rows(events, scheme, own) for events, own in zip(users, given, strict=True)]
        width = len(scheme.columns)
        return cls(
            np.concatenate(parts) if parts else np.empty((0, width)),
            scheme.labels(list(chain.from_iterable(users))),
        )

    def __getitem__(self, wanted: slice | npt.NDArray[np.bool_]) -> Rows:
        """Return some of the rows."""
        return Rows(self.features[wanted], self.labels[wanted])

    def known(self) -> Rows:
        """Return those that have a class."""
        return self[self.labels >= 0]


def of_split(split: Split, scheme: Scheme, outputs: Array | None = None) -> tuple[Rows, Rows, Rows]:
    """Return the rows of a user's training, validation and test events; each knows all that came before it."""
    events = [*split.train, *split.validation, *split.test]
    every = Rows.of([events], scheme, None if outputs is None else [outputs])
    first, second = len(split.train), len(split.train) + len(split.validation)
    return every[:first], every[first:second], every[second:]
