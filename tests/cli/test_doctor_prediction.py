"""The check of `edgepd doctor` on the models of what comes next: the shipped one, and the tuned one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepd.cli.doctor_checks import prediction
from edgepd.cli.doctor_checks.situation import Situation
from edgepd.config import load, paths
from edgepd.intent.schema import Vocabulary
from edgepd.intent.shape import Shape
from edgepd.intent.student import Student, parameter_shapes
from edgepd_profiles import students
from edgepd_profiles.integrity import Finding
from edgepd_profiles.store import Store

SHAPE = Shape(4, 4, 2, width=4, layers=2, heads=2, window=8, rank=4)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of zeros, shipped."""
    path = tmp_path / "student.npz"
    weights = {name: np.zeros(sizes, np.float32) for name, sizes in parameter_shapes(SHAPE).items()}
    Student(SHAPE, weights, Vocabulary.empty(4, 4, 2), {}, {}).save(path)
    monkeypatch.setattr(prediction, "shipped_student", lambda: path)
    return path


@pytest.fixture
def situation(home: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> Situation:
    monkeypatch.setattr(prediction, "moment", lambda seconds: f"t{seconds:.0f}")
    return Situation(paths(), False, load(home / "config.toml", {}))


@pytest.fixture
def tuned(situation: Situation, shipped: Path) -> Path:
    """The same model, as one that was tuned and predicts."""
    situation.paths.students_dir.mkdir(parents=True)
    path = situation.paths.students_dir / "1.npz"
    path.write_bytes(shipped.read_bytes())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with Store.open(situation.paths.profile) as store:
        made = store.write(lambda c: students.add(c, file=path.name, sha256=sha256, seq=7, at=1000.0)).result()
        store.write(lambda c: students.activate(c, made.id)).result()
    return path


SHIPPED = Finding("prediction", detail="shipped model, 0.0 MiB, 2 layers")


def test_shipped_alone(situation: Situation) -> None:
    assert prediction.prediction(situation) == [SHIPPED]
    with Store.open(situation.paths.profile):
        pass
    assert prediction.prediction(situation) == [SHIPPED]


def test_tuned(situation: Situation, tuned: Path) -> None:
    assert prediction.prediction(situation) == [SHIPPED, Finding("tuned prediction", detail="model 1, tuned t1000")]


def test_shipped_is_damaged(situation: Situation, shipped: Path) -> None:
    shipped.write_bytes(b"PK")
    [found] = prediction.prediction(situation)
    assert (found.what, found.advice) == ("prediction", "pip install --force-reinstall --no-deps edgepd")
    assert (found.problem or "").startswith(
        f"the model that ships with edgepd cannot be read: {shipped}: not a file of"
    )
    shipped.unlink()
    assert "No such file" in (prediction.prediction(situation)[0].problem or "")


def test_tuned_is_gone_or_another(situation: Situation, tuned: Path) -> None:
    tuned.write_bytes(tuned.read_bytes() + b"x")
    problem = f"{tuned} is not what was tuned, so the shipped model predicts"
    assert prediction.prediction(situation)[1] == Finding("tuned prediction", problem, "edgepd train --intent")
    tuned.unlink()
    problem = f"its file {tuned} is not there, so the shipped model predicts"
    assert prediction.prediction(situation)[1] == Finding("tuned prediction", problem, "edgepd train --intent")


def test_tuned_is_of_another_kind(situation: Situation, tuned: Path) -> None:
    """What an older edgepd has tuned can be as it was made, and yet not fit."""
    tuned.write_bytes(b"an old file")
    sha256 = hashlib.sha256(b"an old file").hexdigest()
    with Store.open(situation.paths.profile) as store:
        store.write(lambda c: c.execute("UPDATE intent_students SET sha256 = ?", (sha256,))).result()
    [_, found] = prediction.prediction(situation)
    assert (found.problem or "").endswith("; so the shipped model predicts")


def test_switched_off(situation: Situation, shipped: Path) -> None:
    shipped.unlink()
    off = replace(situation.settings, intent=replace(situation.settings.intent, enabled=False))
    assert prediction.prediction(replace(situation, settings=off)) == [
        Finding("prediction", detail="switched off (intent.enabled)")
    ]
