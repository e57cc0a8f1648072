"""Endogenous replay: general examples that the base itself writes, as answers to bundled prompts.

The idea: what the base says of its own accord is what it must not forget, so its own answers stand in for the general
data D_G that nobody ships; they are also the anchors of the divergence from the base. They are generated once per base
and kept in a file. Invariants: the file appears only when it is complete and is believed only if it was made from this
very base and these prompts and its checksum holds; anything else is generated anew. An answer that was cut off at its
length limit is never given an end.
What this does not do: use anything that the user wrote.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgepd.adapt.examples import Encoded, Example, Format
from edgepd.adapt.generate import generate
from edgepd.atomic import replacing
from edgepd.llama import Model

TEMPERATURE = 0.7
SEED = 0
FORMAT = 1  # of the file


@dataclass(frozen=True)
class General(Example):
    """One answer of the base. `finished` says whether it ended by itself and not at its length limit."""

    finished: bool = True


class _Row(NamedTuple):
    prompt: str
    response: str
    finished: bool


def anchor_prompts() -> list[str]:
    """Return the bundled prompts, their kinds mixed so that the first few are not all alike."""
    return _bundled().splitlines()


def general_examples(
    chat: Format,
    base: Path,
    base_sha256: str,
    count: int,
    directory: Path,
    threads: int,
    max_tokens: int = 64,
    *,
    cached_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[General]:
    """Return `count` answers of `base` to the bundled prompts, of at most `max_tokens` tokens each.

    From the file in `directory` if it has them, else from llama.cpp, which takes seconds to minutes; with `cached_only`
    there are none then. The same base gets the same answers, on the same number of threads. More answers than prompts
    go through the prompts again. Empty answers are left out, so there may be fewer.

    `progress` is told how many answers of how many are generated, after each decode step. Raises ModelError if the base
    cannot be loaded and StoreError if the file cannot be written.
    """
    if count <= 0:
        return []
    path = directory / f"{base_sha256[:16]}-general-{max_tokens}.jsonl"
    identity = _identity(base_sha256, max_tokens)
    rows = _read(path, identity, count)
    if rows is None:
        if cached_only:
            return []
        rows = _generate(chat, base, count, threads, max_tokens, progress)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, identity, rows)
    return [
        General(f"general-{i}", [{"role": "user", "content": row.prompt}], row.response, finished=row.finished)
        for i, row in enumerate(rows[:count])
        if row.response.strip()
    ]


def encode_general(chat: Format, examples: Sequence[General], max_tokens: int) -> list[Encoded]:
    """Encode as examples.encode does, but without an end of turn where the base had not come to its end.

    Those longer than max_tokens are left out.
    """
    encoded = []
    for example in examples:
        prompt, answer = chat.prompt(example.messages), chat.answer(example.response)
        tokens = (*prompt, *(answer if example.finished else answer[:-1]))
        if len(prompt) < len(tokens) <= max_tokens:
            encoded.append(Encoded(example.id, tokens, len(prompt), example.weight))
    return encoded


def _bundled() -> str:
    return importlib.resources.files("edgepd.adapt").joinpath("data", "anchors.txt").read_text(encoding="utf-8")


def _identity(base_sha256: str, max_tokens: int) -> dict[str, Any]:
    """What a file must have been made from to be believed."""
    return {
        "format": FORMAT,
        "base_sha256": base_sha256,
        "prompts_sha256": hashlib.sha256(_bundled().encode()).hexdigest(),
        "max_tokens": max_tokens,
        "temperature": TEMPERATURE,
        "seed": SEED,
    }


def _read(path: Path, identity: dict[str, Any], count: int) -> list[_Row] | None:
    """Return the rows of the file, None if it is missing, damaged, foreign or too short."""
    try:
        first, _, body = path.read_bytes().partition(b"\n")
        if json.loads(first) != identity | {"body_sha256": hashlib.sha256(body).hexdigest()}:
            return None
        rows = [_Row(**json.loads(line)) for line in body.splitlines()]
    except (OSError, ValueError, TypeError):
        return None
    return rows if len(rows) >= count else None


def _write(path: Path, identity: dict[str, Any], rows: Sequence[_Row]) -> None:
    body = "".join(json.dumps(row._asdict()) + "\n" for row in rows).encode()
    head = identity | {"body_sha256": hashlib.sha256(body).hexdigest()}
    with replacing(path) as file:
        file.write(json.dumps(head).encode() + b"\n" + body)


def _generate(
    chat: Format,
    base: Path,
    count: int,
    threads: int,
    max_tokens: int,
    progress: Callable[[int, int], None] | None,
) -> list[_Row]:
    bundled = anchor_prompts()
    prompts = [bundled[i % len(bundled)] for i in range(count)]
    tokens = [chat.prompt([{"role": "user", "content": prompt}]) for prompt in prompts]
    random = [np.random.default_rng([SEED, i]) for i in range(count)]
    with Model(base) as model:
        answers = generate(
            model,
            tokens,
            [max_tokens] * count,
            lambda logits, i: draw(logits, random[i], TEMPERATURE),
            threads,
            progress=progress,
        )
        texts = [answer.text(model) for answer in answers]
    return [_Row(*row) for row in zip(prompts, texts, (answer.ended for answer in answers), strict=True)]


def draw(logits: npt.NDArray[np.float32], rng: np.random.Generator, temperature: float = TEMPERATURE) -> int:
    """Draw a token from softmax(logits / temperature), logits (V,), with one random number."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    cumulative = weights.cumsum()
    token = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
    return min(int(token), len(logits) - 1)  # the product may round up to the sum itself
