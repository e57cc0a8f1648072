"""Runs the two trainers of `make bench-training`, each in a process of its own.

Both get the same specification: token ids, the file, and the hyper-parameters. Ours goes first and says in which
batches and at which learning rates it trained; the peer gets those.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _report import model_path

from edgepd.settings import Train
from edgepd_daemon.training_child import CHILD_ENVIRONMENT

HERE = Path(__file__).parent
PEER_PYTHON = Path("build/peft-venv/bin/python")
# Everything it needs is in the model file; without these it asks the network first.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
THREADS = 2
PEER_LEARNING_RATE = 2e-4  # usual in its documentation

Example = dict[str, Any]  # {"tokens": [...], "supervised_from": n}


class Refused(Exception):
    """The planner said that a run does not fit into memory_mb."""


def specification(train: Sequence[Example], held_out: Sequence[Example] = (), **changes: Any) -> dict[str, Any]:
    """Return what both trainers are told; `changes` override what is here."""
    ours = Train()
    return {
        "model": str(model_path().absolute()),
        "threads": THREADS,
        "seed": 0,
        "train": list(train),
        "held_out": list(held_out),
        "kind": "lora",
        "rank": ours.rank,
        "alpha": 2.0 * ours.rank,
        "learning_rate": ours.live_learning_rate,
        "epochs": 1,
        "batch": 4,  # sequences
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "eval_every": 0,
        "memory_mb": 0,  # what ours plans for; 0: half of what is free, as train.memory_mb
        "measure_peak": False,
        "gradient_checkpointing": False,  # of the peer
        **changes,
    }


def ours(spec: Mapping[str, Any], program: str = "_ours.py") -> dict[str, Any]:
    """Run ours, or another program that reads a specification, as the daemon runs its worker.

    Raises Refused with the planner's reason.
    """
    command = [sys.executable, "-P", str(HERE / program)]
    result = _run(command, spec, os.environ | CHILD_ENVIRONMENT | {"PYTHONPATH": str(HERE)})
    if "refused" in result:
        raise Refused(result["refused"])
    return result


def peer(spec: Mapping[str, Any], after: Mapping[str, Any], learning_rate: float | None = None) -> dict[str, Any]:
    """Run the peer with the batches of our run `after`, at its learning rates or at another peak rate."""
    factor = 1.0 if learning_rate is None else learning_rate / spec["learning_rate"]
    given = {"batches": after["batches"], "rates": [rate * factor for rate in after["rates"]]}
    return _run([str(PEER_PYTHON), str(HERE / "_peft.py")], {**spec, **given}, os.environ | OFFLINE)


def has_peer() -> bool:
    """Whether the peer's environment is there and complete."""
    check = [
        str(PEER_PYTHON),
        "-c",
        "import importlib.util as u; assert all(map(u.find_spec, ('peft', 'transformers')))",
    ]
    return PEER_PYTHON.exists() and subprocess.run(check, stderr=subprocess.DEVNULL, check=False).returncode == 0


def of_length(count: int, length: int) -> list[Example]:
    """Return sequences of exactly this length, half of them to be learned, which say nothing."""
    return [
        {"tokens": [100 + (7 * i + 131 * n) % 4000 for i in range(length)], "supervised_from": length // 2}
        for n in range(count)
    ]


def _run(command: list[str], spec: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    given = json.dumps({**spec, "started": time.monotonic()})
    done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command} failed with {done.returncode}:\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
