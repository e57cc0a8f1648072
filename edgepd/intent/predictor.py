"""The intent predictor of PITuning (figure 3a): embeddings, transformer blocks, intent attention, prediction layer.

The idea: the same parts for the large predictor of a population and the small one of a device; the blocks are handed
in (backbone.py). Parameters have the names under which network.py looks for them. The invariant: logits at a place
depend on nothing after it.
What this does not do: train, or choose which intents can be next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from edgepd.intent.backbone import GPTBlock, GPTBlocks
from edgepd.intent.batches import Batch
from edgepd.intent.embed import Embedding
from edgepd.intent.iat import IntentAttention
from edgepd.intent.network import network_shapes
from edgepd.intent.shape import Shape
from edgepd.intent.weights_file import Floats


class Head(nn.Module):
    """The prediction layer, eq. 4: one score for each intent, from its pooled history, itself and the newest place.

    The first layer is linear in H_w = sum_j w_ij h_j, so it is applied to each h_j before they are summed: the same
    numbers for a fraction of the work.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, inner = shape.hidden, shape.inner
        self.pooled = nn.Linear(hidden, inner, bias=False)
        self.intent = nn.Linear(hidden, inner, bias=False)
        self.last = nn.Linear(hidden, inner)
        self.out = nn.Linear(inner, 1, bias=False)
        self.direct = nn.Linear(hidden, hidden, bias=False)
        self.bias = nn.Parameter(torch.zeros(shape.intents))

    def forward(self, weights: Tensor | None, h: Tensor, intents: Tensor) -> Tensor:
        """Return logits (B, L, intents); `weights` (B, L, intents, L) is None without intent attention."""
        inner = self.last(h)[:, :, None] + self.intent(intents)
        if weights is not None:
            inner = inner + torch.einsum("blij,bjr->blir", weights, self.pooled(h))
        direct = self.direct(h) @ intents.T / math.sqrt(h.shape[-1])
        logits: Tensor = self.out(gelu(inner, approximate="tanh"))[..., 0] + direct + self.bias
        return logits


class Predictor(nn.Module):
    """`forward` maps a batch of (B, L) places to logits (B, L, intents)."""

    def __init__(
        self,
        shape: Shape,
        blocks: Callable[[Shape], nn.Module] = GPTBlocks,
        *,
        attention: bool = True,
        moment: bool = True,
        dropout: float = 0.0,
    ) -> None:
        """Weights are drawn from torch's generator. Without `attention` it is the paper's ablation "-IAT"."""
        super().__init__()
        self.shape = shape
        self.embed = Embedding(shape, moment=moment)
        self.blocks = blocks(shape)
        self.norm = nn.LayerNorm(shape.hidden)
        self.attention = IntentAttention(shape)
        self.head = Head(shape)
        self._attends = attention
        for module in self.blocks.modules():
            if isinstance(module, GPTBlock):
                module.dropout = dropout

    def hidden(self, batch: Batch) -> Tensor:
        """Return h (B, L, D), eq. 2."""
        h: Tensor = self.norm(self.blocks(self.embed(batch)))
        return h

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits of every intent; where names are open, -inf for those that were not seen."""
        h = self.hidden(batch)
        logits: Tensor = self.head(self.attention(h) if self._attends else None, h, self.attention.intents)
        if self.shape.open_names:
            logits = logits.masked_fill(~batch.seen(self.shape.intents), -math.inf)
        return logits

    def targets(self, batch: Batch) -> Batch:
        """Return the batch with targets only where the right answer is among those that can be given."""
        if not self.shape.open_names:
            return batch
        seen = batch.seen(self.shape.intents)
        there = seen.gather(2, batch.target.clamp(min=0)[..., None])[..., 0]
        return replace(batch, target=torch.where(there, batch.target, -1))

    def exported(self) -> dict[str, Floats]:
        """Return the arrays that network.py runs on. Only a predictor over GPTBlocks has them all."""
        wanted = network_shapes(self.shape)
        found = {_file_name(name): value for name, value in self.state_dict().items()}
        return {name: found[name].detach().numpy().astype(np.float32) for name in wanted}

    def load(self, weights: dict[str, Floats]) -> None:
        """Take the arrays of a student of the same shape."""
        own = {name: torch.from_numpy(np.array(weights[_file_name(name)])) for name in self.state_dict()}
        self.load_state_dict(own)


def _file_name(name: str) -> str:
    """Return the name in a file of what torch knows as `name`."""
    return name.replace("blocks.relative", "relative").replace("blocks.block.", "block.")
