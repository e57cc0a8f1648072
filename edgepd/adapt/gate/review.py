"""What is measured of a candidate besides: the other arms, preferences, and abilities that can be verified.

The idea: whether an adapter is worth its place is seen beside what can be had without one: the base, with a prompt that
states the preferences, with similar answers retrieved into the prompt, and the adapter with those. All on the same
held-out answers. A live adapter is reviewed after it went live, so that nobody waits for it; while it is, the
generation is pending, and if its abilities turn out to be lost it is withdrawn.
What this does not do: choose what is retrieved, or write the prompt that states the preferences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepd.adapt.examples import Encoded
from edgepd.adapt.gate.arms import Scorer
from edgepd.adapt.gate.behaviour import verified, verified_base
from edgepd.adapt.gate.judge import Trial
from edgepd.adapt.gate.verdict import Guard, ability_guard, told
from edgepd.adapt.gate.verifiable import VerifiablePrompt
from edgepd.chat import ChatFormat


@dataclass(frozen=True)
class Prompts:
    """The held-out answers again, behind other prompts; an answer for which there is no other has its own."""

    profile: Sequence[Encoded]
    retrieval: Sequence[Encoded]


@dataclass(frozen=True)
class Review:
    """Whether the candidate keeps its place, and why not; `scores` add to those of the verdict."""

    kept: bool
    reason: str
    scores: dict[str, Any]


def review(trial: Trial, prompts: Prompts, verifiable: Sequence[VerifiablePrompt], scores: dict[str, Any]) -> Review:
    """Measure what is missing in `scores`, the numbers of the verdict on the same trial.

    Without `verifiable` prompts, abilities are left out.

    Raises ModelError or AdapterError if an arm cannot be loaded.
    """
    encoded = (*prompts.profile, *prompts.retrieval)
    longest = max(*(len(e.tokens) for e in encoded), *(len(e.rejected or ()) for e in trial.held_out))
    with trial.scorer(trial.original, longest) as base:
        chat = ChatFormat(base.model)
        arms = {
            "base": scores["held_out_base"],
            "profile": _loss(base, prompts.profile, trial.held_out, scores["held_out_base"]),
            "retrieval": _loss(base, prompts.retrieval, trial.held_out, scores["held_out_base"]),
        }
        preferred_before = preferred(base, trial.held_out)
        passed_before = verified_base(base, chat, verifiable, trial.original_sha256, trial.cache)
    with trial.scorer(trial.candidate, longest) as candidate:
        adapter = scores["held_out_after"]
        both = _loss(candidate, prompts.retrieval, trial.held_out, adapter)
        arms |= {"adapter": adapter, "adapter+retrieval": both}
        preferred_after = preferred(candidate, trial.held_out)
        passed_after = verified(candidate, ChatFormat(candidate.model), verifiable)
    found: dict[str, Any] = {"arms": arms}
    guard = None
    if verifiable:
        guard = ability_guard(passed_before, passed_after, trial.limits)
        found["guards"] = [*scores["guards"], told(guard)]
        found["verifiable"] = {"prompts": len(verifiable), "before": sum(passed_before), "after": sum(passed_after)}
    if preferred_before:
        found["preference"] = {
            "pairs": len(preferred_before), "before": sum(preferred_before), "after": sum(preferred_after)
        }  # fmt: skip
    return Review(guard is None or guard.passed, _reason(guard, arms), found)


def preferred(scorer: Scorer, held_out: Sequence[Encoded]) -> list[bool]:
    """Return for each pair whether the wanted answer is likelier, per token, than the one that is wanted less."""
    pairs = [e for e in held_out if e.rejected is not None]
    wanted = scorer.answer_losses(pairs)
    other = scorer.answer_losses([Encoded(e.id, e.rejected or (), e.supervised_from) for e in pairs])
    return [w < o for w, o in zip(wanted, other, strict=True)]


def _loss(scorer: Scorer, examples: Sequence[Encoded], plain: Sequence[Encoded], known: float) -> float:
    """Return the mean loss in nats per supervised token; `known` is that of the same answers behind plain prompts."""
    if list(examples) == list(plain):
        return known
    return float(np.average(scorer.answer_losses(examples), weights=[e.supervised for e in examples]))


def _reason(guard: Guard | None, arms: dict[str, float]) -> str:
    """Return the sentence: what failed, or which arm does best on held-out answers."""
    if guard is not None and not guard.passed:
        return guard.said
    best = min(arms, key=lambda arm: arms[arm])
    return f"of all arms {best} does best on held-out answers, at {arms[best]:.3f} nats/token"
