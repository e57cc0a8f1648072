from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edgepd.intent.candidates import Past
from edgepd.intent.schema import Event, Names
from edgepd.intent.scorer import TABLES, scored, scorer_shapes
from edgepd.intent.scorer_training import ScorerTraining, examples_of, train_scorer
from edgepd.intent.shape import Shape
from tests.intent.intent_helpers import MONDAY, NAMES, TINY, circle, scorer_of

KNOWN = Names(len(NAMES), list(NAMES))
CODES = {name: code for code, name in enumerate(NAMES)}
OPEN = replace(TINY, open_names=True)
TRAINING = ScorerTraining(epochs=30, rows=32, learning_rate=5e-3)


def said(weights: dict[str, np.ndarray], events: list[Event], at: float, candidates: list[str] = NAMES) -> np.ndarray:
    past = Past.of(events, {name: code for code, name in enumerate(candidates)})
    return scored(weights, past, candidates, KNOWN, at, 0)


@pytest.mark.parametrize("shape", [TINY, OPEN])
def test_numpy_computes_what_torch_computes(shape: Shape) -> None:
    scorer = scorer_of(shape)
    weights = scorer.exported()
    assert {name: value.shape for name, value in weights.items()} == scorer_shapes(shape)
    events = circle(12, 1)
    examples = examples_of(shape, [events], KNOWN)
    with torch.no_grad():
        chances = scorer(replace(examples, features=examples.features.clamp(scorer.least, scorer.most))).softmax(-1)
    order = list(dict.fromkeys(event.intent for event in events)) if shape.open_names else list(NAMES)
    places = [p for p, e in enumerate(events) if not shape.open_names or e.intent in {x.intent for x in events[:p]}]
    assert len(places) == len(chances)
    for place, expected in zip(places, chances.numpy(), strict=True):
        seen = {event.intent for event in events[:place]}
        candidates = [name for name in order if name in seen] if shape.open_names else order
        found = said(weights, events[:place], events[place].at, candidates)
        np.testing.assert_allclose(found, expected[: len(candidates)], rtol=1e-3, atol=1e-5)
        assert found.sum() == pytest.approx(1, abs=1e-5)


def test_an_example_knows_nothing_of_itself_but_its_time() -> None:
    events = circle(9, 2)
    changed = [*events[:-1], replace(events[-1], intent="map" if events[-1].intent != "map" else "mail")]
    one, two = (examples_of(TINY, [each], KNOWN) for each in (events, changed))
    assert torch.equal(one.features, two.features)
    assert torch.equal(one.last, two.last)
    assert not torch.equal(one.target, two.target)


@pytest.mark.parametrize("shape", [TINY, OPEN])
def test_training_learns_the_circle_and_a_seed_gives_the_same_again(shape: Shape) -> None:
    people = [circle(20, seed) for seed in range(12)]
    losses: list[float] = []
    weights = train_scorer(shape, people, KNOWN, TRAINING, lambda _epoch, loss: losses.append(loss))
    assert losses[-1] < 0.8 * losses[0]
    for name, value in train_scorer(shape, people, KNOWN, TRAINING).items():
        assert np.array_equal(value, weights[name]), name
    person = circle(40, 99, noise=0.0)
    right = sum(
        NAMES[int(said(weights, person[:place], person[place].at).argmax())] == person[place].intent
        for place in range(20, 40)
    )
    assert right >= 16


def test_where_names_are_open_they_mean_nothing() -> None:
    weights = train_scorer(OPEN, [circle(20, seed) for seed in range(6)], Names(0), replace(TRAINING, epochs=2))
    assert not set(TABLES) & set(weights)
    events = circle(20, 50)
    others = {name: f"other {name}" for name in NAMES}
    renamed = [replace(e, intent=others[e.intent], event=others[e.event]) for e in events]
    found = said(weights, events, MONDAY + 1e6)
    np.testing.assert_allclose(said(weights, renamed, MONDAY + 1e6, [others[name] for name in NAMES]), found)


def test_no_feature_counts_for_more_than_in_training() -> None:
    weights = train_scorer(TINY, [circle(20, seed) for seed in range(6)], KNOWN, replace(TRAINING, epochs=2))
    events = circle(20, 50)
    later, much_later = (said(weights, events, events[-1].at + days * 7 * 86_400.0) for days in (100, 1000))
    np.testing.assert_allclose(later, much_later, rtol=1e-4)


def test_people_of_whom_nothing_can_be_learned_are_refused() -> None:
    with pytest.raises(ValueError, match="no event to learn from"):
        train_scorer(OPEN, [[Event(MONDAY, "mail", "mail")]], Names(0))
