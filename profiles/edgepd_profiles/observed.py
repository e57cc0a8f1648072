"""What was observed of the user by a time, out of the sums that folding.py keeps.

The idea: a reader brings the masses of the newest eras to its time, leaves out what its viewer may not see, and finds
the heaviest features by the largest rows, so that the cost of a reading is one pass over the rows of a kind.
The invariant: nothing is weighed by channel except to find the heaviest. What an exchange counts is kept by channel to
the end, so the same observation can be read with other weights.
What this does not do: know what was set by hand: see profile.py.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edgepd_profiles import apps, features, folding

# Rows that are looked at for the heaviest. A feature could only be missed if it were spread over very many apps.
CANDIDATES = 256
ERAS = 5  # the newest; what is 64 half-lives older than another exchange is less than rounding

Sums = dict[str, tuple[float, float]]  # by channel: mass and total, as of now


@dataclass
class Observed:
    """What was observed of one feature, of it and of what it is compared with."""

    sums: Sums = field(default_factory=dict)
    base: Sums = field(default_factory=dict)
    count: int = 0

    def alpha(self, weights: Mapping[str, float]) -> float:
        return sum(weights.get(channel, 0.0) * mass for channel, (mass, _) in self.sums.items())

    def value(self, name: str, weights: Mapping[str, float]) -> float:
        mass, total = _weighed(self.sums, weights)
        if name in features.MEANS:
            mean = total / mass if mass > 0 else 0.0
            return math.exp(mean) if name in features.LOGARITHMIC and mass > 0 else mean
        all_mass, all_total = _weighed(self.base, weights)
        most = max(all_mass + all_total, all_mass - all_total) / 2
        return max(-1.0, min(1.0, total / most)) if most > 0 else 0.0

    def add(self, other: Observed) -> None:
        for mine, others in ((self.sums, other.sums), (self.base, other.base)):
            for channel, (mass, total) in others.items():
                old = mine.get(channel, (0.0, 0.0))
                mine[channel] = (old[0] + mass, old[1] + total)
        self.count += other.count


def _weighed(sums: Sums, weights: Mapping[str, float]) -> tuple[float, float]:
    return (
        sum(weights.get(channel, 0.0) * mass for channel, (mass, _) in sums.items()),
        sum(weights.get(channel, 0.0) * total for channel, (_, total) in sums.items()),
    )


def joined(parts: Iterable[Observed]) -> Observed:
    """Return the sum of what several apps contribute."""
    whole = Observed()
    for part in parts:
        whole.add(part)
    return whole


def half_life(conn: sqlite3.Connection) -> float:
    """Return the half-life of the sums in days, which is one for all; 30 where there are none."""
    return float(conn.execute("SELECT max(half_life_days) FROM profile_state").fetchone()[0] or 30.0)


class Reader:
    """What was observed of the apps that a viewer sees, by app, at one time."""

    def __init__(self, conn: sqlite3.Connection, viewer: str | None, now: float, utc_offset_s: int) -> None:
        self.visible = apps.visible(conn, viewer)
        folded = [app for (app,) in conn.execute("SELECT app FROM profile_state ORDER BY app")]
        self.conn, self.apps = conn, [app for app in folded if self.visible is None or app in self.visible]
        self.now, self.offset, self.half_life = now, utc_offset_s, half_life(conn)

    def top(self, kind: str, weights: Mapping[str, float], besides: Iterable[str]) -> dict[str, dict[str, Observed]]:
        """Return the heaviest features of a kind, and those named, each by app."""
        factors = self._factors(kind)
        scale = [(where, weights.get(channel, 0.0) * scale) for where, (channel, scale) in factors.items()]
        scale = [(where, number) for where, number in scale if number > 0]
        names: dict[str, None] = dict.fromkeys(besides)
        if scale:
            case = f"CASE channel {'WHEN ? THEN ? ' * len(scale)}ELSE 0 END"
            # Names that begin with '*' are before '+', and all others of ours begin with a letter.
            rows = self.conn.execute(
                f"""
                SELECT name FROM features
                WHERE app IN ({self._marks()}) AND kind = ? AND name > '+'
                ORDER BY mass * {case} DESC LIMIT ?
                """,  # noqa: S608 - no text of a user in it
                (*self.apps, kind, *(item for pair in scale for item in pair), CANDIDATES),
            )
            names |= dict.fromkeys(name for (name,) in rows)
        return self.of(kind, [*names, *(_HOUR_NAMES if kind == "context" else ())])

    def of(self, kind: str, names: Collection[str]) -> dict[str, dict[str, Observed]]:
        """Return what was observed of the features of a kind, each by app; what was not observed is left out."""
        factors = self._factors(kind)
        asked = {*names, "*", "*exchanges"} | (_HOURS.keys() if kind == "context" else set())
        rows = self.conn.execute(
            f"SELECT app, name, channel, mass, total, count FROM features WHERE app IN ({self._marks()}) "  # noqa: S608
            "AND kind = ? AND name IN (SELECT value FROM json_each(?))",
            (*self.apps, kind, json.dumps(sorted(asked))),
        )
        found: dict[str, dict[str, Observed]] = {}
        for app, name, where, mass, total, count in rows:
            channel, scale = factors.get(where, ("", 0.0))
            part = Observed({channel: (mass * scale, total * scale)} if scale else {}, {}, count)
            for shown in self._shown_as(name):
                found.setdefault(shown, {}).setdefault(app, Observed()).add(part)
        for name, parts in found.items():
            base = found.get("*exchanges" if name.startswith("asked:") else "*", {})
            for app, of_app in base.items():
                parts.setdefault(app, Observed()).base = dict(of_app.sums)
        return {name: parts for name, parts in found.items() if name in names}

    def exchanges(self, kind: str) -> int:
        """Return how many exchanges were read for a kind."""
        return sum(self._slots(kind).values())

    def _slots(self, kind: str) -> dict[str, int]:
        """Return the slots of a kind, those of most exchanges first, with the number of these."""
        rows = self.conn.execute(
            f"""
            SELECT channel, sum(count) FROM features WHERE app IN ({self._marks()}) AND (kind, name) = (?, ?)
            GROUP BY channel ORDER BY sum(count) DESC, channel
            """,  # noqa: S608 - no text of a user in it
            (*self.apps, kind, "*exchanges" if kind == "preference" else "*"),
        )
        return dict(rows.fetchall())

    def _factors(self, kind: str) -> dict[str, tuple[str, float]]:
        """Return the channel and factor of each slot of the newest eras that a kind has."""
        eras = {where: int(where.rpartition("@")[2]) for where in self._slots(kind)}
        newest = sorted(set(eras.values()))[-ERAS:]
        return {where: folding.factor(where, self.now, self.half_life) for where, era in eras.items() if era in newest}

    def _shown_as(self, name: str) -> Sequence[str]:
        """Return the names under which a stored one is shown: an hour of the week in UTC is a local time of day."""
        if name not in _HOURS:
            return (name,)
        hour = (_HOURS[name] * 3600 + self.offset) // 3600 % 168
        of_day, day = hour % 24, (hour // 24 + 3) % 7  # 1970 began on a Thursday; Monday is 0
        band = "night" if of_day < 6 else "morning" if of_day < 12 else "afternoon" if of_day < 18 else "evening"
        return (f"time:{band}", "day:weekend" if day >= 5 else "day:weekday")

    def _marks(self) -> str:
        return ",".join("?" * len(self.apps))


_HOURS = {f"*hour:{n}": n for n in range(168)}
_HOUR_NAMES = ("time:night", "time:morning", "time:afternoon", "time:evening", "day:weekday", "day:weekend")
