"""Preference between two answers to one prompt: what the user wrote over what the model had written.

The idea: DPO compares how far each answer's likelihood has moved from the base's, SimPO compares the mean likelihood
per token and needs no base. To either, the imitation of the chosen answer is added with weight `sft_weight`: an edit
says both what is better and what is right, and the ensemble does better than each alone (arXiv 2601.19055). An example
without a rejected answer takes part in the imitation only; an unwanted answer takes part in nothing.
The invariant: the loss is bounded below, so the rejected answer cannot be pushed down without end for its own sake.
What this does not do: learn from a thumb alone (see unpaired.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from edgepd.adapt.batches import MICRO_TOKENS, Supervised, answer
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded
from edgepd.adapt.objectives.base import Objective, log_likelihoods, prepared, sums_by_sequence
from edgepd.adapt.objectives.imitation import imitation_weight
from edgepd.errors import TrainingError


class Pairs(Objective):
    """Weighted mean over the pairs of -log sigmoid(margin), plus `sft_weight` times the imitation of the chosen."""

    def __init__(self, sft_weight: float = 1.0) -> None:
        self.sft_weight = sft_weight

    @abstractmethod
    def margin(self, pairs: Sequence[Encoded], chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return how clearly each of P pairs is preferred rightly, (P,), given the answers' log-likelihoods (P,)."""

    def prepare(self, decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = MICRO_TOKENS) -> None:
        del decoder, micro_tokens
        if not any(pair_weight(example) > 0 for example in examples):
            raise TrainingError(
                f"none of {len(examples)} examples has an answer that was replaced by another, which a preference "
                "needs; edit some answers with `edgepd fix`, or set train.objective to 'sft'"
            )

    def sequences(self, example: Encoded) -> list[Supervised]:
        if pair_weight(example) > 0 and example.rejected is not None:
            return [*answer(example), (example.rejected, example.supervised_from)]
        return answer(example) if self.sft_weight > 0 and imitation_weight(example) > 0 else []

    def weight(self, example: Encoded) -> float:
        return example.weight if self.sequences(example) else 0.0

    def loss(self, decoder: Decoder, micro: Sequence[Encoded], batch: Sequence[Encoded]) -> Tensor:
        runs = [self.sequences(example) for example in micro]
        sums = sums_by_sequence(decoder, [sequence for run in runs for sequence in run])
        firsts = [sum(len(run) for run in runs[:n]) for n in range(len(runs))]
        pairs = [n for n, run in enumerate(runs) if len(run) == 2]
        loss = sums.new_zeros(())
        if pairs:
            chosen = torch.tensor([firsts[n] for n in pairs])
            margin = self.margin([micro[n] for n in pairs], sums[chosen], sums[chosen + 1])
            weights = torch.tensor([micro[n].weight for n in pairs], dtype=sums.dtype)
            loss = loss - (weights * logsigmoid(margin)).sum() / sum(pair_weight(example) for example in batch)
        if self.sft_weight > 0:
            total = sum(imitation_weight(example) for example in batch)
            weights = torch.tensor([example.weight for example in micro], dtype=sums.dtype)
            loss = loss - self.sft_weight * (weights * sums[torch.tensor(firsts)]).sum() / total
        return loss


class DPO(Pairs):
    """Direct preference optimisation, arXiv 2305.18290 eq. 7; beta as in TRL's DPOConfig."""

    def __init__(self, beta: float = 0.1, sft_weight: float = 1.0) -> None:
        super().__init__(sft_weight)
        self.beta = beta
        self._references: dict[str, tuple[float, float]] = {}  # example id -> the base's log-likelihoods

    def prepare(self, decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = MICRO_TOKENS) -> None:
        super().prepare(decoder, examples, micro_tokens)
        new = [e for e in examples if pair_weight(e) > 0 and e.id not in self._references]
        with decoder.base():
            found = log_likelihoods(decoder, [run for e in new for run in self.sequences(e)], micro_tokens)
        for n, example in enumerate(new):
            self._references[example.id] = found[2 * n], found[2 * n + 1]

    def margin(self, pairs: Sequence[Encoded], chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return beta * ((log pi - log base)(chosen) - (log pi - log base)(rejected))."""
        references = torch.tensor([prepared(self._references, e) for e in pairs], dtype=chosen.dtype)  # (P, 2)
        return self.beta * ((chosen - references[:, 0]) - (rejected - references[:, 1]))


class SimPO(Pairs):
    """Simple preference optimisation, arXiv 2405.14734 eq. 6; beta and gamma as in TRL's CPOConfig (`simpo_gamma`).

    The paper itself uses beta between 2 and 2.5.
    """

    def __init__(self, beta: float = 0.1, gamma: float = 0.5, sft_weight: float = 1.0) -> None:
        super().__init__(sft_weight)
        self.beta = beta
        self.gamma = gamma

    def margin(self, pairs: Sequence[Encoded], chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return beta * (mean log pi per chosen token - mean log pi per rejected token) - gamma."""
        lengths = [(e.supervised, len(e.rejected or ()) - e.supervised_from) for e in pairs]
        per_token = torch.stack([chosen, rejected], dim=1) / torch.tensor(lengths, dtype=chosen.dtype)  # (P, 2)
        return self.beta * (per_token[:, 0] - per_token[:, 1]) - self.gamma


def pair_weight(example: Encoded) -> float:
    """Return the weight of an example as a pair, or 0 if it is none."""
    return example.weight if example.desirable and example.rejected is not None else 0.0
