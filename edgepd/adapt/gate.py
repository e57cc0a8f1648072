"""The first gate: a candidate is measured in llama.cpp, as it would be served, against what serves now.

The idea: score the held-out answers with the original base, the current version and the candidate, and the bundled
general text with the base and the candidate. The candidate passes if its held-out loss is lower than the current
one and its general perplexity has not risen by more than the limit. A consolidation replaces a live adapter by a
file that decodes at full speed; for that it may give up a small share of the adapter's gain over the base.
Loading the candidate here, in a child process, is also its first trial: a file that would crash llama.cpp crashes
this process and not the daemon.
What this does not do: say how certain the improvement is; the numbers are means over few answers.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgepd.adapt.examples import Encoded
from edgepd.llama import Context, Entry, LoraAdapter, Model

# General text is scored in pieces that lie evenly over the whole of it, because its parts differ in kind. Only the
# second half of a piece counts, as in llama.cpp's own perplexity tool: without context before them the first tokens
# are so hard to predict that they decide the figure.
GENERAL_WINDOW = 192  # tokens; each piece starts from an empty cache
GENERAL_WINDOWS = 4


class Arm(NamedTuple):
    """Something that can serve: a model file and at most one adapter."""

    model: Path
    adapter: Path | None = None


@dataclass(frozen=True)
class Verdict:
    """The gate's decision with the numbers behind it. Losses in nats per token."""

    passed: bool
    reason: str
    scores: dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep to."""

    max_perplexity_rise: float  # relative, on general text, against the original base
    min_kept_gain: float  # share of a live adapter's gain over the base that a consolidation must keep


def judge(
    *,
    original: Arm,
    current: Arm,
    candidate: Arm,
    held_out: Sequence[Encoded],
    limits: Limits,
    threads: int,
) -> Verdict:
    """Measure and decide. Raises ModelError or AdapterError if an arm cannot be loaded."""
    longest = max(GENERAL_WINDOW + 1, *(len(e.tokens) for e in held_out))
    with Scorer(original, threads, longest=longest) as scorer:
        general_before = scorer.text_loss(general_windows(scorer.model))
        base = before = scorer.answer_losses(held_out)
    if current != original:
        with Scorer(current, threads, longest=longest) as scorer:
            before = scorer.answer_losses(held_out)
    with Scorer(candidate, threads, longest=longest) as scorer:
        after = scorer.answer_losses(held_out)
        general_after = scorer.text_loss(general_windows(scorer.model))
    counts = [e.supervised for e in held_out]
    scores: dict[str, Any] = {
        "held_out_examples": len(held_out),
        "held_out_tokens": sum(counts),
        "held_out_base": _mean(base, counts),
        "held_out_before": _mean(before, counts),
        "held_out_after": _mean(after, counts),
        "improved_examples": sum(a < b for a, b in zip(after, before, strict=True)),
        "general_perplexity_before": math.exp(general_before),
        "general_perplexity_after": math.exp(general_after),
        "general_perplexity_rise": math.exp(general_after - general_before) - 1,
    }
    consolidates = candidate.adapter is None and current.adapter is not None
    return decide(scores, limits, consolidates=consolidates)


def decide(scores: dict[str, Any], limits: Limits, *, consolidates: bool) -> Verdict:
    """Turn the measured scores into a verdict. Comparisons are written so that a loss that is not a number fails."""
    base, before, after = (scores[f"held_out_{arm}"] for arm in ("base", "before", "after"))
    rise = scores["general_perplexity_rise"]
    if not rise <= limits.max_perplexity_rise:
        reason = f"perplexity on general text rose by {rise:.1%}; at most {limits.max_perplexity_rise:.1%} is allowed"
        return Verdict(False, reason, scores)
    if consolidates and before < base:
        kept = scores["kept_gain"] = (base - after) / (base - before)
        if not kept >= limits.min_kept_gain:
            reason = (
                f"only {kept:.0%} of the live adapter's gain on held-out answers would be kept "
                f"({base:.3f} -> {after:.3f} nats/token, live {before:.3f}); "
                f"at least {limits.min_kept_gain:.0%} is asked for"
            )
            return Verdict(False, reason, scores)
        reason = f"keeps {kept:.0%} of the live adapter's gain: held-out loss {base:.3f} -> {after:.3f} nats/token"
    elif not after < before:
        return Verdict(False, f"held-out loss did not fall: {before:.3f} -> {after:.3f} nats/token", scores)
    else:
        reason = f"held-out loss fell from {before:.3f} to {after:.3f} nats/token"
    reason += f" on {scores['held_out_examples']} answers never trained on; general perplexity {rise:+.1%}"
    return Verdict(True, reason, scores)


class Scorer:
    """Computes losses of one arm in llama.cpp."""

    def __init__(self, arm: Arm, threads: int, *, longest: int, window: int = 512) -> None:
        """Load the arm to score up to `longest` tokens, in pieces of `window` tokens."""
        self.model = Model(arm.model)
        self._context = Context(
            self.model, context_tokens=longest, batch_tokens=window, threads=threads, logits_everywhere=True
        )
        self._adapter = LoraAdapter(self.model, arm.adapter) if arm.adapter else None
        self._context.set_adapter(self._adapter)

    def answer_losses(self, examples: Sequence[Encoded]) -> list[float]:
        """Return the loss of each answer given its prompt, in nats per supervised token."""
        return [float(np.mean(self.token_losses(e.tokens, e.supervised_from))) for e in examples]

    def text_loss(self, windows: Sequence[Sequence[int]]) -> float:
        """Return the loss of plain text in nats per token of the second halves, each window from an empty cache."""
        return float(np.mean([loss for window in windows for loss in self.token_losses(window, len(window) // 2)]))

    def token_losses(self, tokens: Sequence[int], first_target: int) -> list[float]:
        """Return -log p(token | all before) for tokens[first_target:], in nats."""
        self._context.forget(0)
        losses: list[float] = []
        step = self._context.batch_tokens
        for start in range(0, len(tokens) - 1, step):
            end = min(start + step, len(tokens) - 1)
            wanted = range(max(start, first_target - 1), end)
            self._context.decode([Entry(tokens[i], i, 0, i >= first_target - 1) for i in range(start, end)])
            losses += [_cross_entropy(self._context.logits(i - start), tokens[i + 1]) for i in wanted]
        return losses

    def close(self) -> None:
        """Free everything."""
        self._context.close()
        if self._adapter is not None:
            self._adapter.close()
        self.model.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cross_entropy(logits: np.ndarray[Any, np.dtype[np.float32]], target: int) -> float:
    peak = float(logits.max())
    return peak + math.log(float(np.exp(logits - peak).sum(dtype=np.float64))) - float(logits[target])


def _mean(losses: Sequence[float], counts: Sequence[int]) -> float:
    return float(np.average(losses, weights=counts))


def general_windows(model: Model) -> list[list[int]]:
    """Return the tokens of the pieces of the bundled general text that the gate scores."""
    text = importlib.resources.files("edgepd.adapt").joinpath("data", "general.txt").read_text(encoding="utf-8")
    tokens = model.tokenize(text, special=False)
    starts = np.linspace(0, len(tokens) - GENERAL_WINDOW, GENERAL_WINDOWS).astype(int)
    return [[*model.opening, *tokens[start : start + GENERAL_WINDOW]] for start in starts]
