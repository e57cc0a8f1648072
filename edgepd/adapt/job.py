"""The contract between the daemon and its training child: a job goes in on stdin, events come out on stdout.

The idea: both sides import these records and nothing else of each other, so that the daemon never imports torch.
Each event is one line of JSON with one key: `progress`, `planned`, `outcome`, `refused`, `parked` or `reviewed`. The
text of the examples travels through the pipe and is never written to disk by either side.
What this does not do: decide what to train on, or what happens with the outcome.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from edgepd.errors import TrainingError

# `live` is the fast path (ASLS-Fast): a few seconds on the newest examples, on top of what serves now. `baked` is the
# normal path (ASLS-Normal): from the original base, on all selected examples. `intent` tunes the model of what comes
# next; its job is edgepd.intent.job.TuneJob.
JobKind = Literal["live", "baked", "intent"]
FREE_SHARE = 0.5  # of the memory that is free, within which a run is planned where nothing else is set


def job_kind(name: str | None) -> JobKind | None:
    """Return the kind as the profile stores it; None for none. What is not known there is the fast path."""
    stored: dict[str, JobKind] = {"baked": "baked", "intent": "intent"}
    return None if name is None else stored.get(name, "live")


@dataclass(frozen=True)
class JobExample:
    """One exchange: the messages before the answer, and the answer that the user wants.

    `rejected` is an answer that the user wants less (preference pairs), `desirable` is False for an answer with a thumb
    down (KTO and APO), `reward` in [-1, 1] and `conversation` give the returns of reward-weighted training.
    """

    id: str
    messages: list[dict[str, Any]]
    response: str
    weight: float = 1.0
    rejected: str | None = None
    desirable: bool = True
    reward: float = 0.0
    conversation: str = ""
    shots: list[dict[str, Any]] = field(default_factory=list)  # similar exchanges, for the arm that retrieves them


@dataclass(frozen=True)
class Job:
    """Train one candidate and measure it against what serves now. Paths are absolute."""

    kind: JobKind
    base: str  # model file that is trained through: the active one for `live`, the original for `baked`
    base_sha256: str
    original: str  # the unchanged base model, against which general perplexity is compared
    original_sha256: str
    current_model: str  # what serves now
    current_adapter: str | None
    output: str  # adapter (`live`) or model file (`baked`) to write
    checkpoint_dir: str
    replay_dir: str  # cache of general examples and anchors, which the base generates once
    train: list[JobExample]
    held_out: list[JobExample]
    data_hash: str
    settings: dict[str, Any]  # the section [train] of the settings
    threads: int
    gate: dict[str, Any]  # the section [gate] of the settings
    max_tokens: int  # examples with more tokens are skipped
    parent: int | None = None
    start_adapter: str | None = None  # live adapter whose training is continued
    profile_prompt: str | None = None  # states the user's preferences, for the arm that has them in the prompt
    plan_only: bool = False  # answer with the plan and do nothing
    patient: bool = False  # nobody waits for it, so no steps are left out to be done in train.fast_seconds
    memory_mb: int = 0  # resident memory to plan within, in MiB; 0: what train.memory_mb says

    def to_json(self) -> str:
        """Serialise."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse. Raises TrainingError if `text` is not a job."""
        try:
            fields = json.loads(text)
            fields["train"] = [JobExample(**e) for e in fields["train"]]
            fields["held_out"] = [JobExample(**e) for e in fields["held_out"]]
            return cls(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise TrainingError(f"the training job on standard input is malformed: {error}") from error


@dataclass(frozen=True)
class Progress:
    """Where a run is: stage is load, replay, train, write, gate or review; `done` of `total` in its own unit."""

    stage: str
    done: int = 0
    total: int = 0
    loss: float | None = None  # nats per supervised token, of the last optimiser step
    held_out_loss: float | None = None  # of the last evaluation, on examples set aside for early stopping
    tokens_per_second: float | None = None
    seconds_left: float | None = None  # of this stage
    rss_mb: float | None = None  # resident memory of the trainer, in MiB
    paused: str | None = None  # why it waits, if it does; the daemon knows, the child that stands still does not


@dataclass(frozen=True)
class Planned:
    """What a run would do and cost, as edgepd.adapt.planner.Plan gives it."""

    plan: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The result of a run that came to its end."""

    promoted: bool
    reason: str
    scores: dict[str, Any] = field(default_factory=dict)
    file_sha256: str = ""
    skipped: dict[str, str] = field(default_factory=dict)  # example id -> why it was not trained on


@dataclass(frozen=True)
class Refused:
    """The run could not be carried out."""

    reason: str


@dataclass(frozen=True)
class Parked:
    """The run was asked to end (SIGTERM) before it had an outcome, and goes on when the same job is started again."""

    step: int  # optimiser steps that are done and saved; 0 also where it was parked before the training loop


@dataclass(frozen=True)
class Reviewed:
    """What was measured of a candidate after it went live; `kept` is False if it must not stay, for the reason."""

    kept: bool
    reason: str
    scores: dict[str, Any] = field(default_factory=dict)


Event = Progress | Planned | Outcome | Refused | Parked | Reviewed

_NAMES: dict[type[Any], str] = {
    Progress: "progress",
    Planned: "planned",
    Outcome: "outcome",
    Refused: "refused",
    Parked: "parked",
    Reviewed: "reviewed",
}


def write_event(event: Event) -> str:
    """Return the line of JSON for an event, without the newline."""
    return json.dumps({_NAMES[type(event)]: dataclasses.asdict(event)})


def read_event(line: str) -> Event:
    """Parse a line. Raises TrainingError if it is not an event."""
    try:
        ((name, fields),) = json.loads(line).items()
        event: Event = {n: t for t, n in _NAMES.items()}[name](**fields)
        return event
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrainingError(f"the trainer wrote a line that is not an event: {error}") from error
