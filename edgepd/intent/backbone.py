"""The transformer blocks of a predictor, and where they come from (PITuning, section 3.2.2).

The idea: GPTBlocks have the shape of GPT-2's, from random weights; GGUFBlocks are the first blocks of the model that
edgepd serves, dequantised, in the place of the paper's pretrained GPT-2: frozen with LoRA beside each product, or tuned
as they are. The invariant: each maps (B, L, D) to (B, L, D) and sees nothing after a place.
What this does not do: embed or predict.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepd.adapt.architecture import Architecture, linear_groups, read_architecture
from edgepd.adapt.functional import rotary_turns, rotate
from edgepd.adapt.linear import QuantLinear
from edgepd.errors import ModelError
from edgepd.intent.shape import Shape
from edgepd_quant.reader import GGUFFile


class GPTBlock(nn.Module):
    """One block as in GPT-2: norm, attention, norm, MLP of four times the width with GELU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden = shape.hidden
        self._heads = shape.heads
        self.dropout = 0.0
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Map x (B, L, D); `bias` (heads, L, L) is added to the scores."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        x = x + self._dropped(self.out(mixed.transpose(1, 2).flatten(2)))
        inner = functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self._dropped(self.down(inner))

    def _dropped(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class GPTBlocks(nn.Module):
    """Blocks with a learned bias for each distance instead of GPT-2's positions, for windows slide along a history."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.block = nn.ModuleList(GPTBlock(shape) for _ in range(shape.layers))
        self.relative = nn.Parameter(torch.zeros(shape.heads, shape.window))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, L, D)."""
        places = torch.arange(x.shape[1])
        distance = places[:, None] - places[None, :]
        bias = self.relative[:, distance.clamp(min=0)].masked_fill(distance < 0, -math.inf)
        for block in self.block:
            x = block(x, bias)
        return x


class Linear(nn.Module):
    """A product whose weight (out, in) is trained, or frozen with LoRA of some rank beside it (arXiv 2106.09685)."""

    def __init__(self, weight: Tensor, rank: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=rank is None)
        self._has_lora = rank is not None
        if rank is not None:
            self.a = nn.Parameter(torch.randn(rank, weight.shape[1]) / math.sqrt(weight.shape[1]))
            self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        y = functional.linear(x, self.weight)
        return y + (x @ self.a.T) @ self.b.T if self._has_lora else y


class GGUFBlock(nn.Module):
    """Block `index` of a model of architecture llama: RMS norms, rotary attention with grouped queries, gated MLP."""

    def __init__(self, model: GGUFFile, arch: Architecture, index: int, rank: int | None) -> None:
        super().__init__()
        self._arch = arch
        qkv, out, up, down = (
            torch.cat([QuantLinear(model, name).weight() for name in names]) for names in linear_groups(arch, index)
        )
        self.qkv, self.out, self.up, self.down = (Linear(w.float().clone(), rank) for w in (qkv, out, up, down))
        trained = rank is None
        self.norm1, self.norm2 = (
            nn.Parameter(torch.from_numpy(model.f32(f"blk.{index}.{name}.weight").copy()).flatten(), trained)
            for name in ("attn_norm", "ffn_norm")
        )

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """Map x (B, L, D)."""
        arch = self._arch
        heads, kv = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
        y = self.qkv(functional.rms_norm(x, x.shape[-1:], self.norm1, arch.rms_eps))
        q, k, v = (part.unflatten(-1, (-1, arch.head_dim)) for part in y.split([heads, kv, kv], -1))
        q, k = (rotate(part, turns, interleaved=arch.interleaved_rope) for part in (q, k))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mixed = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=arch.attention_scale, enable_gqa=arch.heads != arch.kv_heads
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        gate, up = self.up(functional.rms_norm(x, x.shape[-1:], self.norm2, arch.rms_eps)).chunk(2, -1)
        fed: Tensor = x + self.down(functional.silu(gate) * up)
        return fed


class GGUFBlocks(nn.Module):
    """The first `shape.layers` blocks of a model; `rank` None tunes them as they are."""

    def __init__(self, model: GGUFFile, shape: Shape, rank: int | None = 8) -> None:
        """Copy the weights out of the file. Raises ModelError if the model does not fit."""
        super().__init__()
        arch = read_architecture(model)
        simple = model.metadata["general.architecture"] == "llama" and not arch.qk_norm and not arch.qkv_bias
        if not simple:
            raise ModelError(f"{model.path}: only blocks of architecture llama can carry intents; use another model")
        if arch.hidden != shape.hidden or shape.layers > arch.layers:
            raise ModelError(
                f"{model.path} has {arch.layers} blocks of width {arch.hidden}; {shape.layers} of {shape.hidden} are "
                f"asked for (the width is four times that of one embedding)"
            )
        self._arch = arch
        self.block = nn.ModuleList(GGUFBlock(model, arch, index, rank) for index in range(shape.layers))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, L, D)."""
        turns = rotary_turns(x.shape[1], self._arch.rope_dims, self._arch.rope_base, None)
        for block in self.block:
            x = block(x, turns)
        return x
