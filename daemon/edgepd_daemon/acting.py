"""What is done about a decision: a run is started, let go on, paused, parked, made smaller or given up.

The invariant: what is returned is what it came to, in words for the user, if that is not what was decided.
What this does not do: decide (scheduler/), or write down what was decided (supervisor.py).
"""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace

from edgepd.adapt.job import JobKind
from edgepd.errors import ConflictError, EdgepdError, TrainingError
from edgepd.settings import Budget
from edgepd_daemon.scheduler.decide import smaller_mb
from edgepd_daemon.scheduler.types import Action, Decision
from edgepd_daemon.trainer import Trainer
from edgepd_profiles import demand, events, forgetting, runs
from edgepd_profiles.store import Store

MOST_SHRINKS = 3
RETRY_S = 60.0  # after a start that came to nothing, not even to a run that failed
BUSY = "busy"  # the constraint for which the throttle stops a run at once


class Acting:
    """Carries decisions out. Lives on the event loop."""

    def __init__(self, store: Store, trainer: Trainer) -> None:
        """Do nothing yet."""
        self._store = store
        self._trainer = trainer

    async def act(self, decision: Decision, budget: Budget, *, asked: bool) -> Decision:
        """Do what was decided and return what it came to; a run that is started is `asked` or not."""
        action, throttle = decision.action, self._trainer.throttle
        if action is Action.START:
            return await self._start(decision, asked)
        if action is Action.GO_ON or (action is Action.PAUSE and decision.constraint == BUSY):
            throttle.hold(None)  # for requests it stands still without being told
        elif action is Action.PAUSE:
            throttle.hold(decision.reason.removeprefix("paused, "))
        elif action is Action.PARK:
            await self._trainer.park(decision.reason)
        elif action is Action.SHRINK:
            return await self._shrink(decision, budget)
        return decision

    async def _start(self, decision: Decision, asked: bool) -> Decision:
        kind = decision.kind
        if kind is None:
            raise RuntimeError("a run without a kind cannot be started")
        seq, newest = await asyncio.to_thread(self._before, kind)
        try:
            await self._trainer.start(kind, asked=asked)
        except ConflictError as error:  # somebody was faster
            return _waits(decision, str(error), decision.look_again_s)
        except TrainingError as error:
            reason = str(error)
            if await asyncio.wrap_future(self._store.write(lambda c: _give_up(c, kind, seq, newest, reason))):
                return replace(_waits(decision, f"nothing was trained: {reason}", decision.look_again_s), due=False)
            return _waits(decision, reason, decision.look_again_s)
        except EdgepdError as error:
            return _waits(decision, f"nothing could be started: {error}", RETRY_S)
        return decision

    async def _shrink(self, decision: Decision, budget: Budget) -> Decision:
        """Start the child again within less, or give up when that has been of no use."""
        running = self._trainer.running()
        if running is None:
            return decision
        if running.reviewing:  # what it has made serves already, and nothing is left to be made smaller
            decision = replace(decision, action=Action.PARK, reason=f"the review is broken off: {decision.reason}")
            await self._trainer.park(decision.reason)
        elif self._trainer.shrinks >= MOST_SHRINKS:
            reason = f"{decision.reason}, which was tried {MOST_SHRINKS} times"
            await self._trainer.give_up(reason)
            return _waits(decision, f"given up: {reason}", decision.look_again_s)
        else:
            self._trainer.shrink(int(smaller_mb(running, budget)))
        return decision

    def _before(self, kind: JobKind) -> tuple[int, int]:
        """Return the newest of what this kind learns from, feedback or events, and the id of the newest run."""
        with self._store.read() as conn:
            return (events.newest_seq(conn) if kind == "intent" else demand.newest(conn)), _newest_run(conn)


def _waits(decision: Decision, reason: str, look_again_s: float) -> Decision:
    """Return that nothing is trained after all, although it is still due."""
    return Decision(Action.WAIT, reason, decision.constraint, decision.kind, due=True, look_again_s=look_again_s)


def _give_up(conn: sqlite3.Connection, kind: JobKind, seq: int, newest: int, reason: str) -> bool:
    """Take what there was as learned if it is too little: without more it would be the same again, and again.

    Not if it came to a run: that one has failed, for another reason, and is tried again in its time.
    """
    if _newest_run(conn) != newest:
        return False
    if runs.parked(conn) == kind:  # it would go on for ever where it was parked
        run = runs.start_run(conn, kind, None)
        runs.finish_run(conn, run.id, "interrupted", reason=reason, stopped_by="edgepd")
    demand.judged(conn, kind, seq)
    forgetting.settled(conn, kind)
    return True


def _newest_run(conn: sqlite3.Connection) -> int:
    newest = runs.runs(conn, 1)
    return newest[0].id if newest else 0
