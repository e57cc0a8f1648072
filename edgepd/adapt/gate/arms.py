"""One way of serving, and what it says about given tokens, computed by llama.cpp as in serving.

The idea: an arm is a model file with at most one adapter; a scorer loads it and computes losses, or has it answer
prompts. Loading a candidate here, in a child process, is also its first trial: a file that would crash llama.cpp
crashes this process and not the daemon.
What this does not do: compare arms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from edgepd.adapt.examples import Encoded
from edgepd.adapt.generate import Answer, generate
from edgepd.llama import Context, Entry, LoraAdapter, Model

TEMPERATURES = (0.1, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)

Logits = npt.NDArray[np.float32]


class Arm(NamedTuple):
    """Something that can serve: a model file and at most one adapter."""

    model: Path
    adapter: Path | None = None


class Scorer:
    """Computes losses of one arm in llama.cpp."""

    def __init__(self, arm: Arm, threads: int, *, longest: int, window: int = 256) -> None:
        """Load the arm to score up to `longest` tokens, in pieces of `window` tokens.

        Raises ModelError or AdapterError if it cannot be loaded.
        """
        self.model = Model(arm.model)
        self._threads = threads
        self._context = Context(
            self.model, context_tokens=longest, batch_tokens=window, threads=threads, logits_everywhere=True
        )
        self._adapter: LoraAdapter | None = None
        if arm.adapter is not None:
            try:
                self._adapter = LoraAdapter(self.model, arm.adapter)
            except BaseException:
                self.close()
                raise
        self._context.set_adapter(self._adapter)

    def answer_losses(self, examples: Sequence[Encoded]) -> list[float]:
        """Return the loss of each answer given its prompt, in nats per supervised token."""
        return [float(np.mean(self.token_losses(e.tokens, e.supervised_from))) for e in examples]

    def both_losses(self, examples: Sequence[Encoded], least: float = 0.0) -> tuple[list[float], list[float], float]:
        """Return what `answer_losses` does, the same at the temperature that suits the arm best, and that temperature.

        Of TEMPERATURES, from `least` on, it is the one at which the mean over all supervised tokens is lowest.
        """
        each = np.array(
            [
                np.mean([_losses_at(row, token) for row, token in self._targets(e.tokens, e.supervised_from)], axis=0)
                for e in examples
            ]
        )  # (examples, temperatures)
        mean = np.average(each, axis=0, weights=[e.supervised for e in examples])
        best = int(np.argmin(np.where(np.array(TEMPERATURES) >= least, mean, np.inf)))
        return each[:, TEMPERATURES.index(1.0)].tolist(), each[:, best].tolist(), TEMPERATURES[best]

    def token_losses(self, tokens: Sequence[int], first_target: int) -> list[float]:
        """Return -log p(token | all before) for tokens[first_target:], in nats."""
        return [-log_softmax_at(row, token) for row, token in self._targets(tokens, first_target)]

    def logits(self, tokens: Sequence[int], first_target: int) -> Iterator[Logits]:
        """Yield the logits, (V,), from which each of tokens[first_target:] is predicted, from an empty cache."""
        self._context.forget(0)
        step = self._context.batch_tokens
        for start in range(0, len(tokens) - 1, step):
            end = min(start + step, len(tokens) - 1)
            self._context.decode([Entry(tokens[i], i, 0, i >= first_target - 1) for i in range(start, end)])
            for i in range(max(start, first_target - 1), end):
                yield self._context.logits(i - start)

    def _targets(self, tokens: Sequence[int], first_target: int) -> Iterator[tuple[Logits, int]]:
        """Yield the logits and the token that is to be predicted from them, for each of tokens[first_target:]."""
        return zip(self.logits(tokens, first_target), tokens[first_target:], strict=True)

    def answers(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> list[Answer]:
        """Return the greedy answer to each prompt, of at most so many tokens each; several are decoded at a time."""
        return generate(self.model, prompts, limits, _likeliest, self._threads, adapter=self._adapter)

    def close(self) -> None:
        """Free everything."""
        self._context.close()
        if self._adapter is not None:
            self._adapter.close()
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _losses_at(logits: Logits, target: int) -> npt.NDArray[np.float64]:
    """Return -log p(target), in nats, at each of TEMPERATURES, from logits (V,)."""
    return np.array([-log_softmax_at(logits / np.float32(t), target) for t in TEMPERATURES])


def log_softmax_at(logits: Logits, target: int) -> float:
    """Return log p(target), in nats, from logits (V,)."""
    return float(logits[target]) - log_sum_exp(logits)


def log_sum_exp(logits: Logits) -> float:
    """Return log of the sum of exp(logits), computed in double precision."""
    peak = float(logits.max())
    return peak + math.log(float(np.exp(logits - peak).sum(dtype=np.float64)))


def _likeliest(logits: Logits, number: int) -> int:
    del number
    return int(logits.argmax())
