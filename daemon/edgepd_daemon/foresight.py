"""What the user is likely to do next, from the events of the profile and the model that serves for it.

The idea: the tuned student of this profile, or the one that ships with edgepd, ranks the intents after the newest
events that the viewer may see. What was ranked is kept until an event comes or the half hour is over. The invariants: a
file is loaded only if it has the contents that the profile knows it by; a student that is missing or damaged is
replaced by the shipped one; nothing is in memory before somebody asks, nor long after.
What this does not do: tune a student (the trainer does), or act on what is likely (warming.py).

Predictions are judged as they are made: the one that stood when an event came is compared with that event.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from edgepd.errors import EdgepdError
from edgepd.intent.schema import MINUTES_PER_SLOT, Event
from edgepd.intent.shipping import shipped_student
from edgepd.settings import Settings
from edgepd_daemon.habits import Habits
from edgepd_profiles import events, students
from edgepd_profiles.events import Stored
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

HALF_HOUR_S = 60 * MINUTES_PER_SLOT
CLOCK_SLACK_S = 300.0  # by which the clock of whoever sends events may be ahead of ours
MOST_KEPT = 16  # rankings, one for each app that asks


class Ranker(Protocol):
    """A student (edgepd.intent.student.Student)."""

    def ranked(self, events: Sequence[Event], at: float, utc_offset_s: int) -> list[tuple[str, float]]:
        """Return the intents with their probabilities, the likeliest first."""


@dataclass(frozen=True)
class Next:
    """An intent that may come next. `app`: whose questions to the model it mostly is, if any are."""

    intent: str
    probability: float
    reason: str
    app: str | None = None


@dataclass(frozen=True)
class Predicted:
    """How many predictions could be compared with the event that came, and how many had it first, or among three."""

    made: int = 0
    top1: int = 0
    top3: int = 0


@dataclass(frozen=True)
class _Ranking:
    """What was found at one moment, and what it holds for."""

    key: tuple[object, ...]
    seq: int
    next: list[Next]
    apps: list[tuple[str, float]]


@dataclass(frozen=True)
class _Pending:
    """A prediction that no event has followed yet: made at `at`, when the newest event was `seq`."""

    seq: int
    at: float
    intents: tuple[str, ...]


def load_student(path: Path | None) -> Ranker:
    """Load a student, without a path the one that ships with edgepd. Raises what Student.load raises."""
    # Loads numpy, which a daemon that was asked nothing does without.
    from edgepd.intent.student import Student  # noqa: PLC0415

    return Student.load(path if path is not None else shipped_student())


def local_offset_s(at: float) -> int:
    """Return how far local time is ahead of UTC at a moment, in seconds."""
    time.tzset()  # the user may have travelled since the start
    return events.local_offset(at)


class Foresight:
    """Ranks what is next. Methods block for some milliseconds, the first one longer; any thread."""

    def __init__(
        self,
        store: Store,
        settings: Callable[[], Settings],
        students_dir: Path,
        *,
        load: Callable[[Path | None], Ranker] = load_student,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        offset_s: Callable[[float], int] = local_offset_s,
    ) -> None:
        """Load nothing yet. `settings` returns those in effect, and `students_dir` is where tuned students are."""
        self.problem: str | None = None  # what is wrong with the tuned student, in a sentence for the user
        self.on_load: Callable[[], object] = _nothing  # called by any thread when a student was loaded
        self._store = store
        self._settings = settings
        self._directory = students_dir
        self._load = load
        self._wall, self._monotonic, self._offset_s = wall, monotonic, offset_s
        self._lock = threading.Lock()  # guards all below; held while something is ranked
        self._student: Ranker | None = None
        self._tuned: int | None = None  # the number of the student that is loaded, None for the shipped one
        self._used_at = 0.0
        self._kept: dict[str | None, _Ranking] = {}
        self._pending: _Pending | None = None
        self._predicted = Predicted()

    def ranked(self, viewer: str | None, limit: int, at: float | None = None) -> list[Next]:
        """Return at most `limit` intents that may come next, the likeliest first, from what `viewer` may see.

        `at` is another moment than now, in unix seconds; only what had happened by then counts. Nothing if prediction
        is switched off, or without a history. Raises StoreError if the profile cannot be read.
        """
        return self._ranking(viewer, at).next[:limit]

    def likely_apps(self) -> list[tuple[str, float]]:
        """Return with which probability the next event is a question of each app, the likeliest first."""
        return self._ranking(None, None).apps

    def look_again(self) -> None:
        """Let go of all that was loaded and found: there is another student, or something was forgotten."""
        with self._lock:
            self._student = self._pending = self.problem = None
            self._kept.clear()

    def release(self, unused_s: float) -> None:
        """Let go of the student if it was not used for so long. What it has found stays."""
        with self._lock:
            if self._student is not None and self._monotonic() - self._used_at >= unused_s:
                self._student = None

    @property
    def loaded(self) -> str | None:
        """Which student is in memory: `tuned N`, with its number, `shipped`, or None. Never waits."""
        if self._student is None:
            return None
        return "shipped" if self._tuned is None else f"tuned {self._tuned}"

    def predicted(self) -> Predicted:
        """Return how good the predictions were so far. Loads nothing."""
        with self._lock:
            if self._pending is not None:
                with self._store.read() as conn:
                    new = events.newest_seq(conn) - self._pending.seq
                    self._settle(events.history(conn, limit=new) if new > 0 else [])
            return self._predicted

    def _ranking(self, viewer: str | None, at: float | None) -> _Ranking:
        wanted = self._settings().intent
        if not wanted.enabled:
            self.look_again()
            return _Ranking((), 0, [], [])
        now = self._wall() if at is None else at
        with self._lock, self._store.read() as conn:
            # The version does not tell of what was forgotten or shared, and changes are counted a little late.
            key = self._store.changes, events.version(conn), (now + self._offset_s(now)) // HALF_HOUR_S
            kept = self._kept.get(viewer)
            if at is None and kept is not None and kept.key == key:
                return kept
            by_then = now + CLOCK_SLACK_S if at is None else now
            history = events.history(conn, limit=wanted.max_events, viewer=viewer, until=by_then)
            if viewer is None:
                self._settle(history)
            found = self._found(conn, key, history, now)
            if at is None:
                self._keep(viewer, found, now)
            return found

    def _found(
        self, conn: sqlite3.Connection, key: tuple[object, ...], history: Sequence[Stored], now: float
    ) -> _Ranking:
        """Rank after this history. With the lock."""
        seq = events.newest_seq(conn)
        student = self._serving(conn) if history else None
        if student is None:
            return _Ranking(key, seq, [], [])
        history = sorted(history, key=lambda e: e.at)
        now = max(now, history[-1].at)
        offset_s = self._offset_s(now)
        ranked = _seen(student.ranked([_event(e) for e in history], now, offset_s), history)
        habits = Habits(history, now, offset_s)
        named = [Next(intent, p, habits.reason(intent), habits.app_of(intent)) for intent, p in ranked]
        return _Ranking(key, seq, named, habits.apps(ranked))

    def _keep(self, viewer: str | None, found: _Ranking, now: float) -> None:
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        self._kept[viewer] = found
        if viewer is None:
            best = tuple(n.intent for n in found.next[:3])
            self._pending = _Pending(found.seq, now, best) if best else None

    def _settle(self, history: Sequence[Stored]) -> None:
        """Compare the prediction that stands with the first event since; one that was only sent later does not count.

        With the lock.
        """
        pending = self._pending
        since = [e for e in history if pending and e.seq > pending.seq and e.at >= pending.at - CLOCK_SLACK_S]
        if pending is None or not since:
            return
        came = min(since, key=lambda e: (e.at, e.seq)).intent
        done = self._predicted
        self._predicted = replace(
            done,
            made=done.made + 1,
            top1=done.top1 + (came == pending.intents[0]),
            top3=done.top3 + (came in pending.intents),
        )
        self._pending = None

    def _serving(self, conn: sqlite3.Connection) -> Ranker | None:
        """Return the student that serves, loaded; None if not even the shipped one can be. With the lock."""
        if self._student is None:
            self._student = self._tuned_student(conn) or self._shipped_student()
            if self._student is not None:
                self.on_load()
        self._used_at = self._monotonic()
        return self._student

    def _tuned_student(self, conn: sqlite3.Connection) -> Ranker | None:
        self._tuned = self.problem = None
        active = students.active(conn)
        if active is None:
            return None
        path = self._directory / active.file
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() == active.sha256:
                student = self._load(path)
                self._tuned = active.id
                return student
            why = "its contents have changed"
        except (EdgepdError, OSError, ValueError) as error:
            why = str(error)
        self.problem = (
            f"the tuned model of what comes next, {path}, cannot be used, the shipped one serves instead: {why}; "
            "`edgepd train --intent` makes another one"
        )
        log.error("%s", self.problem)
        return None

    def _shipped_student(self) -> Ranker | None:
        try:
            return self._load(None)
        except (EdgepdError, OSError, ValueError) as error:
            self.problem = f"nothing is predicted: the model that ships with edgepd cannot be used: {error}; reinstall"
            log.error("%s", self.problem)
            return None


def _seen(ranked: Sequence[tuple[str, float]], history: Sequence[Stored]) -> list[tuple[str, float]]:
    """Return what is in the history: a tuned student knows names that the viewer may not see, or that have expired."""
    seen = {event.intent for event in history}
    found = [(intent, p) for intent, p in ranked if intent in seen]
    total = sum(p for _, p in found)
    return [(intent, p / total) for intent, p in found] if total > 0 else []


def _event(stored: Stored) -> Event:
    return Event(stored.at, stored.event, stored.intent, stored.context, stored.utc_offset_s)


def _nothing() -> None:
    """Nobody wants to know of it."""
