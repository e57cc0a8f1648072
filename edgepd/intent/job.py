"""The job of the child that tunes the model of what comes next; it answers with the events of edgepd.adapt.job.

The idea: the daemon writes this record to the child's standard input, as it does with the job of a training run, so
that both kinds of run are watched, held to their budget and ended alike. The invariant: every job tunes the student
that ships with edgepd, never one that was tuned before, so what was forgotten since leaves nothing behind.
What this does not do: choose the events, or say what becomes of the outcome.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from edgepd.errors import TrainingError
from edgepd.intent.schema import Event, in_order
from edgepd.settings import Intent

MOST_EVENTS = 100_000  # as intent.max_events allows
LONGEST_NAME = 1000  # characters; the profile takes fewer
MOST_OFFSET_S = 18 * 3600


@dataclass(frozen=True)
class TuneJob:
    """Tune one student and judge it against the one that serves now. Paths are absolute."""

    shipped: str  # the student that tuning begins with
    current: str | None  # the tuned one that serves now; None: the shipped one does
    output: str  # file to write if the result is good
    events: list[Event]  # in order of time
    settings: dict[str, Any]  # the section [intent] of the settings
    threads: int
    memory_mb: int = 0  # resident memory that it should stay within, in MiB; 0: nothing was said
    plan_only: bool = False  # answer with what would be tuned on and judged by, and do nothing
    patient: bool = False  # nobody waits for it
    kind: Literal["intent"] = field(default="intent")

    @property
    def wanted(self) -> Intent:
        """The settings."""
        return Intent(**self.settings)

    def to_json(self) -> str:
        """Serialise."""
        return json.dumps(dataclasses.asdict(self) | {"events": [list(dataclasses.astuple(e)) for e in self.events]})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse. Raises TrainingError if `text` is not a job."""
        try:
            fields = json.loads(text)
            if len(fields["events"]) > MOST_EVENTS:
                raise ValueError(f"{len(fields['events'])} events are more than {MOST_EVENTS}")
            job = cls(**fields | {"events": [_event(values) for values in fields["events"]]})
            job._check()
            return job
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TrainingError(f"the tuning job on standard input is malformed: {error}") from error

    def _check(self) -> None:
        """Raise ValueError or TypeError for what no daemon sends."""
        if self.kind != "intent":
            raise ValueError(f"its kind is {self.kind!r}, not 'intent'")
        if not in_order(self.events):
            raise ValueError("its events are not in order of time")
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 1:
            raise ValueError(f"it cannot compute with {self.threads!r} threads")
        _ = self.wanted  # raises TypeError for a setting that there is not


def _event(values: list[Any]) -> Event:
    """Return one event of a job. Raises ValueError or TypeError."""
    at, event, intent, context, utc_offset_s = values
    if not all(isinstance(name, str) and len(name) <= LONGEST_NAME for name in (event, intent, context)):
        raise ValueError(f"a name of an event is not a text of at most {LONGEST_NAME} characters")
    if isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at):
        raise ValueError(f"an event happened at {at!r}")
    if isinstance(utc_offset_s, bool) or not isinstance(utc_offset_s, int) or abs(utc_offset_s) > MOST_OFFSET_S:
        raise ValueError(f"local time is {utc_offset_s!r} s ahead of UTC")
    return Event(float(at), event, intent, context, utc_offset_s)
