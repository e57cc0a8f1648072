"""The training child: `python -m edgepd.adapt.worker` reads a job from stdin and writes events to stdout.

The idea: train, write the file, gate it, in this order and in one process that can be killed at any moment; the
daemon alone decides what becomes of the result. The invariant: the output file appears under its name only when it
is complete.
What this does not do: touch the profile or the running model, or talk to the network.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from edgepd.adapt.batches import held_out_loss
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded, Example, Skipped, encode_all
from edgepd.adapt.gate import Arm, Limits, judge
from edgepd.adapt.job import Event, Job, JobExample, Outcome, Progress, Refused, write_event
from edgepd.adapt.sft import TrainConfig, TrainResult, train
from edgepd.chat import ChatFormat
from edgepd.errors import EdgepdError, TrainingError
from edgepd.llama import Model
from edgepd_quant.adapter_file import write_adapter
from edgepd_quant.bake import bake
from edgepd_quant.reader import GGUFFile

# From this many training examples on, the newest share is set aside to stop early on. Fewer are too few to judge
# by, and each of them is worth more as something to learn from.
EARLY_STOPPING_FROM = 16
EARLY_STOPPING_SHARE = 0.15


def main() -> int:
    """Run the job on stdin; exit code 0 if it came to an outcome, the error's own code otherwise."""
    os.nice(19)  # the machine belongs to the user; training takes what is left
    try:
        emit(run(Job.from_json(sys.stdin.read())))
    except EdgepdError as error:
        emit(Refused(str(error)))
        return error.exit_code
    except BrokenPipeError:
        return 1  # the daemon is gone, and with it whoever wanted the result
    return 0


def emit(event: Event) -> None:
    """Send one event to the daemon."""
    print(write_event(event), flush=True)


class PipeReport:
    """Sends the progress of the training loop to the daemon."""

    def on_step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
        """Report one optimiser step."""
        emit(Progress("train", step, total, loss, tokens_per_second))

    def on_eval(self, epoch: int, held_out_loss: float) -> None:
        """Evaluations are reported with the outcome."""


def run(job: Job) -> Outcome:
    """Carry out one job. Raises EdgepdError with the reason if it cannot be."""
    emit(Progress("load"))
    clock = _Clock()
    torch.set_num_threads(job.threads)
    base, output = Path(job.base), Path(job.output)
    train_set, held_out, skipped = _encode(job, base)
    with GGUFFile.open(base) as model:
        if (found := model.sha256()) != job.base_sha256:
            raise TrainingError(f"{base} has SHA-256 {found[:12]}…, not {job.base_sha256[:12]}… as when it was opened")
        decoder = Decoder(model)
        clock.lap("load_s")
        result = _train(job, decoder, train_set)
        torch_loss = held_out_loss(decoder, held_out)
        clock.lap("train_s")
        emit(Progress("write"))
        baking = _write(job, decoder, output)
        clock.lap("write_s")
    emit(Progress("gate"))
    candidate = Arm(base, output) if job.kind == "live" else Arm(output)
    verdict = judge(
        original=Arm(Path(job.original)),
        current=Arm(Path(job.current_model), Path(job.current_adapter) if job.current_adapter else None),
        candidate=candidate,
        held_out=held_out,
        limits=Limits(job.max_perplexity_rise, job.min_kept_gain),
        threads=job.threads,
    )
    clock.lap("gate_s")
    scores = {
        **verdict.scores,
        "held_out_torch": torch_loss,
        "epochs": result.best_epoch,
        "steps": result.steps,
        "train_tokens_per_second": result.tokens_per_second,
        **baking,
        **clock.laps,
    }
    sha256 = _sha256(output)
    _remove_checkpoints(Path(job.checkpoint_dir))
    return Outcome(verdict.passed, verdict.reason, scores, sha256, {s.id: s.reason for s in skipped})


def _encode(job: Job, base: Path) -> tuple[list[Encoded], list[Encoded], list[Skipped]]:
    """Tokenise the examples as serving does. Raises TrainingError if a side has none that fits."""
    with Model(base, vocab_only=True) as tokenizer:
        chat = ChatFormat(tokenizer)
        train_set, skipped = encode_all(chat, _examples(job.train), job.max_tokens)
        held_out, skipped_held_out = encode_all(chat, _examples(job.held_out), job.max_tokens)
    for side, examples in (("to train on", train_set), ("to judge by", held_out)):
        if not examples:
            raise TrainingError(
                f"no example {side} fits into {job.max_tokens} tokens; correct some shorter answers first"
            )
    return train_set, held_out, skipped + skipped_held_out


def _examples(examples: list[JobExample]) -> list[Example]:
    return [Example(e.id, e.messages, e.response, e.weight) for e in examples]


def _train(job: Job, decoder: Decoder, examples: list[Encoded]) -> TrainResult:
    stop_on = int(len(examples) * EARLY_STOPPING_SHARE) if len(examples) >= EARLY_STOPPING_FROM else 0
    config = TrainConfig(
        kind="lora" if job.kind == "live" else "scale",
        rank=job.rank,
        alpha=2.0 * job.rank,
        learning_rate=job.learning_rate,
        epochs=job.epochs,
        seed=job.seed,
    )
    directory = Path(job.checkpoint_dir)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    learn_from, stop_set = examples[: len(examples) - stop_on], examples[len(examples) - stop_on :]
    return train(decoder, learn_from, stop_set, config, PipeReport(), directory)


def _write(job: Job, decoder: Decoder, output: Path) -> dict[str, Any]:
    """Write the adapter, or bake the delta into a copy of the base; return what baking measured."""
    adapter = decoder.export({"base_sha256": job.base_sha256, "data_hash": job.data_hash, "parent": str(job.parent)})
    if job.kind == "live":
        write_adapter(output, adapter)
        return {}
    report = bake(Path(job.base), adapter, output)
    return {
        "baked_tensors": report.tensors,
        "baked_changed_bytes": report.changed_bytes,
        "baked_max_relative_rounding": report.max_relative_rounding,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_checkpoints(directory: Path) -> None:
    """The run has come to its end; what it could have resumed from is of no more use."""
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


class _Clock:
    """Takes lap times in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 3)
        self._last = now


if __name__ == "__main__":
    sys.exit(main())
