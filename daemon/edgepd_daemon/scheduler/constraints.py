"""What must hold before a run starts and while it goes on: one table, one small function for each line of it.

The idea: a constraint looks at the situation and says what is wrong, with the values, or nothing. The table says the
rest: whether it also holds runs that the user asked for, whether it counts no longer once a run has been due for longer
than `budget.patience_days` (soft), and what it means for a run that goes on. The invariants: nothing here looks at a
clock or at the machine, and a sensor that is not there (None) holds nothing.

Against flapping, a constraint that has held (`State.held_by`) lets go only when its reading is better than the limit by
`margin`, or when the limit itself has been kept for `settle_s` seconds in a row, whichever comes first. That is asked
of a start and of a run that is paused; one that goes on is held by broken limits alone. `State.held_s` counts from the
last time that the limit itself was broken (see after.py), not from the last time that the margin was missed; so a
reading that stays between limit and margin holds for `settle_s` and no longer. An infinite margin means that time alone
counts: for mains power, which is there or not, and for memory, of which a run that was just parked leaves more than
enough for it to start again and be parked again.
What this does not do: decide what follows (decide.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from edgepd.settings import Budget
from edgepd_daemon.scheduler.quiet_hours import MINUTES_PER_DAY, QuietHours, clock
from edgepd_daemon.scheduler.types import Readings, State

DAY_S = 86_400.0
SETTLE_S = 60.0  # after which a limit that is kept is believed without a margin
MEMORY_SETTLE_S = 300.0  # loading a trainer costs most of a minute of work; it should not be for nothing twice
PARK_AFTER_S = 120.0  # a short pause keeps the run in memory; a longer one gives the memory back
RESUME_S = 5.0  # without a question after which a run goes on; people ask again soon
ASKED_RESUME_S = 0.5  # the same for a run that the user waits for
LIKELY_QUIET = 0.5  # probability of no use during a run from which on it is not worth waiting for a better time
FIRST_RETRY_S = 300.0  # after a run that failed; doubled with each further one
LAST_RETRY_S = 21_600.0  # at most: the cause may be gone the same day
STAY = math.inf  # a run that is paused stays in memory


@dataclass(frozen=True)
class Situation:
    """All that a constraint may look at. Readings must be better than the limit by `margin`, in the reading's unit."""

    state: State
    readings: Readings
    budget: Budget
    margin: float = 0.0

    @property
    def asked(self) -> bool:
        """Whether the run that is going on, or would go on where it was parked, is one that the user asked for."""
        running, demand = self.state.running, self.state.demand
        if running is not None:
            return running.asked
        return demand.forgotten is None and demand.parked is not None and demand.parked_asked

    @property
    def impatient(self) -> bool:
        """Whether soft constraints count no longer."""
        paused_s = self.state.running.paused_s if self.state.running else 0.0
        return max(self.state.due_s, paused_s) > self.budget.patience_days * DAY_S


@dataclass(frozen=True)
class Held:
    """A constraint that does not hold: what is wrong, with values, and when that passes at the earliest."""

    fact: str
    passes_in_s: float = math.inf


@dataclass(frozen=True)
class Constraint:
    """A line of the table. `check` returns what is wrong, or None."""

    name: str
    wants: str  # what is waited for, in words that fit after "waits for"
    check: Callable[[Situation], Held | None]
    margin: float = 0.0  # by which its reading must be better after it has held
    settle_s: float = 0.0  # after which the margin is not asked for any more
    soft: bool = False
    holds_asked: bool = False
    mid_run: bool = True  # whether it holds a run that goes on, or the start alone
    park_after_s: float = STAY  # how long a run is paused in memory; 0: it is parked at once


def number(value: float) -> str:
    """Return a value for a sentence: at most two decimals and no trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def duration(seconds: float) -> str:
    """Return seconds for a sentence, in the unit that people would use."""
    for size, unit in ((DAY_S, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds:.0f} s"


def retry_after_s(failures: int) -> float:
    """Return how long to wait after that many failures in a row: 5 min, doubled with each, at most 6 h."""
    return min(FIRST_RETRY_S * 2.0 ** min(failures - 1, 16), LAST_RETRY_S) if failures > 0 else 0.0


def _paused(now: Situation) -> Held | None:
    return Held("training is paused") if now.state.paused_by_user else None


def _automatic(now: Situation) -> Held | None:
    # Only mid-run: without it nothing but a run for what was forgotten is ever due.
    if now.budget.automatic or now.state.demand.forgotten is not None:
        return None
    return Held("training starts only when you ask for it (budget.automatic)")


def _disk(now: Situation) -> Held | None:
    free, needed = now.readings.free_disk_mb, now.budget.min_free_disk_mb + now.margin
    return Held(f"{free:.0f} MiB are free, {needed:.0f} MiB are needed") if free is not None and free < needed else None


def _quiet_hours(now: Situation) -> Held | None:
    minute = now.readings.minute_of_day
    left = QuietHours.parse(now.budget.quiet_hours).minutes_left(minute)
    if left == 0:
        return None
    until = f"last until {clock(minute + left)}" if left < MINUTES_PER_DAY else "last all day"
    return Held(f"it is {clock(minute)}, and they {until}", 60.0 * left)


def _minutes(now: Situation) -> Held | None:
    used, limit = now.state.at_work_s / 60, now.budget.minutes_per_day
    return Held(f"{used:.0f} of today's {number(limit)} minutes of training are used") if used >= limit else None


def _mains(now: Situation) -> Held | None:
    if not now.budget.ac_only or now.readings.on_ac is None or (now.readings.on_ac and now.margin <= 0):
        return None
    charge = now.readings.battery_percent
    return Held("on battery" if charge is None else f"on battery at {charge:.0f} %")


def _battery(now: Situation) -> Held | None:
    charge, needed = now.readings.battery_percent, now.budget.min_battery_percent + now.margin
    if charge is None or charge >= needed:
        return None
    return Held(f"the battery is at {number(charge)} %, {number(needed)} % are needed")


def _temperature(now: Situation) -> Held | None:
    return _at_most(now.readings.temperature_c, now.budget.max_temperature_c - now.margin, "it has", "°C")


def _memory(now: Situation) -> Held | None:
    available, needed = now.readings.available_mb, now.budget.min_available_mb + now.margin
    if available is None or available >= needed:
        return None
    return Held(f"{available:.0f} MiB are available, {needed:.0f} MiB must stay so")


def _memory_pressure(now: Situation) -> Held | None:
    limit = now.budget.max_memory_pressure - now.margin
    return _at_most(now.readings.memory_pressure, limit, "programs wait for memory", "% of the time")


def _busy(now: Situation) -> Held | None:
    if now.readings.busy:
        return Held("a question is being answered")
    needed, idle = ASKED_RESUME_S if now.asked else RESUME_S, now.readings.idle_s
    if idle >= needed:
        return None
    return Held(f"nothing was asked for {idle:.1f} s, {number(needed)} s are needed", needed - idle)


def _idle(now: Situation) -> Held | None:
    needed, idle = 60 * now.budget.idle_minutes, now.readings.idle_s
    if idle >= needed:
        return None
    return Held(f"nothing was asked for {duration(idle)}, {duration(needed)} are needed", needed - idle)


def _other_cpu(now: Situation) -> Held | None:
    limit = now.budget.max_other_cpu_percent - now.margin
    return _at_most(now.readings.other_cpu_percent, limit, "other programs use", "% of it")


def _io_pressure(now: Situation) -> Held | None:
    limit = now.budget.max_io_pressure - now.margin
    return _at_most(now.readings.io_pressure, limit, "programs wait for it", "% of the time")


def _window(now: Situation) -> Held | None:
    quiet, better_s = now.readings.quiet_probability, now.readings.better_window_in_s
    if quiet is None or better_s is None or quiet >= LIKELY_QUIET or now.state.demand.forgotten is not None:
        return None
    # The time that it was held by anything counts. As that grows, the window comes nearer: it is held until then.
    if now.state.due_s + better_s > now.readings.window_s:
        return None
    begins = clock(math.ceil(now.readings.minute_of_day + better_s / 60))
    return Held(f"use is expected soon (with {100 * (1 - quiet):.0f} %), and one begins at {begins}", better_s)


def _failures(now: Situation) -> Held | None:
    state = now.state
    left = retry_after_s(state.failures) - state.since_failure_s
    if left <= 0:
        return None
    runs = "the last run" if state.failures == 1 else f"the last {state.failures} runs"
    return Held(f"{runs} failed, the next one starts in {duration(left)}", left)


def _at_most(value: float | None, limit: float, what: str, unit: str) -> Held | None:
    if value is None or value <= limit:
        return None
    return Held(f"{what} {number(value)} {unit}, the limit is {number(limit)}")


# In the order in which they are told, where several do not hold.
CONSTRAINTS: tuple[Constraint, ...] = (
    Constraint("user pause", "you to resume it", _paused, holds_asked=True, park_after_s=0),
    Constraint("automatic", "you to ask for it", _automatic, park_after_s=0),
    Constraint("disk", "disk space", _disk, margin=100, settle_s=SETTLE_S, park_after_s=0),
    Constraint("quiet hours", "the end of the quiet hours", _quiet_hours, park_after_s=0),
    Constraint("minutes", "tomorrow", _minutes, park_after_s=0),
    Constraint("mains power", "mains power", _mains, margin=math.inf, settle_s=SETTLE_S, park_after_s=PARK_AFTER_S),
    Constraint("battery", "a fuller battery", _battery, margin=5, settle_s=SETTLE_S, park_after_s=PARK_AFTER_S),
    Constraint(
        "temperature",
        "a cooler machine",
        _temperature,
        margin=5,
        settle_s=SETTLE_S,
        holds_asked=True,
        park_after_s=PARK_AFTER_S,
    ),
    Constraint(
        "memory", "free memory", _memory, margin=math.inf, settle_s=MEMORY_SETTLE_S, holds_asked=True, park_after_s=0
    ),
    Constraint(
        "memory pressure",
        "less demand for memory",
        _memory_pressure,
        margin=math.inf,
        settle_s=MEMORY_SETTLE_S,
        holds_asked=True,
        park_after_s=0,
    ),
    Constraint("busy", "a quiet moment", _busy, holds_asked=True),
    Constraint("idle", "an idle machine", _idle, soft=True, mid_run=False),
    Constraint("other cpu", "a less busy processor", _other_cpu, margin=10, settle_s=SETTLE_S, soft=True),
    Constraint("io pressure", "a less busy disk", _io_pressure, margin=10, settle_s=SETTLE_S, soft=True),
    Constraint("window", "a quieter time", _window, soft=True, mid_run=False),
    Constraint("failures", "its next try", _failures, mid_run=False),
)


def holding(now: Situation) -> Iterator[tuple[Constraint, Held]]:
    """Yield the constraints that hold the start of a run, or the run that goes on, in the order of the table.

    Raises ConfigError if `budget.quiet_hours` cannot be read.
    """
    for constraint in CONSTRAINTS:
        if (now.state.running is not None and not constraint.mid_run) or (now.asked and not constraint.holds_asked):
            continue
        if constraint.soft and now.impatient:
            continue
        held = _held(constraint, now)
        if held is not None:
            yield constraint, held


def broken(name: str, now: Situation) -> bool:
    """Return whether the limit itself of the constraint of that name is broken, not merely its margin missed."""
    return any(constraint.name == name and constraint.check(now) is not None for constraint in CONSTRAINTS)


def _held(constraint: Constraint, now: Situation) -> Held | None:
    held, state = constraint.check(now), now.state
    going = state.running is not None and state.running.paused_s == 0
    if held is not None or going or state.held_by != constraint.name or state.held_s >= constraint.settle_s:
        return held
    held = constraint.check(replace(now, margin=constraint.margin))
    if held is None:
        return None
    left = constraint.settle_s - state.held_s
    if math.isfinite(constraint.margin):
        return replace(held, passes_in_s=min(held.passes_in_s, left))
    return Held(f"it was missing {state.held_s:.0f} s ago, and must last {constraint.settle_s:.0f} s", left)
