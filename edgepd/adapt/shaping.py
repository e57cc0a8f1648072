"""In which order personal and general examples are trained on (Algorithm 1 of "Personalization of Deep Learning").

The idea: the whole run is laid out beforehand as batches that hold either personal examples (the paper's D_I) or
general ones (D_G), never both. Invariants: equal arguments give an equal schedule, so that a resumed run goes on where
it stood; an epoch trains on each personal example exactly once; without general examples every method is plain
training.
What this does not do: choose general examples (grouping.py), generate them (replay.py), or decide when to stop. Where
the paper leaves something open, docs/shaping.md says what was chosen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal

import torch

from edgepd.adapt.batches import epoch_batches
from edgepd.adapt.examples import Batch, Encoded
from edgepd.errors import ConfigError, TrainingError

Shaping = Literal["none", "early", "weighing", "transfer"]

# Added to the number of the epoch, so that what is shuffled beside the personal examples has orders of its own.
_GENERAL, _GROUPED, _MIXED = 500_000, 250_000, 750_000
# n_I comes as a decimal fraction: 0.333 is meant to be 1/3.
_LARGEST_DENOMINATOR = 100


def schedule(
    personal: Sequence[Encoded],
    general: Sequence[Encoded],
    *,
    shaping: str,
    personal_every: float,
    general_steps: int,
    batch: int,
    epochs: int,
    seed: int,
    grouped: Sequence[Encoded] = (),
) -> list[list[Batch]]:
    """Return the batches of each of `epochs` epochs, at most `batch` examples in each batch.

    none: personal batches only. early (ES): all personal epochs, then `general_steps` general batches. weighing (SW):
    general batches between the personal ones as `is_personal` says for n_I = `personal_every`; the iterations of all
    epochs are counted through. transfer (TL): `general_steps` general batches, then personal ones only. The general
    examples are gone through again, in another order, whenever they are used up.

    `grouped` are general examples that data grouping adds to D_I: they are trained on once per epoch and count as
    personal in the schedule, in batches of their own, because they are imitated whatever the objective is.

    Raises TrainingError without personal examples and ConfigError for a value that makes no schedule.
    """
    _check(personal, shaping, personal_every, general_steps, batch, epochs)
    passes = [_personal_pass(personal, grouped, batch, seed, epoch) for epoch in range(1, epochs + 1)]
    if shaping == "none" or not general:
        return passes
    stream = _general_batches(general, batch, seed)
    if shaping == "weighing":
        return _weighed(passes, stream, personal_every)
    steps = list(itertools.islice(stream, general_steps))
    if shaping == "transfer":
        return [[*steps, *passes[0]], *passes[1:]]
    return [*passes[:-1], [*passes[-1], *steps]]


def is_personal(iteration: int, personal_every: float) -> bool:
    """Say whether iteration j = 1, 2, ... of sample weighing is personal (Algorithm 1, line 6).

    For n_I >= 1 every n_I-th iteration is personal; for n_I < 1 all but every 1/n_I-th are. Where n_I or 1/n_I is not
    whole, this holds on average: every 2.5th iteration means the third and the fifth of five.
    """
    n = Fraction(personal_every).limit_denominator(_LARGEST_DENOMINATOR)
    if n >= 1:
        return _is_multiple(iteration, n)
    return not _is_multiple(iteration, 1 / n)


def _is_multiple(iteration: int, period: Fraction) -> bool:
    """Whether a multiple of `period` lies in (iteration - 1, iteration]."""
    return iteration // period > (iteration - 1) // period


def _personal_pass(
    personal: Sequence[Encoded], grouped: Sequence[Encoded], batch: int, seed: int, epoch: int
) -> list[Batch]:
    own = [Batch(tuple(part)) for part in epoch_batches(personal, batch, seed, epoch)]
    if not grouped:
        return own
    both = own + [Batch(tuple(part), general=True) for part in epoch_batches(grouped, batch, seed, epoch + _GROUPED)]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch + _MIXED)  # as epoch_batches does
    order = torch.randperm(len(both), generator=generator)
    return [both[i] for i in order.tolist()]


def _general_batches(general: Sequence[Encoded], batch: int, seed: int) -> Iterator[Batch]:
    for number in itertools.count():
        for part in epoch_batches(general, batch, seed, number + _GENERAL):
            yield Batch(tuple(part), general=True)


def _weighed(passes: Sequence[Sequence[Batch]], general: Iterator[Batch], personal_every: float) -> list[list[Batch]]:
    """Put general batches before the personal ones where it is their turn; an epoch ends with its last personal one."""
    iterations = itertools.count(1)
    epochs = []
    for personal in passes:
        epoch = []
        for own in personal:
            while not is_personal(next(iterations), personal_every):
                epoch.append(next(general))
            epoch.append(own)
        epochs.append(epoch)
    return epochs


def _check(
    personal: Sequence[Encoded], shaping: str, personal_every: float, general_steps: int, batch: int, epochs: int
) -> None:
    if not personal:
        raise TrainingError("there is no example of yours to train on; collect some feedback first")
    known = ("none", "early", "weighing", "transfer")
    if shaping not in known:
        raise ConfigError(f"shaping is '{shaping}', but must be one of {', '.join(known)}")
    if not 1 / _LARGEST_DENOMINATOR <= personal_every < math.inf:
        raise ConfigError(f"personal_every is {personal_every}, but must be at least {1 / _LARGEST_DENOMINATOR}")
    for name, value, least in (("batch", batch, 1), ("epochs", epochs, 1), ("general_steps", general_steps, 0)):
        if value < least:
            raise ConfigError(f"{name} is {value}, but must be at least {least}")
