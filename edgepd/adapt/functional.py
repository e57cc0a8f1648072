"""The parts of a llama block that are not matrix products, with hand-written gradients.

The idea: each function keeps only the tensors its gradient cannot do without, so that a token costs less
memory than plain autograd would keep. The invariant: all arithmetic is fp32 and gradients equal autograd's
(tested).
What this does not do: anything with trainable weights; norm gains are frozen.
"""

# The base class of autograd functions is not annotated upstream.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        inverse_rms = (x.square().mean(-1, keepdim=True) + eps).rsqrt_()
        ctx.save_for_backward(x, gain, inverse_rms)
        return (x * inverse_rms).mul_(gain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, gain, inverse_rms = ctx.saved_tensors
        scaled = grad * gain
        along_x = (scaled * x).mean(-1, keepdim=True).mul_(inverse_rms.square())
        return scaled.sub_(x * along_x).mul_(inverse_rms), None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        activated = torch.nn.functional.silu(gate)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, activated.mul_(grad)


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
    """Divide each row of x (N, C) by its root mean square and multiply by gain (C,); arXiv 1910.07467."""
    return _RMSNorm.apply(x, gain, eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, elementwise; arXiv 2002.05202."""
    return _SwiGLU.apply(gate, up)


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
