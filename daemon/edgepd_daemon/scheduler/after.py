"""What is remembered from one decision to the next: the durations in the state.

The idea: how the state is kept is as much a part of the rules as the decision itself, so it is here, once, and as pure;
the supervisor and the simulated month both call it. Time is handed in and must be that of a clock that goes on while
the machine sleeps and does not jump (CLOCK_BOOTTIME), for a laptop that is open for two hours a day would otherwise
wait a month for its two days of patience.
What this does not do: notice how runs end. Whoever does sets `due_s` to 0 when a run was judged, `failures` and
`since_failure_s` when one failed, and `running`; minutes at work belong to a day and are kept in the profile.
"""

from __future__ import annotations

from dataclasses import replace

from edgepd.settings import Budget
from edgepd_daemon.scheduler.constraints import Situation, broken
from edgepd_daemon.scheduler.types import Action, Decision, Readings, State


def after(state: State, readings: Readings, budget: Budget, decision: Decision, elapsed_s: float) -> State:
    """Return the state `elapsed_s` seconds after a decision that was made on these arguments.

    `due_s` goes on while a run is going on, so that one which was parked or failed does not wait anew; `held_s` begins
    anew while the limit itself is broken, and not where only the margin was missed. Raises ConfigError as `decide`.
    """
    running = state.running
    if running is not None:
        running = replace(running, paused_s=running.paused_s + elapsed_s if decision.action is Action.PAUSE else 0.0)
    held = decision.constraint != "" and broken(decision.constraint, Situation(state, readings, budget))
    return replace(
        state,
        running=running,
        due_s=state.due_s + elapsed_s if decision.due or running is not None else 0.0,
        since_failure_s=state.since_failure_s + elapsed_s,
        held_s=elapsed_s if held else state.held_s + elapsed_s,
        held_by=decision.constraint if held else state.held_by,
    )
