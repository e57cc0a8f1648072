"""What is measured before a candidate goes live, in the order in which it is cheapest to find out.

The idea: first the guards on general text. A candidate that went too far there is not thrown away but weakened: the
strength of a delta is free to choose (as between fine-tuned and original weights in WiSE-FT, arXiv 2109.01903), the
divergence falls with its square and what was learned only in proportion, so a little less strength is the better part
of both. Then what it says, whether it knows secrets by heart, and last whether held-out answers have become likelier.
Those are prequential: newer than anything that was trained on. All in llama.cpp.
What this does not do: measure other arms and abilities, which takes longer (see review.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgepd.adapt.examples import Encoded
from edgepd.adapt.gate import general
from edgepd.adapt.gate.arms import Arm, Scorer
from edgepd.adapt.gate.behaviour import behaviour, wanted
from edgepd.adapt.gate.evidence import by_group, fewest, improvement
from edgepd.adapt.gate.regurgitation import Planted, exposures
from edgepd.adapt.gate.verdict import (
    Guard,
    Limits,
    Verdict,
    behaviour_guards,
    decide,
    general_guards,
    memory_guards,
    secret_guards,
)

WEAKEST = 0.4  # strength below which a candidate is refused instead
AIM = 0.9  # of a limit that a weakened candidate should reach
# The lowest temperature of a candidate; others may go to a third of it. Greedy answers, whose best temperature is 0,
# would otherwise again be won by whoever is surest.
COOLEST = 0.35
FIRST_WINDOWS = 2  # pieces of general text after which a candidate that diverges too much is weakened at once
STAGES = ("base", "general", "before", "after", "spoken")  # of `judge`, of which scores tell the seconds


@dataclass(frozen=True)
class Trial:
    """What is judged, by what, and with which means. `groups`: the conversation of each held-out answer."""

    original: Arm
    original_sha256: str
    current: Arm
    candidate: Arm
    held_out: Sequence[Encoded]
    groups: Sequence[str]
    learned: Sequence[Encoded]  # some of what was trained on
    secrets: Sequence[Planted]
    limits: Limits
    cache: Path  # directory of what is known of the base
    threads: int
    windows: int  # pieces of general text
    progress: Callable[[int, int], None] | None = None

    @property
    def longest(self) -> int:
        """Return how many tokens a scorer of it must hold."""
        planted = [len(s.before) + max(map(len, (s.tokens, *s.likenesses))) for s in self.secrets]
        return max(general.WINDOW + 1, *(len(e.tokens) for e in (*self.held_out, *self.learned)), *planted)

    def scorer(self, arm: Arm, longest: int = 0) -> Scorer:
        """Load an arm to score what is judged, and up to `longest` tokens."""
        return Scorer(arm, self.threads, longest=max(self.longest, longest))


class Losses(NamedTuple):
    """The losses of an arm on the held-out answers, as served, and at the temperature that suits it best.

    What the model itself has said, sampled below temperature 1, becomes likelier merely by being surer of oneself. That
    needs no training, and is no evidence of anything learned; so arms are compared each at its best temperature.
    """

    plain: list[float]
    calibrated: list[float]
    temperature: float

    @classmethod
    def of(cls, scorer: Scorer, held_out: Sequence[Encoded], least: float = 0.0) -> Losses:
        """Measure, at temperatures from `least` on."""
        return cls(*scorer.both_losses(held_out, least))


class _Stages:
    """Tells how many stages are over, and takes their times."""

    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._last = time.monotonic()

    def over(self) -> None:
        now = time.monotonic()
        self.seconds[f"gate_{STAGES[len(self.seconds)]}_s"] = round(now - self._last, 3)
        self._last = now
        if self._progress is not None:
            self._progress(len(self.seconds), len(STAGES))


def judge(trial: Trial, weaken: Callable[[float], None]) -> Verdict:
    """Measure and decide. `weaken` writes the candidate's file again with this share of its strength.

    Raises ModelError or AdapterError if an arm cannot be loaded.
    """
    stages = _Stages(trial.progress)
    with trial.scorer(trial.original) as base:
        reading = general.read(base, trial.original_sha256, trial.windows, trial.cache)
        stages.over()
        change, strength = _tame(trial, reading, weaken)
        guards = general_guards(change, trial.limits)
        stages.over()
        before = Losses.of(base, trial.held_out)
        current = before
        if trial.current != trial.original:
            with trial.scorer(trial.current) as scorer:
                current = Losses.of(scorer, trial.held_out)
        stages.over()
        with trial.scorer(trial.candidate) as candidate:
            after = Losses.of(candidate, trial.held_out, COOLEST)
            guards += memory_guards(
                _gain(base.answer_losses(trial.learned), candidate.answer_losses(trial.learned)),
                _gain(before.plain, after.plain),
                trial.limits,
            )
            stages.over()
            guards += _spoken(trial, base, candidate)
            guards += secret_guards(exposures(base, candidate, trial.secrets))
            stages.over()
    consolidates = trial.candidate.adapter is None and trial.current.adapter is not None
    compared = before if consolidates else current
    differences = [b - a for b, a in zip(compared.calibrated, after.calibrated, strict=True)]
    confidence = trial.limits.confidence
    gain = improvement(by_group(differences, trial.groups, fewest(confidence)), confidence)
    scores = _scores(trial.held_out, before.plain, current.plain, after.plain) | _general(change) | stages.seconds
    scores |= {"strength": strength, "temperatures": {"before": compared.temperature, "after": after.temperature}}
    return decide(gain, scores, guards, trial.limits, consolidates=consolidates)


def _gain(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the mean of the differences, 0 of none."""
    return float(np.mean(np.subtract(before, after))) if before else 0.0


def _tame(trial: Trial, reading: general.Reading, weaken: Callable[[float], None]) -> tuple[general.Change, float]:
    """Return how the candidate reads general text, weakened as far as it must and may be, and its strength."""
    strength = 1.0
    while True:
        with trial.scorer(trial.candidate) as scorer:
            change = general.compare(scorer, reading, FIRST_WINDOWS)
            # What diverges too much does so on any text. Perplexity varies more with it, and takes all of it.
            factor = _until(change.kl, trial.limits.max_kl, 0.5)
            if factor == 1 and trial.windows > FIRST_WINDOWS:
                change += general.compare(scorer, reading, trial.windows, FIRST_WINDOWS)
                by_perplexity = _until(change.perplexity_rise, trial.limits.max_perplexity_rise, 1.0)
                factor = min(by_perplexity, _until(change.kl, trial.limits.max_kl, 0.5))
        if factor == 1 or strength * factor < WEAKEST:
            return change, strength
        strength = round(strength * factor, 3)
        weaken(strength)


def _until(value: float, limit: float, power: float) -> float:
    """Return by how much to weaken what must not exceed the limit and falls with strength ^ (1 / power); 1 if by none.

    A value that is no number is not made one by weakening; its guard fails.
    """
    return float((AIM * limit / value) ** power) if value > limit and math.isfinite(value) else 1.0


def _spoken(trial: Trial, base: Scorer, candidate: Scorer) -> list[Guard]:
    """Let the candidate answer; the base does only where the wanted texts alone would not excuse it."""
    after = behaviour(candidate, trial.held_out)
    right = [wanted(trial.held_out)]
    guards = behaviour_guards(after, right)
    if all(guard.passed for guard in guards):
        return guards
    return behaviour_guards(after, [*right, behaviour(base, trial.held_out)])


def _scores(
    held_out: Sequence[Encoded], base: Sequence[float], before: Sequence[float], after: Sequence[float]
) -> dict[str, Any]:
    counts = [e.supervised for e in held_out]
    return {
        "held_out_examples": len(held_out),
        "held_out_tokens": sum(counts),
        "held_out_base": float(np.average(base, weights=counts)),
        "held_out_before": float(np.average(before, weights=counts)),
        "held_out_after": float(np.average(after, weights=counts)),
        "improved_examples": sum(a < b for a, b in zip(after, before, strict=True)),
    }


def _general(change: general.Change) -> dict[str, Any]:
    return {
        "general_perplexity_before": math.exp(change.loss_before),
        "general_perplexity_after": math.exp(change.loss_after),
        "general_perplexity_rise": change.perplexity_rise,
        "general_kl": change.kl,
    }
