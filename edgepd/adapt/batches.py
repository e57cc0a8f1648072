"""From encoded examples to micro-batches and the likelihood of their supervised tokens.

The idea: an optimiser step takes a few sequences, cut into micro-batches of like length so that little is
padding. The invariant: a sequence's likelihood does not depend on what it is batched with, and only supervised
tokens count: no gradient reaches the states that predict a token of the prompt.
What this does not do: pack several examples into one row, or say what is done with the likelihoods (see
objectives).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded
from edgepd.adapt.loss import token_nll

# The tokens of a sequence and the index of its first supervised one.
Supervised = tuple[tuple[int, ...], int]

MICRO_TOKENS = 512  # larger micro-batches are not faster (measured), but need more memory


def epoch_batches(examples: Sequence[Encoded], batch: int, seed: int, epoch: int) -> list[list[Encoded]]:
    """Shuffle by seed and epoch and cut into ceil(n / batch) batches whose sizes differ by at most one."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(examples), generator=generator)
    return [[examples[i] for i in part] for part in order.tensor_split(math.ceil(len(examples) / batch))]


def answer(example: Encoded) -> list[Supervised]:
    """Return the one sequence that imitating an example takes."""
    return [(example.tokens, example.supervised_from)]


def micro_batches(
    examples: Sequence[Encoded], micro_tokens: int, sequences: Callable[[Encoded], Sequence[Supervised]] = answer
) -> Iterator[list[Encoded]]:
    """Group examples of like length so that sequences x longest <= micro_tokens; a larger example goes alone.

    `sequences` gives what an example puts through the model (a pair puts two sequences); one without any is left out.
    """

    def longest(example: Encoded) -> int:
        return max(len(tokens) for tokens, _ in sequences(example))

    group: list[Encoded] = []
    rows = 0
    for example in sorted((example for example in examples if sequences(example)), key=longest):
        own = len(sequences(example))
        if group and (rows + own) * longest(example) > micro_tokens:
            yield group
            group, rows = [], 0
        group.append(example)
        rows += own
    if group:
        yield group


def predictions(decoder: Decoder, sequences: Sequence[Supervised]) -> tuple[Tensor, Tensor, Tensor]:
    """Run sequences and return, for the S positions that predict a supervised token, in order of sequence:

    the hidden states (S, C) after the output norm, the tokens that come next (S,) and the index of the sequence (S,).
    """
    length = max(len(tokens) for tokens, _ in sequences) - 1  # the last token is a target only
    positions: list[int] = []  # in the flattened (B * T)
    targets: list[int] = []
    owners: list[int] = []
    for row, (tokens, supervised_from) in enumerate(sequences):
        supervised = tokens[supervised_from:]
        first = row * length + supervised_from - 1
        positions.extend(range(first, first + len(supervised)))
        targets.extend(supervised)
        owners.extend([row] * len(supervised))
    states = decoder.hidden([tokens[:-1] for tokens, _ in sequences])
    predicting = states.index_select(0, torch.tensor(positions))  # (S, C)
    return decoder.output_norm(predicting), torch.tensor(targets), torch.tensor(owners)


def sequence_nll(decoder: Decoder, sequences: Sequence[Supervised]) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood (S,) in nats of each supervised token, and which sequence it belongs to (S,).

    The first is differentiable with respect to the decoder's parameters.
    """
    states, targets, owners = predictions(decoder, sequences)
    return token_nll(states, decoder.head, targets), owners


def batch_nll(decoder: Decoder, examples: Sequence[Encoded], weights: Sequence[float]) -> Tensor:
    """Return sum_i weights_i * (negative log-likelihood of example i's supervised tokens, nats), a scalar."""
    nll, owners = sequence_nll(decoder, [supervised for example in examples for supervised in answer(example)])
    return (nll * torch.tensor(weights, dtype=nll.dtype)[owners]).sum()


def held_out_loss(decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = MICRO_TOKENS) -> float:
    """Return the mean negative log-likelihood of the supervised tokens, all weighing alike, in nats per token."""
    total = 0.0
    with torch.no_grad():
        for micro in micro_batches(examples, micro_tokens):
            total += batch_nll(decoder, micro, [1.0] * len(micro)).item()
    return total / sum(example.supervised for example in examples)
