"""Logs of what people did, read from files, and their splits for learning and judging.

The idea: a row of a CSV or JSONL file is one event of one user; what is not clear is refused with its line, never
guessed or left out. The invariants: events of a user come out in order of time, one per time and name; of two parts
of a split, every event of the earlier one is before every event of the later one.
What this does not do: turn events into arrays (embed.py), or store them (edgepd_profiles.events).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from itertools import accumulate
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from edgepd.errors import RequestError
from edgepd.intent.logfile import Limits, map_rows, name, refuse, rows
from edgepd.intent.schema import DAY_S, Event, in_order

EARLIEST_S, LATEST_S = -2_208_988_800.0, 7_258_118_400.0  # the years 1900 to 2199: milliseconds are outside

_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")


@dataclass(frozen=True)
class Columns:
    """The names of a file's columns, or of the keys of its JSON objects. User None: the file is of one user, ""."""

    user: str | None = "user"
    time: str = "time"
    event: str = "event"
    context: str = "context"  # this and those below may be missing under these names, not under others
    intent: str = "intent"
    utc_offset_s: str = "utc_offset_s"

    @property
    def required(self) -> dict[str, str]:
        """Return what a file has to have, role -> column: the first three, and what was given another name."""
        default = {field.name: field.default for field in fields(self)}
        named = {role: getattr(self, role) for role in default}
        first = ("user", "time", "event")
        return {role: column for role, column in named.items() if column and (role in first or column != default[role])}

    @property
    def optional(self) -> dict[str, str]:
        """Return what is read of a file where it is there, role -> column."""
        left = [field.name for field in fields(self) if field.name not in {"user", *self.required}]
        return {role: getattr(self, role) for role in left}


def read_events(
    path: Path,
    columns: Columns | None = None,
    zone: str = "UTC",
    intents: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> dict[str, list[Event]]:
    """Return the events of each user in a .csv, .tsv (both with a header), .jsonl or .ndjson file, oldest first.

    A time is unix seconds or ISO 8601. Its offset from UTC is the one written in it, or else that of the column
    utc_offset_s, or else that of the time zone `zone` (a name of the IANA database) at that moment. An event's intent
    is that of its row, or else that of `intents`, which then has to name every event, or else the event itself.
    Two rows of a user with the same time and event are one event, the first. Raises RequestError with file and line.
    """
    log = _Log(path, columns or Columns(), time_zone(zone), intents, limits or Limits())
    for line, row in rows(path, log.columns.required, log.columns.optional, log.limits.line_bytes):
        log.add(line, row)
    return log.in_order()


def read_intents(path: Path) -> dict[str, str]:
    """Return event -> intent from a .json object, or a .csv or .tsv file with the columns event and intent.

    Raises RequestError for an event that is there twice with different intents.
    """
    found: dict[str, str] = {}
    for line, row in map_rows(path):
        event, intent = (name(path, line, role, row.get(role), Limits().name_chars) for role in ("event", "intent"))
        if not event or not intent:
            refuse(path, line, "needs an event and an intent; neither may be empty")
        if found.setdefault(event, intent) != intent:
            refuse(path, line, f"the event {event[:80]!r} has two intents, {found[event]!r} and {intent!r}; keep one")
    return found


def time_zone(place: str) -> tzinfo:
    """Return the time zone of a name such as Europe/Berlin; RequestError if this machine does not know it.

    https://docs.python.org/3/library/zoneinfo.html: the names come from the system's time zone database.
    """
    if place == "UTC":
        return UTC
    try:
        return ZoneInfo(place)
    except (KeyError, ValueError, OSError) as error:
        raise RequestError(
            f"the time zone {place[:80]!r} is not known here; use a name such as Europe/Berlin, or UTC"
        ) from error


def local_time(
    value: object, zone: tzinfo, utc_offset_s: int | None = None, previous: float = -math.inf
) -> tuple[float, int]:
    """Return (unix seconds, offset of local time from UTC in seconds) of a time as people and programs write it.

    A number, also as text, is unix seconds. A local time without an offset that comes twice, as clocks go back, is the
    first of the two, or the second where only that is not before `previous`; one that the clocks skip is read by the
    offset before the change (PEP 495). Raises ValueError with what is wrong.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("is neither text nor a number; use ISO 8601 or unix seconds")
    place = zone if utc_offset_s is None else timezone(timedelta(seconds=utc_offset_s))
    text = value.strip() if isinstance(value, str) else ""
    if isinstance(value, int | float) or _NUMBER.fullmatch(text):
        at = _in_range(value if isinstance(value, int | float) else float(text))
    else:
        parsed = _iso(text)
        at = _in_range(_unix(parsed, place, previous))
        place = parsed.tzinfo or place
    offset = datetime.fromtimestamp(at, place).utcoffset() or timedelta()
    return at, int(offset.total_seconds())


@dataclass(frozen=True)
class UserSplit:
    """Users of whom a population is learned, and users by whom tuning to one person is judged; each sorted."""

    population: tuple[str, ...]
    individual: tuple[str, ...]


def split_users(
    users: Iterable[str], individual: int | float, seed: int, eligible: Collection[str] | None = None
) -> UserSplit:
    """Draw the individual users by seed: so many (int), or that share of all (float); of `eligible` ones if given.

    The draw depends on the names and the seed alone, not on their order or the version of a library, and a larger
    number holds a smaller one. Raises ValueError if there are not as many, or a user is there twice.
    """
    everyone = sorted(users)
    drawn_from = everyone if eligible is None else [user for user in everyone if user in eligible]
    number = round(individual * len(everyone)) if isinstance(individual, float) else individual
    if len(set(everyone)) != len(everyone) or not 0 <= number <= len(drawn_from):
        raise ValueError(f"{number} users cannot be drawn from {len(drawn_from)}, or a user is there twice")

    def lot(user: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{user}".encode("utf-8", "surrogatepass")).digest()

    drawn = set(sorted(drawn_from, key=lot)[:number])
    return UserSplit(tuple(user for user in everyone if user not in drawn), tuple(sorted(drawn)))


@dataclass(frozen=True)
class Split:
    """The events of one user in three parts, each before the next."""

    train: list[Event]
    validation: list[Event]
    test: list[Event]


def chronological(events: Sequence[Event], shares: tuple[float, float, float] = (0.6, 0.1, 0.3)) -> Split:
    """Cut the events of one user by time into train, validation and test of about these shares.

    Events of the same time stay together, in the later part: nothing is learned from the moment that is judged.
    Raises ValueError for events out of order, or shares that are negative or do not add up to 1.
    """
    if min(shares) < 0 or not math.isclose(sum(shares), 1.0):
        raise ValueError(f"the shares {shares} do not add up to 1")
    if not in_order(events):
        raise ValueError("the events are not in order of time")
    cuts = [round(len(events) * share) for share in accumulate(shares[:2])]
    first, second = (_before_ties(events, cut) for cut in cuts)
    return Split(list(events[:first]), list(events[first:second]), list(events[second:]))


def _before_ties(events: Sequence[Event], cut: int) -> int:
    """Return the cut moved back to where the time changes."""
    while 0 < cut < len(events) and events[cut - 1].at == events[cut].at:
        cut -= 1
    return cut


class _Log:
    """What has been read of a file so far."""

    def __init__(
        self, path: Path, columns: Columns, zone: tzinfo, intents: Mapping[str, str] | None, limits: Limits
    ) -> None:
        self.path, self.columns, self.zone, self.intents, self.limits = path, columns, zone, intents, limits
        self._users: dict[str, dict[tuple[float, str], Event]] = {}
        self._newest: dict[str, float] = {}
        self._names: dict[str, str] = {}  # as written -> as kept, so that each is checked and held once
        self._rows = 0

    def add(self, line: int, row: Mapping[str, Any]) -> None:
        """Take one row in; RequestError says what is wrong with it."""
        self._rows += 1
        if self._rows > self.limits.rows:
            refuse(self.path, line, f"there are more than {self.limits.rows} rows; split the file by user")
        user = self._user(line, row)
        try:
            at, offset = local_time(row.get("time"), self.zone, _offset(row), self._newest.get(user, -math.inf))
        except ValueError as error:
            refuse(self.path, line, f"the time {str(row.get('time'))[:80]!r} {error}")
        event = self._known(line, "event", row)
        if not event:
            refuse(self.path, line, "the event has no name; every row needs one")
        intent = self._known(line, "intent", row) or self._intent(line, event)
        self._newest[user] = at
        kept = Event(at, event, intent, self._known(line, "context", row), offset)
        self._users[user].setdefault((at, event), kept)

    def in_order(self) -> dict[str, list[Event]]:
        """Return each user's events, oldest first; those of one time as they are in the file."""
        return {user: sorted(events.values(), key=lambda event: event.at) for user, events in self._users.items()}

    def _user(self, line: int, row: Mapping[str, Any]) -> str:
        if self.columns.user is None:
            user = ""
        else:
            user = name(self.path, line, "user", row.get("user"), self.limits.name_chars)
            if not user:
                refuse(self.path, line, "has no user; every row needs one")
        if user not in self._users:
            if len(self._users) >= self.limits.users:
                refuse(self.path, line, f"there are more than {self.limits.users} users; split the file by user")
            self._users[user] = {}
        return user

    def _known(self, line: int, role: str, row: Mapping[str, Any]) -> str:
        """Return the name in a row for this role, "" if it has none."""
        value = row.get(role)
        if isinstance(value, str) and value in self._names:
            return self._names[value]
        kept = name(self.path, line, role, value, self.limits.name_chars)
        self._names[kept if value is None else str(value)] = kept
        if len(self._names) > self.limits.names:
            many = f"there are more than {self.limits.names} different names of events, intents and contexts"
            refuse(self.path, line, f"{many}; is {role!r} the right column?")
        return kept

    def _intent(self, line: int, event: str) -> str:
        if self.intents is None:
            return event
        if event not in self.intents:
            refuse(self.path, line, f"the event {event[:80]!r} has no intent, here or in the map; add it to the map")
        return self.intents[event]


def _offset(row: Mapping[str, Any]) -> int | None:
    """Return the utc_offset_s of a row in seconds, None if it says none; ValueError if it is not less than a day."""
    value = row.get("utc_offset_s")
    if value is None or value == "":
        return None
    text = value.strip() if isinstance(value, str) else str(value)
    if not re.fullmatch(r"[+-]?[0-9]{1,5}", text) or abs(int(text)) >= DAY_S:
        raise ValueError(f"has the utc_offset_s {text[:40]!r}; use whole seconds, such as 3600 for UTC+1")
    return int(text)


def _iso(text: str) -> datetime:
    """Return an ISO 8601 time with its time of day; ValueError for anything else."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("is not a time; use ISO 8601, such as 2024-05-01T17:30:00+02:00, or unix seconds") from error
    try:
        date.fromisoformat(text)
    except ValueError:
        return parsed
    raise ValueError("is a day without a time of day, by which habits are learned; add it")


def _unix(parsed: datetime, place: tzinfo, previous: float) -> float:
    """Return unix seconds; see local_time for local times that come twice or never."""
    if parsed.tzinfo is not None:
        return parsed.timestamp()
    first, second = (parsed.replace(tzinfo=place, fold=fold).timestamp() for fold in (0, 1))
    return second if first < previous <= second else first


def _in_range(at: float) -> float:
    """Return the unix seconds; ValueError if they cannot be meant, also for numbers that are none."""
    if not EARLIEST_S <= at < LATEST_S:
        raise ValueError("is not between the years 1900 and 2199; unix times are in seconds, not milliseconds")
    return float(at)
