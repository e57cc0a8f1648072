"""What is optimised, seen from the training loop.

The idea: an objective turns the batch of an optimiser step into a few scalars, each small enough for the memory that a
micro-batch may take; the loop calls backward on one after the other. The invariant: how a batch is cut into
micro-batches does not change its loss or its gradient, because the sum of the parts is already normalised.
What this does not do: step, schedule, or choose examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from edgepd.adapt.batches import MICRO_TOKENS, Supervised, micro_batches, sequence_nll
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded
from edgepd.errors import TrainingError

BaseFacts = TypeVar("BaseFacts")


class Objective(ABC):
    """A loss over batches of examples. Losses are in nats where they are likelihoods, else without unit."""

    def prepare(self, decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = MICRO_TOKENS) -> None:
        """Compute what is needed of the base once, for all examples that will be trained on or evaluated.

        The deltas may be fresh or trained already: the reference is the model without them. Raises TrainingError with
        advice if these examples cannot be learned from in this way.
        """
        del decoder, examples, micro_tokens

    def identity(self) -> object:
        """Return what decides the loss besides the examples, in a form that fits into JSON."""
        return type(self).__name__

    @abstractmethod
    def sequences(self, example: Encoded) -> list[Supervised]:
        """Return what an example puts through the model with a gradient; nothing if it does not take part."""

    @abstractmethod
    def weight(self, example: Encoded) -> float:
        """Return how much an example counts in its batch: above zero exactly if `sequences` gives any."""

    @abstractmethod
    def loss(self, decoder: Decoder, micro: Sequence[Encoded], batch: Sequence[Encoded]) -> Tensor:
        """Return the share that the examples of `micro` have in the loss of `batch`, a differentiable scalar."""

    def parts(
        self, decoder: Decoder, batch: Sequence[Encoded], step: int, micro_tokens: int = MICRO_TOKENS
    ) -> Iterator[Tensor]:
        """Give the loss of the batch of optimiser step `step` as scalars to add up.

        Call backward on each before asking for the next, so that only one micro-batch is in memory. A batch in which
        nothing takes part gives none.
        """
        del step
        for micro in micro_batches(batch, micro_tokens, self.sequences):
            yield self.loss(decoder, micro, batch)

    def evaluate(self, decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = MICRO_TOKENS) -> float:
        """Return the value to stop early by, without gradient: lower is better. Here it is the loss of one batch.

        Raises TrainingError if none of the examples takes part.
        """
        with torch.no_grad():
            found = [part.item() for part in self.parts(decoder, examples, 0, micro_tokens)]
        if not found:
            raise TrainingError("none of the examples that training should be judged by fits its objective; use 'sft'")
        return sum(found)


def log_likelihoods(decoder: Decoder, sequences: Sequence[Supervised], micro_tokens: int = MICRO_TOKENS) -> list[float]:
    """Return the log-likelihood of the supervised part of each sequence in nats, without gradient."""
    items = [Encoded(str(n), tokens, supervised_from) for n, (tokens, supervised_from) in enumerate(sequences)]
    found = [0.0] * len(items)
    with torch.no_grad():
        for micro in micro_batches(items, micro_tokens):
            sums = sums_by_sequence(decoder, [(item.tokens, item.supervised_from) for item in micro])
            for item, value in zip(micro, sums.tolist(), strict=True):
                found[int(item.id)] = value
    return found


def prepared(known: Mapping[str, BaseFacts], example: Encoded) -> BaseFacts:
    """Return what the base gave for an example. Raises TrainingError if it was not prepared."""
    if example.id not in known:
        raise TrainingError(f"example {example.id} was not among those that the objective was prepared for")
    return known[example.id]


def sums_by_sequence(decoder: Decoder, sequences: Sequence[Supervised]) -> Tensor:
    """Return the log-likelihood of the supervised part of each of B sequences in nats, (B,), differentiable."""
    nll, owners = sequence_nll(decoder, sequences)
    return nll.new_zeros(len(sequences)).index_add(0, owners, -nll)
