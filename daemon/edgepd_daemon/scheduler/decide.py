"""What to do about training now, and why: a pure function of what has happened and what the machine is like.

The idea: first which run is due, then whether anything holds it; or, while a run goes on, whether it may. The
invariants: the same arguments give the same decision; nothing is started while a run goes on, while anything is being
answered, or against a constraint; `Readings.at` is never looked at, so a clock that jumps changes nothing.

No kind starves. The short run goes first, for it is soon over and leaves its feedback to the consolidation; but the
consolidation goes first once it has waited beyond `budget.patience_days`, and once twice the feedback that starts one
is there, which is so after a bounded number of short runs. A tuning of what comes next, which takes less than a minute,
goes after a short run and before a consolidation that is not overdue. It goes before both when patience is over, and
once twice the events that start one are there; the exchanges that feedback is on are events, too, so that is so after a
bounded number of short runs. But it never goes twice in a row while another run is due, whatever the first came to.
One that was parked goes on before any begins. A run for what was forgotten goes before all. It is made also where
`budget.automatic` is off, for it restores what the user had, and with any number of examples, for starting it settles
it also when too few are left.
What this does not do: read sensors, keep the state (after.py), or act (supervisor.py).
"""

from __future__ import annotations

from edgepd.adapt.job import JobKind
from edgepd.settings import Budget
from edgepd_daemon.scheduler.constraints import Constraint, Held, Situation, duration, holding, number
from edgepd_daemon.scheduler.types import Action, Decision, Readings, Running, State

LOOK_AT_REST_S = 60.0  # nothing to do; new feedback is seen that late
LOOK_WHEN_DUE_S = 15.0
LOOK_SOONEST_S = 0.5
LOOK_WHEN_RUNNING_S = 1.0
OVERDUE = 2.0  # times what starts a consolidation or a tuning, from which on it goes before a short run
HARD_SHARE = 1.25  # of the plan: the hard limit where budget.hard_memory_mb is 0
SMALLER = 0.8  # share of the memory that a run gets next after it needed too much

_NAMES: dict[JobKind, str] = {
    "live": "a short run",
    "baked": "a consolidation",
    "intent": "a tuning of what comes next",
}


def decide(state: State, readings: Readings, budget: Budget, min_examples: int) -> Decision:
    """Return what to do now; `min_examples` is the number below which nothing can be trained.

    Raises ConfigError if `budget.quiet_hours` cannot be read, which a caller rules out when settings are loaded.
    """
    now = Situation(state, readings, budget)
    if state.running is not None:
        return _about(state.running, now)
    kind, why = due_run(now, min_examples)
    if kind is None:
        return Decision(Action.WAIT, why, look_again_s=LOOK_AT_REST_S)
    for constraint, held in holding(now):
        look_again_s = max(LOOK_SOONEST_S, min(LOOK_WHEN_DUE_S, held.passes_in_s))
        return Decision(Action.WAIT, f"waits for {_told(constraint, held)}", constraint.name, kind, True, look_again_s)
    if now.impatient:
        why += f"; after {duration(state.due_s)} it no longer waits for an idle machine"
    return Decision(Action.START, f"starts {_NAMES[kind]}: {why}", "", kind, True, LOOK_WHEN_RUNNING_S)


def due_run(now: Situation, min_examples: int) -> tuple[JobKind | None, str]:
    """Return which run is due and why, or None and what is missing."""
    demand, budget = now.state.demand, now.budget
    if demand.forgotten is not None:
        return demand.forgotten, "it restores what was learned, without what you had forgotten"
    if not budget.automatic and not now.asked:
        return None, "training starts only when you ask for it (budget.automatic)"
    if demand.parked is not None:
        return demand.parked, "it was parked" if demand.parked == "intent" else "it goes on where it was parked"
    kind, why = _of_feedback(now, min_examples)
    if demand.intent_enough == 0:
        return kind, why
    events = f"{demand.intent_events} of the {demand.intent_enough} new events that start a tuning of what comes next"
    if demand.intent_events < demand.intent_enough:
        return kind, why if kind else f"{why}; there are {events}"
    overdue = now.impatient or demand.intent_events >= OVERDUE * demand.intent_enough
    goes_first = demand.last != "intent" and (overdue or (kind == "baked" and not _overdue(now)))
    return ("intent", events) if kind is None or goes_first else (kind, why)


def _of_feedback(now: Situation, min_examples: int) -> tuple[JobKind | None, str]:
    """Return which run on feedback is due and why, or None and what is missing."""
    demand, budget = now.state.demand, now.budget
    if demand.examples < min_examples:
        return None, f"there are {demand.examples} of the {min_examples} examples that training needs"
    live, baked = demand.live_weight, demand.baked_weight
    of_live = f"{number(live)} of the weight {number(budget.live_feedback)} of new feedback that starts a short run"
    of_baked = f"{number(baked)} of the weight {number(budget.baked_feedback)} that starts a consolidation"
    if baked >= budget.baked_feedback and (live < budget.live_feedback or _overdue(now)):
        return "baked", of_baked
    if live >= budget.live_feedback:
        return "live", of_live
    return None, f"there is {of_live}, and {of_baked}"


def _overdue(now: Situation) -> bool:
    """Return whether a consolidation that is due goes before a short run."""
    return now.impatient or now.state.demand.baked_weight >= OVERDUE * now.budget.baked_feedback


def hard_limit_mb(running: Running, budget: Budget) -> float:
    """Return the resident memory, in MiB, above which a run is not left alone; infinite while there is no plan."""
    if budget.hard_memory_mb > 0:
        return float(budget.hard_memory_mb)
    return HARD_SHARE * running.planned_mb if running.planned_mb > 0 else float("inf")


def smaller_mb(running: Running, budget: Budget) -> float:
    """Return the resident memory, in MiB, that a run is planned within after Action.SHRINK."""
    limit = hard_limit_mb(running, budget)
    return SMALLER * (min(running.planned_mb, limit) if running.planned_mb > 0 else limit)


def _about(running: Running, now: Situation) -> Decision:
    """Decide about the run that goes on: the strongest of what is asked for, then the first in the table."""
    held = list(holding(now))
    for constraint, what in held:
        if _parks(constraint, running):
            return _decision(Action.PARK, running, f"parked, waits for {_told(constraint, what)}", constraint.name)
    hard, planned = hard_limit_mb(running, now.budget), running.planned_mb
    rss = now.readings.trainer_rss_mb or 0.0
    if rss > hard:
        # Started again it would only be paused, and loading would be work against the constraint.
        action = Action.PARK if held and not running.asked else Action.SHRINK
        then = f"waits for {_told(*held[0])}" if action is Action.PARK else "goes on with less"
        return _decision(action, running, f"{_needs(rss, hard, 'may')}; it {then}", "hard memory")
    for constraint, what in held:
        return _decision(Action.PAUSE, running, f"paused, waits for {_told(constraint, what)}", constraint.name)
    if rss > planned > 0:
        return _decision(Action.SHRINK, running, f"{_needs(rss, planned, 'should')}; it goes on with less", "plan")
    return _decision(Action.GO_ON, running, _going(running, now))


def _parks(constraint: Constraint, running: Running) -> bool:
    if constraint.park_after_s == 0:
        return True
    return not running.asked and running.paused_s > constraint.park_after_s


def _needs(rss_mb: float, limit_mb: float, verb: str) -> str:
    return f"the trainer holds {rss_mb:.0f} MiB and {verb} hold {limit_mb:.0f} MiB"


def _going(running: Running, now: Situation) -> str:
    if running.asked:
        return f"{_NAMES[running.kind]} that you asked for goes on"
    used, limit = now.state.at_work_s / 60, now.budget.minutes_per_day
    return f"{_NAMES[running.kind]} goes on: {used:.0f} of today's {number(limit)} minutes of training are used"


def _told(constraint: Constraint, held: Held) -> str:
    return f"{constraint.wants}: {held.fact}"


def _decision(action: Action, running: Running, reason: str, constraint: str = "") -> Decision:
    return Decision(action, reason, constraint, running.kind, False, LOOK_WHEN_RUNNING_S)
