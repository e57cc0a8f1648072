"""A job that is parked at any stage, and started again: it goes on, and comes to the same outcome."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from edgepd.adapt import worker
from edgepd.adapt.job import Event, Job, JobExample, Outcome, Parked, Progress, Reviewed, read_event
from edgepd.adapt.parking import SIGNALS
from edgepd.settings import Gate, Train
from edgepd_quant.types import GGMLType
from tests.tiny_gguf import tiny_llama


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The signals, and the number of torch's threads, are as before for the next test."""
    before, threads = {number: signal.getsignal(number) for number in SIGNALS}, torch.get_num_threads()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", qtype=GGMLType.Q4_1, seed=1)


def job_for(base: Path, directory: Path, **changed: Any) -> Job:
    said = [
        JobExample(f"e{n}", [{"role": "user", "content": f"Question {n}?"}], f"Arr! {n}, savvy?") for n in range(14)
    ]
    sha256 = hashlib.sha256(base.read_bytes()).hexdigest()
    values: dict[str, Any] = {
        "kind": "live",
        "base": str(base),
        "base_sha256": sha256,
        "original": str(base),
        "original_sha256": sha256,
        "current_model": str(base),
        "current_adapter": None,
        "output": str(directory / "live.gguf"),
        "checkpoint_dir": str(directory / "checkpoints"),
        "replay_dir": str(directory / "replay"),
        "train": said[:8],
        "held_out": said[8:10],
        "data_hash": "cd" * 32,
        "settings": asdict(Train()) | {"rank": 2, "epochs": 2, "fast_seconds": 3600.0},
        "threads": 1,
        "gate": asdict(Gate()),
        "max_tokens": 256,
    }
    return Job(**(values | changed))


def outcome_of(events: list[Event]) -> Outcome:
    (found,) = (event for event in events if isinstance(event, Outcome))
    return found


def told(job: Job, when: Callable[[Event], bool], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Event], int]:
    """Work on the job in this process; send SIGTERM when an event is said; return all that was said, and the code."""
    said: list[Event] = []

    def emit(event: Event) -> None:
        said.append(event)
        if when(event):
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(worker, "emit", emit)
        patch.setattr(worker, "become_background", lambda cores: [])
        patch.setattr(worker, "end_with_parent", list)
        patch.setattr("sys.stdin", _Text(job.to_json()))
        return said, worker.main()


class _Text:
    def __init__(self, text: str) -> None:
        self.read = lambda: text


def never(event: Event) -> bool:
    return False


@pytest.fixture(scope="module")
def expected(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What comes of the job when it is left alone."""
    outcome = outcome_of(list(worker.run(job_for(tiny, tmp_path_factory.mktemp("alone")))))
    assert not outcome.promoted, "it is reviewed before its outcome"
    return outcome


@pytest.mark.parametrize(
    ("stage", "done", "saved", "steps_left"),
    [
        ("load", 0, 0, 4),
        ("train", 3, 3, 1),
        ("gate", 3, 4, 0),
        ("review", 0, 4, 0),
    ],
)
def test_a_job_that_is_parked_goes_on_where_it_was(
    tiny: Path,
    tmp_path: Path,
    expected: Outcome,
    stage: str,
    done: int,
    saved: int,
    steps_left: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the gate and after it, training is over: what is started again goes to the gate at once."""
    job = job_for(tiny, tmp_path)

    def when(event: Event) -> bool:
        return isinstance(event, Progress) and (event.stage, event.done) == (stage, done)

    said, code = told(job, when, monkeypatch)
    assert (said[-1], code) == (Parked(saved), 0)
    assert when(said[-2])
    said, code = told(job, never, monkeypatch)
    assert code == 0
    assert sum(isinstance(e, Progress) and e.stage == "train" for e in said) == steps_left
    assert outcome_of(said).file_sha256 == expected.file_sha256
    assert not Path(job.checkpoint_dir).exists()


def test_parked_as_its_outcome_is_told_it_has_that_outcome(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say that it is parked as well, and leaves nothing to go on from."""
    job = job_for(tiny, tmp_path)
    said, code = told(job, lambda event: isinstance(event, Outcome), monkeypatch)
    assert isinstance(said[-1], Outcome)
    assert code == 0
    assert not Path(job.checkpoint_dir).exists()


def test_parked_in_the_review_of_what_is_live_only_the_review_is_lost(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MOST_EMPTY", "MOST_UNENDED", "MOST_REPEATED", "MOST_SAME"):
        monkeypatch.setattr(f"edgepd.adapt.gate.verdict.{name}", 1.0)
    lax = {"min_carried_over": -1e9, "max_perplexity_rise": 1e9, "max_kl": 1e9, "max_verifiable_drop": 1.0}
    learning = asdict(Train()) | {"rank": 4, "epochs": 4, "fast_seconds": 3600.0, "live_learning_rate": 0.02}
    job = job_for(tiny, tmp_path, gate=asdict(Gate()) | lax, settings=learning)
    said, code = told(
        dataclasses.replace(job, held_out=[*job.held_out, *job.train[:4]]),
        lambda event: isinstance(event, Progress) and event.stage == "review",
        monkeypatch,
    )
    outcome = outcome_of(said)
    assert outcome.promoted, outcome.reason
    assert code == 0
    assert not any(isinstance(event, Parked | Reviewed) for event in said)


def test_the_process_parks_when_it_is_told_to_also_while_it_is_stopped(tiny: Path, tmp_path: Path) -> None:
    """As the daemon does it: SIGTERM to a trainer that stands still, and SIGCONT."""
    job = job_for(tiny, tmp_path, settings=asdict(Train()) | {"rank": 2, "epochs": 40, "fast_seconds": 3600.0})
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "edgepd.adapt.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    process.stdin.write(job.to_json())
    process.stdin.close()
    last: Event = Progress("load")
    for line in process.stdout:
        last = read_event(line)
        if last == Progress("train", 2, 80, *dataclasses.astuple(last)[3:]):
            for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT):
                process.send_signal(number)
    watchdog.cancel()
    assert process.wait() == 0
    assert process.stderr.read() == ""
    process.stdout.close()
    process.stderr.close()
    assert isinstance(last, Parked)
    assert 2 <= last.step < 80
    noted = json.loads((Path(job.checkpoint_dir) / "plan.json").read_text())
    assert noted["steps"] == 80
