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
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgepd.adapt.examples import Encoded, Example, Format
from edgepd.atomic import replacing
from edgepd.errors import EdgepdError
from edgepd.llama import Context, Entry, Model

TEMPERATURE = 0.7
SEED = 0
SEQUENCES = 8  # answers generated in one decode step; a step costs little more for eight than for one
CONTEXT_UNIT = 256  # llama.cpp pads the sum of all contexts to this, then rounds each one down
FORMAT = 1  # of the file


@dataclass(frozen=True)
class General(Example):
    """One answer of the base. `finished` says whether it ended by itself and not at its length limit."""

    finished: bool = True


class _Row(NamedTuple):
    prompt: str
    response: str
    finished: bool


@dataclass
class _Draft:
    """An answer that is being generated."""

    prompt: list[int]
    rng: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    finished: bool = False


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

    `progress` is told how many answers of how many are generated, after each decode step, and may block. Raises
    ModelError if the base cannot be loaded and StoreError if the file cannot be written.
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
    drafts = [
        _Draft(chat.prompt([{"role": "user", "content": prompt}]), np.random.default_rng([SEED, i]))
        for i, prompt in enumerate(prompts)
    ]
    with Model(base) as model:
        _complete(model, drafts, max_tokens, threads, progress)
        # A cut may lie inside a character, whose first bytes are dropped.
        texts = [b"".join(map(model.piece, draft.tokens)).decode("utf-8", errors="ignore") for draft in drafts]
    return [_Row(*row) for row in zip(prompts, texts, (draft.finished for draft in drafts), strict=True)]


def _complete(
    model: Model,
    drafts: Sequence[_Draft],
    max_tokens: int,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Generate all answers, several at a time; a place that becomes free is taken by the next prompt."""
    longest = max(len(draft.prompt) for draft in drafts)
    sequences = min(SEQUENCES, len(drafts))
    waiting, running, free = deque(drafts), dict[int, _Draft](), list(range(sequences))
    with Context(
        model,
        context_tokens=-(-(longest + max_tokens) // CONTEXT_UNIT) * CONTEXT_UNIT,
        sequences=sequences,
        batch_tokens=longest + sequences,
        threads=threads,
    ) as context:
        while waiting or running:
            entries = [Entry(d.tokens[-1], len(d.prompt) + len(d.tokens) - 1, s, True) for s, d in running.items()]
            if waiting and free:  # one prompt per step, so that a batch has room for it
                sequence, draft = free.pop(), waiting.popleft()
                running[sequence] = draft
                context.forget(sequence)
                last = len(draft.prompt) - 1
                entries += [Entry(token, i, sequence, i == last) for i, token in enumerate(draft.prompt)]
            if not context.decode(entries):
                raise EdgepdError("generating general examples was interrupted")
            for index, entry in enumerate(entries):
                if entry.wants_output and _extend(running[entry.sequence], context.logits(index), model, max_tokens):
                    del running[entry.sequence]
                    free.append(entry.sequence)
            if progress is not None:
                progress(len(drafts) - len(waiting) - len(running), len(drafts))


def _extend(draft: _Draft, logits: npt.NDArray[np.float32], model: Model, max_tokens: int) -> bool:
    """Draw the next token of an answer; return whether that was the last."""
    token = draw(logits, draft.rng)
    draft.finished = model.is_end(token)
    if not draft.finished:
        draft.tokens.append(token)
    return draft.finished or len(draft.tokens) == max_tokens


def draw(logits: npt.NDArray[np.float32], rng: np.random.Generator) -> int:
    """Draw a token from softmax(logits / TEMPERATURE), logits (V,), with one random number."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / TEMPERATURE)
    cumulative = weights.cumsum()
    token = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
    return min(int(token), len(logits) - 1)  # the product may round up to the sum itself
