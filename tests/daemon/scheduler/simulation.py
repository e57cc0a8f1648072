"""A month in the life of a laptop, minute by minute, with the real scheduler and a supervisor that only counts.

The idea: `World` makes up the machine and its user from a seed: working hours, nights with the lid closed, days on
battery, a hot afternoon, a compiler at work, the change to summer time, a clock that is set back. `simulate` keeps the
state as the supervisor does and notes for each minute what was decided. `permitted` says in its own words whether
training would be allowed, so that the notes can be judged without the code under test.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from edgepd.adapt.job import JobKind
from edgepd.settings import Budget
from edgepd_daemon.scheduler.after import after
from edgepd_daemon.scheduler.decide import decide
from edgepd_daemon.scheduler.types import Action, Decision, Demand, Readings, Running, State

DAY = 1440
MIN_EXAMPLES = 10
NEW_EVENTS = 40
MINUTES: dict[JobKind, int] = {"live": 5, "baked": 15, "intent": 1}  # that a run is at work
SUMMER_TIME = 14 * DAY + 120  # from which on local time is an hour ahead
SET_BACK = 20 * DAY + 600  # from which on the clock is 45 minutes behind
HOT_DAY = 10


@dataclass(frozen=True)
class World:
    """What the machine is like. The chances are those of one minute."""

    seed: int
    days: int = 30
    closed_at_night: bool = True
    questions: float = 0.25  # chance of one in the working hours
    feedback: float = 0.06  # chance that a question brings some
    steady_cpu: float = 10.0
    failing: float = 0.15  # chance that a run fails
    on_battery_every: int = 4  # days
    events: float = 0.0  # chance of one while the machine is awake; 0: the model of what comes next is not tuned

    def minutes(self) -> Iterator[tuple[int, Readings, float]]:
        """Yield each minute that the machine is awake: its number, the readings, the weight of new feedback."""
        rng = random.Random(self.seed)
        charge, last_question, last_minute, burst, eaten = 90.0, 0, -1, 0, 0
        for minute in range(self.days * DAY):
            local = minute + (60 if minute >= SUMMER_TIME else 0) - (45 if minute >= SET_BACK else 0)
            day, time = local // DAY, local % DAY
            night = time >= 23 * 60 or time < 450
            if night and self.closed_at_night and day % 7 != 5:
                continue
            if minute != last_minute + 1:
                last_question = minute  # waking up counts as activity
            last_minute = minute
            on_ac = day % self.on_battery_every != 1
            charge = min(100.0, charge + 0.5) if on_ac else max(5.0, charge - 0.1)
            working = day % 7 < 5 and (540 <= time < 720 or 780 <= time < 1080)
            chance = self.questions if working else self.questions * 0.4 if 1200 <= time < 1320 else 0.0
            asked = rng.random() < chance
            last_question = minute if asked else last_question
            burst = 5 if working and rng.random() < 0.02 else max(0, burst - 1)
            eaten = 20 if rng.random() < 0.001 else max(0, eaten - 1)
            hot = day == HOT_DAY and 780 <= time < 1080
            yield (
                minute,
                Readings(
                    at=1.8e9 + 60.0 * local,
                    minute_of_day=time,
                    busy=asked,
                    idle_s=60.0 * (minute - last_question),
                    on_ac=on_ac,
                    battery_percent=charge,
                    temperature_c=(85.0 if hot else 60.0) + rng.uniform(-4, 4),
                    other_cpu_percent=80.0 if burst else min(100.0, self.steady_cpu + rng.uniform(0, 10)),
                    available_mb=200.0 if eaten else 4000.0,
                    memory_pressure=20.0 if eaten else 0.0,
                    io_pressure=rng.choice([0.0, 0.0, 5.0, 35.0, 60.0]) if working else 0.0,
                    free_disk_mb=20_000.0,
                ),
                1.0 if asked and rng.random() < self.feedback else 0.0,
            )


@dataclass(frozen=True)
class Note:
    """What was decided in one minute, and what is needed to judge that."""

    minute: int
    readings: Readings
    decision: Decision
    kind: JobKind | None  # at work in this minute
    permitted: bool  # training, but for the wait after failures
    overdue: bool  # a run has been due beyond the patience, and nothing keeps its next try back


@dataclass
class Month:
    """What came of it."""

    notes: list[Note] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # starts, parked, failed, and each kind


@dataclass
class _Books:
    """What the supervisor and the profile keep besides the state."""

    work: dict[JobKind, int] = field(default_factory=dict)  # minutes left of runs that were parked
    left: int = 0  # of the run that goes on
    taught: Demand = Demand()  # what the run that goes on learns from
    due_since: int | None = None


def local_day(readings: Readings) -> int:
    """Return the day by the clock on the wall, counted from the first."""
    return int((readings.at - 1.8e9) // 86_400)


def permitted(readings: Readings, budget: Budget, at_work_s: float) -> bool:
    """Say whether the hard constraints of this world allow training in this minute."""
    time = readings.minute_of_day
    quiet = budget.quiet_hours == "22:00-07:00" and (time >= 1320 or time < 420)
    power = (readings.on_ac or not budget.ac_only) and (readings.battery_percent or 0) >= budget.min_battery_percent
    room = (readings.available_mb or 0) >= budget.min_available_mb
    cool = (readings.temperature_c or 0) <= budget.max_temperature_c
    return bool(power and room and cool) and not (quiet or readings.busy) and at_work_s < 60 * budget.minutes_per_day


def simulate(world: World, budget: Budget) -> Month:
    """Live through the days of a world."""
    rng, month, books = random.Random(world.seed + 1000), Month(), _Books()
    sent, state, last = random.Random(world.seed + 2000), State(_nothing(world)), None
    for minute, readings, weight in world.minutes():
        if last is not None:
            state = after(state, last.readings, budget, last.decision, 60.0 * (minute - last.minute))
            state = _act(state, last, books, month, rng, world)
        if weight:
            state = replace(state, demand=_more(state.demand, weight))
        if sent.random() < world.events:
            state = replace(state, demand=replace(state.demand, intent_events=state.demand.intent_events + 1))
        if last is None or local_day(readings) != local_day(last.readings):
            state = replace(state, at_work_s=0.0)
        decision = decide(state, readings, budget, MIN_EXAMPLES)
        at_work = {Action.START: decision.kind, Action.GO_ON: decision.kind}.get(decision.action)
        allowed, overdue = permitted(readings, budget, state.at_work_s), _overdue(state, budget, books, minute)
        last = Note(minute, readings, decision, at_work, allowed, overdue)
        month.notes.append(last)
    return month


def _nothing(world: World) -> Demand:
    return Demand(intent_enough=NEW_EVENTS if world.events else 0)


def _more(demand: Demand, weight: float) -> Demand:
    """Return the demand after feedback of this weight."""
    live, baked = demand.live_weight + weight, demand.baked_weight + weight
    return replace(demand, live_weight=live, baked_weight=baked, examples=demand.examples + 1)


def _overdue(state: State, budget: Budget, books: _Books, minute: int) -> bool:
    """Keep the time since which a run is due, and return whether it has waited too long."""
    demand = state.demand
    due = demand.live_weight >= budget.live_feedback or demand.baked_weight >= budget.baked_feedback
    tuning = 0 < demand.intent_enough <= demand.intent_events
    if not (due and demand.examples >= MIN_EXAMPLES) and not tuning:
        books.due_since = None
    elif books.due_since is None:
        books.due_since = minute
    waited = minute - books.due_since if books.due_since is not None else 0
    return waited > budget.patience_days * DAY and state.since_failure_s >= 21_600


def _act(state: State, note: Note, books: _Books, month: Month, rng: random.Random, world: World) -> State:
    """Return the state after the minute in which what was decided was done."""
    running, decision = state.running, note.decision
    if decision.action is Action.START:
        assert running is None, "two runs at once"
        assert decision.kind is not None
        month.counts["starts"] += 1
        running = Running(decision.kind, asked=False, reviewing=False, planned_mb=1000.0, paused_s=0.0)
        books.left = books.work.pop(decision.kind, MINUTES[decision.kind])
        books.taught = state.demand
    if running is None or decision.action is Action.PAUSE:
        return state
    if decision.action is Action.PARK:
        month.counts["parked"] += 1
        books.work[running.kind] = books.left
        return replace(state, running=None)
    books.left -= 1
    state = replace(state, running=running, at_work_s=state.at_work_s + 60.0)
    return state if books.left else _ended(state, running.kind, books, month, rng, world)


def _ended(state: State, kind: JobKind, books: _Books, month: Month, rng: random.Random, world: World) -> State:
    demand, taught = replace(state.demand, last=kind), books.taught
    if rng.random() < world.failing:
        month.counts["failed"] += 1
        return replace(state, running=None, demand=demand, failures=state.failures + 1, since_failure_s=0.0)
    month.counts[kind] += 1
    books.due_since = None
    if kind == "intent":  # those that wait wait on
        left = replace(demand, intent_events=demand.intent_events - taught.intent_events)
        return replace(state, running=None, demand=left, failures=0)
    left = replace(
        demand,
        live_weight=demand.live_weight - taught.live_weight,
        baked_weight=demand.baked_weight - (taught.baked_weight if kind == "baked" else 0.0),
    )
    return replace(state, running=None, demand=left, due_s=0.0, failures=0)
