"""Whether a tuned model of what comes next is better than the one that serves, by events that it was not tuned on.

The idea: the newest events are held out; each is predicted from all that came before it, by every model alike, and the
events are the pairs that are compared. The candidate passes if it finds what happened likelier than the model that
serves and than the shipped one, untuned, and ranks no worse. The invariants: what is held out is later than anything
that is learned; a name that a model has never seen costs every model the same.
What this does not do: tune, or tune once more on what was held out. So what was judged is what serves, and no model was
ever tuned on the events that it is compared by: those that are held out now are newer than what any earlier run has
learned, as long as intent.held_out_share stays and no old log is imported; where they are not, what serves has the
advantage. The newest events are learned by the next run; until then the model
still sees them, as the history that it predicts from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgepd.intent.markov import UserMarkovByHour
from edgepd.intent.schema import Event

MIN_HELD_OUT = 8  # events; with fewer, chance decides
MAX_HELD_OUT = 300  # each costs a prediction of every model, some milliseconds
LEAST_PROBABILITY = 1e-4  # below which no model is taken at its word: one surprise must not decide
NDCG_SLACK = 0.005  # of N@3, which steps with every event: so much less is no loss


class Ranker(Protocol):
    """A student, as far as it is judged."""

    def ranked(self, events: Sequence[Event], at: float, utc_offset_s: int) -> list[tuple[str, float]]:
        """Return the intents with their probabilities, the likeliest first."""


@dataclass(frozen=True)
class Split:
    """Events to tune on, and the newer ones to judge by."""

    learn: Sequence[Event]
    held_out: Sequence[Event]


@dataclass(frozen=True)
class Measured:
    """Means over the held-out events: nats by which one surprised the model, and N@3 (metrics.py)."""

    nll: float
    ndcg_3: float


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate may serve, why, and the numbers."""

    passed: bool
    reason: str
    scores: dict[str, float]


def split(events: Sequence[Event], share: float) -> Split | None:
    """Hold out the newest `share` of the events, which are in order of time, but MIN_HELD_OUT to MAX_HELD_OUT of them.

    None if not as many would be left to learn from.
    """
    held_out = min(MAX_HELD_OUT, max(MIN_HELD_OUT, round(share * len(events))))
    if len(events) < held_out + MIN_HELD_OUT:
        return None
    return Split(events[:-held_out], events[-held_out:])


def too_few(events: int) -> str:
    """Return the sentence for events of which `split` makes nothing."""
    return (
        f"there are not enough events to judge by: {events}; it takes {2 * MIN_HELD_OUT}, of which {MIN_HELD_OUT} are "
        "held out"
    )


def judge(
    candidate: Ranker,
    serving: Ranker | None,
    shipped: Ranker,
    parts: Split,
    on_event: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Compare the candidate with the tuned model that serves, None if the shipped one does, and with that.

    `on_event` is told how many of how many predictions are made. The count model is measured as well, and decides
    nothing: where it is better, the candidate may still be better than what serves.
    """
    models = {"after": candidate, "shipped": shipped} | ({} if serving is None else {"before": serving})
    total, found = len(models) * len(parts.held_out), dict[str, Measured]()
    for place, (name, model) in enumerate(models.items()):
        found[name] = measured(model, parts, _counted_on(on_event, place * len(parts.held_out), total))
    found.setdefault("before", found["shipped"])
    counts = UserMarkovByHour(online=True).one_by_one(parts.learn, parts.held_out)
    found["markov"] = _mean(zip((list(chances.items()) for chances in counts), parts.held_out, strict=True))
    scores = {f"nll_{name}": round(each.nll, 4) for name, each in found.items()}
    scores |= {f"ndcg_3_{name}": round(each.ndcg_3, 4) for name, each in found.items()}
    scores |= {"learned_events": len(parts.learn), "held_out_events": len(parts.held_out)}
    passed, reason = _decided(found, len(parts.held_out), tuned_serves=serving is not None)
    return Verdict(passed, reason, scores)


def measured(model: Ranker, parts: Split, on_event: Callable[[int], None] | None = None) -> Measured:
    """Predict each held-out event from all before it, at the moment at which it happened."""
    history = [*parts.learn, *parts.held_out]

    def predictions() -> Iterator[tuple[list[tuple[str, float]], Event]]:
        for done, event in enumerate(parts.held_out):
            if on_event is not None:
                on_event(done)
            yield model.ranked(history[: len(parts.learn) + done], event.at, event.utc_offset_s), event

    return _mean(predictions())


def _counted_on(on_event: Callable[[int, int], None] | None, begun: int, total: int) -> Callable[[int], None] | None:
    return None if on_event is None else lambda done: on_event(begun + done, total)


def _mean(predictions: Iterator[tuple[list[tuple[str, float]], Event]]) -> Measured:
    nll, gain, count = 0.0, 0.0, 0
    for ranked, event in predictions:
        names = [name for name, _ in ranked]
        rank = names.index(event.intent) + 1 if event.intent in names else math.inf
        probability = dict(ranked).get(event.intent, 0.0)
        nll -= math.log(max(LEAST_PROBABILITY, probability))
        gain += 1 / math.log2(1 + rank) if rank <= 3 else 0.0
        count += 1
    return Measured(nll / count, gain / count)


def _decided(found: Mapping[str, Measured], events: int, *, tuned_serves: bool) -> tuple[bool, str]:
    """Return whether the candidate passes, and why, with the numbers of both sides."""
    after, shipped = found["after"], found["shipped"]
    others = [("the tuned model that serves", found["before"])] if tuned_serves else []
    others.append(("the shipped model" if tuned_serves else "the shipped model, which serves", shipped))
    for name, other in others:
        if not after.nll < other.nll:  # nor if it is not a number
            return False, f"it surprises more than {name}: {_nats(after)}, not less than {_nats(other)}"
    for name, other in others:
        if after.ndcg_3 < other.ndcg_3 - NDCG_SLACK:
            return False, f"it ranks worse than {name}: N@3 {after.ndcg_3:.3f}, {other.ndcg_3:.3f} before"
    than = " and ".join(f"{name} ({_nats(other)})" for name, other in others)
    return True, f"it foresees {events} events that it was not tuned on better ({_nats(after)}) than {than}"


def _nats(of: Measured) -> str:
    return f"{of.nll:.3f} nats/event"
