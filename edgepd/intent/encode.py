"""Events as the numbers that a predictor takes: one row for each place at which the next event is predicted.

The idea: at place n the predictor knows the event before (its intent, name, context, weekday and half hour) and the
moment of the event to predict (weekday, half hour, time since the event before): what an app knows that asks now.
The invariant: row n holds nothing of event n but its time, so that no label leaks into its own prediction.
What this does not do: cut into windows or batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from edgepd.intent.schema import Event, Vocabulary, moment
from edgepd.intent.shape import DAY_SLOTS, GAP_HOURS, WEEKDAYS

Ints = npt.NDArray[np.int64]
UNKNOWN = 0  # row of names without a slot
NOT_KNOWN = -1  # target that cannot be predicted: an intent without a slot, or the open end


def masked_row(intents: int) -> int:
    """Return the row of the intent table that stands for an event that is hidden (PITuning, section 3.2.4)."""
    return intents + 1


def beginning_row(intents: int) -> int:
    """Return the row of the intent table that stands for "nothing has happened yet"."""
    return intents + 2


@dataclass(frozen=True)
class Encoded:
    """N places, each array (N,). `target` is the slot of the intent of event n minus 1, or NOT_KNOWN."""

    intent: Ints  # of the event before
    event: Ints
    context: Ints
    weekday: Ints
    slot: Ints
    now_weekday: Ints  # of the moment of event n
    now_slot: Ints
    now_gap: Ints
    target: Ints

    def __len__(self) -> int:
        """The number of places."""
        return len(self.target)

    def part(self, start: int, stop: int) -> Encoded:
        """Return the places from `start` up to `stop`, as views."""
        return Encoded(*(getattr(self, f.name)[start:stop] for f in fields(self)))


def encode(events: Sequence[Event], names: Vocabulary, *, then: tuple[float, int] | None = None) -> Encoded:
    """Return a place for each event and, with `then` (unix seconds, UTC offset), one for what comes at that moment.

    A clock that was set back makes a gap of 0.
    """
    intents = len_of(names)
    moments = [moment(e.at, e.utc_offset_s) for e in events]
    ats = [e.at for e in events]
    target = [names.intents.slot(e.intent) - 1 for e in events]
    now = list(moments)
    if then is not None:
        now.append(moment(*then))
        ats.append(then[0])
        target.append(NOT_KNOWN)
    before = events if then is not None else events[:-1]
    weekday = [WEEKDAYS, *(m.weekday for m in moments)][: len(now)]
    slot = [DAY_SLOTS, *(m.slot for m in moments)][: len(now)]
    gaps = np.diff(np.array(ats, float)) / 3600.0
    buckets = [len(GAP_HOURS), *np.digitize(np.maximum(gaps, 0.0), GAP_HOURS).tolist()][: len(ats)]
    return Encoded(
        *_ints(
            [beginning_row(intents), *(names.intents.slot(e.intent) for e in before)][: len(now)],
            [UNKNOWN, *(names.events.slot(e.event) for e in before)][: len(now)],
            [UNKNOWN, *(names.contexts.slot(e.context) for e in before)][: len(now)],
            weekday,
            slot,
            [m.weekday for m in now],
            [m.slot for m in now],
            buckets,
            target,
        )
    )


def len_of(names: Vocabulary) -> int:
    """Return the number of intents that there is room for."""
    return names.intents.room


def _ints(*columns: Sequence[int]) -> list[Ints]:
    return [np.asarray(column, dtype=np.int64).reshape(-1) for column in columns]
