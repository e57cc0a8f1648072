"""Run: python -m pytest tests/adapt/test_loss.py"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from edgepd.adapt.loss import base_kl, token_nll
from tests.adapt.helpers import VOCABULARY, tiny_decoder

TILES = pytest.mark.parametrize("tile_rows", [1, 50, 273, 4096])
# Large logits: the running maximum must keep exp finite.
SPREADS = pytest.mark.parametrize("spread", [1.0, 100.0])


def test_two_tokens_by_hand() -> None:
    """Logits (0, ln 3) are probabilities (1/4, 3/4); the base's (0, 0) are (1/2, 1/2)."""
    head = Rows(torch.tensor([[0.0], [math.log(3)]]))
    hidden = torch.ones(2, 1, requires_grad=True)
    nll = token_nll(hidden, head, torch.tensor([0, 1]))  # type: ignore[arg-type]
    assert nll.tolist() == pytest.approx([math.log(4), math.log(4 / 3)])
    torch.autograd.backward(nll @ torch.tensor([1.0, 10.0]))
    assert hidden.grad is not None  # (p - target) W: 3/4 ln 3 and -1/4 ln 3
    assert hidden.grad.flatten().tolist() == pytest.approx([0.75 * math.log(3), -2.5 * math.log(3)])

    hidden.grad = None
    kl = base_kl(hidden, torch.zeros(2, 1), head)  # type: ignore[arg-type]
    assert kl.tolist() == pytest.approx([0.5 * math.log(4 / 3)] * 2)  # 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4)
    torch.autograd.backward(kl @ torch.tensor([1.0, 2.0]))
    assert hidden.grad is not None  # (3/4 - 1/2) ln 3
    assert hidden.grad.flatten().tolist() == pytest.approx([0.25 * math.log(3), 0.5 * math.log(3)])


class Rows:
    """An output matrix whose rows are given."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self.out_features, self.in_features = rows.shape

    def weight(self, start: int, stop: int, out: Tensor) -> Tensor:
        return out.copy_(self._rows[start:stop])

    def rows(self, index: Tensor) -> Tensor:
        return self._rows[index]


@TILES
@SPREADS
def test_tiles_equal_plain_cross_entropy(tmp_path: Path, tile_rows: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(VOCABULARY, (9,), generator=generator)
    with tiny_decoder(tmp_path) as decoder:
        head = decoder.head
        compare(
            lambda hidden: token_nll(hidden, head, targets, tile_rows=tile_rows),
            lambda hidden: cross_entropy(hidden @ head.weight().double().T, targets, reduction="none"),
            spread * torch.randn(9, 64, generator=generator),
        )


@TILES
@SPREADS
def test_tiles_equal_plain_divergence(tmp_path: Path, tile_rows: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    base = spread * torch.randn(9, 64, generator=generator)
    with tiny_decoder(tmp_path) as decoder:
        head = decoder.head

        def plain(hidden: Tensor) -> Tensor:
            log_p, log_q = ((x @ head.weight().double().T).log_softmax(1) for x in (base.double(), hidden))
            return (log_p.exp() * (log_p - log_q)).sum(1)

        drifted = base + 0.3 * spread * torch.randn(9, 64, generator=generator)
        compare(lambda hidden: base_kl(hidden, base, head, tile_rows=tile_rows), plain, drifted)


def compare(tiled: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], states: Tensor) -> None:
    """Compare values and gradients of two functions of hidden states, each row with a weight of its own."""
    weights = torch.linspace(0.1, 2.0, len(states))
    hidden, exact = states.clone().requires_grad_(), states.double().requires_grad_()
    found, expected = tiled(hidden), plain(exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    torch.autograd.backward(found @ weights)
    torch.autograd.backward(expected @ weights.double())
    assert hidden.grad is not None and exact.grad is not None
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-4, atol=3e-5)


def test_the_same_states_do_not_diverge(tmp_path: Path) -> None:
    states = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    with tiny_decoder(tmp_path) as decoder:
        hidden = states.clone().requires_grad_()
        kl = base_kl(hidden, states, decoder.head, tile_rows=50)
        torch.autograd.backward(kl.sum())
    assert kl.min() >= 0
    assert kl.max() < 1e-5
    assert hidden.grad is not None
    assert hidden.grad.abs().max() < 1e-6


def test_without_gradient_the_values_are_the_same(tmp_path: Path) -> None:
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.arange(5)
    with tiny_decoder(tmp_path) as decoder:
        with torch.no_grad():
            alone = token_nll(hidden, decoder.head, targets), base_kl(hidden, hidden * 2, decoder.head)
        both = token_nll(hidden, decoder.head, targets), base_kl(hidden, hidden * 2, decoder.head)
    assert not any(values.requires_grad for values in alone)
    assert all(values.requires_grad for values in both)
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
