"""Run: python -m pytest tests/adapt/test_checkpoint.py"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgepd.adapt.checkpoint import Checkpoint, Progress, load, save
from edgepd.errors import StoreError, TrainingError


def checkpoint(fingerprint: str = "abc") -> Checkpoint:
    vectors = (np.arange(6, dtype=np.float32) + i for i in range(4))
    return Checkpoint(fingerprint, Progress(3, 2, 8, (4.0, 3.5, 3.6), 1), *vectors)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    save(path, checkpoint("old"))
    save(path, checkpoint())
    found = load(path, "abc", 6)
    assert found.progress == Progress(epoch=3, batch=2, step=8, held_out=(4.0, 3.5, 3.6), best_epoch=1)
    for i, name in enumerate(("parameters", "exp_avg", "exp_avg_sq", "best")):
        assert getattr(found, name).tolist() == [i, i + 1, i + 2, i + 3, i + 4, i + 5]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


def test_every_truncation_and_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    save(path, checkpoint())
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(TrainingError, match="damaged"):
            load(path, "abc", 6)
    where = whole.index(np.arange(6, dtype=np.float32).tobytes())
    path.write_bytes(whole[:where] + b"\x01" + whole[where + 1 :])
    with pytest.raises(TrainingError, match="damaged"):
        load(path, "abc", 6)


def test_other_runs_and_sizes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    with pytest.raises(TrainingError, match="no checkpoint"):
        load(path, "abc", 6)
    save(path, checkpoint("other"))
    with pytest.raises(TrainingError, match="other data, settings or base model"):
        load(path, "abc", 6)
    save(path, dataclasses.replace(checkpoint(), best=np.zeros(5, np.float32)))
    with pytest.raises(TrainingError, match=r"'best' has shape \(5,\), but 6"):
        load(path, "abc", 6)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    np.savez(path, header=np.array([{"fingerprint": "abc"}], dtype=object))
    with pytest.raises(TrainingError, match="damaged"):
        load(path, "abc", 6)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        save(tmp_path / "missing" / "c.npz", checkpoint())
