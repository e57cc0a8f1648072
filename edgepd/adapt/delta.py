"""What is learned: a low-rank delta around a frozen linear layer, as LoRA (live) or block scales (baked).

The idea: both kinds wrap a QuantLinear, own two small factors A and B, and export them as they are. The
invariant: B starts at zero, so a new delta changes nothing, and the gradients equal those of the dense
formula (tested).
What this does not do: touch the frozen layer, or decide where deltas go (see decoder.py).
"""

# The base class of autograd functions is not annotated upstream.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from edgepd.adapt.linear import QuantLinear
from edgepd.errors import TrainingError
from edgepd_quant.adapter_file import LowRank
from edgepd_quant.types import BLOCK_SIZES


class Delta(ABC):
    """A frozen linear layer with trainable factors a (r, n) and b (out, r), both float32."""

    def __init__(self, base: QuantLinear, width: int, rank: int, generator: torch.Generator) -> None:
        self.base = base
        bound = 1 / math.sqrt(width)  # Kaiming-uniform with slope sqrt(5), as in the LoRA reference code
        self.a = torch.empty(rank, width).uniform_(-bound, bound, generator=generator).requires_grad_()
        self.b = torch.zeros(base.out_features, rank, requires_grad=True)

    @property
    def name(self) -> str:
        """Name of the base tensor."""
        return self.base.name

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x (N, in) to (N, out) through the changed weight."""

    def export(self) -> LowRank:
        """Copy the factors out as numpy arrays."""
        return LowRank(self.a.detach().numpy().copy(), self.b.detach().numpy().copy())


class LoRA(Delta):
    """y = x W^T + (alpha / r) (x A^T) B^T with A (r, in); arXiv 2106.09685."""

    def __init__(self, base: QuantLinear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__(base, base.in_features, rank, generator)
        self.scaling = alpha / rank

    def __call__(self, x: Tensor) -> Tensor:
        return _LoRAProduct.apply(x, self.a, self.b, self)


class Scale(Delta):
    """y = x (W * (1 + g))^T with g = B A constant in each quantisation block, A (r, blocks per row).

    A blockwise HiRA (high-rank update by Hadamard product) that a quantised file can hold in its block
    scales.
    """

    def __init__(self, base: QuantLinear, rank: int, generator: torch.Generator) -> None:
        """Raises TrainingError where the tensor's type has no block scales to bake into."""
        self.block_size = BLOCK_SIZES[base.qtype].elements
        if self.block_size == 1:
            raise TrainingError(
                f"tensor '{base.name}' is {base.qtype.name}, which has no block scales; train kind 'lora' instead"
            )
        super().__init__(base, base.in_features // self.block_size, rank, generator)

    def __call__(self, x: Tensor) -> Tensor:
        return _ScaleProduct.apply(x, self.a, self.b, self)


class _LoRAProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, layer: LoRA) -> Tensor:
        reduced = x @ a.T  # (N, r)
        ctx.save_for_backward(x, a, b, reduced)
        ctx.layer = layer
        return (x @ layer.base.weight().T).addmm_(reduced, b.T, alpha=layer.scaling)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, a, b, reduced = ctx.saved_tensors
        scaling = ctx.layer.scaling
        grad_reduced = (grad @ b).mul_(scaling)  # (N, r)
        grad_b = (grad.T @ reduced).mul_(scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ ctx.layer.base.weight()).addmm_(grad_reduced, a)
        return grad_x, grad_reduced.T @ x, grad_b, None


class _ScaleProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, layer: Scale) -> Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.layer = layer
        return x @ _scaled_blocks(layer.base.weight(), a, b, layer.block_size).T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, a, b = ctx.saved_tensors
        weight = ctx.layer.base.weight()
        # The dense gradient of this one layer lives only until it is reduced to one number per block.
        dense = (grad.T @ x).mul_(weight)
        grad_gain = dense.unflatten(1, (-1, ctx.layer.block_size)).sum(-1)  # (out, blocks)
        del dense
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ _scaled_blocks(weight, a, b, ctx.layer.block_size)
        return grad_x, b.T @ grad_gain, grad_gain @ a.T, None


def _scaled_blocks(weight: Tensor, a: Tensor, b: Tensor, block_size: int) -> Tensor:
    """Multiply weight (out, in) by 1 + B A per block, in place."""
    weight.unflatten(1, (-1, block_size)).mul_((b @ a).add_(1).unsqueeze(-1))
    return weight
