"""The rules by which a newcomer is kept, and whose place it takes.

The idea: `Buffer` holds what is kept as arrays, and an offer costs one pass over them. `reward`, `recency` and `fifo`
keep the highest by a key; `random` is a reservoir (Vitter 1985, algorithm R); `kcenter` keeps the texts far apart
(Gonzalez 1985); `qin` replaces only what is beaten in all three scores (Qin et al., arXiv 2311.12275).
The invariant: never more than `slots` are kept; the same offers with the same random numbers give the same result,
whatever the order of the bins; under qin a bin goes only for a newcomer that is higher in entropy, domain score and
dissimilarity; under kcenter the smallest distance between two bins never shrinks while they are full.
What this does not do: read or write a database (bins.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from edgepd_profiles.selection.candidates import NEED_VECTORS, POLICIES, Candidate, Chosen, Offer, Vector
from edgepd_profiles.selection.scores import dissimilarities

# Distances this near are taken as equal: how sums of float32 are rounded depends on the order of the bins.
ROUNDING = 1e-6
NEW_TOPIC = 80  # percent of the bins that are less different than one that is called a new topic

# What each of these policies keeps the highest of; the last two keys make the order complete.
KEYS: dict[str, Callable[[Candidate], tuple[float, ...]]] = {
    "reward": lambda candidate: (candidate.reward, candidate.at, candidate.order),
    "recency": lambda candidate: (candidate.at, candidate.order),
    "fifo": lambda candidate: (candidate.order, candidate.at),
}
REASONS = {
    "recency": "it is among the newest",
    "fifo": "it is among the last that came",
    "random": "drawn at random from all that came",
    "kcenter": "it is far from everything else that is kept",
}
ROOM = {"kcenter": "there was room for it", "qin": "there was room for it ({domain})"}


def offer(
    bins: Sequence[Candidate],
    newcomer: Candidate,
    slots: int,
    policy: str,
    rng: np.random.Generator,
    offered: int | None = None,
) -> Offer:
    """Say what becomes of a newcomer.

    `offered` counts what came so far with this one, which only `random` needs; without it, as many as fit and this
    one. Raises ValueError for an unknown policy, for less than one slot, and for vectors of different lengths.
    """
    return Buffer(bins, slots, policy).offer(newcomer, rng, offered)


def select(candidates: Sequence[Candidate], k: int, policy: str, seed: int) -> list[Chosen]:
    """Return at most `k` of the candidates with the reasons.

    `qin` lets them come in the order of their times, `kcenter` begins with the newest and adds the one that is
    farthest from all chosen so far; both pass over candidates without a vector. Raises ValueError as `offer` does.
    """
    _check(k, policy)
    usable = [c for c in candidates if c.vector is not None or policy not in NEED_VECTORS]
    usable.sort(key=lambda c: (c.at, c.order, c.id))
    if policy in KEYS:
        key = KEYS[policy]
        return [Chosen(c.id, _why(policy, c)) for c in sorted(usable, key=lambda c: (key(c), c.id), reverse=True)[:k]]
    if policy == "random":
        usable.sort(key=lambda c: c.id)
        drawn = np.random.default_rng(seed).permutation(len(usable))[:k]
        return [Chosen(usable[n].id, _why(policy, usable[n])) for n in drawn]
    if policy == "kcenter":
        return [Chosen(usable[n].id, _why(policy, usable[n])) for n in _far_apart(usable, k)]
    buffer, reasons = Buffer((), k, policy), dict[str, str]()
    for n, candidate in enumerate(usable):
        reasons[candidate.id] = buffer.offer(candidate, np.random.default_rng([seed, n])).reason
    return [Chosen(c.id, reasons[c.id]) for c in buffer.items]


class Buffer:
    """What is kept under one policy. `items` are in no particular order."""

    def __init__(self, items: Iterable[Candidate], slots: int, policy: str) -> None:
        """Take over what is kept. Raises ValueError as `offer` does, and if it is more than the slots."""
        _check(slots, policy)
        self.slots, self.policy = slots, policy
        self.items: list[Candidate] = []
        self._vectors: Vector = np.zeros((0, 0), dtype=np.float32)
        # Under kcenter, for each bin the distance to the nearest other one and its place; made when they are full.
        self._nearest: Vector | None = None
        self._neighbour = np.zeros(0, dtype=np.int64)
        for item in items:
            self._put(len(self.items), item)
        if len(self.items) > slots:
            raise ValueError(f"{len(self.items)} are kept, but there are {slots} slots; select among them first")

    def offer(self, newcomer: Candidate, rng: np.random.Generator, offered: int | None = None) -> Offer:
        """Keep a newcomer or not, and say why; see the function `offer`."""
        if newcomer.vector is None and self.policy in NEED_VECTORS:
            return Offer(False, None, "it has no embedding yet")
        if len(self.items) < self.slots:
            self._put(len(self.items), newcomer)
            return Offer(True, None, ROOM.get(self.policy) or _why(self.policy, newcomer))
        if self.policy in KEYS:
            place, reason = self._weaker(newcomer), _why(self.policy, newcomer)
        elif self.policy == "random":
            drawn = int(rng.integers(max(offered or 0, self.slots + 1)))
            place = self._places()[drawn] if drawn < self.slots else None
            reason = _why(self.policy, newcomer)
        elif self.policy == "kcenter":
            place, reason = self._crowded(newcomer), _why(self.policy, newcomer)
        else:
            place, reason = self._beaten(newcomer, rng)
        if place is None:
            return Offer(False, None, "what is kept is better by this policy")
        replaced = self.items[place].id
        self._put(place, newcomer)
        return Offer(True, replaced, reason)

    def dissimilarities(self) -> Vector:
        """Return the IDD of each item over the others of its domain; without a vector, what was known of it."""
        known = self._known()
        domains = np.array([item.domain for item in self.items], dtype=np.int64)
        before = np.array([item.dissimilarity for item in self.items], dtype=np.float32)
        vectors = self._vectors[: len(self.items)]
        return np.where(known, dissimilarities(vectors, domains, known), before).astype(np.float32)

    def _weaker(self, newcomer: Candidate) -> int | None:
        """Return the place of what has the lowest key, if that is below the newcomer's."""
        key = KEYS[self.policy]
        place = min(range(len(self.items)), key=lambda n: (key(self.items[n]), self.items[n].id))
        weakest = self.items[place]
        return place if (key(weakest), weakest.id) < (key(newcomer), newcomer.id) else None

    def _beaten(self, newcomer: Candidate, rng: np.random.Generator) -> tuple[int | None, str]:
        """Return the place of one bin, drawn from those below the newcomer in all three scores, and the reason."""
        kept = self.dissimilarities()
        own = 1.0 - self._likeness(newcomer)
        entropy = np.array([item.entropy for item in self.items])
        score = np.array([item.domain_score for item in self.items])
        less_different = kept < own - ROUNDING
        beaten = (entropy < newcomer.entropy) & (score < newcomer.domain_score) & less_different
        places = [n for n in self._places() if beaten[n]]
        if not places:
            return None, ""
        below = int(100 * float(less_different.mean()))
        what = "new topic ({domain}): further" if below >= NEW_TOPIC else "stands out in {domain}: further"
        reason = f"{what} from what is kept of its kind than {below} % of it, richer, and more about your topics"
        return places[int(rng.integers(len(places)))], reason

    def _likeness(self, newcomer: Candidate) -> float:
        """Return the mean cosine to the bins of the newcomer's domain, 0 if there are none."""
        same = [n for n, item in enumerate(self.items) if item.domain == newcomer.domain and item.vector is not None]
        if not same or newcomer.vector is None:
            return 0.0
        return float((self._vectors[same] @ newcomer.vector).mean())

    def _crowded(self, newcomer: Candidate) -> int | None:
        """Return the place of the oldest of the bins that are closest to another, if the newcomer is farther from all.

        Several pairs may be equally close; the oldest of all of these goes.
        """
        nearest = self._distances_to_nearest()
        closest = float(nearest.min())
        if not float(self._distances(newcomer).min()) > closest + ROUNDING:
            return None
        tied = np.flatnonzero(nearest <= closest + ROUNDING).tolist()
        return min(tied, key=lambda n: (self.items[n].at, self.items[n].id))

    def _distances_to_nearest(self) -> Vector:
        if self._nearest is None:
            self._nearest = np.full(len(self.items), np.inf, dtype=np.float32)
            self._neighbour = np.zeros(len(self.items), dtype=np.int64)
            for n in range(len(self.items)):
                self._measure(self._nearest, n)
        return self._nearest

    def _measure(self, nearest: Vector, place: int) -> None:
        """Find the neighbour of one bin. Without a vector it has none, so that nothing is removed unseen."""
        distances = self._distances(self.items[place])
        distances[place] = np.inf
        self._neighbour[place] = int(np.argmin(distances))
        nearest[place] = distances[self._neighbour[place]]

    def _distances(self, of: Candidate) -> Vector:
        if of.vector is None or not self._known().any():
            return np.full(len(self.items), np.inf, dtype=np.float32)
        distances = 1.0 - self._vectors[: len(self.items)] @ of.vector
        return np.where(self._known(), distances, np.inf).astype(np.float32)

    def _put(self, place: int, item: Candidate) -> None:
        """Set what is at a place, or add it at the end, and bring the neighbours up to date."""
        if item.vector is not None and self._vectors.shape[1] == 0:
            self._vectors = np.zeros((len(self._vectors), len(item.vector)), dtype=np.float32)
        if place >= len(self._vectors):
            grown = np.zeros((max(64, 2 * place), self._vectors.shape[1]), dtype=np.float32)
            grown[: len(self._vectors)] = self._vectors
            self._vectors = grown
        if item.vector is not None and len(item.vector) != self._vectors.shape[1]:
            raise ValueError(
                f"'{item.id}' has a vector of {len(item.vector)} numbers, the others have {self._vectors.shape[1]}"
            )
        self._vectors[place] = 0.0 if item.vector is None else item.vector
        self.items[place : place + 1] = [item]
        if self._nearest is not None:
            nearest, distances = self._nearest, self._distances(item)
            stale = set(np.flatnonzero(self._neighbour == place).tolist()) | {place}
            closer = distances < nearest
            nearest[closer], self._neighbour[closer] = distances[closer], place
            for n in stale:
                self._measure(nearest, n)

    def _places(self) -> list[int]:
        """Return all places in the order of the ids, so that a draw does not depend on how they were loaded."""
        return sorted(range(len(self.items)), key=lambda n: self.items[n].id)

    def _known(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return np.array([item.vector is not None for item in self.items], dtype=np.bool_)


def _far_apart(candidates: Sequence[Candidate], k: int) -> list[int]:
    """Return the places of at most k candidates, each the farthest from all before it; the newest (last) is first."""
    if not candidates:
        return []
    vectors = np.stack([c.vector for c in candidates if c.vector is not None])
    chosen = [len(candidates) - 1]
    nearest = 1.0 - vectors @ vectors[-1]
    while len(chosen) < min(k, len(candidates)):
        nearest[chosen[-1]] = -np.inf
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, 1.0 - vectors @ vectors[chosen[-1]])
    return chosen


def _why(policy: str, candidate: Candidate) -> str:
    if policy == "reward":
        return f"the highest satisfaction is kept, and its own is {candidate.reward:+.1f}"
    return REASONS[policy]


def _check(slots: int, policy: str) -> None:
    if policy not in POLICIES:
        raise ValueError(f"policy {policy!r} is not known; use one of {', '.join(POLICIES)}")
    if slots < 1:
        raise ValueError(f"there are {slots} slots, but there must be at least 1")
