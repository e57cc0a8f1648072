"""A frozen linear layer whose weight stays quantised in the mapped model file.

The idea: autograd keeps only the handle of the layer; the weight is dequantised when a product needs it, once
in the forward and once in the backward pass, and dropped at once. The invariant: the base gets no gradient
and no byte of it changes.
What this does not do: cache dequantised weights, or quantise activations as llama.cpp does.
"""

# The base class of autograd functions is not annotated upstream.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgepd.errors import ModelError
from edgepd_quant.blocks import block_format
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType


class QuantLinear:
    """y = x W^T with W (out, in) quantised. `name` is the tensor's name in the file."""

    def __init__(self, model: GGUFFile, name: str) -> None:
        """Map the tensor. Raises ModelError if its type cannot be dequantised here."""
        info = model.tensors[name]
        self.name = name
        self.qtype: GGMLType = info.qtype
        self.out_features, self.in_features = info.shape
        try:
            self._format = block_format(info.qtype)
        except ModelError as error:
            raise ModelError(f"{model.path}: tensor '{name}': {error}") from error
        self._raw = torch.from_numpy(model.rows(name))  # (out, row_bytes), a view of the mapped file

    def weight(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Dequantise rows start..stop to float32 (rows, in)."""
        return self._format.dequantize(self._raw[start:stop])

    def rows(self, index: Tensor) -> Tensor:
        """Dequantise only the rows named by index (N,) to float32 (N, in)."""
        return self._format.dequantize(self._raw[index])

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x (N, in) to (N, out); the gradient flows to x only."""
        return _FrozenProduct.apply(x, self)


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantLinear) -> Tensor:
        ctx.layer = layer
        return x @ layer.weight().T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return (grad @ ctx.layer.weight() if ctx.needs_input_grad[0] else None), None
