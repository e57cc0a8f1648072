"""How likely each question that was asked before is to be asked next.

The idea: questions with the same content words (retrieval.about) are one. Each gets a score from plain numbers, and the
largest of them gives the reason that is told with it. No model is asked.

    score = 0.25 recurring + 0.30 habit + 0.25 follow-up + 0.10 unfinished + 0.10 recent - 0.10 ignored, 0 at least

    recurring   (days - 1) / 4, at most 1, if it was asked on 3 days or more and not yet today
    habit       share of the last 5 same weekdays, or of the last 5 days, on which it was asked in this part of the day;
                0 below 2 of them, and if it was asked in this part of today
    follow-up   share of the earlier times of asking the last question of this app (which was asked less than half an
                hour ago) after which this one was asked within half an hour; 0 below 2 times
    unfinished  1 falling to 0 within two days, if its last answer was broken off or the user went away
    recent      2^(-age / 30 days)
    ignored     how often it was shown and not asked since it was last taken

What goes on in the middle of a conversation ("shorter, please") counts as a follow-up only.
The invariants: a question without any of the first four is not suggested, nor one that was asked in the last quarter of
an hour or ignored three times; the reason has no words of the user in it, so that it need not be forgotten with them.
What this does not do: read or store anything (suggestions.py), or guess what was never asked.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from itertools import pairwise
from typing import NamedTuple

from edgepd_profiles.retrieval import about

TOO_OFTEN = 3
JUST_S = 900.0
CHAIN_S = 1800.0
DAY_S = 86_400.0
UNFINISHED_DAYS = 2
RECENT_DAYS = 30

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PARTS = ("night", "morning", "afternoon", "evening")  # six hours each, from midnight

Key = frozenset[str]


class Asked(NamedTuple):
    """One exchange: its prompt ("" if that is too long to be suggested), and whether that began the conversation.

    `at` is unix seconds. `unfinished` is True if the answer was broken off or the user went away.
    """

    id: str
    app: str
    at: float
    text: str
    first: bool
    unfinished: bool


class Scored(NamedTuple):
    """A question as it was asked last, its score in [0, 1], and a sentence that says why."""

    key: Key
    last: Asked
    score: float
    reason: str


class _Term(NamedTuple):
    value: float  # weighted
    reason: str


def scored(
    exchanges: Sequence[Asked], app: str, now: float, zone: tzinfo | None, ignored: Mapping[Key, int]
) -> list[Scored]:
    """Return the questions that may be suggested in `app`, the likeliest first; of two alike, that asked last.

    `exchanges` are in the order of asking. `zone` is what days and hours are told in; None is the machine's.
    `ignored` says how often each was.
    """
    keys: dict[str, Key] = {}
    groups: dict[Key, list[Asked]] = defaultdict(list)
    for asked in exchanges:
        if asked.text:
            if asked.text not in keys:  # what recurs is often the same to the letter
                keys[asked.text] = about(asked.text)
            groups[keys[asked.text]].append(asked)
    following = _following(exchanges, keys, app, now)
    found = []
    for key, times in groups.items():
        last = times[-1]
        if last.at > now - JUST_S or ignored.get(key, 0) >= TOO_OFTEN:
            continue
        begun = [asked for asked in times if asked.first]
        terms = [following[key]] if key in following else []
        if begun:
            terms += _by_time(begun, now, zone)
        if last.first and last.unfinished and now - last.at < UNFINISHED_DAYS * DAY_S:
            left = 1 - (now - last.at) / (UNFINISHED_DAYS * DAY_S)
            terms.append(_Term(0.10 * left, "you asked this, and its answer was not finished"))
        if terms:
            recent = 0.10 * 2 ** (-(now - last.at) / (RECENT_DAYS * DAY_S))
            score = sum(term.value for term in terms) + recent - 0.10 * ignored.get(key, 0)
            found.append(Scored(key, last, max(0.0, score), max(terms).reason))
    return sorted(found, key=lambda s: (s.score, s.last.at), reverse=True)


def _by_time(times: Sequence[Asked], now: float, zone: tzinfo | None) -> list[_Term]:
    """Return the terms `recurring` and `habit` that are above 0."""
    today, part = _slot(now, zone)
    slots = {_slot(asked.at, zone) for asked in times}
    days = {day for day, _ in slots}
    terms = []
    if len(days) >= 3 and today not in days:
        terms.append(_Term(0.25 * min(1.0, (len(days) - 1) / 4), f"you asked this on {len(days)} different days"))
    if (today, part) in slots:
        return terms
    weeks = sum((today - 7 * n, part) in slots for n in range(1, 6))
    latest = sum((today - n, part) in slots for n in range(1, 6))
    if max(weeks, latest) >= 2:
        # The ordinal of a date counts from a Monday.
        weekday = f"{WEEKDAYS[(today - 1) % 7]} " if weeks >= latest else ""
        count = max(weeks, latest)
        terms.append(_Term(0.30 * count / 5, f"you asked this on {count} of the last 5 {weekday}{PARTS[part]}s"))
    return terms


def _slot(at: float, zone: tzinfo | None) -> tuple[int, int]:
    """Return the number of the day and the part of it."""
    local = datetime.fromtimestamp(at, zone)
    return local.toordinal(), local.hour // 6


def _following(exchanges: Sequence[Asked], keys: Mapping[str, Key], app: str, now: float) -> dict[Key, _Term]:
    """Return the term `follow-up` of each question for which it is above 0."""
    of_app: dict[str, list[Asked]] = defaultdict(list)
    for asked in exchanges:
        of_app[asked.app].append(asked)
    last = of_app[app][-1] if of_app[app] else None
    if last is None or not last.text or last.at <= now - CHAIN_S:
        return {}
    begun, after = 0, Counter[Key]()
    for chain in of_app.values():
        begun += sum(asked.text != "" and keys[asked.text] == keys[last.text] for asked in chain)
        for one, other in pairwise(chain):
            if one.text and other.text and keys[one.text] == keys[last.text] and other.at - one.at <= CHAIN_S:
                after[keys[other.text]] += 1
    begun -= 1  # the last one, which nothing follows yet
    return {
        key: _Term(0.25 * count / begun, f"you asked this {count} of the {begun} times after what you asked last")
        for key, count in after.items()
        if count >= 2 and key != keys[last.text]
    }
