"""The arms of `make bench-intent` that tune a model of a population to one user, ours and those of others.

Each takes the user's train and validation events and returns the probabilities of the test events. What the papers
leave open (rates, steps) was chosen on validation events of seed 0 and is the same for all arms; see `Tuning`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from _intent_models import Array, Data, Person, probabilities, shares
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from edgepd.intent.encode import Encoded
from edgepd.intent.individual import Tuning, overlapping, tune_predictor
from edgepd.intent.losses import focal
from edgepd.intent.predictor import Predictor
from edgepd.intent.unlearn import forget_set

LORA_RANK = 4
RETRIEVED = 8  # population windows that MPDA adds to a user's own
RECENT = 0.3  # of a user's events, that LSAT's short-term module learns from


@dataclass(frozen=True)
class Made:
    """What an arm predicts, (N, C), and the median seconds that it was tuned for one user."""

    probabilities: Array
    tune_s: float


TuneOne = Callable[[Predictor, Person], Predictor]


def tuned_arm(data: Data, base: Predictor, window: int, tune_one: TuneOne, *, validation: bool = False) -> Made:
    """Tune a copy of `base` to each user and predict."""
    rows, seconds = [], []
    for person in data.people:
        began = time.monotonic()
        made = tune_one(copy.deepcopy(base), person)
        seconds.append(time.monotonic() - began)
        start, stop = (person.validation, person.test) if validation else (person.test, len(person.encoded))
        rows.append(probabilities(made, person.encoded, start, stop, window))
    return Made(np.concatenate(rows), float(np.median(seconds)))


def plain(tuning: Tuning, window: int, *, whole: bool = True, share: float = 1.0) -> TuneOne:
    """Individual tuning with cross-entropy alone; `share` of the newest events (sensitivity to their number)."""

    def one(predictor: Predictor, person: Person) -> Predictor:
        past = person.past(whole=whole)
        kept = past.part(len(past) - max(1, round(share * len(past))), len(past))
        tune_predictor(predictor, overlapping(kept, window), set(), replace(tuning, unlearning=None))
        return predictor

    return one


def with_loss(tuning: Tuning, window: int, loss_of: Callable[[Tensor, Tensor], Tensor]) -> TuneOne:
    """The same with another loss, for the methods against imbalance."""

    def one(predictor: Predictor, person: Person) -> Predictor:
        tune_predictor(
            predictor, overlapping(person.past(), window), set(), replace(tuning, unlearning=None), loss_of=loss_of
        )
        return predictor

    return one


def oversampled(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy as if each intent of the user had been repeated to be as frequent as the most frequent one."""
    counts = torch.bincount(target, minlength=logits.shape[-1]).float()
    weights = counts.max() / counts[target]
    return (cross_entropy(logits, target, reduction="none") * weights).sum() / weights.sum()


def focused(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss with gamma 2, the value of its paper."""
    return focal(logits, target)


@dataclass(frozen=True)
class Biased:
    """What adaptive unlearning needs to know of the population, by class: P_pop and P_out."""

    population: Sequence[float]
    output: Sequence[float]

    def forget(self, person: Person, threshold: float, *, whole: bool = True) -> set[int]:
        """Return the forget set of a user."""
        own = shares(person.past(whole=whole).target, len(self.population))
        return forget_set(self.output, self.population, own, threshold)


def unlearned(tuning: Tuning, window: int, biased: Biased, *, whole: bool = True, tune: bool = True) -> TuneOne:
    """Adaptive unlearning and individual tuning, as in the paper but bounded; or the unlearning alone."""
    settings = tuning.unlearning
    if settings is None:
        raise ValueError("this arm is about unlearning")

    def one(predictor: Predictor, person: Person) -> Predictor:
        forget = biased.forget(person, settings.threshold, whole=whole)
        windows = overlapping(person.past(whole=whole), window)
        tune_predictor(predictor, windows, forget, tuning if tune else replace(tuning, epochs=0))
        return predictor

    return one


def partial(tuning: Tuning, window: int) -> TuneOne:
    """PP: attention and feed-forward layers frozen, the rest tuned, as in One Fits All."""

    def one(predictor: Predictor, person: Person) -> Predictor:
        for name, parameter in predictor.blocks.named_parameters():
            parameter.requires_grad_("norm" in name)
        return plain(tuning, window)(predictor, person)

    return one


def retrieved(tuning: Tuning, window: int, data: Data) -> TuneOne:
    """MPDA-style: the population windows most like the user's events, by the shares of intents, are learned as well."""
    classes = len(data.drawn.intents)
    pool = data.windows(window)
    table = np.array([_direction(part, classes) for part in pool])

    def one(predictor: Predictor, person: Person) -> Predictor:
        past = person.past()
        nearest = np.argsort(-(table @ _direction(past, classes)), kind="stable")[:RETRIEVED]
        windows = [pool[i] for i in nearest] + overlapping(past, window)
        tune_predictor(predictor, windows, set(), replace(tuning, unlearning=None, rows=RETRIEVED + 1))
        return predictor

    return one


def _direction(encoded: Encoded, classes: int) -> Array:
    counts = np.bincount(encoded.target, minlength=classes).astype(float)
    return np.asarray(counts / np.linalg.norm(counts))


class _LoRA(nn.Module):
    """W + B A, with W frozen."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(LORA_RANK, columns) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows, LORA_RANK))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight."""
        return weight + self.b @ self.a


def _with_lora(predictor: Predictor) -> Predictor:
    """Freeze everything and put a LoRA beside each product of the blocks."""
    for parameter in predictor.parameters():
        parameter.requires_grad_(False)
    for module in list(predictor.blocks.modules()):
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", _LoRA(*module.weight.shape))
    return predictor


class _Mean(nn.Module):
    """The mean of the probabilities of two predictors, as logits."""

    def __init__(self, one: Predictor, other: Predictor) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, batch: object) -> Tensor:
        """Return log((p + q) / 2)."""
        both = [predictor(batch).softmax(-1) for predictor in (self.one, self.other)]
        mean: Tensor = (sum(both) / 2).log()
        return mean


def long_and_short(tuning: Tuning, window: int) -> TuneOne:
    """LSAT: a LoRA for what the user always does and one for what is recent; their predictions are averaged."""
    faster = replace(tuning, unlearning=None, learning_rate=10 * tuning.learning_rate)  # LoRA begins at B = 0

    def one(predictor: Predictor, person: Person) -> Predictor:
        past = person.past()
        recent = past.part(round((1 - RECENT) * len(past)), len(past))
        long, short = _with_lora(copy.deepcopy(predictor)), _with_lora(predictor)
        tune_predictor(long, overlapping(past, window), set(), faster)
        tune_predictor(short, overlapping(recent, window), set(), faster)
        return _Mean(long, short).eval()  # type: ignore[return-value]

    return one
