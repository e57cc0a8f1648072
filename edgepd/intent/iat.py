"""Intent attention: each intent weighs the history by itself (PITuning, section 3.2.3, eq. 3).

The idea: H_w = sum_j a(h_j, E_i) h_j for each intent i. The activation unit a is a product of low rank of what the
intent asks for, given the newest place, with what a place holds, plus what the intent gives for recency; a softmax over
the places so far makes it a weight. The paper's unit (a feed-forward network over an outer product) sees no distance;
"preferences for varying lengths" is learned as the recency of each intent here.
The invariant: nothing after a place is weighed at it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgepd.intent.shape import Shape

STD = 0.5  # as large as what it is multiplied with, or the direct path to the logits learns late


class IntentAttention(nn.Module):
    """`forward` maps h (B, L, D) to the weights w_ij of the places j at each place l, (B, L, intents, L)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._rank = shape.rank
        self.intents = nn.Parameter(torch.randn(shape.intents, shape.hidden) * STD)  # E_i
        self.key = nn.Linear(shape.hidden, shape.rank, bias=False)
        self.query = nn.Linear(shape.hidden, shape.rank)
        self.intent_query = nn.Linear(shape.hidden, shape.rank, bias=False)
        self.recency = nn.Parameter(torch.zeros(shape.intents, shape.window))

    def forward(self, h: Tensor) -> Tensor:
        """Return the weights; they sum to 1 over j <= l."""
        length = h.shape[1]
        query = self.query(h)[:, :, None] + self.intent_query(self.intents)  # (B, L, intents, r)
        score = torch.einsum("blir,bjr->blij", query, self.key(h)) / math.sqrt(self._rank)
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        recency = self.recency[:, distance.clamp(min=0)].transpose(0, 1)  # (L, intents, L)
        weights: Tensor = (score + recency).masked_fill((distance < 0)[:, None], -math.inf).softmax(-1)
        return weights
