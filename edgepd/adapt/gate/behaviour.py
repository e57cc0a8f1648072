"""The guards on what a candidate says: answers that are empty, endless, repetitive or all the same, and lost abilities.

The idea: losses are teacher-forced and cannot see a model that, left to itself, stops at once, never stops, or says the
same whatever it is asked. So the candidate answers the held-out prompts itself, greedily, and is compared with the
texts that the user wanted; what is unlike the base but like those is no drift. Abilities are measured on bundled
prompts whose answers a program can verify (as IFEval does, arXiv 2311.07911); the base's results are kept.
What this does not do: judge style.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edgepd.adapt.examples import Encoded, Format
from edgepd.adapt.gate.arms import Scorer
from edgepd.adapt.gate.verifiable import VerifiablePrompt
from edgepd.adapt.generate import Answer
from edgepd.atomic import replacing

MOST_PROMPTS = 8  # held-out prompts that are answered, the newest
LONGEST_ANSWER = 96  # tokens
ROOM = 8  # tokens beyond twice the wanted length within which an answer must come to its end
GRAM = 4  # tokens; a run of as many that occurred before in the same answer is a repetition
VERIFIABLE_TOKENS = 48
FORMAT = 1  # of the file


@dataclass(frozen=True)
class Behaviour:
    """How answers to some prompts turned out: shares of them, and `length`, the median ratio to the wanted length."""

    empty: float
    unended: float
    repeated: float  # mean share of repeated runs of GRAM tokens in an answer
    same: float  # 1 - distinct answers / prompts
    length: float


def behaviour(scorer: Scorer, held_out: Sequence[Encoded]) -> Behaviour:
    """Return how the arm answers the newest held-out prompts."""
    examples = held_out[-MOST_PROMPTS:]
    prompts = [e.tokens[: e.supervised_from] for e in examples]
    limits = [min(LONGEST_ANSWER, 2 * e.supervised + ROOM) for e in examples]
    answers = scorer.answers(prompts, limits)
    return _summary(answers, examples)


def wanted(held_out: Sequence[Encoded]) -> Behaviour:
    """Return the same figures for the texts that the user wanted."""
    examples = held_out[-MOST_PROMPTS:]
    return _summary([Answer(list(e.tokens[e.supervised_from : -1]), ended=True) for e in examples], examples)


def verified(scorer: Scorer, chat: Format, prompts: Sequence[VerifiablePrompt]) -> list[bool]:
    """Return for each prompt whether the arm's greedy answer passes its checks."""
    tokens = [chat.prompt([{"role": "user", "content": p.prompt}]) for p in prompts]
    answers = scorer.answers(tokens, [VERIFIABLE_TOKENS] * len(prompts))
    return [p.passes(a.text(scorer.model), a.ended) for p, a in zip(prompts, answers, strict=True)]


def verified_base(
    scorer: Scorer, chat: Format, prompts: Sequence[VerifiablePrompt], base_sha256: str, directory: Path
) -> list[bool]:
    """Return the same for the base, from the file in `directory` as far as it goes; the rest is measured and kept."""
    path = directory / f"{base_sha256[:16]}-verifiable.json"
    identity = _identity(base_sha256)
    known = _load(path, identity)
    results = known | {
        _key(p): passed
        for p, passed in _measured(scorer, chat, [p for p in prompts if _key(p) not in known])
    }  # fmt: skip
    if len(results) > len(known):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps(identity | {"results": results}).encode())
    return [results[_key(p)] for p in prompts]


def _measured(scorer: Scorer, chat: Format, prompts: Sequence[VerifiablePrompt]) -> list[tuple[VerifiablePrompt, bool]]:
    return list(zip(prompts, verified(scorer, chat, prompts), strict=True)) if prompts else []


def _summary(answers: Sequence[Answer], examples: Sequence[Encoded]) -> Behaviour:
    count, pairs = len(answers), list(zip(answers, examples, strict=True))
    return Behaviour(
        empty=sum(not a.tokens for a in answers) / count,
        # Cut at LONGEST_ANSWER, within twice the wanted length, it may still have come to its end.
        unended=sum(not a.ended and len(a.tokens) > 2 * e.supervised for a, e in pairs) / count,
        repeated=sum(_repeated(a.tokens) for a in answers) / count,
        same=1 - len({tuple(a.tokens) for a in answers}) / count,
        length=median((len(a.tokens) + a.ended) / e.supervised for a, e in pairs),
    )


def _repeated(tokens: Sequence[int]) -> float:
    """Return the share of runs of GRAM tokens that occurred before."""
    runs = [tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _key(prompt: VerifiablePrompt) -> str:
    """Return what stands for a prompt in the file: a prompt or a check that was changed is another one."""
    return hashlib.sha256(json.dumps(asdict(prompt), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _identity(base_sha256: str) -> dict[str, Any]:
    version = importlib.metadata.version("llama-cpp-python")
    return {"format": FORMAT, "base_sha256": base_sha256, "tokens": VERIFIABLE_TOKENS, "llama_cpp": version}


def _load(path: Path, identity: dict[str, Any]) -> dict[str, bool]:
    """Return what the file holds; nothing if it is missing, damaged or foreign."""
    try:
        found = json.loads(path.read_bytes())
        results = found.pop("results")
        return {str(key): bool(passed) for key, passed in results.items()} if found == identity else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
