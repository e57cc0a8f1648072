"""Supervised fine-tuning: imitate what the user wrote or accepted.

The idea: cross-entropy of the answers, each token weighing as much as its example. The invariant: an answer that the
user did not want is never imitated, whatever its weight. Reward-weighted training is the same loss: its weights come
from the returns of the conversations (edgepd.adapt.returns).
What this does not do: push any text down.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from edgepd.adapt.batches import MICRO_TOKENS, Supervised, answer, batch_nll, held_out_loss
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded
from edgepd.adapt.objectives.base import Objective
from edgepd.errors import TrainingError


class SFT(Objective):
    """Weighted mean of the negative log-likelihood over the supervised tokens of the batch, nats per token."""

    def sequences(self, example: Encoded) -> list[Supervised]:
        return answer(example) if self.weight(example) > 0 else []

    def weight(self, example: Encoded) -> float:
        return imitation_weight(example)

    def loss(self, decoder: Decoder, micro: Sequence[Encoded], batch: Sequence[Encoded]) -> Tensor:
        total = sum(self.weight(example) for example in batch)
        return batch_nll(decoder, micro, [example.weight / total for example in micro])

    def evaluate(self, decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = MICRO_TOKENS) -> float:
        """Return the mean negative log-likelihood of the wanted answers' tokens, all weighing alike, nats per token."""
        wanted = [example for example in examples if example.desirable]
        if not wanted:
            raise TrainingError("there is no wanted answer to judge training by; correct or accept some answers")
        return held_out_loss(decoder, wanted, micro_tokens)


def imitation_weight(example: Encoded) -> float:
    """Return the weight of an example times its number of tokens, or 0 for an answer that the user did not want."""
    return example.weight * example.supervised if example.desirable else 0.0
