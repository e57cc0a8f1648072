"""What the tests of the gate share: answers that an arm prefers, losses by hand, trials, and a file to weaken.

The idea: the base is a tiny random model and a candidate a random adapter for it, so what the candidate itself would
say is made likelier by it. The invariant: `losses_by_hand` goes past our binding, so that the two cannot share a
mistake. What this does not do: train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgepd.adapt.examples import Encoded
from edgepd.adapt.gate.arms import Arm, Scorer
from edgepd.adapt.gate.judge import Trial, judge
from edgepd.adapt.gate.verdict import Limits, Verdict
from edgepd_quant.adapter_file import LowRank, read_adapter, write_adapter
from edgepd_quant.merge import scaled
from edgepd_quant.reader import GGUFFile
from tests.tiny_gguf import llama_logits

SHA = "ab" * 32
VOCABULARY = 273
LAX = Limits(
    confidence=0.95, min_carried_over=-1e9, max_perplexity_rise=1e9, max_kl=1e9, max_verifiable_drop=1.0,
    min_kept_gain=0.9,
)  # fmt: skip
PROMPT, ANSWER, WHOLE = 5, 6, 20  # tokens of a favourite's prompt and answer, and of what is tried for it


def log_probs_by_hand(arm: Arm, tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Log probabilities (tokens, V) from logits that llama.cpp computed without our binding."""
    logits = llama_logits(arm.model, tokens, arm.adapter).astype(np.float64)
    found: np.ndarray[Any, np.dtype[np.float64]] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return found


def losses_by_hand(arm: Arm, tokens: Sequence[int], first_target: int) -> list[float]:
    """The loss of each of tokens[first_target:]."""
    logp = log_probs_by_hand(arm, tokens)
    return [-float(logp[n - 1, tokens[n]]) for n in range(first_target, len(tokens))]


def favourites(arm: Arm, count: int) -> list[Encoded]:
    """Answers that this arm itself would give and so finds likelier than others do; of many, the least repetitive."""
    rng = np.random.default_rng(7)
    prompts = [rng.integers(3, VOCABULARY, PROMPT).tolist() for _ in range(12 * count)]
    with Scorer(arm, 1, longest=64) as scorer:
        answers = scorer.answers(prompts, [WHOLE] * len(prompts))
    best = sorted(zip(prompts, answers, strict=True), key=lambda pair: -len(set(pair[1].tokens)))
    found = [(*prompt, *answer.tokens[:ANSWER]) for prompt, answer in best[:count]]
    assert all(len(tokens) == PROMPT + ANSWER for tokens in found)
    return [Encoded(f"e{n}", tokens, PROMPT) for n, tokens in enumerate(found)]


def trial(base: Path, candidate: Arm, held_out: Sequence[Encoded], cache: Path, **changed: Any) -> Trial:
    """A trial of `candidate` with little general text and limits that nothing breaks."""
    values: dict[str, Any] = {
        "original": Arm(base),
        "original_sha256": SHA,
        "current": Arm(base),
        "candidate": candidate,
        "held_out": held_out,
        "groups": [e.id for e in held_out],
        "learned": (),
        "secrets": (),
        "limits": LAX,
        "cache": cache,
        "threads": 1,
        "windows": 3,
    }
    return Trial(**(values | changed))


def unweakened(strength: float) -> None:
    """Stand for a file that must not be written again."""
    raise AssertionError(f"the candidate was weakened to {strength}")


def judged(base: Path, candidate: Arm, held_out: Sequence[Encoded], cache: Path, **changed: Any) -> Verdict:
    """The verdict on a candidate that need not be weakened."""
    return judge(trial(base, candidate, held_out, cache, **changed), unweakened)


def weakening(adapter: Path) -> tuple[Callable[[float], None], list[float]]:
    """What writes the adapter's file again with a share of its strength, and a list of what was asked for."""
    whole, asked = read_adapter(adapter), list[float]()

    def weaken(strength: float) -> None:
        asked.append(strength)
        write_adapter(adapter, scaled(whole, strength))

    return weaken, asked


def merged(base: Path, adapter: Path, out: Path, share: float) -> Path:
    """Write a copy of an F32 base into which a share of the adapter is added."""
    content = bytearray(base.read_bytes())
    delta = read_adapter(adapter)
    with GGUFFile.open(base) as model:
        for name, pair in delta.tensors.items():
            assert isinstance(pair, LowRank)
            info = model.tensors[name]
            weights = np.frombuffer(content, "<f4", offset=info.offset, count=info.nbytes // 4).reshape(info.shape)
            added = weights + share * (pair.b @ pair.a) * (delta.alpha / len(pair.a))
            content[info.offset : info.offset + info.nbytes] = added.astype("<f4").tobytes()
    out.write_bytes(content)
    return out
