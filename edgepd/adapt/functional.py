"""The parts of a transformer block that are not matrix products, with hand-written gradients.

The idea: a norm or a gated activation in front of a product is cheap to compute again, so the product (linear.py) keeps
what goes *into* it, not what comes out; such a part is a `Prologue`. The others are autograd functions that keep only
the tensors their gradient cannot do without. The invariant: all arithmetic is fp32 and gradients equal autograd's
(tested).
What this does not do: know about layers, or about weights that are quantised.
"""

# The base class of autograd functions is not annotated upstream.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Activation = Literal["silu", "gelu"]


class Prologue(Protocol):
    """What happens to an input x (N, C) right before it is multiplied. `gain` (C,) is None where there is none."""

    def forward(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """Return what is multiplied, (N, in)."""

    def backward(self, x: Tensor, gain: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of x and of the gain, given that of the result; may overwrite `grad`."""


class Plain:
    """The input itself."""

    def forward(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """Return x."""
        del gain
        return x

    def backward(self, x: Tensor, gain: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradient as it is."""
        del x, gain
        return grad, None


class RMSNorm:
    """x / rms(x) * gain, row by row; arXiv 1910.07467."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def forward(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """Normalise x (..., C)."""
        scaled = x * self._inverse_rms(x)
        return scaled if gain is None else scaled.mul_(gain)

    def backward(self, x: Tensor, gain: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of x (..., C) and, if the gain is trained, of the gain."""
        inverse_rms = self._inverse_rms(x)
        grad_gain = None
        if gain is not None:
            if gain.requires_grad:
                grad_gain = (grad * x).mul_(inverse_rms).flatten(0, -2).sum(0)
            grad = grad.mul_(gain)
        along_x = (grad * x).mean(-1, keepdim=True).mul_(inverse_rms.square())
        return grad.addcmul_(x, along_x, value=-1).mul_(inverse_rms), grad_gain

    def _inverse_rms(self, x: Tensor) -> Tensor:
        mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        return mean.add_(self.eps).rsqrt_()


class Gated:
    """activation(gate) * up, where x (N, 2F) holds gate and up side by side; arXiv 2002.05202."""

    def __init__(self, activation: Activation) -> None:
        self._activation = activation

    def forward(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """Return (N, F)."""
        del gain
        gate, up = x.chunk(2, dim=1)
        return self._activate(gate).mul_(up)

    def backward(self, x: Tensor, gain: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of x (N, 2F)."""
        del gain
        gate, up = x.chunk(2, dim=1)
        grad_x = torch.empty_like(x)
        grad_gate, grad_up = grad_x.chunk(2, dim=1)
        torch.mul(self._activate(gate), grad, out=grad_up)
        scaled = grad.mul_(up)
        if self._activation == "silu":
            torch.ops.aten.silu_backward.grad_input(scaled, gate, grad_input=grad_gate)
        else:
            torch.ops.aten.gelu_backward.grad_input(scaled, gate, approximate="tanh", grad_input=grad_gate)
        return grad_x, None

    def _activate(self, gate: Tensor) -> Tensor:
        if self._activation == "silu":
            return torch.nn.functional.silu(gate)
        return torch.nn.functional.gelu(gate, approximate="tanh")


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, gain)
        ctx.norm = RMSNorm(eps)
        return ctx.norm.forward(x, gain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, gain = ctx.saved_tensors
        return (*ctx.norm.backward(x, gain, grad.clone()), None)  # the gradient may be shared with a residual


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, turns: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(turns)
        ctx.interleaved = interleaved
        return _turned(x, turns, interleaved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (turns,) = ctx.saved_tensors
        return _turned(grad, turns.conj(), ctx.interleaved), None, None  # a rotation's transpose turns back


def _turned(x: Tensor, turns: Tensor, interleaved: bool) -> Tensor:
    dims = 2 * turns.shape[-1]
    turning, rest = x[..., :dims], x[..., dims:]
    pairs = turning.unflatten(-1, (-1, 2)) if interleaved else turning.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turns)  # (..., dims / 2, 2)
    turned = turned.flatten(-2) if interleaved else turned.transpose(-1, -2).flatten(-2)
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Divide each row of x (..., C) by its root mean square and multiply by gain (C,); arXiv 1910.07467."""
    return _Norm.apply(x, gain, eps)


def rotate(x: Tensor, turns: Tensor, *, interleaved: bool) -> Tensor:
    """Apply rotary position embedding (arXiv 2104.09864) to x (B, T, H, D).

    Turns (T, 1, d/2) are unit complex numbers.

    `interleaved` pairs (2i, 2i+1) (ggml's NORM order), otherwise (i, i + d/2) (NEOX); dimensions from d on
    stay.
    """
    return _Rotate.apply(x, turns, interleaved)


def rotary_turns(length: int, dims: int, base: float, factors: Tensor | None) -> Tensor:
    """Return exp(i * position * frequency) as complex64 (length, 1, dims / 2).

    Frequencies are base ** (-2i / dims), divided by `factors` (dims / 2,) where the file has
    `rope_freqs.weight`.
    """
    frequencies = base ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    if factors is not None:
        frequencies = frequencies / factors.to(torch.float64)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64).unsqueeze(1)
