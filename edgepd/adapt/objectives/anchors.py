"""Stay close to the base where the user has asked for no change.

The idea: anchors are prompts with the base's own answers; each optimiser step adds the divergence of the adapted model
from the base on one or two of them to whatever else is optimised. The invariant: what the base says at an anchor is
computed once, with the deltas off, and kept as fp16 hidden states, a few bytes per token instead of a vocabulary.
What this does not do: make anchors, or enter the value that early stopping judges by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgepd.adapt.batches import MICRO_TOKENS, Supervised, answer, micro_batches, predictions
from edgepd.adapt.decoder import Decoder
from edgepd.adapt.examples import Encoded
from edgepd.adapt.loss import base_kl
from edgepd.adapt.objectives.base import Objective
from edgepd.errors import TrainingError

ANCHORS_PER_STEP = 2


class AnchorKL(Objective):
    """Another objective plus `weight` times the mean of KL(base || adapted) per supervised position of the anchors."""

    def __init__(self, inner: Objective, anchors: Sequence[Encoded], weight: float) -> None:
        """Raises TrainingError without anchors."""
        if not anchors:
            raise TrainingError("train.kl_weight needs general examples, but there are none; set train.replay_examples")
        self.inner = inner
        self._anchors = list(anchors)
        self._weight = weight
        self._base_states: dict[tuple[int, ...], Tensor] = {}  # tokens -> (S, C) fp16, after the output norm

    def prepare(self, decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = MICRO_TOKENS) -> None:
        self.inner.prepare(decoder, examples, micro_tokens)
        for micro in micro_batches(self._anchors, micro_tokens):
            with decoder.base(), torch.no_grad():
                states, _, _ = predictions(decoder, [run for anchor in micro for run in answer(anchor)])
            for anchor, own in zip(micro, torch.split(states, [anchor.supervised for anchor in micro]), strict=True):
                self._base_states[anchor.tokens] = own.half()

    def identity(self) -> object:
        return [self.inner.identity(), self._weight, [(a.tokens, a.supervised_from) for a in self._anchors]]

    def sequences(self, example: Encoded) -> list[Supervised]:
        return self.inner.sequences(example)

    def weight(self, example: Encoded) -> float:
        return self.inner.weight(example)

    def loss(self, decoder: Decoder, micro: Sequence[Encoded], batch: Sequence[Encoded]) -> Tensor:
        """As the inner objective; the anchors come in with `parts`."""
        return self.inner.loss(decoder, micro, batch)

    def parts(
        self, decoder: Decoder, batch: Sequence[Encoded], step: int, micro_tokens: int = MICRO_TOKENS
    ) -> Iterator[Tensor]:
        yield from self.inner.parts(decoder, batch, step, micro_tokens)
        anchors = self.of_step(step)
        total = sum(anchor.supervised for anchor in anchors)
        for micro in micro_batches(anchors, micro_tokens):
            yield self._weight * self._divergence(decoder, micro).sum() / total

    def evaluate(self, decoder: Decoder, examples: Sequence[Encoded], micro_tokens: int = MICRO_TOKENS) -> float:
        return self.inner.evaluate(decoder, examples, micro_tokens)

    def of_step(self, step: int) -> list[Encoded]:
        """Return the anchors whose turn it is at an optimiser step, so that a resumed run takes the same ones."""
        count = min(ANCHORS_PER_STEP, len(self._anchors))
        return [self._anchors[(step * count + n) % len(self._anchors)] for n in range(count)]

    def mean_divergence(self, decoder: Decoder, micro_tokens: int = MICRO_TOKENS) -> float:
        """Return KL(base || adapted) in nats per position over all anchors, without gradient."""
        with torch.no_grad():
            sums = [self._divergence(decoder, m).sum().item() for m in micro_batches(self._anchors, micro_tokens)]
        return sum(sums) / sum(anchor.supervised for anchor in self._anchors)

    def _divergence(self, decoder: Decoder, anchors: Sequence[Encoded]) -> Tensor:
        """Return the divergence at each supervised position, (S,)."""
        if not self._base_states:
            raise TrainingError("the divergence from the base was asked for before it was prepared")
        states, _, _ = predictions(decoder, [run for anchor in anchors for run in answer(anchor)])
        base = torch.cat([self._base_states[anchor.tokens] for anchor in anchors]).float()
        return base_kl(states, base, decoder.head)
