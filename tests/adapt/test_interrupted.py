"""Run: python -m pytest tests/adapt/test_interrupted.py

What a run of the training child takes over from one that was interrupted, and what not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from edgepd.adapt import planner, worker
from edgepd.adapt.job import Event, Job, JobExample, Outcome, Progress
from edgepd.settings import Gate, Train
from edgepd_quant.types import GGMLType
from tests.tiny_gguf import tiny_llama


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """`run` sets how many threads torch uses; the next test shall not inherit that."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", qtype=GGMLType.Q4_1, seed=1)


def job_for(base: Path, directory: Path, **settings: Any) -> Job:
    said = [JobExample(f"e{n}", [{"role": "user", "content": f"Question {n}?"}], f"Arr! {n}") for n in range(10)]
    sha256 = hashlib.sha256(base.read_bytes()).hexdigest()
    return Job(
        kind="live",
        base=str(base),
        base_sha256=sha256,
        original=str(base),
        original_sha256=sha256,
        current_model=str(base),
        current_adapter=None,
        output=str(directory / "live.gguf"),
        checkpoint_dir=str(directory / "checkpoints"),
        replay_dir=str(directory / "replay"),
        train=said[:8],
        held_out=said[8:],
        data_hash="cd" * 32,
        settings=asdict(Train()) | {"rank": 2, "epochs": 2, "fast_seconds": 3600.0} | settings,
        threads=1,
        gate=asdict(Gate()),
        max_tokens=256,
    )


def run(job: Job) -> Outcome:
    """Run to the end; its outcome."""
    (outcome,) = (event for event in worker.run(job) if isinstance(event, Outcome))
    return outcome


class Killed(Exception):
    """Stands for a signal: nothing is cleaned up but what the interpreter itself cleans up."""


def interrupted(job: Job, at_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until this optimiser step. Checkpoints are ten seconds apart, so that of the last epoch's end is left."""

    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "train" and event.done == at_step:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(worker, "emit", emit)
        run(job)


def steps_of(job: Job, capsys: pytest.CaptureFixture[str]) -> tuple[int, int]:
    """Run to the end; return the steps of the run and how many of them were made now."""
    outcome = run(job)
    assert not Path(job.checkpoint_dir).exists(), "what could be resumed is of no more use"
    return outcome.scores["steps"], capsys.readouterr().out.count('"stage": "train"')


def test_an_interrupted_run_goes_on_and_ends_as_if_nothing_had_been(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the time that is left would be planned for fewer steps now."""
    job = job_for(tiny, tmp_path)
    assert steps_of(job, capsys) == (4, 4)
    expected = Path(job.output).read_bytes()
    Path(job.output).unlink()
    interrupted(job, 3, monkeypatch)
    hurried = dataclasses.replace(job, settings=job.settings | {"fast_seconds": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(planner, "probe_gemm", lambda: 1e6)
        assert steps_of(hurried, capsys) == (4, 2)
    assert Path(job.output).read_bytes() == expected


def test_other_settings_get_a_plan_of_their_own(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run begins anew, so it must not be cut to the steps of the one that it has nothing to do with."""
    interrupted(job_for(tiny, tmp_path), 3, monkeypatch)
    assert steps_of(job_for(tiny, tmp_path, epochs=4), capsys) == (8, 8)


def test_less_memory_than_before_is_kept_to(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was noted decides how batches are cut, so a plan for that cut is needed and not one for another."""
    job = job_for(tiny, tmp_path)
    interrupted(job, 3, monkeypatch)
    requests: list[planner.Request] = []
    plans: list[planner.Plan] = []
    plan = planner.plan

    def watched(request: planner.Request) -> planner.Plan:
        requests.append(request)
        plans.append(plan(request))
        return plans[-1]

    with monkeypatch.context() as patch:
        patch.setattr(planner, "plan", watched)
        patch.setattr(planner, "MICRO_CHOICES", (64,))  # all that memory is left for
        outcome = run(job)
    carried_out = outcome.scores["plan"]
    assert any(found.micro_tokens == carried_out["micro_tokens"] for found in plans), "predicted for what is done"
    assert carried_out["predicted_rss_mb"] <= carried_out["budget_mb"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says")
def test_the_peak_of_memory_is_that_of_the_child_alone() -> None:
    """Right after its start, the kernel counts what its parent had as the child's maximum."""
    program = "from edgepd.adapt import run_plan\nprint(run_plan.peak_bytes())"
    small = f"import sys\nsys.path[:0] = {[entry for entry in sys.path if entry]!r}\n{program}"
    large = f"import subprocess, sys\nx = b'x' * (600 << 20)\nsubprocess.run([sys.executable, '-c', {small!r}])"
    done = subprocess.run([sys.executable, "-c", large], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 500 << 20, done.stdout
