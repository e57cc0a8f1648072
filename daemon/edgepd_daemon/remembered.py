"""What has happened so far, as the scheduler wants to know it: from the profile, and from one look to the next.

The idea: what must outlive a restart is read from the profile (what is new, which runs came to what, since when one is
due); durations are kept here, by a clock that nobody sets (scheduler/after.py). The invariant: without a change of the
profile nothing is counted again.
What this does not do: decide, or write.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import replace

from edgepd.adapt.job import JobKind, job_kind
from edgepd.settings import Budget, Intent, Train
from edgepd_daemon.scheduler.after import after
from edgepd_daemon.scheduler.types import Decision, Demand, Readings, Running, State
from edgepd_daemon.sensors.clocks import boottime
from edgepd_daemon.training_jobs import learns_from_undesirable
from edgepd_profiles import demand, forgetting, runs
from edgepd_profiles.store import Store

MANY_EXAMPLES = 500  # that are counted; more decide nothing
MANY_TIMES = 4  # the new events that start a tuning, up to which they are counted
OF_FEEDBACK = ("live", "baked")  # kinds of runs after which those that wait wait anew; a tuning is over at once
LOOKED_AT = 20  # newest runs, of which most may have been parked


class Remembered:
    """The state between looks. One caller at a time."""

    def __init__(self, store: Store) -> None:
        """Nothing is read until `state`."""
        self._store = store
        self._state: State | None = None
        self._counted: tuple[object, ...] | None = None  # the version of the profile that the demand is of
        self._counted_events: tuple[object, ...] | None = None  # the same for the events
        self._at = boottime()
        self._judged_run = 0

    def state(
        self,
        now: float,
        train: Train,
        running: Running | None,
        *,
        at_work_s: float,
        paused_by_user: bool,
        intent: Intent | None = None,
    ) -> State:
        """Return the state at `now`, in unix seconds, which counts at the first call alone. Blocks shortly.

        Without `intent` no tuning is due.
        """
        with self._store.read() as conn:
            before = self._state or self._first(conn, now)
            failures = runs.failures_in_a_row(conn)
            judged = runs.last_judged(conn, OF_FEEDBACK)
            found = self._with_events(conn, self._demand(conn, before.demand, train), intent)
        paused_s = before.running.paused_s if before.running is not None else 0.0
        self._state = replace(
            before,
            demand=found,
            running=replace(running, paused_s=paused_s) if running is not None else None,
            at_work_s=at_work_s,
            paused_by_user=paused_by_user,
            failures=failures,
            since_failure_s=0.0 if failures > before.failures else before.since_failure_s,
            due_s=before.due_s if judged == self._judged_run else 0.0,
        )
        self._judged_run = judged
        return self._state

    def passed(self, readings: Readings, budget: Budget, decision: Decision) -> None:
        """Let the time since the last call pass, with the decision that was made on the last state."""
        at = boottime()
        if self._state is not None:
            self._state = after(self._state, readings, budget, decision, at - self._at)
        self._at = at

    def _first(self, conn: sqlite3.Connection, now: float) -> State:
        """Return what an earlier daemon knew. Wall time, because nothing else goes on over a restart."""
        due_at, failed_at = demand.due_since(conn), runs.last_failure(conn)
        self._judged_run = runs.last_judged(conn, OF_FEEDBACK)
        return State(
            Demand(),
            due_s=0.0 if due_at is None else max(0.0, now - due_at),
            failures=runs.failures_in_a_row(conn),
            since_failure_s=math.inf if failed_at is None else max(0.0, now - failed_at),
        )

    def _demand(self, conn: sqlite3.Connection, before: Demand, train: Train) -> Demand:
        undesirable = learns_from_undesirable(train)
        version = (demand.version(conn), train.accepted_weight, train.min_examples, undesirable)
        if version == self._counted:
            live, baked, examples = before.live_weight, before.baked_weight, before.examples
        else:
            live, baked = demand.measure(conn, train.accepted_weight, undesirable=undesirable)
            enough = max(MANY_EXAMPLES, train.min_examples)
            examples = demand.count(conn, train.accepted_weight, undesirable=undesirable, enough=enough)
            self._counted = version
        wanted = forgetting.wanted(conn)
        forgotten, parked = job_kind(wanted[0].kind if wanted else None), job_kind(runs.parked(conn))
        return replace(
            before,
            live_weight=live,
            baked_weight=baked,
            examples=examples,
            forgotten=forgotten,
            parked=parked,
            parked_asked=runs.parked_as_asked(conn),
            last=_last(conn),
        )

    def _with_events(self, conn: sqlite3.Connection, found: Demand, intent: Intent | None) -> Demand:
        """Add what there is to tune on to the demand, in which it is as it was when it was counted last.

        While prediction is switched off a tuning is not due at all, and one that must be made still must be later.
        """
        if intent is None or not intent.enabled:
            self._counted_events = None
            return _without_tuning(conn, found)
        version = (demand.events_version(conn), intent)
        if version == self._counted_events:
            return found
        self._counted_events = version
        new = demand.intent_events(conn, enough=MANY_TIMES * intent.new_events)
        enough = demand.all_events(conn, enough=intent.min_events) >= intent.min_events
        return replace(found, intent_events=new, intent_enough=intent.new_events if enough else 0)


def _without_tuning(conn: sqlite3.Connection, found: Demand) -> Demand:
    wanted = (job_kind(each.kind) for each in forgetting.wanted(conn))
    return replace(
        found,
        forgotten=next((kind for kind in wanted if kind != "intent"), None),
        parked=None if found.parked == "intent" else found.parked,
        intent_events=0,
        intent_enough=0,
    )


def _last(conn: sqlite3.Connection) -> JobKind | None:
    """Return the kind of the newest run that has ended, except that it was parked."""
    ended = (run.kind for run in runs.runs(conn, LOOKED_AT) if run.state not in ("running", "parked"))
    return job_kind(next(ended, None))
