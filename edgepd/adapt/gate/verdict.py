"""The decision: from what was measured to a verdict with its reason in one sentence.

The idea: a candidate passes if every guard holds and held-out answers have become likelier for sure. A consolidation
replaces a live adapter by a file that decodes at full speed; it must be better than the base for sure, and for its
speed it may give up a small share of the adapter's gain. The invariant: comparisons are written so that a number that
is none fails.
What this does not do: measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from edgepd.adapt.gate.behaviour import Behaviour
from edgepd.adapt.gate.evidence import Improvement, fewest, improvement
from edgepd.adapt.gate.general import Change
from edgepd.adapt.gate.regurgitation import LIMIT as MOST_REMEMBERED
from edgepd.adapt.gate.regurgitation import Exposure

MOST_EMPTY = 0.2  # share of answers; one in five may be a slip
# Beyond the larger share of the base's answers and the wanted ones. Small models repeat themselves when they answer
# greedily and at length, trained or not.
MOST_UNENDED = 0.25
MOST_REPEATED = 0.2
MOST_SAME = 0.5


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep to: the section [gate] of the settings."""

    confidence: float
    min_carried_over: float
    max_perplexity_rise: float
    max_kl: float
    max_verifiable_drop: float
    min_kept_gain: float

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Take what is needed here from the section."""
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Guard:
    """One thing that must not get worse: `value` may be at most `limit`; `said` is the sentence when it is not."""

    name: str
    value: float
    limit: float
    unit: str
    said: str

    @property
    def passed(self) -> bool:
        """Whether it holds; a value that is no number does not."""
        return self.value <= self.limit


@dataclass(frozen=True)
class Verdict:
    """The gate's decision with the numbers behind it. Losses in nats per token."""

    passed: bool
    reason: str
    scores: dict[str, Any]


def general_guards(change: Change, limits: Limits) -> list[Guard]:
    """Return the guards against forgetting."""
    rise = change.perplexity_rise
    return [
        Guard(
            "general perplexity", rise, limits.max_perplexity_rise, "relative",
            f"perplexity on general text rose by {rise:.1%}; at most {limits.max_perplexity_rise:.1%} is allowed",
        ),
        Guard(
            "divergence from the base", change.kl, limits.max_kl, "nats/token",
            f"on general text it diverges from the base by {change.kl:.3f} nats/token; "
            f"at most {limits.max_kl:.3f} is allowed",
        ),
    ]  # fmt: skip


def memory_guards(learned: float, unseen: float, limits: Limits) -> list[Guard]:
    """Return the guard against learning by heart, and against learning what is not this user's.

    `learned` is what answers that were trained on have gained over the base, `unseen` what held-out ones have, both in
    nats per token. What both users of one model prefer helps a little with either; what is one's own helps with most.
    """
    if learned <= 0:
        return []  # nothing was learned by heart; whether anything was learned at all is for the evidence to say
    carried = unseen / learned
    said = (
        f"only {carried:.0%} of what was learned carries over to answers never seen ({unseen:.3f} of {learned:.3f} "
        f"nats/token); at least {limits.min_carried_over:.0%} is asked for"
    )
    return [Guard("learned by heart only", 1 - carried, 1 - limits.min_carried_over, "share", said)]


def behaviour_guards(after: Behaviour, known: Sequence[Behaviour]) -> list[Guard]:
    """Return the guards on what it says. `known` is how answers may be: those that were wanted, and the base's."""
    unended, repeated, same = (
        min(1.0, most + max(getattr(one, name) for one in known))
        for name, most in (("unended", MOST_UNENDED), ("repeated", MOST_REPEATED), ("same", MOST_SAME))
    )
    return [
        Guard("empty answers", after.empty, MOST_EMPTY, "share", f"{after.empty:.0%} of its answers are empty"),
        Guard(
            "answers without an end", after.unended, unended, "share",
            f"{after.unended:.0%} of its answers go on beyond twice the wanted length; the limit is {unended:.0%}",
        ),
        Guard(
            "repetition", after.repeated, repeated, "share",
            f"{after.repeated:.0%} of what it says repeats itself; the limit is {repeated:.0%}",
        ),
        Guard(
            "same answer to different prompts", after.same, same, "share",
            f"it gives the same answer to different prompts ({after.same:.0%} of them; the limit is {same:.0%})",
        ),
    ]  # fmt: skip


def secret_guards(exposures: Sequence[Exposure]) -> list[Guard]:
    """Return one guard for each secret in what was trained on."""
    return [
        Guard(
            f"secret ({e.kind})", math.inf if e.verbatim else e.z, MOST_REMEMBERED, "deviations",
            f"it has learned a secret by heart ({e.kind}, in example {e.example}); take the secret out with "
            f"`edgepd fix` or remove the feedback, and train again",
        )
        for e in exposures
    ]  # fmt: skip


def ability_guard(before: Sequence[bool], after: Sequence[bool], limits: Limits) -> Guard:
    """Return the guard on verifiable prompts. Its value is the least drop that is sure, as few prompts tell little."""
    lost = improvement([float(b) - float(a) for b, a in zip(before, after, strict=True)], limits.confidence)
    said = (
        f"of {len(before)} prompts with answers that can be verified it gets {sum(after)} right, the base "
        f"{sum(before)}; at most {limits.max_verifiable_drop:.0%} may be lost"
    )
    return Guard("verifiable prompts", max(0.0, lost.lower), limits.max_verifiable_drop, "share", said)


def decide(
    gain: Improvement, scores: dict[str, Any], guards: Sequence[Guard], limits: Limits, *, consolidates: bool
) -> Verdict:
    """Turn what was measured into a verdict.

    `gain` is the improvement of held-out answers, of a consolidation over the base, else over what serves now.
    `scores` has held_out_base, _before and _after, means in nats per token, and held_out_examples.
    """
    base, before, after = (scores[f"held_out_{arm}"] for arm in ("base", "before", "after"))
    scores |= {"guards": [told(g) for g in guards], "improvement": asdict(gain) | {"unit": "nats/token, per answer"}}
    failed = next((g for g in guards if not g.passed), None)
    if failed is not None:
        return Verdict(False, failed.said, scores)
    against = base if consolidates else before
    fell = f"{against:.3f} to {after:.3f} nats/token"
    if gain.n < fewest(limits.confidence):
        reason = (
            f"too little to judge by: {gain.n} answers were set aside, and {fewest(limits.confidence)} are the fewest "
            f"that can show an improvement with {limits.confidence:.0%} confidence; correct more answers"
        )
        return Verdict(False, reason, scores)
    if not after < against:
        return Verdict(False, f"held-out loss did not fall: {fell} on {gain.n} answers never trained on", scores)
    if not gain.mean > 0:
        reason = (
            f"held-out loss fell from {fell}, but no more than it does without training at another temperature; "
            f"nothing was learned that helps with {gain.n} answers never trained on"
        )
        return Verdict(False, reason, scores)
    if not gain.lower > 0:
        reason = (
            f"held-out loss went from {fell}, but {gain.n} answers are too few to be sure of it: with "
            f"{limits.confidence:.0%} confidence an answer gained {gain.lower:.3f} at least, which is not above zero"
        )
        return Verdict(False, reason, scores)
    kept = ""
    if consolidates and before < base:
        share = scores["kept_gain"] = (base - after) / (base - before)
        if not share >= limits.min_kept_gain:
            reason = (
                f"only {share:.0%} of the live adapter's gain on held-out answers would be kept "
                f"({base:.3f} -> {after:.3f} nats/token, live {before:.3f}); "
                f"at least {limits.min_kept_gain:.0%} is asked for"
            )
            return Verdict(False, reason, scores)
        kept = f", which keeps {share:.0%} of the live adapter's gain"
    reason = (
        f"held-out loss fell from {fell} on {gain.n} answers never trained on, with {limits.confidence:.0%} confidence "
        f"by {gain.lower:.3f} at least{kept}; general perplexity {scores['general_perplexity_rise']:+.1%}"
    )
    return Verdict(True, reason, scores)


def told(guard: Guard) -> dict[str, Any]:
    """Return a guard as it is stored with a generation."""
    return {name: getattr(guard, name) for name in ("name", "value", "limit", "unit", "passed")}
