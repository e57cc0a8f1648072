"""Cross-entropy at the supervised positions only, without ever holding all logits.

The idea: go through the vocabulary once in tiles, as FlashAttention goes through the keys: keep a running
maximum and sum of exp(logit) (online softmax, arXiv 1805.02867) and accumulate exp(logit) times the tile of
the output matrix. That gives both the loss and its gradient with respect to the hidden states with each tile
dequantised once and two products. The invariant: memory is (positions x tile) floats, whatever the
vocabulary.
What this does not do: give the frozen output matrix a gradient.
"""

# The base class of autograd functions is not annotated upstream.
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgepd.adapt.linear import QuantLinear

TILE_ROWS = 4096  # of the vocabulary; 9 MB of dequantised weight at 576 wide stays near the caches


class _WeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: QuantLinear, targets: Tensor, weights: Tensor, tile: int) -> Tensor:
        want_grad = ctx.needs_input_grad[0]
        nll, expected = _sweep(hidden, head, targets, tile, want_grad)
        if expected is not None:
            ctx.save_for_backward(expected.mul_(weights.unsqueeze(1)))
        return (nll * weights).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad_hidden,) = ctx.saved_tensors
        return grad_hidden * grad, None, None, None, None


def _sweep(
    hidden: Tensor, head: QuantLinear, targets: Tensor, tile: int, want_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the negative log-likelihoods (S,) and, if wanted, their gradients with respect to hidden."""
    top = hidden.new_full((len(hidden), 1), -torch.inf)  # running maximum of the logits
    total = hidden.new_zeros((len(hidden), 1))  # running sum of exp(logit - top)
    expected = torch.zeros_like(hidden) if want_grad else None  # running sum of exp(logit - top) * output row
    for start in range(0, head.out_features, tile):
        weight = head.weight(start, start + tile)  # (tile, C)
        logits = hidden @ weight.T
        new_top = torch.maximum(top, logits.amax(1, keepdim=True))
        shrink = (top - new_top).exp_()
        mass = logits.sub_(new_top).exp_()
        total.mul_(shrink).add_(mass.sum(1, keepdim=True))
        if expected is not None:
            expected.mul_(shrink).addmm_(mass, weight)
        top = new_top
    target_rows = head.rows(targets)  # (S, C)
    nll = (top + total.log()).squeeze(1) - (hidden * target_rows).sum(1)
    if expected is not None:
        expected.div_(total).sub_(target_rows)
    return nll, expected


def weighted_nll(
    hidden: Tensor, head: QuantLinear, targets: Tensor, weights: Tensor, *, tile_rows: int = TILE_ROWS
) -> Tensor:
    """Return sum_i weights_i * -log softmax(head(hidden_i))[targets_i] in nats, a scalar.

    hidden (S, C) float32 after the output norm; targets (S,) token ids; weights (S,) float32. The gradient
    with respect to hidden is formed during the forward pass.
    """
    return _WeightedNLL.apply(hidden, head, targets, weights, tile_rows)
