"""What the tests of edgepd.adapt share: a tiny open model, encoded examples, a silent report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType
from tests.tiny_gguf import tiny_llama

VOCABULARY = 273


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
