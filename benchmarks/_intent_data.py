"""The data of `make bench-intent`: what people in the USA did, and the protocol by which every arm is judged.

The file is `USA_Foursqaure.json` (sic) of github.com/tsinghua-fib-lab/SAND: check-ins of 28 days in 14 categories,
which are event and intent alike. It stands in for the Mobile set of PITuning, which is not public. A time is hours
since the start; neither date nor weekday of the start is told. Hour 0 is taken as a Monday at midnight: work is a
third as common on the sixth and seventh day, and dinner is in the evening; so it is local time, and these are weekends.
The protocol: a seed draws the individual users; all others are the population. Each individual user's events are cut
by time into train, validation and test, and each test event is predicted from all that this user did before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgepd.errors import RequestError
from edgepd.intent.data import Split, chronological, split_users
from edgepd.intent.markov import Chain
from edgepd.intent.schema import Event

MONDAY = 1_514_764_800  # 2018-01-01 00:00 UTC
LONGEST_H = 31 * 24
INDIVIDUAL = 600
LEAST_EVENTS = 30
SHARES = (0.6, 0.1, 0.3)

Ranker = Callable[[Sequence[Event], float, int], Mapping[str, float]]  # history, at, utc_offset_s


def foursquare(path: Path) -> dict[str, list[Event]]:
    """Return the events of each user, oldest first; users have no names there and get their number as one.

    Raises RequestError for a file that is not as described above.
    """
    try:
        people = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(people, list):
        raise RequestError(f"{path}: is not a list of users; use USA_Foursqaure.json of tsinghua-fib-lab/SAND")
    return {f"u{number:05d}": _events(path, number, visits) for number, visits in enumerate(people)}


def _events(path: Path, number: int, visits: object) -> list[Event]:
    """Return the events of one user; times are whole minutes, which hours to four places hold exactly enough."""
    found = []
    for visit in visits if isinstance(visits, list) else [None]:
        match visit:
            case [int() | float() as hours, str() as activity] if 0 <= hours <= LONGEST_H and activity:
                found.append(Event(MONDAY + 60.0 * round(hours * 60), activity, activity))
            case _:
                raise RequestError(f"{path}: user {number}: {str(visit)[:80]!r} is not [hours, activity]")
    return sorted(found, key=lambda event: event.at)


@dataclass(frozen=True)
class Protocol:
    """One draw: whom the population model learns from, and by whom the arms are judged."""

    seed: int
    population: dict[str, list[Event]]
    individual: dict[str, Split]
    intents: tuple[str, ...]  # the classes of the metrics, by name

    @property
    def population_counts(self) -> list[int]:
        """Return how often each class occurs in the population, for metrics.rarest."""
        numbers = {name: number for number, name in enumerate(self.intents)}
        counts = [0] * len(self.intents)
        for events in self.population.values():
            for event in events:
                counts[numbers[event.intent]] += 1
        return counts

    def truth(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the class and the user's number of each test event, in the order of `to_predict`."""
        numbers = {name: number for number, name in enumerate(self.intents)}
        classes = [numbers[event.intent] for split in self.individual.values() for event in split.test]
        users = [number for number, split in enumerate(self.individual.values()) for _ in split.test]
        return np.array(classes, dtype=np.int64), np.array(users, dtype=np.int64)


def protocol(users: Mapping[str, Sequence[Event]], seed: int, individual: int = INDIVIDUAL) -> Protocol:
    """Return the draw of this seed; individual users have at least LEAST_EVENTS events.

    With fewer such users than asked for, half of them are drawn.
    """
    eligible = {user for user, events in users.items() if len(events) >= LEAST_EVENTS}
    number = individual if individual <= len(eligible) else len(eligible) // 2
    drawn = split_users(users, number, seed, eligible)
    return Protocol(
        seed,
        {user: list(users[user]) for user in drawn.population},
        {user: chronological(users[user], SHARES) for user in drawn.individual},
        tuple(sorted({event.intent for events in users.values() for event in events})),
    )


def to_predict(split: Split) -> Iterator[tuple[list[Event], Event]]:
    """Yield each test event of a user with all that came before it."""
    history = [*split.train, *split.validation]
    for event in split.test:
        yield history, event
        history = [*history, event]


def predictions(
    drawn: Protocol, ranker_of: Callable[[Sequence[Event], Sequence[Event]], Ranker]
) -> npt.NDArray[np.float64]:
    """Return the probabilities (N, C) of an arm; `ranker_of` makes its predictor for a user from train and validation.

    What an arm gives to names outside the classes is lost to it.
    """
    rows = []
    for split in drawn.individual.values():
        ranker = ranker_of(split.train, split.validation)
        for history, event in to_predict(split):
            chances = ranker(history, event.at, event.utc_offset_s)
            rows.append([chances.get(name, 0.0) for name in drawn.intents])
    return np.array(rows, dtype=np.float64)


def counted(drawn: Protocol, fitted: Chain) -> npt.NDArray[np.float64]:
    """Return the probabilities (N, C) of an arm of counts, adapted to each user's train and validation events."""
    rows = []
    for split in drawn.individual.values():
        past = [*split.train, *split.validation]
        for chances in fitted.adapt(past).one_by_one(past, split.test):
            rows.append([chances.get(name, 0.0) for name in drawn.intents])
    return np.array(rows, dtype=np.float64)
