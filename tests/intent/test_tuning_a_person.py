"""Unlearning is bounded and comes to chance; tuning recovers what was unlearned; both are the same again by seed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd.intent.batches import batch_of
from edgepd.intent.encode import encode
from edgepd.intent.individual import Tuning, overlapping, tune, tune_predictor
from edgepd.intent.losses import bounded_unlearning, distillation, focal, kept_divergence
from edgepd.intent.metrics import score
from edgepd.intent.population import PopulationTraining, train_population
from edgepd.intent.predictor import Predictor
from edgepd.intent.schema import Event, Vocabulary
from edgepd.intent.student import Student
from edgepd.intent.unlearn import Unlearning, forget_set, unlearn
from edgepd.settings import Intent
from tests.intent.intent_helpers import MONDAY, NAMES, TINY, circle, names, weights_of, windows


@pytest.fixture(scope="module")
def population() -> Predictor:
    torch.manual_seed(0)
    made = Predictor(replace(TINY, width=8))
    train_population(made, windows(40), PopulationTraining(epochs=40, learning_rate=1e-2, rows=8))
    return made


def copy_of(made: Predictor) -> Predictor:
    other = Predictor(made.shape)
    other.load_state_dict(made.state_dict())
    return other.eval()


def test_the_forget_set_is_that_of_equations_8_to_10() -> None:
    output, population = [0.001, 0.5, 0.2, 0.2, 0.099], [0.05, 0.5, 0.15, 0.2, 0.1]
    own = [0.1, 0.0, 0.3, 0.1, 0.5]
    assert forget_set(output, population, own, threshold=0.01) == {0, 2, 4}  # static; dynamic; dynamic
    assert forget_set(output, population, [0, 0.5, 0.1, 0.4, 0], threshold=0.01) == set()  # never shown: not forgotten


def measured(made: Predictor, gone: int) -> tuple[float, float]:
    """Return the recall of one class on new users, and the macro F1 on the places of the others."""
    batch = batch_of(windows(60)[40:])
    with torch.no_grad():
        probabilities = made(batch).softmax(-1)[batch.counted].double().numpy()
    truth = batch.target[batch.counted].numpy()
    recall = float((probabilities[truth == gone].argmax(1) == gone).mean())
    rest = truth != gone
    return recall, score(truth[rest], probabilities[rest]).f1_macro


def test_what_is_unlearned_falls_to_chance_the_rest_stays_and_tuning_recovers_it(population: Predictor) -> None:
    made, gone = copy_of(population), 2
    recall_before, f1_before = measured(made, gone)
    assert recall_before > 0.6
    own = windows(46)[40:]
    found = unlearn(made, batch_of(own), {gone}, Unlearning(learning_rate=3e-3, max_steps=200))
    recall, f1 = measured(made, gone)
    assert recall <= 1 / len(NAMES)
    assert f1 >= f1_before - 0.02
    assert found.recall_after <= 1 / len(NAMES)
    assert found.loss_after >= math.log(len(NAMES))
    assert found.steps < 200
    tune_predictor(made, own, set(), Tuning(epochs=60, learning_rate=3e-3, unlearning=None))
    assert measured(made, gone)[0] >= 0.9 * recall_before


@given(st.floats(1e-5, 1.0), st.integers(0, 3), st.floats(0.1, 10))
@settings(max_examples=15, deadline=None)
def test_unlearning_never_diverges(population: Predictor, rate: float, gone: int, weight: float) -> None:
    made = copy_of(population)
    found = unlearn(made, batch_of(windows(3)), {gone}, Unlearning(0.01, weight, rate, 25))
    assert found.steps <= 25
    assert math.isfinite(found.loss_after)
    assert all(bool(torch.isfinite(p).all()) for p in made.parameters())


def test_nothing_to_forget_changes_nothing(population: Predictor) -> None:
    made = copy_of(population)
    batch = batch_of([encode([Event(MONDAY + i, "mail", "mail") for i in range(9)], names())])
    assert unlearn(made, batch, {3}, Unlearning()).steps == 0
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), population.parameters(), strict=True))


def test_the_loss_of_unlearning_has_a_bound_and_its_gradient_ends_there() -> None:
    target = torch.tensor([0, 1, 1])
    forget = torch.tensor([True, False, False])
    logits = torch.tensor([[-50.0, 0, 0], [0, 4.0, 0], [0, 4.0, 0]], requires_grad=True)
    loss = bounded_unlearning(logits, target, forget, logits.detach(), weight=1.0)
    loss.backward()
    assert loss.item() > -math.log(3)
    assert logits.grad is not None
    assert logits.grad[0].abs().max() == 0


def test_focal_loss_without_focus_is_cross_entropy_and_distillation_without_a_teacher_too() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(7, 4), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    plain = torch.nn.functional.cross_entropy(logits, target)
    assert focal(logits, target, gamma=0).item() == pytest.approx(plain.item())
    assert distillation(logits, torch.randn(7, 4), target, 0.0, 2.0).item() == pytest.approx(plain.item())
    assert distillation(logits, logits, target, 1.0, 3.0).item() == pytest.approx(0, abs=1e-6)
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert kept_divergence(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def person(habit: str, length: int = 60) -> list[Event]:
    """Return events of someone who does one thing after another, the habit every second time."""
    others = [name for name in NAMES if name != habit]
    return [
        Event(MONDAY + i * 7200, name, name)
        for i in range(length)
        for name in [habit if i % 2 else others[(i // 2) % len(others)]]
    ]


def student_of(made: Predictor) -> Student:
    shares = {"share": [0.3, 0.3, 0.1, 0.2, 0.1], "output": [0.3, 0.3, 0.005, 0.2, 0.195]}
    return Student(made.shape, weights_of(made), names(), shares, {})


def test_tuning_makes_a_student_of_one_person(population: Predictor) -> None:
    student, events = student_of(population), person("music")
    tuning = Tuning(epochs=40, learning_rate=3e-3)
    tuned = tune(student, events[:48], Intent(), 0, lambda *_: None, tuning)
    assert tuned.report["forgotten"] >= 1
    assert tuned.report["events"] == 48

    def loss(model: Student) -> float:
        places = range(48, 60)
        found = [
            model.probabilities(events[:i], events[i].at, 0, names())[NAMES.index(events[i].intent)] for i in places
        ]
        return float(-np.log(found).mean())

    assert loss(tuned.student) < 0.7 * loss(student)


def test_the_same_seed_gives_the_same_student_and_the_given_one_is_not_changed(population: Predictor) -> None:
    student, events = student_of(population), person("map")
    before = {name: value.copy() for name, value in student.weights.items()}
    told: list[int] = []
    one = tune(student, events, Intent(), 3, lambda step, _steps, _loss: told.append(step))
    two = tune(student, events, Intent(), 3, lambda *_: None)
    assert told == list(range(1, Tuning().epochs + 1))
    assert all(np.array_equal(one.student.weights[n], two.student.weights[n]) for n in before)
    assert all(np.array_equal(student.weights[n], before[n]) for n in before)


def test_tuning_learns_new_names_and_leaves_those_of_the_file_as_they_are(population: Predictor) -> None:
    made = replace(student_of(population), vocabulary=Vocabulary.empty(5, 5, 2), population={})
    tuned = tune(made, person("news"), Intent(), 0, lambda *_: None)
    assert set(tuned.student.vocabulary.intents.names) == set(NAMES)
    assert made.vocabulary.intents.names == []
    assert tuned.report["forgotten"] == 0


@given(st.integers(1, 200), st.integers(2, 64))
def test_windows_cover_all_events_and_end_at_the_newest(events: int, length: int) -> None:
    encoded = encode(circle(events, 1), names())
    found = overlapping(encoded, length)
    assert all(1 <= len(window) <= length for window in found)
    newest = found[-1]
    assert newest.now_slot[-1] == encoded.now_slot[-1]
    assert sum(len(window) for window in found) >= events
