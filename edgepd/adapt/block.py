"""One transformer block over the tensors of a GGUF file: attention and gated MLP, each behind its norm.

The idea: four products per block (query/key/value, attention output, gate/up, down), each one matrix whatever the file
splits or fuses; the rest is told by the Architecture. With `recomputed` a block remembers its input alone and runs
again in the backward pass, and the weights that it dequantises for that are still in the scratch buffers then.
The invariant: a recomputed block has the very gradients of a remembered one.
What this does not do: embed tokens or hold the layers together (see decoder.py).
"""

# The base class of autograd functions is not annotated upstream.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from edgepd.adapt.architecture import Architecture, linear_groups
from edgepd.adapt.delta import VectorDelta
from edgepd.adapt.functional import Gated, Plain, RMSNorm, rms_norm, rotate
from edgepd.adapt.linear import LinearGroup, QuantLinear, Scratch
from edgepd_quant.reader import GGUFFile


@dataclass(frozen=True)
class Rows:
    """How the rows (B * T, C) of a micro-batch lie, and what depends on their length only."""

    batch: int
    turns: Tensor  # rotary turns (T, 1, d/2) of layers that see everything
    local_turns: Tensor  # those of sliding layers
    # (T, T), 0 where a sliding layer sees and -inf where not; None where that is all before. Not bool: of that,
    # attention would make a float32 copy for each layer to keep.
    window: Tensor | None


class Block:
    """Layer number `index` of the model."""

    def __init__(self, model: GGUFFile, arch: Architecture, index: int, scratch: Scratch) -> None:
        self._arch = arch
        self._prefix = f"blk.{index}."
        self._sliding = bool(arch.sliding) and arch.sliding[index]
        qkv, out, up, down = ([QuantLinear(model, name) for name in names] for names in linear_groups(arch, index))
        norm = RMSNorm(arch.rms_eps)
        self.qkv = LinearGroup(qkv, "qkv", norm, scratch)
        self.out = LinearGroup(out, "out", Plain(), scratch)
        self.up = LinearGroup(up, "up", norm, scratch)
        self.down = LinearGroup(down, "down", Gated(arch.activation), scratch)
        own = [name for name in model.tensors if name.startswith(self._prefix)]
        self.vectors = {name: vector(model, name) for name in own if len(model.tensors[name].shape) == 1}
        self.vector_deltas: dict[str, VectorDelta] = {}

    @property
    def groups(self) -> tuple[LinearGroup, ...]:
        """The four products, in the order of the forward pass."""
        return self.qkv, self.out, self.up, self.down

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained in this block, in a fixed order."""
        of_products = [parameter for group in self.groups for parameter in group.parameters]
        return of_products + [p for delta in self.vector_deltas.values() for p in delta.parameters]

    def forward(self, x: Tensor, rows: Rows, *, changed: bool, wanted: bool = True) -> Tensor:
        """Map x (N, C) to (N, C); `changed` computes with the deltas.

        With `wanted` False the values may be anything, but the gradients are right: what the last product would add is
        left out where nothing else depends on it.
        """
        arch = self._arch
        attended = self.out(self._attention(x, rows, changed), None, changed=changed)
        if arch.post_norms:
            attended = rms_norm(attended, self._vector("post_attention_norm.weight", changed), arch.rms_eps)
        x = x + attended
        gate_up = self.up(x, self._vector("ffn_norm.weight", changed), changed=changed)
        fed = self.down(gate_up, None, changed=changed, wanted=wanted or arch.post_norms)
        if arch.post_norms:
            fed = rms_norm(fed, self._vector("post_ffw_norm.weight", changed), arch.rms_eps)
        return x + fed

    def recomputed(self, x: Tensor, rows: Rows, *, changed: bool) -> Tensor:
        """Do the same as `forward`, but remember x alone and compute again in the backward pass."""
        return _Recomputed.apply(x, self, rows, changed, *(self.parameters if changed else []))

    def _attention(self, x: Tensor, rows: Rows, changed: bool) -> Tensor:
        arch, sizes = self._arch, (self._arch.heads, self._arch.kv_heads, self._arch.kv_heads)
        y = self.qkv(x, self._vector("attn_norm.weight", changed), changed=changed)
        if arch.qkv_bias:
            y = y + torch.cat([self._vector(f"attn_{part}.bias", changed) for part in "qkv"])
        q, k, v = (
            part.unflatten(1, (heads, arch.head_dim)).unflatten(0, (rows.batch, -1))  # (B, T, heads, D)
            for part, heads in zip(y.split([heads * arch.head_dim for heads in sizes], 1), sizes, strict=True)
        )
        if arch.qk_norm:
            q = rms_norm(q, self._vector("attn_q_norm.weight", changed), arch.rms_eps)
            k = rms_norm(k, self._vector("attn_k_norm.weight", changed), arch.rms_eps)
        turns = rows.local_turns if self._sliding else rows.turns
        q = rotate(q, turns, interleaved=arch.interleaved_rope)
        k = rotate(k, turns, interleaved=arch.interleaved_rope)
        v = v.contiguous()  # as a view it would keep the whole product alive
        mask = rows.window if self._sliding else None
        mixed = scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=arch.attention_scale,
            enable_gqa=arch.heads != arch.kv_heads,
        )  # (B, heads, T, D)
        return mixed.transpose(1, 2).reshape(len(x), -1)

    def _vector(self, name: str, changed: bool) -> Tensor:
        full = self._prefix + name
        return self.vector_deltas[full].value() if changed and full in self.vector_deltas else self.vectors[full]


def vector(model: GGUFFile, name: str) -> Tensor:
    """Copy an F32 tensor out of the file, flat."""
    return torch.from_numpy(model.f32(name).copy()).flatten()


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Block, rows: Rows, changed: bool, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.block, ctx.rows, ctx.changed, ctx.parameters = block, rows, changed, parameters
        return block.forward(x, rows, changed=changed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        wants_x = ctx.needs_input_grad[0]
        with torch.enable_grad():
            x = x.detach().requires_grad_(wants_x)
            y = ctx.block.forward(x, ctx.rows, changed=ctx.changed, wanted=False)
        found = list(torch.autograd.grad(y, [x, *ctx.parameters] if wants_x else list(ctx.parameters), grad))
        grad_x = found.pop(0) if wants_x else None
        return (grad_x, None, None, None, *found)
