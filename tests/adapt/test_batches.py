"""Run: python -m pytest tests/adapt/test_batches.py"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from edgepd.adapt.batches import Supervised, batch_nll, held_out_loss, micro_batches, sequence_nll
from edgepd.adapt.examples import Encoded
from tests.adapt.helpers import random_examples, tiny_decoder


def test_only_supervised_tokens_count(tmp_path: Path) -> None:
    """The loss is that of the answer given the prompt, and no gradient reaches the rows that predict the prompt."""
    example = random_examples(1, seed=3)[0]  # 12 tokens, supervised from the fifth
    with tiny_decoder(tmp_path) as decoder:
        log_probabilities = decoder.forward_logits(example.tokens).log_softmax(-1)
        expected = -sum(log_probabilities[i - 1, example.tokens[i]].item() for i in range(4, 12))
        assert batch_nll(decoder, [example], [1.0]).item() == pytest.approx(expected, rel=1e-5)

        grads: list[torch.Tensor] = []
        final_states = decoder.hidden

        def watched(sequences: Sequence[Sequence[int]]) -> torch.Tensor:
            states = final_states(sequences)
            states.register_hook(grads.append)  # type: ignore[no-untyped-call]
            return states

        decoder.adapt("lora", rank=2, alpha=4.0, seed=0)
        decoder.hidden = watched  # type: ignore[method-assign]
        torch.autograd.backward(batch_nll(decoder, [example], [1.0]))
    reached = grads[0].abs().sum(1) > 0
    assert reached.tolist() == [False] * 3 + [True] * 8  # position 3 predicts token 4, the first supervised one


def test_each_token_has_its_likelihood_and_its_owner(tmp_path: Path) -> None:
    short, long = (3, 5, 7, 9), (4, 6, 8, 10, 12, 14)
    with tiny_decoder(tmp_path) as decoder:
        nll, owner = sequence_nll(decoder, [(short, 3), (long, 2)])
        logits = [decoder.forward_logits(tokens).log_softmax(-1) for tokens in (short, long)]
    assert owner.tolist() == [0, 1, 1, 1, 1]
    expected = [-logits[0][2, 9], *(-logits[1][t - 1, long[t]] for t in range(2, 6))]
    assert nll.tolist() == pytest.approx([value.item() for value in expected], rel=1e-4)


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


def test_micro_batches_count_every_sequence_of_an_example() -> None:
    """A pair needs two rows, each as long as the longest of the micro-batch; who puts nothing through is left out."""
    runs: dict[str, list[Supervised]] = {
        "pair": [((1,) * 4, 1), ((1,) * 9, 1)],
        "short": [((1,) * 5, 1)],
        "short too": [((1,) * 5, 1)],
        "none": [],
        "huge": [((1,) * 90, 1)],
    }
    examples = [Encoded(name, (1,) * 4, 1) for name in runs]

    def grouped(micro_tokens: int) -> list[list[str]]:
        found = micro_batches(examples, micro_tokens, lambda example: runs[example.id])
        return [[example.id for example in micro] for micro in found]

    assert grouped(36) == [["short", "short too", "pair"], ["huge"]]  # 4 rows of 9
    assert grouped(35) == [["short", "short too"], ["pair"], ["huge"]]
