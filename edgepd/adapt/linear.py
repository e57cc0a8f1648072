"""Frozen linear layers whose weights stay quantised in the mapped model file.

The idea: layers that share an input are multiplied as one matrix; autograd keeps only the input *before* the norm
or activation in front of it, which costs less to compute again than to remember; the weight is dequantised into a
scratch buffer, changed there by the deltas (delta.py), and overwritten by the next one. The invariant: the base gets
no gradient and no byte of it changes.
What this does not do: quantise activations as llama.cpp does, or know what the layers are for (see decoder.py).
"""

# The base class of autograd functions is not annotated upstream.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from edgepd.adapt.functional import Prologue
from edgepd.errors import ModelError
from edgepd_quant.blocks import block_format
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType

# Where dequantised weights live: nowhere (each pass dequantises again), as fp16 (cast in each pass) or as fp32.
Residency = Literal["stream", "fp16", "fp32"]
RESIDENT_TYPES = {"fp16": torch.float16, "fp32": torch.float32}


class Change(Protocol):
    """The part of delta.Delta that is needed here."""

    parameters: list[Tensor]

    def change_(self, weight: Tensor) -> None:
        """Turn the dequantised base weight (out, in) into the changed one, in place, outside of autograd."""

    def gradients(self, x: Tensor, grad: Tensor, changed: Tensor) -> list[Tensor]:
        """Return the gradient of each parameter of y = x changed^T, given x (N, in) and grad (N, out) of y."""


class QuantLinear:
    """The weight W (out, in) of y = x W^T, quantised. `name` is the tensor's name in the file."""

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
        self._model = model
        self._raw = torch.from_numpy(model.rows(name))  # (out, row_bytes), a view of the mapped file

    def weight(self, start: int = 0, stop: int | None = None, out: Tensor | None = None) -> Tensor:
        """Dequantise rows start..stop to float32 (rows, in), into `out` if it is given."""
        return self._format.dequantize(self._raw[start:stop], out)

    def release(self) -> None:
        """Unmap what was read of the file: once dequantised, the quantised bytes need not be resident as well."""
        self._model.release(self.name)

    def rows(self, index: Tensor) -> Tensor:
        """Dequantise only the rows named by index (N,) to float32 (N, in)."""
        return self._format.dequantize(self._raw[index])

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x (N, in) to (N, out), without gradient."""
        return x @ self.weight().T


class Scratch:
    """Buffers for dequantised weights that are used over and over, so that memory neither grows nor fragments.

    With `shared` each place in a layer (`slot`) has a buffer of its own: what the recomputation of a layer dequantised
    is still there when its backward pass asks for it. Without, there is one buffer, as large as the largest weight.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        """`dtype` is what products are computed in: float32, or bfloat16 where the CPU multiplies that faster."""
        self.dtype = dtype
        self.shared = False
        self._buffers: dict[str, Tensor] = {}
        self._holds: dict[str, Hashable] = {}

    def weight(self, slot: str, tag: Hashable, shape: tuple[int, int], fill: Callable[[Tensor], None]) -> Tensor:
        """Return a float32 buffer of this shape that holds what `tag` names, filling it if it does not yet.

        It is valid until the next call for the same slot (without `shared`: for any slot).
        """
        place = slot if self.shared else ""
        needed = shape[0] * shape[1]
        if place not in self._buffers or self._buffers[place].numel() < needed:
            self._holds.pop(place, None)
            self._buffers.pop(place, None)  # before the new one is made, so that both are never there at once
            self._buffers[place] = torch.empty(needed)
        found = self._buffers[place][:needed].view(shape)
        if self._holds.get(place) != tag:
            self._holds.pop(place, None)
            fill(found)
            self._holds[place] = tag
        return found

    def forget(self) -> None:
        """Declare all buffers stale, because parameters may have changed."""
        self._holds.clear()

    def release(self) -> None:
        """Free the buffers."""
        self.forget()
        self._buffers.clear()


class LinearGroup:
    """Linear layers with the same input, as one matrix (sum of out, in), behind one prologue."""

    def __init__(self, linears: Sequence[QuantLinear], slot: str, prologue: Prologue, scratch: Scratch) -> None:
        self.linears = list(linears)
        self.deltas: Sequence[Change] = []  # one for each linear, or none
        self.slot = slot
        self._prologue = prologue
        self._scratch = scratch
        self._resident: Tensor | None = None
        self.sizes = [linear.out_features for linear in linears]
        self.shape = (sum(self.sizes), linears[0].in_features)

    @property
    def parameters(self) -> list[Tensor]:
        """All trainable parameters, in order."""
        return [parameter for delta in self.deltas for parameter in delta.parameters]

    def settle(self, residency: Residency) -> None:
        """Keep the dequantised base weight in memory, or with `stream` drop what was kept."""
        self._resident = None
        if residency != "stream":
            kept = torch.empty(self.shape, dtype=RESIDENT_TYPES[residency])
            for linear, part in zip(self.linears, kept.split(self.sizes), strict=True):
                part.copy_(linear.weight())
                linear.release()
            self._resident = kept

    def weight(self, *, changed: bool) -> Tensor:
        """Return the weight with or without the deltas; valid until the scratch buffer is used again."""
        changed = changed and bool(self.deltas)
        if not changed and self._resident is not None and self._resident.dtype == torch.float32:
            return self._resident

        def fill(buffer: Tensor) -> None:
            parts = buffer.split(self.sizes)
            if self._resident is not None:
                buffer.copy_(self._resident)
            else:
                for linear, part in zip(self.linears, parts, strict=True):
                    linear.weight(out=part)
                    linear.release()
            if changed:
                for delta, part in zip(self.deltas, parts, strict=True):
                    delta.change_(part)

        return self._scratch.weight(self.slot, (id(self), changed), self.shape, fill)

    def __call__(self, x: Tensor, gain: Tensor | None, *, changed: bool, wanted: bool = True) -> Tensor:
        """Return prologue(x, gain) W^T, (N, sum of out).

        With `wanted` False the product is left out and the result holds anything: for a recomputation whose end nobody
        reads.
        """
        return _Product.apply(x, gain, self, changed, wanted, *(self.parameters if changed else []))

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply a (N, K) with b (K, M) in the type that this CPU multiplies fastest."""
        if self._scratch.dtype == torch.float32:
            return a @ b
        return (a.to(self._scratch.dtype) @ b.to(self._scratch.dtype)).float()

    def apply_prologue(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """Compute what is multiplied."""
        return self._prologue.forward(x, gain)

    def prologue_gradients(self, x: Tensor, gain: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Carry the gradient of what is multiplied back to x and, if it is trained, the gain."""
        return self._prologue.backward(x, gain, grad)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor | None, group: LinearGroup, changed: bool, wanted: bool, *parameters: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, gain)
        ctx.group, ctx.changed, ctx.count = group, changed, len(parameters)
        if not wanted:
            return x.new_empty(len(x), group.shape[0])
        return group.product(group.apply_prologue(x, gain), group.weight(changed=changed).T)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain = ctx.saved_tensors
        group: LinearGroup = ctx.group
        weight = group.weight(changed=ctx.changed)
        gradients: list[Tensor] = []
        if ctx.count:
            inputs = group.apply_prologue(x, gain)
            parts = zip(group.deltas, grad.split(group.sizes, 1), weight.split(group.sizes), strict=True)
            for delta, part, changed in parts:
                gradients += delta.gradients(inputs, part, changed)
            del inputs
        grad_x = grad_gain = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            grad_x, grad_gain = group.prologue_gradients(x, gain, group.product(grad, weight))
        return (grad_x, grad_gain, None, None, None, *gradients)
