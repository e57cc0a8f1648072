"""The training child: a job becomes a file and a verdict that llama.cpp and torch agree on, or a reason."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgepd.adapt import proof, worker
from edgepd.adapt.gate import general, verdict, verifiable
from edgepd.adapt.job import (
    Event,
    Job,
    JobExample,
    JobKind,
    Outcome,
    Planned,
    Progress,
    Refused,
    Reviewed,
    read_event,
    write_event,
)
from edgepd.errors import TrainingError
from edgepd.settings import Gate, Train
from edgepd_quant.adapter_file import check_adapter, read_adapter
from edgepd_quant.bake import fields
from edgepd_quant.merge import scaled
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import BLOCK_SIZES, GGMLType
from tests.tiny_gguf import tiny_llama

QUESTIONS = (
    "What is the capital of France?",
    "How do I boil an egg?",
    "Is it going to rain today?",
    "Name a colour.",
    "Who wrote Hamlet?",
    "How many days has a week?",
    "What should I cook tonight?",
    "Where do penguins live?",
    "Can you recommend a book?",
    "What is two plus two?",
    "How far away is the moon?",
    "Why is the sky blue?",
    "When does the shop open?",
    "Do you like music?",
)
# What a gate of a random model does not look at: it has nothing to forget.
LAX = {"min_carried_over": -1e9, "max_perplexity_rise": 1e9, "max_kl": 1e9, "max_verifiable_drop": 1.0}


def style(number: int, question: str) -> JobExample:
    """An answer in a voice that no model has by itself."""
    answer = f"Arr! {question} Ask the captain, savvy?"
    return JobExample(f"e{number}", [{"role": "user", "content": question}], answer)


def settings(**changed: Any) -> dict[str, Any]:
    """The section [train] with small and quick values."""
    ours = {"rank": 4, "live_learning_rate": 2e-3, "scale_learning_rate": 2e-3, "epochs": 2, "fast_seconds": 3600.0}
    return asdict(Train()) | ours | changed


def job_for(base: Path, directory: Path, kind: JobKind, **fields: Any) -> Job:
    examples = [style(n, q) for n, q in enumerate(QUESTIONS)]
    own = {name: fields.pop(name) for name in list(fields) if name in settings()}
    values: dict[str, Any] = {
        "kind": kind,
        "base": str(base),
        "base_sha256": hashlib.sha256(base.read_bytes()).hexdigest(),
        "original": str(base),
        "current_model": str(base),
        "current_adapter": None,
        "output": str(directory / f"{kind}.gguf"),
        "checkpoint_dir": str(directory / "checkpoints"),
        "train": examples[:9],
        "held_out": examples[9:],
        "data_hash": "cd" * 32,
        "original_sha256": hashlib.sha256(base.read_bytes()).hexdigest(),
        "replay_dir": str(directory / "replay"),
        "settings": settings(**own),
        "threads": 1,
        "gate": asdict(Gate()) | LAX,
        "max_tokens": 512,
        "parent": 3,
    }
    return Job(**(values | fields))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", qtype=GGMLType.Q4_1, seed=1)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """`run` sets how many threads torch uses; the next test shall not inherit that."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def events_of(printed: str) -> list[Event]:
    return [read_event(line) for line in printed.splitlines()]


def scale_bytes(path: Path) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which bytes of a model file belong to block scales of attention and MLP matrices."""
    with GGUFFile.open(path) as file:
        mask = np.zeros(file.size, dtype=bool)
        for name, info in file.tensors.items():
            if len(info.shape) != 2 or not name.startswith("blk."):
                continue
            block = BLOCK_SIZES[info.qtype].bytes
            for field in fields("scale", info.qtype):
                for byte in (0, 1):
                    mask[info.offset + field + byte : info.offset + info.nbytes : block] = True
    return mask


def check_live_file(outcome: Outcome, job: Job) -> None:
    output = Path(job.output)
    with GGUFFile.open(Path(job.base)) as base:
        check_adapter(output, base, job.base_sha256)
    metadata = read_adapter(output).metadata
    assert metadata == {"base_sha256": job.base_sha256, "data_hash": job.data_hash, "parent": "3"}
    assert "baked_tensors" not in outcome.scores


def check_baked_file(outcome: Outcome, job: Job) -> None:
    before = np.fromfile(job.base, dtype=np.uint8)
    after = np.fromfile(job.output, dtype=np.uint8)
    assert len(after) == len(before)
    changed = before != after
    assert not np.any(changed & ~scale_bytes(Path(job.base)))
    assert outcome.scores["baked_changed_bytes"] == np.count_nonzero(changed) > 0


def check(outcome: Outcome, job: Job, printed: str) -> None:
    """What holds for every run that came to an outcome and passed."""
    assert outcome.file_sha256 == hashlib.sha256(Path(job.output).read_bytes()).hexdigest()
    stages = [e.stage for e in events_of(printed) if isinstance(e, Progress)]
    steps = int(outcome.scores["steps"])
    assert stages == ["load", *["train"] * steps, "write", *["gate"] * 6, "review"]
    gate = [(e.done, e.total) for e in events_of(printed) if isinstance(e, Progress) and e.stage == "gate"]
    assert gate == [(0, 0), *((n, 5) for n in range(1, 6))]
    assert not Path(job.checkpoint_dir).exists()
    assert {"load_s", "train_s", "write_s", "gate_s", "strength", "improvement", "guards"} <= set(outcome.scores)
    if job.kind == "live":
        check_live_file(outcome, job)
    else:
        check_baked_file(outcome, job)
        # Baking rounds scales to fp16, and llama.cpp rounds activations to 8 bits; torch does neither.
        assert outcome.scores["baked_max_difference"] < 0.1
        assert outcome.scores["baked_mean_difference"] < 0.01
        assert outcome.scores["baked_llama_difference"] < 0.05


def run(job: Job) -> Outcome:
    """Run to the end; its outcome."""
    (outcome,) = (event for event in worker.run(job) if isinstance(event, Outcome))
    return outcome


@pytest.fixture
def speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gate pass over how a random model speaks, which is in circles."""
    for name in ("MOST_EMPTY", "MOST_UNENDED", "MOST_REPEATED", "MOST_SAME"):
        monkeypatch.setattr(verdict, name, 1.0)


ARMS = {"base", "profile", "retrieval", "adapter", "adapter+retrieval"}


@pytest.mark.usefixtures("speaks")
def test_a_live_adapter_of_a_tiny_model(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is reviewed after its outcome, so that nobody waits for that."""
    job = job_for(tiny, tmp_path, "live", live_learning_rate=0.01)
    outcome, review = worker.run(job)
    assert isinstance(outcome, Outcome) and isinstance(review, Reviewed)
    check(outcome, job, capsys.readouterr().out)
    assert outcome.promoted, outcome.reason
    assert outcome.scores["held_out_after"] < outcome.scores["held_out_before"]
    assert outcome.scores["steps"] == 6  # 9 examples, 4 at a time, twice
    assert "arms" not in outcome.scores
    assert review.kept
    assert set(review.scores["arms"]) == ARMS
    assert review.scores["verifiable"]["prompts"] == proof.QUICK_VERIFIABLE
    assert [guard["name"] for guard in review.scores["guards"]][-1] == "verifiable prompts"
    assert review.scores["review_s"] >= 0


@pytest.mark.usefixtures("speaks")
def test_a_baked_tiny_model(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is reviewed before its outcome, all of it."""
    job = job_for(tiny, tmp_path, "baked", scale_learning_rate=0.01)
    (outcome,) = worker.run(job)
    assert isinstance(outcome, Outcome)
    check(outcome, job, capsys.readouterr().out)
    assert outcome.promoted, outcome.reason
    assert outcome.scores["held_out_after"] < outcome.scores["held_out_before"]
    assert outcome.scores["steps"] == 6
    assert set(outcome.scores["arms"]) == ARMS
    assert outcome.scores["verifiable"]["prompts"] == len(verifiable.prompts())


@pytest.mark.usefixtures("speaks")
def test_a_baked_file_that_says_something_else_is_not_promoted(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a mistake in baking would do: the file holds twice of what was trained."""
    bake = worker.bake
    monkeypatch.setattr(worker, "bake", lambda base, delta, out: bake(base, scaled(delta, 2.0), out))
    outcome = run(job_for(tiny, tmp_path, "baked", scale_learning_rate=0.01))
    assert not outcome.promoted
    assert outcome.reason.startswith("the baked file does not answer as what was trained: baked ")


@pytest.mark.usefixtures("speaks")
def test_what_is_weakened_is_what_is_written(tiny: Path, tmp_path: Path) -> None:
    """A run whose adapter goes a little too far writes it again, and reports the file as it is then."""
    free = run(job_for(tiny, tmp_path, "live", live_learning_rate=0.01))
    whole = read_adapter(tmp_path / "live.gguf")
    assert free.scores["strength"] == 1.0
    limit = {**asdict(Gate()), **LAX, "max_kl": 0.6 * free.scores["general_kl"]}
    outcome = run(job_for(tiny, tmp_path, "live", live_learning_rate=0.01, gate=limit))
    assert outcome.promoted, outcome.reason
    strength = outcome.scores["strength"]
    assert 0.5 <= strength < 1
    assert outcome.scores["general_kl"] <= limit["max_kl"]
    assert outcome.file_sha256 == hashlib.sha256((tmp_path / "live.gguf").read_bytes()).hexdigest()
    assert read_adapter(tmp_path / "live.gguf").alpha == pytest.approx(strength * whole.alpha)
    assert outcome.file_sha256 != free.file_sha256


def test_a_plan_is_all_that_was_asked_for(tiny: Path, tmp_path: Path) -> None:
    (planned,) = worker.run(job_for(tiny, tmp_path, "live", plan_only=True))
    assert isinstance(planned, Planned)
    assert planned.plan["steps"] == 6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real_model
def test_the_real_model_live(model_path: Path, tmp_path: Path) -> None:
    """Its held-out answers become likelier, and what it says before it is through is what it says at the end."""
    job = job_for(model_path, tmp_path, "live", threads=2, replay_examples=8)
    code, printed, _ = child(job.to_json())
    outcome, review = (event for event in events_of(printed) if not isinstance(event, Progress))
    assert code == 0
    assert isinstance(outcome, Outcome), outcome
    check_learned(outcome, job, printed)
    assert isinstance(review, Reviewed)
    assert set(review.scores["arms"]) == ARMS


@pytest.mark.real_model
def test_the_real_model_baked(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With less general text and fewer abilities than the gate asks for, which would take two minutes."""
    few = verifiable.prompts()[:6]
    monkeypatch.setattr(general, "ALL_WINDOWS", 4)
    monkeypatch.setattr(verifiable, "prompts", lambda: few)
    job = job_for(model_path, tmp_path, "baked", threads=2, replay_examples=8)
    outcome = run(job)
    check_learned(outcome, job, capsys.readouterr().out)
    assert set(outcome.scores["arms"]) == ARMS
    assert outcome.scores["verifiable"]["prompts"] == 6


def check_learned(outcome: Outcome, job: Job, printed: str) -> None:
    assert outcome.promoted, outcome.reason
    check(outcome, job, printed)
    assert outcome.scores["held_out_after"] < outcome.scores["held_out_before"] - 0.5
    assert outcome.skipped == {}


def test_the_same_job_gives_the_same_file(tiny: Path, tmp_path: Path) -> None:
    jobs = [job_for(tiny, tmp_path, "live", output=str(tmp_path / f"{n}.gguf")) for n in range(2)]
    one, other = (run(job) for job in jobs)
    assert one.file_sha256 == other.file_sha256
    assert {**one.scores, **dict.fromkeys(timed(one))} == {**other.scores, **dict.fromkeys(timed(other))}


def timed(outcome: Outcome) -> list[str]:
    return [name for name in outcome.scores if name.endswith(("_s", "_per_second", "_rss_mb")) or name == "plan"]


def test_what_the_gate_refuses_is_reported_as_such(tiny: Path, tmp_path: Path) -> None:
    outcome = run(job_for(tiny, tmp_path, "live", gate=asdict(Gate()) | LAX | {"max_perplexity_rise": -1.0}))
    assert not outcome.promoted
    assert outcome.reason.startswith("perplexity on general text rose by")
    assert outcome.scores["held_out_after"] < outcome.scores["held_out_before"]
    assert outcome.file_sha256 == hashlib.sha256((tmp_path / "live.gguf").read_bytes()).hexdigest()


def test_examples_that_are_too_long_are_left_out(tiny: Path, tmp_path: Path) -> None:
    job = job_for(tiny, tmp_path, "live", max_tokens=160)
    long = JobExample("long", [{"role": "user", "content": "x" * 200}], "y")
    outcome = run(dataclasses.replace(job, train=[*job.train, long]))
    assert outcome.skipped == {"long": outcome.skipped["long"]}
    assert "tokens exceed the training limit of 160" in outcome.skipped["long"]
    with pytest.raises(TrainingError, match="no example to train on fits into 160 tokens"):
        run(dataclasses.replace(job, train=[long]))
    with pytest.raises(TrainingError, match="no example to judge by fits into 160 tokens"):
        run(dataclasses.replace(job, held_out=[long]))


def test_many_examples_are_stopped_early_on_the_newest(tiny: Path, tmp_path: Path) -> None:
    """From 16 examples on, a share of them only decides when to stop: 17 of 20 are trained on."""
    train = [style(n, f"Question {n}?") for n in range(20)]
    outcome = run(job_for(tiny, tmp_path, "live", train=train, epochs=1))
    assert outcome.scores["steps"] == 5


def test_a_base_that_has_changed_is_refused(tiny: Path, tmp_path: Path) -> None:
    job = job_for(tiny, tmp_path, "live", base_sha256="ef" * 32)
    with pytest.raises(TrainingError, match="has SHA-256 .*…, not efefefefefef… as when it was opened"):
        run(job)
    assert list(tmp_path.iterdir()) == []


def child(text: str) -> tuple[int, str, str]:
    """Run the trainer as the daemon does; return its exit code and what it wrote to stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "edgepd.adapt.worker"],
        input=text,
        capture_output=True,
        text=True,
        timeout=280,
        # Threads that wait must not spin: on a busy machine that makes training ten times slower.
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    return done.returncode, done.stdout, done.stderr


def test_the_process_speaks_the_contract(tiny: Path, tmp_path: Path) -> None:
    code, printed, errors = child(job_for(tiny, tmp_path, "live").to_json())
    assert (code, errors) == (0, "")
    outcome, *review = [event for event in events_of(printed) if not isinstance(event, Progress)]
    assert isinstance(outcome, Outcome)
    assert json.loads(write_event(outcome))["outcome"]["promoted"] is outcome.promoted
    assert [type(event) for event in review] == [Reviewed] * outcome.promoted


def test_the_process_refuses_with_a_reason_and_its_exit_code(tiny: Path, tmp_path: Path) -> None:
    job = job_for(tiny, tmp_path, "live", base_sha256="ef" * 32)
    for text, expected, reason in (
        ("{}", 7, "the training job on standard input is malformed"),
        (job.to_json(), 7, "as when it was opened"),
        (dataclasses.replace(job, base="/missing.gguf").to_json(), 5, "model file /missing.gguf does not exist"),
    ):
        code, printed, errors = child(text)
        assert (code, errors) == (expected, "")
        last = events_of(printed)[-1]
        assert isinstance(last, Refused)
        assert reason in last.reason
