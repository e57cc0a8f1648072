"""What is next, from counts alone: the most usual intent, Markov chains, and one that takes on a user's habits.

The idea: an estimate is a chain of levels, from what everybody does to what this user does after the last intent. Each
level is a table of counts, smoothed by a Dirichlet prior whose mean is the level before it:
p(y) = (count(y) + c * p_before(y)) / (total + c). The concentrations c are fitted on people who were not counted.
The invariants: probabilities are over the intents of the population and of the user, positive, and add up to 1; nothing
but the past counts. It is what a neural model has to beat, and pure python: the daemon may use it at no cost.
What this does not do: look further back than two intents, or read names of events and contexts.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from edgepd.intent.schema import Event, moment

SLOTS_PER_DAYPART = 4  # half hours: a day has twelve dayparts
SATURDAY = 5
HELD_OUT_EVENTS = 6000  # for fitting the concentrations; more of them change little
OCTAVES = range(-4, 15)  # concentrations are powers of 2 in this range
LEAST_GAIN = 1e-5  # nats for each held-out event; what gains less is left as it is
START = ""  # what was before the first event

Key = tuple[str, ...]
Table = dict[Key, Counter[str]]
Cell = tuple[int, int]  # how often the intent was counted, how often anything was


@dataclass(frozen=True)
class Level:
    """One table of counts: of everybody or of the user, after `order` intents, at this part of the day or at any."""

    of_user: bool
    order: int = 0
    daypart: bool = False

    def key(self, before: tuple[str, str], part: str) -> Key:
        """Return where in the table is looked; `before` holds the last intent but one, and the last."""
        return (*before[2 - self.order :], *([part] if self.daypart else []))


POPULATION, AFTER_ONE, AFTER_TWO = (Level(of_user=False, order=order) for order in range(3))
AT_PART, AFTER_ONE_AT_PART = (Level(of_user=False, order=order, daypart=True) for order in range(2))
USER, USER_AFTER_ONE = (Level(of_user=True, order=order) for order in range(2))
USER_AT_PART = Level(of_user=True, daypart=True)


@dataclass(frozen=True)
class Chain:
    """Levels from the widest to the narrowest. Fit it on a population, then adapt it to a user; both return a new one.

    `online`: the user's counts are those of the whole history at each prediction; else those of what it adapted to.
    """

    online: bool = False
    concentrations: tuple[float, ...] = ()  # of each level; empty: the usual ones below, or those that fit() finds
    population: Mapping[Level, Table] | None = None
    known: tuple[str, ...] = ()  # the population's intents
    user: Mapping[Level, Table] | None = None
    users_own: tuple[str, ...] = ()  # intents of the user

    # Each level with its concentration where there is no population to fit it on: as fitted on public check-ins.
    LEVELS: ClassVar[Mapping[Level, float]] = {POPULATION: 1.0}
    FITTED: ClassVar[bool] = True

    def fit(self, population: Sequence[Sequence[Event]]) -> Self:
        """Count what people do, each a sequence in order of time; fit the concentrations where people suffice.

        Every second one is counted, and the others are predicted event by event, each from what came before; the
        concentrations are those under which what they did is most likely. Then all are counted.
        """
        concentrations = self.concentrations
        if not concentrations and self.FITTED and len(population) > 1:
            concentrations = _most_likely(list(self._held_out(population)), tuple(self.LEVELS.values()))
        known = sorted({event.intent for events in population for event in events})
        counted = _count(population, self.LEVELS, of_user=False)
        return replace(self, concentrations=concentrations, population=counted, known=tuple(known))

    def adapt(self, train: Sequence[Event]) -> Self:
        """Count what one user did; it forgets any user before."""
        counted = _count([train], self.LEVELS, of_user=True)
        return replace(self, user=counted, users_own=tuple(sorted({event.intent for event in train})))

    def probabilities(self, history: Sequence[Event], at: float, utc_offset_s: int = 0) -> dict[str, float]:
        """Return intent -> probability of being next at `at`, the most probable first, and by name among equals.

        `history` is all that the user did before, oldest first. Empty if nobody ever did anything.
        """
        user = _count([history], self.LEVELS, of_user=True) if self.online else self.user or {}
        intents = {*self.known, *self.users_own, *(event.intent for event in history)}
        return self._chances(intents, user, _last_two(history), _daypart(at, utc_offset_s))

    def one_by_one(self, history: Sequence[Event], events: Sequence[Event]) -> Iterator[dict[str, float]]:
        """Yield the probabilities before each of these events, from all that came before it.

        The same as `probabilities` for each, but in one pass: online counts grow event by event.
        """
        user = _count([history], self.LEVELS, of_user=True) if self.online else self.user or {}
        intents = {*self.known, *self.users_own, *(event.intent for event in history)}
        for before, event in _steps(events, _last_two(history)):
            part = _daypart(event.at, event.utc_offset_s)
            yield self._chances(intents, user, before, part)
            intents.add(event.intent)
            if self.online:
                _add(user, before, part, event.intent)

    def _chances(
        self, intents: set[str], user: Mapping[Level, Table], before: tuple[str, str], part: str
    ) -> dict[str, float]:
        chances = {name: 1 / len(intents) for name in sorted(intents)}
        for level, concentration in zip(self.LEVELS, self.concentrations or self.LEVELS.values(), strict=True):
            counts = _table(level, self.population or {}, user).get(level.key(before, part), Counter())
            total = counts.total() + concentration
            chances = {name: (counts[name] + concentration * chance) / total for name, chance in chances.items()}
        return dict(sorted(chances.items(), key=lambda item: -item[1]))

    def _held_out(self, population: Sequence[Sequence[Event]]) -> Iterator[tuple[float, list[Cell]]]:
        """Yield (chance of the intent before any level, its counts at each level) of events of those not counted."""
        everybody = _count(population[0::2], self.LEVELS, of_user=False)
        known = len({event.intent for events in population for event in events})
        left = HELD_OUT_EVENTS
        for events in population[1::2]:
            own: dict[Level, Table] = {level: defaultdict(Counter) for level in self.LEVELS if level.of_user}
            for before, event in _steps(events[:left]):
                part = _daypart(event.at, event.utc_offset_s)
                cells = []
                for level in self.LEVELS:
                    counts = _table(level, everybody, own).get(level.key(before, part), Counter())
                    cells.append((counts[event.intent], counts.total()))
                yield 1 / known, cells
                _add(own, before, part, event.intent)
            left -= min(left, len(events))


class Majority(Chain):
    """What everybody does most, whoever and whenever it is."""


class UserMajority(Chain):
    """What the user did most; the population only decides between equals. It is not smoothed, so never fitted."""

    LEVELS: ClassVar[Mapping[Level, float]] = {POPULATION: 1.0, USER: 0.001}
    FITTED: ClassVar[bool] = False


class Markov1(Chain):
    """What everybody does after the last intent."""

    LEVELS: ClassVar[Mapping[Level, float]] = {POPULATION: 1.0, AFTER_ONE: 64.0}


class Markov2(Chain):
    """What everybody does after the last two intents."""

    LEVELS: ClassVar[Mapping[Level, float]] = {POPULATION: 1.0, AFTER_ONE: 64.0, AFTER_TWO: 64.0}


class UserMarkov(Chain):
    """What the user does after the last intent, on top of what the user and everybody do: the bar to beat."""

    LEVELS: ClassVar[Mapping[Level, float]] = {POPULATION: 1.0, AFTER_ONE: 8.0, USER: 16.0, USER_AFTER_ONE: 8.0}


class UserMarkovByHour(Chain):
    """As UserMarkov, with the part of the day, on working days and at weekends."""

    LEVELS: ClassVar[Mapping[Level, float]] = {
        POPULATION: 1.0,
        AT_PART: 16.0,
        AFTER_ONE_AT_PART: 64.0,
        USER: 32.0,
        USER_AT_PART: 8.0,
        USER_AFTER_ONE: 16.0,
    }


def _table(level: Level, everybody: Mapping[Level, Table], user: Mapping[Level, Table]) -> Table:
    return (user if level.of_user else everybody).get(level, {})


def _count(sequences: Sequence[Sequence[Event]], levels: Mapping[Level, float], of_user: bool) -> dict[Level, Table]:
    """Return the counts of the levels that are of a user, or of those that are not."""
    tables: dict[Level, Table] = {level: defaultdict(Counter) for level in levels if level.of_user == of_user}
    for events in sequences:
        for before, event in _steps(events):
            _add(tables, before, _daypart(event.at, event.utc_offset_s), event.intent)
    return tables


def _add(tables: Mapping[Level, Table], before: tuple[str, str], part: str, intent: str) -> None:
    for level, table in tables.items():
        table[level.key(before, part)][intent] += 1


def _steps(
    events: Sequence[Event], before: tuple[str, str] = (START, START)
) -> Iterator[tuple[tuple[str, str], Event]]:
    """Yield each event with the two intents before it."""
    for event in events:
        yield before, event
        before = (before[1], event.intent)


def _last_two(history: Sequence[Event]) -> tuple[str, str]:
    names = [START, START, *(event.intent for event in history[-2:])]
    return names[-2], names[-1]


def _daypart(at: float, utc_offset_s: int) -> str:
    now = moment(at, utc_offset_s)
    return f"{'weekend' if now.weekday >= SATURDAY else 'working'} {now.slot // SLOTS_PER_DAYPART}"


def _most_likely(held_out: Sequence[tuple[float, list[Cell]]], start: tuple[float, ...]) -> tuple[float, ...]:
    """Return the concentrations under which the held-out events are most likely: one at a time, by octaves."""
    octaves = [round(math.log2(concentration)) for concentration in start]
    best = _log_likelihood(held_out, octaves)
    better = True
    while better:  # ends: each round raises the likelihood, and there are finitely many octaves
        better = False
        for place, step in ((place, step) for place in range(len(octaves)) for step in (1, -1)):
            while octaves[place] + step in OCTAVES:
                tried = [*octaves[:place], octaves[place] + step, *octaves[place + 1 :]]
                likelihood = _log_likelihood(held_out, tried)
                if likelihood <= best + LEAST_GAIN * len(held_out):
                    break
                octaves, best, better = tried, likelihood, True
    return tuple(2.0**octave for octave in octaves)


def _log_likelihood(held_out: Sequence[tuple[float, list[Cell]]], octaves: Sequence[int]) -> float:
    concentrations = [2.0**octave for octave in octaves]
    total = 0.0
    for first, cells in held_out:
        chance = first
        for (count, out_of), concentration in zip(cells, concentrations, strict=True):
            chance = (count + concentration * chance) / (out_of + concentration)
        total += math.log(chance)
    return total
