"""When the user is likely to be away, for the scheduler: the forecast of rhythm.py, kept for the machine that it is on.

The idea: the forecast is made from the times of events and requests, once an hour at most and only if the profile has
changed, in the thread that reads the sensors. For how long the machine was on, by hour of the week, is counted at every
look and kept in a small file: nights with the lid closed are no quiet times but no times at all, and a run that waited
for one would come to nothing. The invariants: nothing here holds a run (scheduler/constraints.py); what cannot be read
is as if it were not known; with `intent.enabled` off, or `intent.window_hours` at 0, nothing is read, counted or kept.
What this does not do: hold any text, or tell one app from another.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from edgepd.atomic import replacing
from edgepd.errors import StoreError
from edgepd.intent.rhythm import SEEN_S, WEEK_HOURS, Awake, Rhythm, Use
from edgepd.settings import Settings
from edgepd_daemon.scheduler.quiet_hours import QuietHours
from edgepd_daemon.scheduler.types import Readings
from edgepd_daemon.sensors.clocks import minute_of_day
from edgepd_profiles import uses
from edgepd_profiles.store import Store

log = logging.getLogger(__name__)

RUN_S = 1800.0  # for which a typical run is at work, with its pauses
REFRESH_S = 3600.0
STALE_S = 86_400.0  # after which the forecast is made again also where nothing is new, for older use counts less
LONGEST_LOOK_S = 120.0  # of a longer gap between two looks nobody knows whether the machine was on
CLOCK_SET = 1_577_836_800.0  # 2020: a clock that shows less has not been set yet


class QuietTimes:
    """What is known of the user's rhythm. Safe to use from any thread."""

    def __init__(
        self,
        store: Store,
        settings: Callable[[], Settings],
        file: Path,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`settings` returns those in effect, `file` is where the hours that the machine was on are kept.

        `monotonic` returns seconds of a clock that stands still while the machine sleeps.
        """
        self._store = store
        self._settings = settings
        self._file = file
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._wanted = True  # whether it was at the last look; a file may be there from before
        self._rhythm: Rhythm | None = None
        self._awake: Awake | None = None
        self._looked: float | None = None  # these are of `monotonic`
        self._read_at = self._saved_at = -math.inf
        self._changes: int | None = None  # of the profile, when the forecast was made
        self._failing = False

    def added_to(self, readings: Readings) -> Readings:
        """Return the readings with what is forecast for them; the time since the last call counts as on.

        Without enough history nothing is added. Blocks shortly, once an hour for some milliseconds. Raises ConfigError
        if `budget.quiet_hours` cannot be read.
        """
        settings = self._settings()
        window_s = 3600 * settings.intent.window_hours
        with self._lock:
            wanted = settings.intent.enabled and window_s > 0
            if not wanted and self._wanted:
                self._begin_again()
            elif wanted and readings.at >= CLOCK_SET:
                self._count(readings.at)
                self._refresh(readings.at, settings.intent.max_events)
            self._wanted, rhythm = wanted, self._rhythm
        if rhythm is None or not rhythm.known:
            return readings
        closed = QuietHours.parse(settings.budget.quiet_hours)

        def usable(at: float) -> bool:
            return not closed.within(minute_of_day(at))

        return replace(
            readings,
            quiet_probability=rhythm.quiet_probability(readings.at, utc_offset_s(readings.at), RUN_S),
            better_window_in_s=rhythm.better_window(readings.at, utc_offset_s, RUN_S, window_s, usable),
            window_s=window_s,
        )

    def forget(self, *, everything: bool) -> None:
        """Make the forecast anew at the next look; with `everything`, also count anew when the machine is on."""
        with self._lock:
            if everything:
                self._begin_again()
            else:
                self._make_anew()

    def close(self) -> None:
        """Write down what was counted, before the daemon ends."""
        with self._lock:
            if self._awake is not None:
                self._save(self._awake)

    def _make_anew(self) -> None:
        self._rhythm, self._changes, self._read_at = None, None, -math.inf

    def _begin_again(self) -> None:
        """Forget all, also what is in the file."""
        self._make_anew()
        self._awake = self._looked = None
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", self._file, error.strerror)

    def _count(self, at: float) -> None:
        """Count the time since the last look as one in which the machine was on."""
        now = self._monotonic()
        if self._awake is None:
            self._awake, self._saved_at = _stored(self._file) or Awake.begin(at), now
        if self._looked is not None and now - self._looked <= LONGEST_LOOK_S:
            self._awake.add(at, utc_offset_s(at), now - self._looked)
        self._looked = now
        if now - self._saved_at >= REFRESH_S:
            self._saved_at = now
            self._save(self._awake)

    def _save(self, awake: Awake) -> None:
        try:
            with replacing(self._file) as file:
                file.write(json.dumps(asdict(awake)).encode())
        except StoreError as error:
            log.warning("when the machine is on could not be written down: %s", error)

    def _refresh(self, at: float, most: int) -> None:
        """Make the forecast anew if it is old, and there is anything new or it is very old."""
        now, changes = self._monotonic(), self._store.changes
        age_s = now - self._read_at
        if age_s < REFRESH_S or (changes == self._changes and age_s < STALE_S):
            return
        self._read_at = now  # also if it fails: the next try is in an hour
        try:
            with self._store.read() as conn:
                found = uses.times(conn, at - SEEN_S, most)
        except StoreError as error:
            if not self._failing:
                log.warning("when you use edgepd could not be read: %s", error)
            self._failing = True
            return
        self._failing, self._changes = False, changes
        # An exchange has no offset of its own: it was made on this machine.
        known = [Use(when, utc_offset_s(when) if offset is None else offset) for when, offset in found]
        self._rhythm = Rhythm(known, at, self._awake)


def utc_offset_s(at: float) -> int:
    """Return by how many seconds local time is, was or will be ahead of UTC on this machine, at a unix time."""
    return time.localtime(at).tm_gmtoff


def _stored(file: Path) -> Awake | None:
    """Return what an earlier daemon has counted; None if there is no such file, or none that can be used."""
    try:
        found = json.loads(file.read_text())
        since, at, hours = float(found["since"]), float(found["at"]), [float(each) for each in found["hours"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s cannot be read (%s); it is counted anew when the machine is on", file, error)
        return None
    sound = all(math.isfinite(each) for each in (since, at, *hours)) and min(hours, default=-1.0) >= 0
    if not sound or len(hours) != WEEK_HOURS:
        log.warning("%s does not hold %d hours; it is counted anew when the machine is on", file, WEEK_HOURS)
        return None
    return Awake(since, at, hours)
