"""What a hidden state says about the next token, without ever holding all logits: likelihood and divergence.

The idea: go through the vocabulary once in tiles, as FlashAttention goes through the keys: keep a running
maximum and sum of exp(logit) (online softmax, arXiv 1805.02867) and accumulate exp(logit) times the tile of
the output matrix. That gives both the loss and its gradient with respect to the hidden states with each tile
dequantised once and two products. The invariant: memory is (positions x tile) floats, whatever the
vocabulary.
What this does not do: give the frozen output matrix a gradient, or weigh positions (see objectives).
"""

# The base class of autograd functions is not annotated upstream.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from edgepd.adapt.linear import QuantLinear

TILE_ROWS = 4096  # of the vocabulary; 9 MB of dequantised weight at 576 wide stays near the caches


class _PerPosition(torch.autograd.Function):
    """The values (S,) as a function of hidden (S, C), whose gradients `slopes` (S, C) were formed along with them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
        del hidden  # an argument only so that autograd knows whom the gradient is for
        ctx.save_for_backward(slopes)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * grad.unsqueeze(1), None, None


class _Softmax:
    """Running softmax of S rows of logits over tiles of the vocabulary, and expectations under it."""

    def __init__(self, hidden: Tensor, *, want_row: bool) -> None:
        self._top = hidden.new_full((len(hidden), 1), -torch.inf)  # running maximum of the logits
        self._total = hidden.new_zeros((len(hidden), 1))  # running sum of exp(logit - top)
        # Running sums of exp(logit - top) times the output row (S, C), and times what `add` is given (S, 1).
        self._row = torch.zeros_like(hidden) if want_row else None
        self._value = hidden.new_zeros((len(hidden), 1))

    def add(self, logits: Tensor, weight: Tensor, values: Tensor | None = None) -> None:
        """Take in logits and values (S, tile) of the output rows `weight` (tile, C). Overwrites the logits."""
        top = torch.maximum(self._top, logits.amax(1, keepdim=True))
        shrink = (self._top - top).exp_()
        mass = logits.sub_(top).exp_()
        self._total.mul_(shrink).add_(mass.sum(1, keepdim=True))
        if self._row is not None:
            self._row.mul_(shrink).addmm_(mass, weight)
        if values is not None:
            self._value.mul_(shrink).add_(mass.mul_(values).sum(1, keepdim=True))
        self._top = top

    def log_total(self) -> Tensor:
        """Return log sum exp(logit), (S,)."""
        return (self._top + self._total.log()).squeeze(1)

    def expected_row(self) -> Tensor | None:
        """Return the expected output row (S, C) if it was wanted; may be called once."""
        return None if self._row is None else self._row.div_(self._total)

    def expected_value(self) -> Tensor:
        """Return the expectation of the values, (S,)."""
        return (self._value / self._total).squeeze(1)


def token_nll(hidden: Tensor, head: QuantLinear, targets: Tensor, *, tile_rows: int = TILE_ROWS) -> Tensor:
    """Return -log softmax(head(hidden_i))[targets_i] for each of S positions, in nats, (S,).

    hidden (S, C) float32 after the output norm; targets (S,) token ids. Differentiable with respect to hidden; the
    gradient is formed during the forward pass.
    """
    want_grad = hidden.requires_grad and torch.is_grad_enabled()
    with torch.no_grad():
        softmax = _Softmax(hidden, want_row=want_grad)
        for weight in _tiles(head, tile_rows):
            softmax.add(hidden @ weight.T, weight)
        target_rows = head.rows(targets)  # (S, C)
        nll = softmax.log_total() - (hidden * target_rows).sum(1)
        slopes = softmax.expected_row()
    return nll if slopes is None else _PerPosition.apply(hidden, nll, slopes.sub_(target_rows))


def base_kl(hidden: Tensor, base_hidden: Tensor, head: QuantLinear, *, tile_rows: int = TILE_ROWS) -> Tensor:
    """Return KL(base || adapted) over the whole vocabulary for each of S positions, in nats, (S,).

    hidden (S, C) are the adapted model's states after the output norm, base_hidden (S, C) the base's. Differentiable
    with respect to hidden: its gradient is the difference of the expected output rows, (p_adapted - p_base) W.
    """
    want_grad = hidden.requires_grad and torch.is_grad_enabled()
    with torch.no_grad():
        adapted, base = _Softmax(hidden, want_row=want_grad), _Softmax(base_hidden, want_row=want_grad)
        for weight in _tiles(head, tile_rows):
            logits, base_logits = hidden @ weight.T, base_hidden @ weight.T
            log_ratio = base_logits - logits  # up to the normalisers, which are subtracted below
            base.add(base_logits, weight, log_ratio)
            adapted.add(logits, weight)
        kl = base.expected_value() - base.log_total() + adapted.log_total()
        kl.clamp_(min=0)  # below is rounding
        slopes, base_row = adapted.expected_row(), base.expected_row()
    return kl if slopes is None or base_row is None else _PerPosition.apply(hidden, kl, slopes.sub_(base_row))


def _tiles(head: QuantLinear, rows: int) -> Iterator[Tensor]:
    """Dequantise the output matrix piece by piece, (up to `rows`, C), each piece over the one before."""
    buffer = torch.empty(min(rows, head.out_features), head.in_features)
    for start in range(0, head.out_features, rows):
        stop = min(start + rows, head.out_features)
        yield head.weight(start, stop, buffer[: stop - start])
