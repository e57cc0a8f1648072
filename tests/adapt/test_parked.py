"""A run that is parked, wherever it is, and goes on: bit by bit the result of one that was left alone.

The signal is real, and comes at a line that is counted out: every line of the modules that change or save the state of
a run is one at which Python may call a handler.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd.adapt import loop
from edgepd.adapt.checkpoint import Checkpoint
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.loop import CHECKPOINT_NAME
from edgepd.adapt.parking import SIGNALS, Parking, ParkNow
from edgepd.errors import StoreError
from tests.adapt.helpers import CONFIG, Recorder, epochs_of, flat_parameters, random_examples, run, tiny_decoder

# Nothing but parking saves within an epoch.
SELDOM = dataclasses.replace(CONFIG, checkpoint_seconds=1e9)
MODULES = ("adapt/loop.py", "adapt/adamw.py", "adapt/checkpoint.py", "adapt/parking.py", "edgepd/atomic.py")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The signals are as before for the next test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def signal_at(line: int) -> Iterator[list[int]]:
    """Send this process SIGTERM at the n-th line that it executes in MODULES; yields the list of those."""
    passed: list[int] = []

    def trace(frame: FrameType, kind: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith(MODULES):
            return None
        if kind == "line":
            passed.append(frame.f_lineno)
            if len(passed) == line:
                signal.raise_signal(signal.SIGTERM)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield passed
    finally:
        sys.settrace(before)


def train(decoder: Decoder, directory: Path, parking: Parking, *, judged: bool = True) -> None:
    examples = random_examples(7, seed=1)
    run(
        decoder, SELDOM, directory, epochs=epochs_of(examples, 2), held_out=examples if judged else [], parking=parking
    )  # fmt: skip


@settings(max_examples=14, deadline=None, derandomize=True)
@given(st.booleans(), st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_parked_at_any_line_it_ends_as_if_it_had_been_left_alone(
    tmp_path_factory: pytest.TempPathFactory, judged: bool, moments: list[float]
) -> None:
    """Also several times, each of which comes at a share of the lines that the whole run has."""
    directory = tmp_path_factory.mktemp("run")
    with tiny_decoder(directory) as decoder:
        with signal_at(0) as passed:
            train(decoder, directory, Parking(), judged=judged)
        expected, lines = flat_parameters(decoder), len(passed)
        (directory / CHECKPOINT_NAME).unlink()
        for moment in moments:
            parking = Parking()
            parking.listen()
            try:
                with signal_at(1 + int(moment * lines)):
                    train(decoder, directory, parking, judged=judged)
            except ParkNow:
                assert parking.step <= 4
        recorder = Recorder()
        examples = random_examples(7, seed=1)
        result = run(
            decoder, SELDOM, directory, epochs=epochs_of(examples, 2), held_out=examples if judged else [],
            report=recorder,
        )  # fmt: skip
        assert result.ignored_checkpoint is None
        assert (result.steps, len(recorder.losses)) == (4, 4 - result.resumed_at_step)
        assert len(result.held_out) == (3 if judged else 0)
        assert torch.equal(flat_parameters(decoder), expected)


def parked_at_step(decoder: Decoder, directory: Path, step: int) -> Parking:
    """Park in the report of a step, as if the signal came right after it."""

    class Signalled(Recorder):
        def on_step(self, at: int, total: int, loss: float, tokens_per_second: float) -> None:
            if at == step:
                signal.raise_signal(signal.SIGTERM)

    parking = Parking()
    parking.listen()
    examples = random_examples(7, seed=1)
    with pytest.raises(ParkNow):
        run(
            decoder, SELDOM, directory, epochs=epochs_of(examples, 2), held_out=examples, report=Signalled(),
            parking=parking,
        )  # fmt: skip
    return parking


def test_no_step_is_lost_and_none_is_made_twice(tmp_path: Path) -> None:
    with tiny_decoder(tmp_path) as decoder:
        assert parked_at_step(decoder, tmp_path, 3).step == 3
        recorder, examples = Recorder(), random_examples(7, seed=1)
        result = run(decoder, SELDOM, tmp_path, epochs=epochs_of(examples, 2), held_out=examples, report=recorder)
        assert (result.resumed_at_step, len(recorder.losses)) == (3, 1)


def test_parked_on_a_full_disk_it_goes_on_from_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save = loop.save

    def full(path: Path, checkpoint: Checkpoint) -> None:
        if checkpoint.progress.step == 3:
            raise StoreError("no space left")
        save(path, checkpoint)

    monkeypatch.setattr(loop, "save", full)
    with tiny_decoder(tmp_path) as decoder:
        assert parked_at_step(decoder, tmp_path, 3).step == 2
        assert "parked with the checkpoint of step 2: no space left" in caplog.text
        examples = random_examples(7, seed=1)
        result = run(decoder, SELDOM, tmp_path, epochs=epochs_of(examples, 2), held_out=examples)
        assert (result.resumed_at_step, result.steps) == (2, 4)
