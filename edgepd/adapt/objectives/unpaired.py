"""Preference from lone thumbs: raise what the user wanted, lower what the user did not want.

The idea: each answer's likelihood is compared with the base's, through a sigmoid, so that neither direction pulls
without end. An edit counts twice: its text is wanted, the answer that it replaced is not. KTO measures against the
mean drift of the model on answers that do not belong to the prompt, APO-zero against no drift at all.
The invariant: each answer's loss lies between 0 and its weight; lowering an answer is never plain unlikelihood, whose
gradient grows as the answer becomes less likely.
What this does not do: compare two answers to one prompt (see pairs.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgepd.adapt.batches import MICRO_TOKENS, Supervised, answer, micro_batches
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded
from edgepd.adapt.objectives.base import Objective, log_likelihoods, prepared, sums_by_sequence
from edgepd.errors import TrainingError


class APOZero(Objective):
    """APO-zero without pairs, arXiv 2408.06266; TRL's `apo_zero_unpaired`.

    With d = log pi - log base of an answer, the loss is the weighted mean over the answers of 1 - sigmoid(beta * d) for
    a wanted and sigmoid(beta * d) for an unwanted one, each kind times its factor of `balance`.
    """

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = beta
        self._balance = 1.0, 1.0  # factors of wanted and unwanted answers
        self._references: dict[str, list[float]] = {}  # example id -> the base's log-likelihoods

    def prepare(self, decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = MICRO_TOKENS) -> None:
        """As the protocol says; the balance follows from the examples of the last call."""
        runs = {e.id: self.sequences(e) for e in examples if e.id not in self._references}
        with decoder.base():
            found = iter(log_likelihoods(decoder, [run for own in runs.values() for run in own], micro_tokens))
        self._references |= {name: [next(found) for _ in own] for name, own in runs.items()}
        mass = {True: 0.0, False: 0.0}
        for example in examples:
            for wanted in _wanted(example):
                mass[wanted] += example.weight
        self._balance = balance(mass[True], mass[False])

    def sequences(self, example: Encoded) -> list[Supervised]:
        if example.weight <= 0:
            return []
        rejected = example.rejected if example.desirable else None
        return answer(example) + ([(rejected, example.supervised_from)] if rejected is not None else [])

    def weight(self, example: Encoded) -> float:
        return example.weight * len(self.sequences(example))

    def loss(self, decoder: Decoder, micro: Sequence[Encoded], batch: Sequence[Encoded]) -> Tensor:
        return self._loss(decoder, micro, batch, drift=0.0)

    def _loss(self, decoder: Decoder, micro: Sequence[Encoded], batch: Sequence[Encoded], drift: float) -> Tensor:
        sums = sums_by_sequence(decoder, [run for example in micro for run in self.sequences(example)])
        references = torch.tensor([value for e in micro for value in prepared(self._references, e)])
        wanted = torch.tensor([flag for example in micro for flag in _wanted(example)])
        weights = torch.tensor([example.weight for example in micro for _ in _wanted(example)])
        factors = torch.where(wanted, *self._balance)
        signs = torch.where(wanted, 1.0, -1.0)
        losses = 1 - torch.sigmoid(self.beta * signs * (sums - references - drift))
        return (weights * factors * losses).sum() / sum(self.weight(example) for example in batch)


class KTO(APOZero):
    """Kahneman-Tversky optimisation, arXiv 2402.01306 eq. 7-8, as in TRL's KTOTrainer.

    The loss is APO-zero's with d - z in place of d, where z is how far the model has drifted from the base: the mean of
    log pi - log base over answers that do not belong to their prompt, one for each example of the batch, at least 0,
    without gradient. TRL pairs prompts and answers anew in each batch; here each prompt keeps one foreign answer for
    the whole run, so that the base's likelihood of it is computed once, and a batch of one example is no special case.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)
        self._foreign: dict[str, tuple[Supervised, float]] = {}  # example id -> sequence, the base's log-likelihood

    def prepare(self, decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = MICRO_TOKENS) -> None:
        """Raises TrainingError if there are not two different answers to pair wrongly."""
        super().prepare(decoder, examples, micro_tokens)
        foreign = foreign_answers([example for example in examples if example.weight > 0])
        with decoder.base():
            found = log_likelihoods(decoder, list(foreign.values()), micro_tokens)
        self._foreign |= {name: (run, value) for (name, run), value in zip(foreign.items(), found, strict=True)}

    def loss(self, decoder: Decoder, micro: Sequence[Encoded], batch: Sequence[Encoded]) -> Tensor:
        """As the protocol says; costs a pass over the whole batch for z, which `parts` makes once."""
        return self._loss(decoder, micro, batch, self.drift(decoder, batch))

    def parts(
        self, decoder: Decoder, batch: Sequence[Encoded], step: int, micro_tokens: int = MICRO_TOKENS
    ) -> Iterator[Tensor]:
        del step
        drift = self.drift(decoder, batch, micro_tokens)
        for micro in micro_batches(batch, micro_tokens, self.sequences):
            yield self._loss(decoder, micro, batch, drift)

    def drift(self, decoder: Decoder, batch: Sequence[Encoded], micro_tokens: int = MICRO_TOKENS) -> float:
        """Return z of a batch in nats, at least 0."""
        foreign = [prepared(self._foreign, example) for example in batch if example.weight > 0]
        if not foreign:
            return 0.0
        now = log_likelihoods(decoder, [run for run, _ in foreign], micro_tokens)
        return max(0.0, sum(value - base for value, (_, base) in zip(now, foreign, strict=True)) / len(foreign))


def foreign_answers(examples: Sequence[Encoded]) -> dict[str, Supervised]:
    """Pair each prompt with the next example's answer that is another, by example id.

    It is cut so that no sequence is longer than the longest example. Raises TrainingError if all answers are alike.
    """
    longest = max((len(example.tokens) for example in examples), default=0)
    found: dict[str, Supervised] = {}
    for n, example in enumerate(examples):
        own = example.tokens[example.supervised_from :]
        answers = (e.tokens[e.supervised_from :] for e in (*examples[n + 1 :], *examples[:n]))
        other = next((tokens for tokens in answers if tokens != own), None)
        if other is None:
            raise TrainingError("objective 'kto' needs examples with different answers; use 'apo-zero' or 'sft'")
        tokens = (*example.tokens[: example.supervised_from], *other)
        found[example.id] = tokens[:longest], example.supervised_from
    return found


def balance(wanted: float, unwanted: float) -> tuple[float, float]:
    """Return factors (D, U) with D * wanted / (U * unwanted) in [1, 4/3]; the scarcer kind is raised (TRL, KTO docs).

    With one kind only, nothing is to be balanced: (1, 1).
    """
    if wanted <= 0 or unwanted <= 0:
        return 1.0, 1.0
    ratio = wanted / unwanted
    return max(1.0, 1 / ratio), max(1.0, ratio * 3 / 4)


def _wanted(example: Encoded) -> list[bool]:
    """Whether each of an example's sequences is wanted, in their order."""
    if example.weight <= 0:
        return []
    return [example.desirable] + ([False] if example.desirable and example.rejected is not None else [])
