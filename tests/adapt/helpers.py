"""What the tests of edgepd.adapt share: a tiny open model, encoded examples, epochs of them, runs, a silent report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgepd.adapt.batches import epoch_batches
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Batch, Encoded
from edgepd.adapt.hyperparameters import TrainConfig
from edgepd.adapt.loop import TrainResult, train
from edgepd.adapt.objectives import SFT
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType
from tests.tiny_gguf import tiny_llama

VOCABULARY = 273
CONFIG = TrainConfig(rank=4, alpha=8.0, learning_rate=1e-2, checkpoint_seconds=0.0)
EPOCHS = 4


@contextmanager
def tiny_decoder(directory: Path, qtype: GGMLType = GGMLType.Q4_1, seed: int = 1) -> Iterator[Decoder]:
    """Write a tiny random model, or take the one that is there, and open it; torch keeps to one thread meanwhile.

    For matrices this small the threads only wait for each other, the more so on a busy machine.
    """
    path = directory / f"tiny-{qtype.name}-{seed}.gguf"
    if not path.exists():
        tiny_llama(path, qtype=qtype, seed=seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with GGUFFile.open(path) as model:
            yield Decoder(model)
    finally:
        torch.set_num_threads(threads)


def random_examples(count: int, seed: int, length: int = 12) -> list[Encoded]:
    """Examples of random tokens and of different lengths, supervised from the fifth token on."""
    rng = np.random.default_rng(seed)
    return [Encoded(f"e{i}", tuple(rng.integers(3, VOCABULARY, length + i % 4).tolist()), 4) for i in range(count)]


def epochs_of(examples: Sequence[Encoded], epochs: int, batch: int = 4) -> list[list[Batch]]:
    """Every example once in each epoch, in batches, shuffled by the number of the epoch."""
    return [[Batch(tuple(part)) for part in epoch_batches(examples, batch, 0, epoch)] for epoch in range(epochs)]


def flat_parameters(decoder: Decoder) -> torch.Tensor:
    """A copy of all that is trained, as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in decoder.parameters])


class Recorder:
    """A report that remembers what it was told."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.evaluations: list[tuple[int, float]] = []

    def on_step(self, step: int, total: int, loss: float, tokens_per_second: float) -> None:
        """Remember the loss."""
        self.losses.append(loss)

    def on_eval(self, epoch: int, held_out_loss: float) -> None:
        """Remember the evaluation."""
        self.evaluations.append((epoch, held_out_loss))


def run(decoder: Decoder, config: TrainConfig = CONFIG, directory: Path | None = None, **changed: Any) -> TrainResult:
    """Train on ten examples, with the same ten as held-out set, so that it keeps improving."""
    examples = random_examples(10, seed=1)
    epochs = changed.pop("epochs", epochs_of(examples, EPOCHS))
    held_out, objective = changed.pop("held_out", examples), changed.pop("objective", SFT())
    report = changed.pop("report", Recorder())
    return train(decoder, epochs, held_out, objective, config, report, checkpoint_dir=directory, **changed)


def contrary(examples: Sequence[Encoded]) -> list[Encoded]:
    """The same prompts with the answers backwards: every step towards the ones leads away from the others."""
    return [dataclasses.replace(e, tokens=(*e.tokens[:4], *reversed(e.tokens[4:]))) for e in examples]
