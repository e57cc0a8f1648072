"""The child that tunes, in this process: what it says for a job, for SIGTERM at any moment, and for what is no job.

The tuning is the real one on a small student in one test, in the others one that does what the test wants.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from edgepd.adapt.job import Event as Said
from edgepd.adapt.job import Outcome, Parked, Progress, Refused, read_event
from edgepd.errors import TrainingError
from edgepd.intent import worker
from edgepd.intent.job import TuneJob
from edgepd.intent.predictor import Predictor
from edgepd.intent.schema import Event, Vocabulary
from edgepd.intent.shape import Shape
from edgepd.intent.student import Student
from edgepd.settings import Intent
from tests.intent.intent_helpers import weights_of

EVENTS = [Event(3600.0 * n, "ab"[n % 2], "ab"[n % 2]) for n in range(40)]
SHAPE = Shape(intents=8, events=8, contexts=4, width=8, layers=1, heads=2, window=16, rank=4, inner=8, open_names=True)

Run = Callable[[str], tuple[int, list[Said]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Return what carries out a text on standard input; the test's own process stays as it is."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()
    monkeypatch.setattr(worker, "end_with_parent", list)
    monkeypatch.setattr(worker, "become_background", lambda _cores: [])

    def carried_out(text: str) -> tuple[int, list[Said]]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        code = worker.main()
        return code, [read_event(line) for line in capsys.readouterr().out.splitlines()]

    yield carried_out
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)


def job(directory: Path) -> TuneJob:
    """Return a job that begins with a small random student."""
    torch.manual_seed(0)
    weights = weights_of(Predictor(SHAPE))
    shipped = directory / "shipped.npz"
    names = Vocabulary.empty(SHAPE.events, SHAPE.intents, SHAPE.contexts)
    Student(SHAPE, weights, names, {}, {}).save(shipped)
    return TuneJob(str(shipped), None, str(directory / "intent-1.npz"), EVENTS, asdict(Intent(seed=5)), threads=1)


def tuning_that(monkeypatch: pytest.MonkeyPatch, does: Callable[[], Any]) -> None:
    """Let `does` be done instead of tuning."""
    monkeypatch.setattr(worker, "tune", lambda *_: does())


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_job_is_carried_out_and_the_same_job_comes_to_the_same(tmp_path: Path, run: Run) -> None:
    code, said = run(job(tmp_path).to_json())
    outcome = said[-1]
    assert code == 0
    assert isinstance(outcome, Outcome)
    assert said[0] == Progress("load")
    assert (outcome.scores["learned_events"], outcome.scores["held_out_events"]) == (32, 8)
    assert outcome.scores["peak_rss_mb"] > 0
    assert (tmp_path / "intent-1.npz").exists() == outcome.promoted
    again = run(job(tmp_path).to_json())[1][-1]
    assert isinstance(again, Outcome)
    assert (again.promoted, again.file_sha256) == (outcome.promoted, outcome.file_sha256)
    assert again.scores["nll_after"] == outcome.scores["nll_after"]


def test_sigterm_ends_it_at_once_without_a_file(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning_that(monkeypatch, terminate)
    code, said = run(job(tmp_path).to_json())
    assert (code, said[-1]) == (0, Parked(0))
    assert [file.name for file in tmp_path.iterdir()] == ["shipped.npz"]


def test_sigterm_while_the_outcome_is_sent_is_too_late(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit = worker.emit

    def emit_late(event: Said) -> None:
        if isinstance(event, Outcome):
            terminate()
        emit(event)

    monkeypatch.setattr(worker, "emit", emit_late)
    code, said = run(job(tmp_path).to_json())
    assert code == 0
    assert isinstance(said[-1], Outcome)
    assert not any(isinstance(event, Parked) for event in said)


def test_why_it_cannot_be_tuned_is_told(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise TrainingError("it diverged")

    tuning_that(monkeypatch, refuse)
    code, said = run(job(tmp_path).to_json())
    assert (code, said[-1]) == (TrainingError.exit_code, Refused("it diverged"))


@pytest.mark.parametrize("text", ["", "{}", "what?"])
def test_what_is_no_job_is_refused(run: Run, text: str) -> None:
    code, (said,) = run(text)
    assert code == TrainingError.exit_code
    assert isinstance(said, Refused)
    assert said.reason.startswith("the tuning job on standard input is malformed")


def test_nobody_who_listens_is_no_error(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Said) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(worker, "emit", broken)
    assert run(job(tmp_path).to_json()) == (1, [])
