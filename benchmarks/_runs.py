"""Training runs as the daemon makes them, without the daemon: a job goes to a child, and its events come back."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepd.adapt.job import Job, JobExample, JobKind, Outcome, Refused, Reviewed, read_event
from edgepd.errors import TrainingError
from edgepd.models.catalog import Installed
from edgepd.settings import Settings

SETTINGS = Settings()
# A busy machine must not train less: the number of steps is to be that of an idle one.
NO_HURRY = {"fast_seconds": 3600.0}


def job(
    model: Installed,
    directory: Path,
    cache: Path,
    learn: Sequence[JobExample],
    held_out: Sequence[JobExample],
    *,
    kind: JobKind = "live",
    seed: int = 0,
    threads: int = 1,
    current: Path | None = None,
) -> Job:
    """Return the job of one run; `current` is the live adapter that serves and that training goes on from."""
    return Job(
        kind=kind,
        base=str(model.path),
        base_sha256=model.sha256,
        original=str(model.path),
        original_sha256=model.sha256,
        current_model=str(model.path),
        current_adapter=str(current) if current else None,
        output=str(directory / f"{kind}.gguf"),
        checkpoint_dir=str(directory / "checkpoints"),
        replay_dir=str(cache),
        train=list(learn),
        held_out=list(held_out),
        data_hash="",
        settings=asdict(SETTINGS.train) | NO_HURRY | {"seed": seed},
        threads=threads,
        gate=asdict(SETTINGS.gate),
        max_tokens=SETTINGS.serve.context_tokens,
        start_adapter=str(current) if current else None,
    )


def carry_out(work: Job, *, reviewed: bool = False) -> tuple[Outcome, Reviewed | None]:
    """Run a job in a child to its outcome, and if asked for to its review. Raises TrainingError if it is refused."""
    Path(work.output).parent.mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "edgepd.adapt.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(work.threads), "GOMP_SPINCOUNT": "10000"},
    )  # fmt: skip
    if child.stdin is None or child.stdout is None:
        raise RuntimeError("the trainer was started without pipes")
    outcome, review = None, None
    with child:
        child.stdin.write(work.to_json())
        child.stdin.close()
        for line in child.stdout:
            event = read_event(line)
            if isinstance(event, Refused):
                raise TrainingError(event.reason)
            if isinstance(event, Outcome):
                outcome = event
                if not reviewed:
                    break
            if isinstance(event, Reviewed):
                review = event
        child.kill()
    if outcome is None:
        raise TrainingError(f"the trainer ended with {child.returncode} before it had a result")
    return outcome, review


def numbered(examples: Sequence[tuple[str, str]], weight: float = 1.0) -> list[JobExample]:
    """Return (question, answer) as examples, each a conversation of its own."""
    return [
        JobExample(f"e{n}", [{"role": "user", "content": q}], a, weight, conversation=f"c{n}")
        for n, (q, a) in enumerate(examples)
    ]


def numbers(outcome: Outcome) -> dict[str, Any]:
    """Return what a table shows of an outcome."""
    scores = outcome.scores
    found = dataclasses.asdict(outcome) | {"gain": scores.get("improvement", {}), "scores": scores}
    return {
        "promoted": found["promoted"],
        "n": found["gain"].get("n"),
        "gain": found["gain"].get("mean"),
        "at least": found["gain"].get("lower"),
        "kl": scores.get("general_kl"),
        "perplexity": scores.get("general_perplexity_rise"),
        "strength": scores.get("strength"),
    }
