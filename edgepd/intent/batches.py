"""Windows of encoded events as padded tensors.

The idea: attention is causal and every place predicts its own event, so a window of L events is L examples for the
price of one; the paper's windows of 30 events predict one each. The invariant: a place that is padding counts nowhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from edgepd.intent.encode import NOT_KNOWN, Encoded, masked_row

SPREAD = 8.0  # places by which windows of one batch may differ in length, at random


@dataclass(frozen=True)
class Batch:
    """Tensors (B, L) of what `Encoded` says of each place. `target` is NOT_KNOWN where there is nothing to learn."""

    intent: Tensor
    event: Tensor
    context: Tensor
    weekday: Tensor
    slot: Tensor
    now_weekday: Tensor
    now_slot: Tensor
    now_gap: Tensor
    target: Tensor

    @property
    def counted(self) -> Tensor:
        """Where there is a target: bool (B, L)."""
        return self.target != NOT_KNOWN

    def hidden_events(self, share: float, intents: int, generator: torch.Generator) -> tuple[Batch, Tensor]:
        """Return the batch with that share of the events masked, and where; PITuning, section 3.2.4."""
        there = (self.intent > 0) & (self.intent <= intents)
        where = (torch.rand(self.intent.shape, generator=generator) < share) & there
        masked = self.intent.masked_fill(where, masked_row(intents))
        return replace(self, intent=masked, event=self.event.masked_fill(where, 0)), where

    def seen(self, intents: int) -> Tensor:
        """Return which intents were there before each place: bool (B, L, intents)."""
        there = torch.where(self.intent <= intents, self.intent, 0)
        return nn_one_hot(there, intents + 1)[..., 1:].cumsum(1) > 0

    def renamed(self, intents: int, generator: torch.Generator) -> Batch:
        """Return the batch with the intents of each row in other slots, drawn at random: names that mean nothing."""
        rows = len(self.intent)
        new = torch.stack([torch.randperm(intents, generator=generator) for _ in range(rows)])  # (B, intents)
        named = (self.intent > 0) & (self.intent <= intents)
        index = torch.where(named, self.intent - 1, 0)
        intent = torch.where(named, new.gather(1, index) + 1, self.intent)
        target = torch.where(self.counted, new.gather(1, self.target.clamp(min=0)), self.target)
        return replace(self, intent=intent, target=target)


def nn_one_hot(index: Tensor, classes: int) -> Tensor:
    """Return int64 (..., classes), 1 at each index."""
    return torch.nn.functional.one_hot(index, classes)


def batch_of(windows: Sequence[Encoded]) -> Batch:
    """Return windows of any lengths as one batch, padded at the end."""
    longest = max(len(window) for window in windows)
    columns = []
    for field in fields(Batch):
        padding = NOT_KNOWN if field.name == "target" else 0
        column = np.full((len(windows), longest), padding, np.int64)
        for row, window in enumerate(windows):
            column[row, : len(window)] = getattr(window, field.name)
        columns.append(torch.from_numpy(column))
    return Batch(*columns)


def windows_of(encoded: Encoded, length: int) -> list[Encoded]:
    """Cut into windows of at most `length` places, one after the other; one knows the last event before it, no more."""
    return [encoded.part(start, start + length) for start in range(0, len(encoded), length)]


def shuffled(windows: Sequence[Encoded], rows: int, rng: random.Random) -> Iterator[Batch]:
    """Yield every window once, in batches of windows of about the same length, in random order."""
    order = sorted(range(len(windows)), key=lambda i: len(windows[i]) + SPREAD * rng.random())
    groups = [order[start : start + rows] for start in range(0, len(order), rows)]
    rng.shuffle(groups)
    for group in groups:
        yield batch_of([windows[i] for i in group])
