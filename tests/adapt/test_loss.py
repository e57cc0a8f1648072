"""Run: python -m pytest tests/adapt/test_loss.py"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from edgepd.adapt.batches import batch_nll, held_out_loss
from edgepd.adapt.examples import Encoded
from edgepd.adapt.loss import weighted_nll
from tests.adapt.helpers import VOCABULARY, random_examples, tiny_decoder


@pytest.mark.parametrize("tile_rows", [1, 50, 273, 4096])
@pytest.mark.parametrize("spread", [1.0, 100.0])  # large logits: the running maximum must keep exp finite
def test_tiles_equal_plain_cross_entropy(tmp_path: Path, tile_rows: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    with tiny_decoder(tmp_path) as decoder:
        hidden = (spread * torch.randn(9, 64, generator=generator)).requires_grad_()
        targets = torch.randint(VOCABULARY, (9,), generator=generator)
        weights = torch.rand(9, generator=generator)
        loss = weighted_nll(hidden, decoder.head, targets, weights, tile_rows=tile_rows)
        torch.autograd.backward(3 * loss)
        plain = hidden.detach().double().requires_grad_()
        logits = plain @ decoder.head.weight().double().T
        expected = (cross_entropy(logits, targets, reduction="none") * weights).sum()
        torch.autograd.backward(3 * expected)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert hidden.grad is not None and plain.grad is not None
    torch.testing.assert_close(hidden.grad.double(), plain.grad, rtol=1e-4, atol=1e-5)


def test_only_supervised_tokens_count(tmp_path: Path) -> None:
    """The loss is that of the answer given the prompt, and no gradient reaches the rows that predict the prompt."""
    example = random_examples(1, seed=3)[0]  # 12 tokens, supervised from the fifth
    with tiny_decoder(tmp_path) as decoder:
        log_probabilities = decoder.forward_logits(example.tokens).log_softmax(-1)
        expected = -sum(log_probabilities[i - 1, example.tokens[i]].item() for i in range(4, 12))
        assert batch_nll(decoder, [example], [1.0]).item() == pytest.approx(expected, rel=1e-5)

        grads: list[torch.Tensor] = []
        final_states = decoder.hidden

        def watched(tokens: torch.Tensor) -> torch.Tensor:
            states = final_states(tokens)
            states.register_hook(grads.append)  # type: ignore[no-untyped-call]
            return states

        decoder.adapt("lora", rank=2, alpha=4.0, seed=0)
        decoder.hidden = watched  # type: ignore[method-assign]
        torch.autograd.backward(batch_nll(decoder, [example], [1.0]))
    reached = grads[0].abs().sum(1) > 0
    assert reached.tolist() == [False] * 3 + [True] * 8  # position 3 predicts token 4, the first supervised one


def test_last_token_alone(tmp_path: Path) -> None:
    """Supervision that starts at the last token counts that one only; the rest is context."""
    tokens = random_examples(1, seed=4)[0].tokens
    with tiny_decoder(tmp_path) as decoder:
        alone = held_out_loss(decoder, [Encoded("a", tokens, len(tokens) - 1)])
        log_probabilities = decoder.forward_logits(tokens[:-1]).log_softmax(-1)
    assert alone == pytest.approx(-log_probabilities[-1, tokens[-1]].item(), rel=1e-5)


def test_padding_and_company_do_not_matter(tmp_path: Path) -> None:
    examples = random_examples(5, seed=6)
    with tiny_decoder(tmp_path) as decoder:
        alone = [batch_nll(decoder, [example], [1.0]).item() for example in examples]
        together = batch_nll(decoder, examples, [1.0] * 5).item()
        weighted = batch_nll(decoder, examples, [0.5, 0, 0, 0, 2.0]).item()
        mean = held_out_loss(decoder, examples, micro_tokens=30)
    assert together == pytest.approx(sum(alone), rel=1e-5)
    assert weighted == pytest.approx(0.5 * alone[0] + 2 * alone[4], rel=1e-5)
    assert mean == pytest.approx(sum(alone) / sum(len(e.tokens) - 4 for e in examples), rel=1e-5)
