"""When its user is likely to be there: a forecast of use by hour of the local week.

The idea: use comes in sessions, and each of the 168 hours of a week has a rate of them with a Gamma distribution, so
that the number in a stretch of time is Gamma-Poisson (Gelman et al., "Bayesian Data Analysis", 3rd ed., section 2.6).
What an hour of the week starts from is the same hour of the other days of its kind (weekday or weekend), which starts
from that hour of all days, which starts from all hours; older weeks count less, half as much after three weeks. How
sure the rate is counts too: little history gives forecasts near the mean. The invariants: only time in which the
machine was observed counts as time without use; hours are those of the clock on the wall where and when the use was, so
neither a journey nor the change to summer time moves habits; without use all is as for an unknown user, and `known`
says so.
What this does not do: predict what is used (student.py), know the machine's clock, or keep anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from edgepd.intent.schema import DAY_S, THURSDAY

HOUR_S = 3600
WEEK_HOURS = 168
SESSION_S = 900.0  # a use within this after the beginning of a session belongs to it
HALF_LIFE_S = 21.0 * DAY_S
SEEN_S = 182.0 * DAY_S  # older use would count less than a four-hundredth
# What each level starts from the one above with: the shape of its Gamma, which is as if so many sessions were seen.
HOUR_SHAPE, KIND_SHAPE, DAY_SHAPE, WHOLE_SHAPE = 2.0, 2.0, 1.0, 6.0
UNKNOWN_RATE = 0.25  # sessions an hour: six a day
KNOWN_DAYS, KNOWN_SESSIONS = 3.0, 10
BETTER = 0.5  # a clearly better time has at most this share of the probability of use now
AWAKE_SHARE = 0.5  # of an hour in which the machine must usually be on, or nothing can be done in it
AWAKE_WEIGHT = 2.0  # hours

Spans = Iterable[tuple[float, float, int]]  # from, to (unix seconds), offset


@dataclass(frozen=True)
class Use:
    """Something that the user did at `at`, in unix seconds, where local time was `utc_offset_s` ahead of UTC."""

    at: float
    utc_offset_s: int = 0


@dataclass
class Awake:
    """For how long the machine was on, by hour of the local week, since `since`; older time counts less."""

    since: float
    at: float  # unix seconds, to which the hours have faded
    hours: list[float]

    @classmethod
    def begin(cls, at: float) -> Self:
        """Return a record that begins now, in unix seconds."""
        return cls(at, at, [0.0] * WEEK_HOURS)

    def add(self, at: float, utc_offset_s: int, seconds: float) -> None:
        """Count seconds that end at `at`; time before the newest (a clock was set back) counts as if it were that."""
        if at > self.at:
            self.hours = self.faded(at)
            self.at = at
        self.hours[hour_of_week(at, utc_offset_s)] += seconds / HOUR_S

    def faded(self, now: float) -> list[float]:
        """Return the hours as they count at a later time."""
        factor = _weight(max(0.0, now - self.at))
        return [hours * factor for hours in self.hours]


def hour_of_week(at: float, utc_offset_s: int) -> int:
    """Return the hour of the local week, 0 for Monday 00:00 to 167; any finite time is valid."""
    hours = math.floor(at + utc_offset_s) // HOUR_S
    return (hours + 24 * THURSDAY) % WEEK_HOURS


def sessions(uses: Iterable[Use]) -> list[Use]:
    """Return the first use of each session, in order: one begins with a use at which none has begun for SESSION_S.

    So long use counts several times, four times an hour at most, and a burst of events once.
    """
    found: list[Use] = []
    for use in sorted(uses, key=lambda use: use.at):
        if not found or use.at - found[-1].at >= SESSION_S:
            found.append(use)
    return found


class Rhythm:
    """A forecast; it does not change."""

    def __init__(self, uses: Sequence[Use], now: float, awake: Awake | None = None) -> None:
        """Learn from the uses up to `now`, in unix seconds; those later (a clock was set back) are left out.

        Observed is the time from the first use to `now`; and from `awake.since` on, where there is such a record, only
        what that has.
        """
        oldest = now - SEEN_S
        begun = sessions(use for use in uses if oldest <= use.at <= now)
        counts, observed = [0.0] * WEEK_HOURS, [0.0] * WEEK_HOURS
        for use in begun:
            counts[hour_of_week(use.at, use.utc_offset_s)] += _weight(now - use.at)
        _add_spans(observed, _spans(begun, now if awake is None else min(now, awake.since)), now)
        calendar = [0.0] * WEEK_HOURS
        on = [0.0] * WEEK_HOURS if awake is None else awake.faded(now)
        if awake is not None:
            observed = [a + b for a, b in zip(observed, on, strict=True)]
            offset = begun[-1].utc_offset_s if begun else 0
            _add_spans(calendar, [(max(oldest, awake.since), now, offset)], now)
        self.sessions = len(begun)
        self.known = len(begun) >= KNOWN_SESSIONS and now - begun[0].at >= KNOWN_DAYS * DAY_S
        # Per hour of the week: Gamma(shape, rate in 1/h) of the sessions an hour.
        self._gammas = _gammas(counts, observed)
        self._awake = _shares(on, calendar)

    def expected_use(self, at: float, utc_offset_s: int, horizon_s: float) -> float:
        """Return how many sessions are expected in the next `horizon_s` seconds. Raises ValueError if that is < 0."""
        total = 0.0
        for hour, hours in _pieces(at, utc_offset_s, horizon_s):
            shape, rate = self._gammas[hour]
            total += shape / rate * hours
        return total

    def quiet_probability(self, at: float, utc_offset_s: int, horizon_s: float) -> float:
        """Return the probability that no session begins in `horizon_s` seconds, if the machine is on.

        Of Poisson counts with a Gamma-distributed rate, P(0 in t) = (rate / (rate + t)) ** shape; hours of the week are
        independent. Raises ValueError if the horizon is negative or not finite.
        """
        logarithm = 0.0
        for hour, hours in _pieces(at, utc_offset_s, horizon_s):
            shape, rate = self._gammas[hour]
            logarithm -= shape * math.log1p(hours / rate)
        return math.exp(logarithm)

    def awake_share(self, at: float, utc_offset_s: int) -> float:
        """Return the share of that hour of the week in which the machine is usually on; 1 where nothing is known."""
        return self._awake[hour_of_week(at, utc_offset_s)]

    def better_window(
        self,
        at: float,
        offset_at: Callable[[float], int],
        length_s: float,
        within_s: float,
        usable: Callable[[float], bool] = lambda _: True,
    ) -> float | None:
        """Return in how many seconds a clearly better time of `length_s` begins, within `within_s`; None: in none.

        The first full hour, by the clock on the wall, at which use is at most half as likely as now, the machine is
        usually on, and that is `usable`. `offset_at` gives the UTC offset at a time.
        """
        most = BETTER * (1.0 - self.quiet_probability(at, offset_at(at), length_s))
        start = at + HOUR_S - (at + offset_at(at)) % HOUR_S
        while start - at <= within_s:
            offset = offset_at(start)
            quiet = 1.0 - self.quiet_probability(start, offset, length_s) <= most
            if quiet and self.awake_share(start, offset) >= AWAKE_SHARE and usable(start):
                return start - at
            start += HOUR_S
        return None


def _weight(age_s: float) -> float:
    return math.exp2(-age_s / HALF_LIFE_S)


def _pieces(at: float, utc_offset_s: int, length_s: float) -> Iterator[tuple[int, float]]:
    """Yield the hours of the week that a stretch of time touches, each with how much of it, in hours."""
    if not (math.isfinite(at) and 0 <= length_s < math.inf):
        raise ValueError(
            f"{length_s} s from {at} on are no stretch of time; both must be finite, and the first not < 0"
        )
    local, end = at + utc_offset_s, at + utc_offset_s + length_s
    hour = math.floor(local / HOUR_S)
    while local < end:
        until = min(end, HOUR_S * (hour + 1.0))
        yield (hour + 24 * THURSDAY) % WEEK_HOURS, (until - local) / HOUR_S
        local, hour = until, hour + 1


def _spans(begun: Sequence[Use], until: float) -> Spans:
    """Yield the time from the first session to `until`, each stretch with the offset of the session before it."""
    ends = [use.at for use in begun[1:]] + [until]
    for use, end in zip(begun, ends, strict=False):  # without a session there is one end too many
        if use.at < min(end, until):
            yield use.at, min(end, until), use.utc_offset_s


def _add_spans(hours: list[float], spans: Spans, now: float) -> None:
    """Add stretches of time to the hours of the week, older ones with less weight."""
    for start, end, offset in spans:
        at = start
        for hour, length in _pieces(start, offset, max(0.0, end - start)):
            hours[hour] += length * _weight(now - at)
            at += length * HOUR_S


def _gammas(counts: Sequence[float], observed: Sequence[float]) -> list[tuple[float, float]]:
    def learned(start: tuple[float, float], hours: Sequence[int]) -> tuple[float, float]:
        """Return the posterior: shape and rate, in hours, plus sessions and time."""
        return start[0] + sum(counts[i] for i in hours), start[1] + sum(observed[i] for i in hours)

    def below(above: tuple[float, float], shape: float) -> tuple[float, float]:
        """Return a Gamma with the mean of another."""
        return shape, shape * above[1] / above[0]

    whole = learned((WHOLE_SHAPE, WHOLE_SHAPE / UNKNOWN_RATE), range(WEEK_HOURS))
    gammas = [whole] * WEEK_HOURS
    for hour in range(24):
        daily = range(hour, WEEK_HOURS, 24)
        of_day = learned(below(whole, DAY_SHAPE), daily)
        for kind in (daily[:5], daily[5:]):
            of_kind = learned(below(of_day, KIND_SHAPE), kind)
            for i in kind:
                gammas[i] = learned(below(of_kind, HOUR_SHAPE), [i])
    return gammas


def _shares(on: Sequence[float], calendar: Sequence[float]) -> list[float]:
    """Return the share of each hour of the week in which the machine is on, from its hours on and hours in all."""
    whole = _mean(1.0, AWAKE_WEIGHT, on, calendar)
    shares = [1.0] * WEEK_HOURS
    for hour in range(24):
        daily = range(hour, WEEK_HOURS, 24)
        of_day = _mean(whole, AWAKE_WEIGHT, [on[i] for i in daily], [calendar[i] for i in daily])
        for i in daily:
            shares[i] = min(1.0, _mean(of_day, AWAKE_WEIGHT, [on[i]], [calendar[i]]))
    return shares


def _mean(start: float, weight: float, counts: Sequence[float], hours: Sequence[float]) -> float:
    """Return a mean that starts from one which is worth `weight` hours of observation."""
    return (weight * start + sum(counts)) / (weight + sum(hours))
