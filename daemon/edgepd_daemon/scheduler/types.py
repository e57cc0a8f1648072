"""What the scheduler knows and what it decides.

The idea: all that a decision depends on is in these records, so that a decision can be repeated, tested and explained.
What this does not do: read sensors (readings.py), decide (decide.py), or act (supervisor.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edgepd.adapt.job import JobKind


@dataclass(frozen=True)
class Readings:
    """The machine at one moment. None: there is no such sensor, or the system does not tell."""

    at: float  # unix seconds; may jump
    minute_of_day: int  # local time
    busy: bool  # requests are being answered or wait
    idle_s: float  # since the last request ended, the daemon started, or the machine woke up; 0 while busy
    on_ac: bool | None = None
    battery_percent: float | None = None
    temperature_c: float | None = None  # of the hottest sensor
    other_cpu_percent: float | None = None  # of all cores, by all processes but edgepd's own
    available_mb: float | None = None  # memory, within the limits of the cgroup
    memory_pressure: float | None = None  # PSI: share of the last ten seconds in which some task waited, in percent
    io_pressure: float | None = None
    free_disk_mb: float | None = None  # where the profile is
    trainer_rss_mb: float | None = None  # None: nothing is being trained
    quiet_probability: float | None = None  # of no use while a run would take; None: not known, or not wanted
    better_window_in_s: float | None = None  # until a time at which use is clearly less likely; None: none is near
    window_s: float = 0.0  # longest that a run which nobody asked for waits for such a time


@dataclass(frozen=True)
class Demand:
    """What there is to learn. Weights are those of feedback: a correction weighs 1.

    `intent_enough` 0: the model of what comes next is not tuned, for it is switched off or there are too few events.
    """

    live_weight: float = 0.0  # of what came after the last run of any kind that was judged
    baked_weight: float = 0.0  # of what came after the last consolidation that was judged
    examples: int = 0  # that could be learned from in all
    forgotten: JobKind | None = None  # a run that forgetting has made necessary
    parked: JobKind | None = None  # a run that saved its state to make way, and goes on when it may
    parked_asked: bool = False  # the user had asked for that one, and it goes on as such
    intent_events: int = 0  # that came after the last tuning that was judged
    intent_enough: int = 0  # of them start another one
    last: JobKind | None = None  # kind of the newest run that has ended, except that it was parked


@dataclass(frozen=True)
class Running:
    """The run that is going on."""

    kind: JobKind
    asked: bool  # started by the user, who waits for it
    reviewing: bool  # its result is live already
    planned_mb: float  # resident memory that it was planned within
    paused_s: float  # for how long a constraint has held it; 0 if none does


@dataclass(frozen=True)
class State:
    """What has happened so far. `*_s` are durations in seconds that do not jump with the clock."""

    demand: Demand
    running: Running | None = None
    at_work_s: float = 0.0  # that unasked training was at work today
    due_s: float = 0.0  # for how long a run has been due without one being judged; goes on while a run goes on
    failures: int = 0  # runs in a row that failed or were killed
    since_failure_s: float = float("inf")
    held_s: float = float("inf")  # since the limit of a constraint that held was last broken; inf: none was
    held_by: str = ""  # which one that was
    paused_by_user: bool = False


class Action(StrEnum):
    """What to do."""

    WAIT = "wait"  # nothing is being trained, and nothing is started
    START = "start"
    GO_ON = "go on"  # also after a pause
    PAUSE = "pause"  # the run stays in memory, and stands still
    PARK = "park"  # the run saves its state and ends; it goes on when it is started again
    SHRINK = "shrink"  # the run is parked and started again with less memory


@dataclass(frozen=True)
class Decision:
    """What to do now, and why."""

    action: Action
    reason: str  # one sentence for the user, with the values that decided
    constraint: str = ""  # the name of the constraint that holds it, "" if none does
    kind: JobKind | None = None  # of the run that is started, or would be
    due: bool = False  # there is a run that should be started as soon as possible
    look_again_s: float = 60.0  # after which another decision may follow; a request or feedback may come before
