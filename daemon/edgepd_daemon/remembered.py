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

from edgepd.adapt.job import job_kind
from edgepd.settings import Budget, Train
from edgepd_daemon.scheduler.after import after
from edgepd_daemon.scheduler.types import Decision, Demand, Readings, Running, State
from edgepd_daemon.sensors.clocks import boottime
from edgepd_daemon.training_jobs import learns_from_undesirable
from edgepd_profiles import demand, forgetting, runs
from edgepd_profiles.store import Store

MANY_EXAMPLES = 500  # that are counted; more decide nothing


class Remembered:
    """The state between looks. One caller at a time."""

    def __init__(self, store: Store) -> None:
        """Nothing is read until `state`."""
        self._store = store
        self._state: State | None = None
        self._counted: tuple[object, ...] | None = None  # the version of the profile that the demand is of
        self._at = boottime()
        self._judged_run = 0

    def state(
        self, now: float, train: Train, running: Running | None, *, at_work_s: float, paused_by_user: bool
    ) -> State:
        """Return the state at `now`, in unix seconds, which counts at the first call alone. Blocks shortly."""
        with self._store.read() as conn:
            before = self._state or self._first(conn, now)
            failures = runs.failures_in_a_row(conn)
            judged = runs.last_judged(conn)
            found = self._demand(conn, before.demand, train)
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
        self._judged_run = runs.last_judged(conn)
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
        return Demand(live, baked, examples, forgotten, parked, runs.parked_as_asked(conn))
