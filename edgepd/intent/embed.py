"""What a predictor reads of one place: four embeddings, concatenated (PITuning, section 3.2.1), and the moment.

The idea: the token of an event is its context, weekday, half hour and event side by side, 4 d wide; the moment at which
the next one is asked for is added to it, as the paper's tree model knows it (appendix E) and its predictor does not.
An event is the embedding of its intent plus, where events are told apart within intents, an offset of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgepd.intent.batches import Batch
from edgepd.intent.encode import masked_row
from edgepd.intent.shape import DAY_SLOTS, GAPS, WEEKDAYS, Shape

STD = 0.1


class Embedding(nn.Module):
    """The tables; `forward` maps a batch of (B, L) places to (B, L, 4 d)."""

    def __init__(self, shape: Shape, *, moment: bool = True) -> None:
        """With `moment` False the moment of the event to predict is not told, as in the paper."""
        super().__init__()
        d = shape.width
        self._moment = moment
        self.intent = _table(masked_row(shape.intents) + 2, d)
        self.context = nn.Parameter(torch.zeros(shape.contexts + 1, d))  # what was never seen must not be noise
        self.weekday = _table(WEEKDAYS + 1, d)
        self.slot = _table(DAY_SLOTS + 1, d)
        self.gap = _table(GAPS, d)
        self.now = nn.Linear(3 * d, shape.hidden)
        if shape.offsets:
            self.event = nn.Parameter(torch.zeros(shape.events + 1, d))

    def forward(self, batch: Batch) -> Tensor:
        """Return the tokens."""
        event = self.intent[batch.intent]
        if hasattr(self, "event"):
            event = event + self.event[batch.event]
        parts = [self.context[batch.context], self.weekday[batch.weekday], self.slot[batch.slot], event]
        tokens = torch.cat(parts, dim=-1)
        if not self._moment:
            return tokens
        now = [self.weekday[batch.now_weekday], self.slot[batch.now_slot], self.gap[batch.now_gap]]
        told: Tensor = tokens + self.now(torch.cat(now, dim=-1))
        return told


def _table(rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, width) * STD)
