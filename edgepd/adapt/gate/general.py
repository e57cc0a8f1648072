"""The guard against forgetting: perplexity on general text, and the divergence from the base while reading it.

The idea: what the base thinks of the bundled general text is measured once and kept in a file, as the loss of each
token and its K likeliest alternatives, so that a candidate costs one pass. Both figures compare the same positions, so
little text is enough for a quick look. The divergence is KL(base || candidate) with all but the K likeliest tokens as
one, which by the data processing inequality is never more than the true one, and with K = 128 nearly as much. The
anchors are plain text and not answers in a chat: how answers begin and end is what a user teaches, and there the
divergence is the larger the better that was learned.
The invariant: the file is believed only if it was made from this very base, text and version of llama.cpp and its
checksum holds; anything else is measured anew.
What this does not do: decide what is too much.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepd.adapt.gate.arms import Logits, Scorer, log_softmax_at, log_sum_exp
from edgepd.atomic import replacing
from edgepd.llama import Model

# Pieces that lie evenly over the whole text, because its parts differ in kind; each starts from an empty cache.
WINDOW = 128  # tokens
CONTEXT = 16  # of them that are only read; without context before them tokens are hard to predict for any arm
QUICK_WINDOWS = 4
ALL_WINDOWS = 40
K = 128
FORMAT = 1  # of the file

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Reading:
    """What the base thinks of n tokens of the text: losses (n,) in nats; its K likeliest ids (n, K) and their logs."""

    losses: Floats
    ids: Ids
    log_probs: Floats

    def first(self, count: int) -> Reading:
        """Return the part about the first `count` tokens."""
        return Reading(self.losses[:count], self.ids[:count], self.log_probs[:count])


@dataclass(frozen=True)
class Change:
    """How a candidate reads the general text, compared with the base; in nats per token."""

    loss_before: float
    loss_after: float
    kl: float
    tokens: int

    def __add__(self, other: Change) -> Change:
        """Return the change on both texts together."""
        tokens = self.tokens + other.tokens
        share = self.tokens / tokens
        return Change(
            loss_before=share * self.loss_before + (1 - share) * other.loss_before,
            loss_after=share * self.loss_after + (1 - share) * other.loss_after,
            kl=share * self.kl + (1 - share) * other.kl,
            tokens=tokens,
        )

    @property
    def perplexity_rise(self) -> float:
        """The relative rise of perplexity; it may be below zero."""
        return float(np.expm1(self.loss_after - self.loss_before))


def windows(model: Model, count: int) -> list[list[int]]:
    """Return the tokens of `count` pieces of the bundled general text, fewer if it is not as long.

    The first few lie as evenly over the text as all of them do, so that more pieces go on from fewer.
    """
    tokens = model.tokenize(_text(), special=False)
    starts = range(0, len(tokens) - WINDOW + 1, WINDOW)
    # In the order of a van der Corput sequence, 0, 1/2, 1/4, 3/4, 1/8, ..., long enough to come to each of them.
    bits = len(starts).bit_length()
    sequence = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    order = list(dict.fromkeys(number * len(starts) >> bits for number in sequence))
    return [[*model.opening, *tokens[starts[i] : starts[i] + WINDOW]] for i in order[:count]]


def read(scorer: Scorer, base_sha256: str, count: int, directory: Path) -> Reading:
    """Return what the base, which `scorer` has loaded, thinks of the first `count` pieces.

    From the file in `directory`, as far as it goes; what is measured in addition is kept there. Raises StoreError if it
    cannot be written.
    """
    pieces = windows(scorer.model, count)
    path = directory / f"{base_sha256[:16]}-general-text.bin"
    identity = _identity(base_sha256)
    found = _load(path, identity)
    known = len(found.losses) // (WINDOW - CONTEXT) if found is not None else 0
    wanted = len(pieces) * (WINDOW - CONTEXT)
    if found is not None and known >= len(pieces):
        return found.first(wanted)
    parts = [found] if found is not None else []
    parts += [_measure(scorer, piece) for piece in pieces[known:]]
    reading = Reading(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("losses", "ids", "log_probs")))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _save(path, identity, reading)
    return reading


def compare(scorer: Scorer, base: Reading, count: int, start: int = 0) -> Change:
    """Return how the arm that `scorer` has loaded reads the pieces from `start` to `count`, compared with the base."""
    losses: list[float] = []
    divergences: list[float] = []
    pieces = windows(scorer.model, count)[start:]
    first = n = start * (WINDOW - CONTEXT)
    for piece in pieces:
        for target, logits in zip(piece[_first(piece) :], scorer.logits(piece, _first(piece)), strict=True):
            losses.append(-log_softmax_at(logits, target))
            divergences.append(_divergence(base.ids[n], base.log_probs[n], logits))
            n += 1
    before = base.losses[first:n]
    return Change(float(before.mean()), float(np.mean(losses)), float(np.mean(divergences)), len(losses))


def _measure(scorer: Scorer, piece: Sequence[int]) -> Reading:
    losses: list[float] = []
    ids: list[npt.NDArray[np.intp]] = []
    log_probs: list[Logits] = []
    for target, logits in zip(piece[_first(piece) :], scorer.logits(piece, _first(piece)), strict=True):
        likeliest = np.argpartition(logits, -min(K, len(logits)))[-K:]
        losses.append(-log_softmax_at(logits, target))
        ids.append(likeliest)
        log_probs.append((logits[likeliest].astype(np.float64) - log_sum_exp(logits)).astype(np.float32))
    return Reading(np.array(losses, np.float32), np.array(ids, np.int32), np.array(log_probs, np.float32))


def _divergence(ids: Ids, log_probs: Floats, logits: Logits) -> float:
    """Return KL(base || arm), in nats, over the K likeliest tokens of the base and all others as one."""
    base = log_probs.astype(np.float64)
    arm = logits[ids].astype(np.float64) - log_sum_exp(logits)
    rest_base, rest_arm = (max(1e-9, 1.0 - float(np.exp(x).sum())) for x in (base, arm))
    within = float((np.exp(base) * (base - arm)).sum())
    return within + rest_base * float(np.log(rest_base) - np.log(rest_arm))


def _first(piece: Sequence[int]) -> int:
    """Return the index of the first token that counts."""
    return len(piece) - WINDOW + CONTEXT


def _text() -> str:
    return importlib.resources.files("edgepd.adapt").joinpath("data", "general.txt").read_text(encoding="utf-8")


def _identity(base_sha256: str) -> dict[str, Any]:
    """What a file must have been made from to be believed."""
    return {
        "format": FORMAT,
        "base_sha256": base_sha256,
        "text_sha256": hashlib.sha256(_text().encode()).hexdigest(),
        "window": WINDOW,
        "context": CONTEXT,
        "k": K,
        "llama_cpp": importlib.metadata.version("llama-cpp-python"),
    }


def _load(path: Path, identity: dict[str, Any]) -> Reading | None:
    """Return what the file holds, None if it is missing, damaged or foreign."""
    try:
        first, _, body = path.read_bytes().partition(b"\n")
        # Before numpy sees it: of a damaged archive it raises whatever its readers happen to.
        if json.loads(first) != identity | {"body_sha256": hashlib.sha256(body).hexdigest()}:
            return None
        with np.load(io.BytesIO(body), allow_pickle=False) as found:
            return Reading(found["losses"], found["ids"], found["log_probs"])
    except (OSError, ValueError):
        return None


def _save(path: Path, identity: dict[str, Any], reading: Reading) -> None:
    body = io.BytesIO()
    np.savez(body, losses=reading.losses, ids=reading.ids, log_probs=reading.log_probs)
    head = identity | {"body_sha256": hashlib.sha256(body.getbuffer()).hexdigest()}
    with replacing(path) as file:
        file.write(json.dumps(head).encode() + b"\n" + body.getbuffer())
