"""Run: python -m pytest tests/adapt/test_functional.py"""

from __future__ import annotations

import math

import pytest
import torch

from edgepd.adapt.functional import rms_norm, rotary_turns, rotate, swiglu


def double(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)


def test_rms_norm_value_and_gradient() -> None:
    x = torch.tensor([[3.0, 4.0]])
    rms = math.sqrt(12.5)
    torch.testing.assert_close(rms_norm(x, torch.tensor([1.0, 2.0]), 0.0), torch.tensor([[3 / rms, 8 / rms]]))
    gain = double(6, seed=1).detach()
    assert torch.autograd.gradcheck(lambda t: rms_norm(t, gain, 1e-5), double(4, 6, seed=0))


def test_swiglu_value_and_gradient() -> None:
    silu_of_one = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(swiglu(torch.tensor([1.0]), torch.tensor([3.0])), torch.tensor([3 * silu_of_one]))
    assert torch.autograd.gradcheck(swiglu, (double(3, 5, seed=0), double(3, 5, seed=1)))


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotate_gradient_and_partial_dimensions(interleaved: bool) -> None:
    turns = rotary_turns(3, 4, 100.0, None).to(torch.complex128)
    x = double(2, 3, 2, 6, seed=0)
    turned = rotate(x, turns, interleaved=interleaved)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[:, 0], x[:, 0]), "position 0 is not turned"
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
