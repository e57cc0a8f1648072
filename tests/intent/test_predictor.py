from __future__ import annotations

import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgepd.errors import ModelError
from edgepd.intent.batches import batch_of
from edgepd.intent.encode import encode
from edgepd.intent.network import Network
from edgepd.intent.population import PopulationTraining, distilled, train_population
from edgepd.intent.predictor import Predictor
from edgepd.intent.schema import Event, Vocabulary
from edgepd.intent.shape import Shape
from edgepd.intent.student import Student
from tests.intent.intent_helpers import MONDAY, NAMES, TINY, circle, names, scorer_of, weights_of, windows


def predictor(shape: Shape = TINY, seed: int = 0) -> Predictor:
    torch.manual_seed(seed)
    made = Predictor(shape)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def student_of(made: Predictor, known: Vocabulary | None = None) -> Student:
    return Student(made.shape, weights_of(made, scorer_of(made.shape)), known or names(), {}, {"from": "a test"})


@pytest.mark.parametrize("shape", [TINY, replace(TINY, offsets=True), replace(TINY, open_names=True, heads=4)])
def test_numpy_computes_what_torch_computes(shape: Shape) -> None:
    made = predictor(shape)
    for length in (1, 2, 9, 16):
        places = encode(circle(length - 1, 5), names(), then=(MONDAY + 1e6, 0))
        with torch.no_grad():
            expected = made(batch_of([places]))[0, -1].numpy()
        found = Network(shape, made.exported()).last_logits(places)
        there = np.isfinite(expected)
        np.testing.assert_allclose(found[there], expected[there], rtol=1e-4, atol=1e-5)


def test_a_place_depends_on_nothing_after_it_nor_on_the_other_rows() -> None:
    made = predictor()
    long, other = windows(2)
    with torch.no_grad():
        alone = made(batch_of([long.part(0, 7)]))[0]
        together = made(batch_of([long, other]))[0, :7]
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_open_names_can_only_be_what_was_seen() -> None:
    made = predictor(replace(TINY, open_names=True))
    batch = batch_of([encode(circle(6, 1, noise=0.0), names())])
    logits = made(batch)[0]
    assert torch.isneginf(logits[0]).all()
    for place in range(1, 6):
        seen = {int(i) - 1 for i in batch.intent[0, : place + 1] if i <= TINY.intents}
        assert {i for i in range(TINY.intents) if not torch.isneginf(logits[place, i])} == seen
    assert made.targets(batch).target[0, 0] == -1


def test_training_learns_the_circle_and_a_seed_gives_the_same_again() -> None:
    losses: list[float] = []
    made = predictor()
    training = PopulationTraining(epochs=40, learning_rate=2e-2, rows=8)
    train_population(made, windows(24), training, on_epoch=lambda _epoch, loss: losses.append(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert losses[-1] < math.log(len(NAMES)) * 0.8
    again = predictor()
    train_population(again, windows(24), training)
    for name, value in made.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    said = student_of(made).probabilities(circle(10, 2, noise=0.0), MONDAY + 1e6, 0, names())
    last = circle(10, 2, noise=0.0)[-1].intent
    assert NAMES[int(said.argmax())] == NAMES[(NAMES.index(last) + 1) % len(NAMES)]


def test_names_that_mean_nothing_are_learned_from_the_history_alone() -> None:
    shape = replace(TINY, open_names=True, width=8, window=32)
    made = predictor(shape)
    training = PopulationTraining(epochs=40, learning_rate=2e-2, rows=8, renamed=True, reconstruction=0.0)
    losses: list[float] = []
    train_population(made, windows(48, 32), training, on_epoch=lambda _epoch, loss: losses.append(loss))
    assert losses[-1] < 0.85 * losses[0]


def test_a_student_comes_to_say_what_its_teacher_says() -> None:
    teacher, training = predictor(), PopulationTraining(epochs=40, learning_rate=2e-2, rows=8)
    train_population(teacher, windows(24), training)
    told = replace(training, alpha=1.0)  # of the labels it is told nothing
    student = distilled(teacher, predictor(seed=1), windows(24), told)
    fresh = predictor(seed=1)
    batch = batch_of(windows(30)[24:])

    def divergence(made: Predictor) -> float:
        with torch.no_grad():
            p, q = teacher(batch).log_softmax(-1), made(batch).log_softmax(-1)
            return float((p.exp() * (p - q)).sum(-1).mean())

    assert divergence(student) < 0.3 * divergence(fresh)


def test_a_file_gives_the_student_back(tmp_path: Path) -> None:
    student = student_of(predictor())
    student.save(tmp_path / "one.npz")
    student.save(tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    read = Student.load(tmp_path / "one.npz")
    assert (read.shape, read.vocabulary, read.provenance) == (student.shape, student.vocabulary, student.provenance)
    events = circle(9, 4)
    one, two = (dict(s.ranked(events, MONDAY + 1e6, 0)) for s in (student, read))
    assert one == pytest.approx(two, abs=2e-3)


@pytest.mark.parametrize("cut", [0, 10, 200, -30])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "student.npz"
    student_of(predictor()).save(file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ModelError, match="student.npz"):
        Student.load(file)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    made = predictor()
    with torch.no_grad():
        made.head.bias[0] = math.nan
    student_of(made).save(tmp_path / "student.npz")
    with pytest.raises(ModelError, match="not finite"):
        Student.load(tmp_path / "student.npz")


def test_a_file_of_another_shape_than_it_says_is_refused(tmp_path: Path) -> None:
    student = student_of(predictor())
    replace(student, shape=replace(TINY, layers=1)).save(tmp_path / "student.npz")
    with pytest.raises(ModelError, match="block.1"):
        Student.load(tmp_path / "student.npz")
    replace(student, shape=replace(TINY, width=100_000)).save(tmp_path / "student.npz")
    with pytest.raises(ModelError, match="width"):
        Student.load(tmp_path / "student.npz")


def test_probabilities_sum_to_one_whatever_the_history() -> None:
    for shape in (TINY, replace(TINY, open_names=True)):
        student = student_of(predictor(shape))
        for events in (circle(1, 1), circle(50, 1), [Event(MONDAY, "never seen", "nor this", "x", -7200)]):
            assert sum(p for _, p in student.ranked(events, MONDAY + 1e7, 3600)) == pytest.approx(1, abs=1e-5)


def test_no_history_ranks_nothing_where_names_are_open_and_the_prior_elsewhere() -> None:
    empty = Vocabulary.empty(TINY.events, TINY.intents, TINY.contexts)
    assert student_of(predictor(replace(TINY, open_names=True)), empty).ranked([], MONDAY, 0) == []
    assert len(student_of(predictor()).ranked([], MONDAY, 0)) == len(NAMES)


def test_an_intent_out_of_the_window_is_still_possible() -> None:
    shape = replace(TINY, open_names=True)
    empty = Vocabulary.empty(TINY.events, TINY.intents, TINY.contexts)
    events = [Event(MONDAY, "old", "old"), *(Event(MONDAY + i * 3600, "mail", "mail") for i in range(1, 40))]
    student = student_of(predictor(shape), empty)
    known = student.known(events)
    said = dict(zip(known.intents.names, student.probabilities(events, MONDAY + 1e6, 0, known).tolist(), strict=False))
    assert said["mail"] > said["old"] > 0
    assert set(dict(student.ranked(events, MONDAY + 1e6, 0))) == {"mail", "old"}


def test_more_names_than_slots_are_unknown_and_break_nothing() -> None:
    empty = Vocabulary.empty(TINY.events, TINY.intents, TINY.contexts)
    events = [Event(MONDAY + i, f"event {i}", f"intent {i}", f"place {i}") for i in range(100)]
    ranked = student_of(predictor(replace(TINY, open_names=True, offsets=True)), empty).ranked(events, MONDAY + 200, 0)
    assert {name for name, _ in ranked} <= {f"intent {i}" for i in range(100)}


def test_what_is_done_now_is_ranked_when_old_names_have_all_the_slots() -> None:
    empty = Vocabulary.empty(TINY.events, TINY.intents, TINY.contexts)
    old = [Event(MONDAY + i * 3600, f"old {i % 5}", f"old {i % 5}") for i in range(20)]
    now = [Event(MONDAY + i * 3600, "new", "new") for i in range(20, 80)]
    student = student_of(predictor(replace(TINY, open_names=True)), empty)
    events, at = [*old, *now], MONDAY + 80 * 3600
    ranked = dict(student.ranked(events, at, 0))
    assert set(ranked) == {"new", *(f"old {i}" for i in range(5))}
    assert sum(ranked.values()) == pytest.approx(1, abs=1e-6)
    assert ranked["new"] == pytest.approx(student.scored(events, at, 0, student.known(events))["new"])


@pytest.mark.parametrize("header", [b"{'descr': '<f2', 'shape': (", b"{'descr': '<f2', b'x': 1, 'shape': (1,)}"])
def test_an_array_whose_header_is_damaged_is_refused_by_name(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "student.npz"
    student_of(predictor()).save(file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["head.bias.npy"] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(ModelError, match="student.npz"):
        Student.load(file)
