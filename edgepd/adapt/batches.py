"""From encoded examples to padded batches and their loss.

The idea: an optimiser step takes a few sequences, cut into micro-batches of like length so that little is
padding. The invariant: a sequence's loss does not depend on what it is batched with, and only supervised
tokens count.
What this does not do: pack several examples into one row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded
from edgepd.adapt.loss import weighted_nll


def epoch_batches(examples: Sequence[Encoded], batch: int, seed: int, epoch: int) -> list[list[Encoded]]:
    """Shuffle by seed and epoch and cut into ceil(n / batch) batches whose sizes differ by at most one."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(examples), generator=generator)
    return [[examples[i] for i in part] for part in order.tensor_split(math.ceil(len(examples) / batch))]


def micro_batches(examples: Sequence[Encoded], micro_tokens: int) -> Iterator[list[Encoded]]:
    """Group examples of like length so that count x longest <= micro_tokens; a longer example goes alone."""
    group: list[Encoded] = []
    for example in sorted(examples, key=lambda example: len(example.tokens)):
        if group and (len(group) + 1) * len(example.tokens) > micro_tokens:
            yield group
            group = []
        group.append(example)
    if group:
        yield group


def batch_nll(decoder: Decoder, examples: Sequence[Encoded], weights: Sequence[float]) -> Tensor:
    """Return sum_i weights_i * (negative log-likelihood of example i's supervised tokens, nats), a scalar."""
    length = max(len(example.tokens) for example in examples) - 1  # the last token is a target only
    tokens = torch.zeros(len(examples), length, dtype=torch.int64)  # (B, T)
    positions: list[int] = []  # in the flattened (B * T), of the positions that predict a supervised token
    targets: list[int] = []
    token_weights: list[float] = []
    for row, (example, weight) in enumerate(zip(examples, weights, strict=True)):
        tokens[row, : len(example.tokens) - 1] = torch.tensor(example.tokens[:-1])
        first = row * length + example.supervised_from - 1
        positions.extend(range(first, first + example.supervised))
        targets.extend(example.tokens[example.supervised_from :])
        token_weights.extend([weight] * example.supervised)
    predicting = decoder.hidden(tokens).index_select(0, torch.tensor(positions))  # (S, C)
    return weighted_nll(
        decoder.output_norm(predicting), decoder.head, torch.tensor(targets), torch.tensor(token_weights)
    )


def held_out_loss(decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = 512) -> float:
    """Return the mean negative log-likelihood of the supervised tokens, all weighing alike, in nats per token."""
    total = 0.0
    with torch.no_grad():
        for micro in micro_batches(examples, micro_tokens):
            total += batch_nll(decoder, micro, [1.0] * len(micro)).item()
    return total / sum(example.supervised for example in examples)
