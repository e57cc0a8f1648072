"""Run: python -m pytest tests/adapt/test_functional.py"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edgepd.adapt.functional import Activation, Gated, Plain, Prologue, RMSNorm, rms_norm, rotary_turns, rotate


def double(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)


class Applied(torch.autograd.Function):
    """A prologue as an autograd function, so that its gradient can be checked against finite differences."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor | None, prologue: Prologue) -> Tensor:
        ctx.save_for_backward(x, gain)
        ctx.prologue = prologue
        return prologue.forward(x, gain).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, gain = ctx.saved_tensors
        return (*ctx.prologue.backward(x, gain, grad.clone()), None)


def applied(prologue: Prologue) -> Callable[..., Tensor]:
    """The prologue as a function of x and a gain."""
    return lambda x, gain=None: Applied.apply(x, gain, prologue)  # type: ignore[no-untyped-call]


def test_rms_norm_value_and_gradient() -> None:
    x = torch.tensor([[3.0, 4.0]])
    rms = math.sqrt(12.5)
    torch.testing.assert_close(rms_norm(x, torch.tensor([1.0, 2.0]), 0.0), torch.tensor([[3 / rms, 8 / rms]]))
    torch.testing.assert_close(rms_norm(x, torch.ones(2), 3.5), torch.tensor([[3 / 4, 4 / 4]]))  # sqrt(12.5 + 3.5)
    gain = double(6, seed=1)
    assert torch.autograd.gradcheck(lambda t: rms_norm(t, gain.detach(), 1e-5), double(4, 6, seed=0))
    assert torch.autograd.gradcheck(lambda t, g: rms_norm(t, g, 1e-5), (double(2, 3, 6, seed=0), gain))


def test_rms_norm_leaves_a_shared_gradient_alone() -> None:
    """The gradient that it gets may be that of a residual connection as well."""
    x, other, gain = double(2, 6, seed=0), double(2, 6, seed=1), double(6, seed=2)
    shared = torch.ones(2, 6, dtype=torch.float64)
    torch.autograd.backward(rms_norm(x, gain, 1e-5) + other, shared)
    assert torch.equal(shared, torch.ones(2, 6, dtype=torch.float64))
    assert other.grad is not None and torch.equal(other.grad, shared)


def test_rms_norm_as_a_prologue() -> None:
    norm = RMSNorm(1e-5)
    x, gain = double(4, 6, seed=0), double(6, seed=1)
    assert torch.equal(norm.forward(x.detach(), gain.detach()), rms_norm(x.detach(), gain.detach(), 1e-5))
    assert torch.equal(norm.forward(x.detach(), None), rms_norm(x.detach(), torch.ones(6), 1e-5))
    assert torch.autograd.gradcheck(applied(norm), x)
    assert torch.autograd.gradcheck(applied(norm), (x, gain.detach()))
    assert torch.autograd.gradcheck(applied(norm), (x, gain))
    assert norm.backward(x.detach(), gain.detach(), torch.ones_like(x))[1] is None, "a frozen gain gets no gradient"


def test_plain_is_the_input_itself() -> None:
    x, grad = torch.randn(3, 4), torch.randn(3, 4)
    assert Plain().forward(x, None) is x
    assert Plain().backward(x, None, grad) == (grad, None)


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("activation", "of_one"), [("silu", 1 / (1 + math.exp(-1))), ("gelu", gelu(1.0))])
def test_gated_value_and_gradient(activation: Activation, of_one: float) -> None:
    gated = Gated(activation)
    x = torch.tensor([[1.0, 0.0, 3.0, 5.0]])  # gates 1 and 0, ups 3 and 5
    torch.testing.assert_close(gated.forward(x, None), torch.tensor([[3 * of_one, 0.0]]))
    assert x.tolist() == [[1.0, 0.0, 3.0, 5.0]], "what autograd keeps must stay as it is"
    assert torch.autograd.gradcheck(applied(gated), double(3, 10, seed=0))


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotate_gradient_and_partial_dimensions(interleaved: bool) -> None:
    turns = rotary_turns(3, 4, 100.0, None).to(torch.complex128)
    x = double(2, 3, 2, 6, seed=0)
    turned = rotate(x, turns, interleaved=interleaved)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[:, 0], x[:, 0]), "position 0 is not turned"
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.autograd.gradcheck(lambda t: rotate(t, turns, interleaved=interleaved), x)


def test_rotate_pairs() -> None:
    """A quarter turn at position 1 takes (1, 0) to (0, 1) within each pair."""
    turns = torch.tensor([1j, 1j], dtype=torch.complex64).view(1, 1, 2)
    x = torch.tensor([1.0, 0.0, 2.0, 0.0]).view(1, 1, 1, 4)
    assert rotate(x, turns, interleaved=True).flatten().tolist() == [0, 1, 0, 2]
    assert rotate(x, turns, interleaved=False).flatten().tolist() == [-2, 0, 1, 0]


def test_rotary_turns_divide_by_the_factors() -> None:
    turns = rotary_turns(3, 4, 100.0, torch.tensor([1.0, 4.0]))
    assert turns.shape == (3, 1, 2)
    torch.testing.assert_close(turns.angle()[2, 0], torch.tensor([2.0, 2 * 0.1 / 4]))
