"""What decides when the daemon learns, and holds what is being trained to the budget.

The idea: look at the machine, ask the scheduler (a pure function), do what it says, and look again when it may say
something else: once a minute at rest, once a second while something is trained. The invariants: every decision has a
reason that the user can read; only this module starts training that nobody asked for; what a run was at work is written
down at least twice a minute.
What this does not do: measure (readings.py), decide (scheduler/), stop the child when a request comes (throttle.py does
at once; here it is only explained), or choose what is learned (training_jobs.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgepd.adapt.job import job_kind
from edgepd.errors import ConflictError, EdgepdError, StoreError
from edgepd.settings import Budget, Settings
from edgepd_daemon.acting import Acting
from edgepd_daemon.activity import Activity
from edgepd_daemon.holding import UserPause
from edgepd_daemon.quiet_times import QuietTimes
from edgepd_daemon.readings import Sensors
from edgepd_daemon.remembered import Remembered
from edgepd_daemon.scheduler.constraints import Situation
from edgepd_daemon.scheduler.decide import decide
from edgepd_daemon.scheduler.types import Action, Decision, Demand, Readings
from edgepd_daemon.sensors.clocks import Jumps, minute_of_day
from edgepd_daemon.trainer import Trainer
from edgepd_daemon.work_today import WorkToday
from edgepd_profiles import decisions, demand
from edgepd_profiles.rows import finite
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

KEPT_DECISIONS = 20
ASLEEP_S = 30.0  # a shorter gap is a busy machine
CLOCK_JUMP_S = 60.0
SOON_S = 1.0
BLIND_S, BLIND_RUNNING_S = 60.0, 5.0  # after a look that has failed
MOST_BLIND = 3  # such looks in a row after which a run that nobody waits for is parked


@dataclass(frozen=True)
class Made:
    """A decision and when it was made, in unix seconds."""

    at: float
    decision: Decision

    def fields(self) -> dict[str, Any]:
        """Return it as the API shows it."""
        shown = asdict(self.decision) | {"action": str(self.decision.action), "at": self.at}
        del shown["look_again_s"]
        return shown


class Supervisor:
    """The looks. Lives on the event loop."""

    def __init__(
        self,
        store: Store,
        busy: Callable[[], bool],
        trainer: Trainer,
        sensors: Sensors,
        activity: Activity,
        settings: Callable[[], Settings],
        pause_file: Path,
        quiet_times: QuietTimes | None = None,
    ) -> None:
        """`busy` says whether requests are being answered, and `settings` returns those in effect.

        `pause_file` remembers that the user wants no training. Without `quiet_times` it waits for no quieter time.
        """
        self._store = store
        self._busy = busy
        self._trainer = trainer
        self._sensors = sensors
        self._activity = activity
        self._settings = settings
        self._user_pause = UserPause(pause_file)
        self._quiet_times = quiet_times
        self._work = WorkToday(store, trainer)
        self._remembered = Remembered(store)
        self._jumps = Jumps()
        self._wake = asyncio.Event()
        self._acting = Acting(store, trainer)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = time.time()
        self._readings: Readings | None = None
        self._demand = Demand()
        self._decided: tuple[Readings, Budget, Decision] | None = None
        self._recalled = False  # whether the decisions of an earlier daemon were read
        self._made: deque[Made] = deque(maxlen=KEPT_DECISIONS)
        self._blind = 0  # looks in a row that failed
        trainer.changed = self._run_changed

    async def run(self) -> None:
        """Look until cancelled."""
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                again_s = await self._looked()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(again_s):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            if self._quiet_times is not None:
                self._quiet_times.close()
            await self._work.close()

    async def _looked(self) -> float:
        """Look once; return after how many seconds to look again. A mistake ends neither the looks nor is it alone.

        What goes on without being asked and cannot be looked after is parked.
        """
        try:
            again_s = (await self.look()).look_again_s
        except EdgepdError as error:
            log.error("no decision about training could be made: %s", error)
        except Exception:  # noqa: BLE001 - the edge of the task: one mistake must not end all learning
            log.exception("no decision about training could be made")
        else:
            self._blind = 0
            return again_s
        self._blind += 1
        running = self._trainer.running()
        if running is None:
            return BLIND_S
        if self._blind >= MOST_BLIND and not running.asked:
            await self._trainer.park("nothing could be decided about it; the daemon's log says why")
        return BLIND_RUNNING_S

    async def look(self) -> Decision:
        """Look once, and do what follows from it."""
        if not self._recalled:
            earlier = await asyncio.to_thread(self._recall)
            self._made.extendleft(earlier)
            self._recalled = True
        self._note_jumps()
        busy = self._busy()
        if busy:
            self._activity.note()
        self._trainer.hold_to_budget()
        settings, idle_s = self._settings(), self._activity.idle_s()
        await self._end_what_is_off(settings)
        readings = await asyncio.to_thread(self._read, busy, idle_s)
        self._readings = readings
        await self._work.count(readings.at)
        if self._decided is not None:
            self._remembered.passed(*self._decided)
        about = (self._trainer.run, self._trainer.running())
        state = await asyncio.to_thread(
            self._remembered.state,
            readings.at,
            settings.train,
            about[1],
            at_work_s=self._work.at_work_s,
            paused_by_user=self.paused_by_user,
            intent=settings.intent,
        )
        decision = decide(state, readings, settings.budget, settings.train.min_examples)
        self._demand, self._decided = state.demand, (readings, settings.budget, decision)
        if self._trainer.changing or about != (self._trainer.run, self._trainer.running()):
            return replace(decision, look_again_s=SOON_S)  # it was about a run that is not there, or not so, any more
        asked = Situation(state, readings, settings.budget).asked
        decision = await self._acting.act(decision, settings.budget, asked=asked)
        self._decided = (readings, settings.budget, decision)
        await self._write_down(decision, readings.at, due_anew=state.due_s == 0)
        return decision

    async def _end_what_is_off(self, settings: Settings) -> None:
        """Park a tuning of what comes next, also one that was asked for, while prediction is switched off."""
        run = self._trainer.run
        if run is not None and run.kind == "intent" and not settings.intent.enabled:
            await self._trainer.park("prediction was switched off (intent.enabled)")

    def look_soon(self) -> None:
        """Look again soon, because the settings have changed, or what there is to learn. Any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    def forgotten(self, *, everything: bool) -> None:
        """Foresee nothing from what is gone from the profile, and look again soon. Any thread."""
        if self._quiet_times is not None:
            self._quiet_times.forget(everything=everything)
        self.look_soon()

    def refuse_if_paused(self) -> None:
        """Raise ConflictError if the user wants no training now."""
        if self.paused_by_user:
            raise ConflictError("training is paused, as you asked for; take that back with `edgepd budget resume`")

    def pause(self, minutes: float | None) -> None:
        """Train nothing for so many minutes, or until `resume`. Raises StoreError if that cannot be written down."""
        self._user_pause.begin(minutes)
        self._wake.set()

    def resume(self) -> None:
        """Take `pause` back."""
        self._user_pause.end()
        self._wake.set()

    @property
    def paused_by_user(self) -> bool:
        """Whether the user wants no training now."""
        return self._user_pause.until is not None

    def view(self) -> dict[str, Any]:
        """Return what is known and was decided, as the API shows it."""
        budget, until = self._settings().budget, self._user_pause.until
        newest = self._made[-1] if self._made else Made(self._begun, Decision(Action.WAIT, "edgepd has just started"))
        return {
            "preset": budget.preset,
            "automatic": budget.automatic,
            "paused": until is not None,
            "paused_until": finite(until),
            "decision": newest.fields(),
            "decisions": [made.fields() for made in reversed(self._made)],
            "readings": finite(asdict(self._readings or self._unread())),
            "today": self._work.fields(budget.minutes_per_day),
            "demand": asdict(self._demand),
            "pauses": self._trainer.throttle.pauses,
            "trainer": self._trainer_view(),
        }

    def _trainer_view(self) -> dict[str, Any] | None:
        """Return what the child may use and uses, if there is one."""
        running, throttle, budget = self._trainer.running(), self._trainer.throttle, self._settings().budget
        if running is None:
            return None
        return {
            "pid": self._trainer.pid,
            "asked": running.asked,
            "paused": throttle.paused,
            "cpu_percent": throttle.cpu_percent,
            "cpu_limit_percent": budget.asked_cpu_percent if running.asked else budget.cpu_percent,
            "rss_mb": self._readings.trainer_rss_mb if self._readings else None,
            "planned_mb": running.planned_mb,
        }

    def _read(self, busy: bool, idle_s: float) -> Readings:
        """Read the machine, and what is known of its user. Blocks shortly."""
        readings = self._sensors.read(busy=busy, idle_s=idle_s, trainer_pid=self._trainer.pid)
        return readings if self._quiet_times is None else self._quiet_times.added_to(readings)

    def _unread(self) -> Readings:
        """Return what is known before the first look."""
        now = time.time()
        return Readings(now, minute_of_day(now), self._busy(), self._activity.idle_s())

    def _run_changed(self, stopped_by: str | None) -> None:
        if stopped_by == "user":  # who is there, and does not want it to begin again at once
            self._activity.note()
        self._wake.set()

    def _recall(self) -> list[Made]:
        with self._store.read() as conn:
            rows = decisions.newest(conn, KEPT_DECISIONS)
        return [Made(row.at, _stored(row)) for row in rows if row.action in set(Action)]

    def _note_jumps(self) -> None:
        jump = self._jumps.look()
        if jump.suspended_s > ASLEEP_S:
            log.info("the machine was asleep for %.0f s", jump.suspended_s)
            self._activity.note()
        if abs(jump.clock_s) > CLOCK_JUMP_S:
            log.warning("the clock was set %+.0f s", jump.clock_s)

    async def _write_down(self, decision: Decision, at: float, *, due_anew: bool) -> None:
        """Write down what has changed. That it cannot be stored must not keep the next decision from being made."""
        last = self._made[-1] if self._made else None
        if last is not None and _same(last.decision, decision):
            self._made[-1] = Made(last.at, decision)
            if last.decision.due == decision.due and not (decision.due and due_anew):
                return
        else:
            self._made.append(Made(at, decision))
            log.info("training: %s: %s", decision.action, decision.reason)

        def note(conn: sqlite3.Connection) -> None:
            decisions.note(conn, at, str(decision.action), decision.kind, decision.constraint, decision.reason)
            if decision.due or decision.action is Action.WAIT:
                demand.note_due(conn, at if decision.due else None)

        try:
            await asyncio.wrap_future(self._store.write(note))
        except StoreError as error:
            log.warning("a decision about training could not be stored: %s", error)


def _same(one: Decision, other: Decision) -> bool:
    return (one.action, one.kind, one.constraint) == (other.action, other.kind, other.constraint)


def _stored(row: decisions.Noted) -> Decision:
    return Decision(Action(row.action), row.reason, row.constraint, job_kind(row.kind))
