"""The network of the small predictor in numpy: logits of what is next after the newest events.

The idea: the same numbers as predictor.py (tested), without torch: a few milliseconds and a few megabytes. The
invariant: arrays have the names and sizes of `network_shapes`, which is what a file is checked by.
What this does not do: train (predictor.py does, in a child process), or turn logits into a ranking (student.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgepd.intent.encode import Encoded, masked_row
from edgepd.intent.shape import DAY_SLOTS, GAPS, WEEKDAYS, Shape
from edgepd.intent.weights_file import Floats

LAYER_NORM_EPS = 1e-5
GELU_SCALE = math.sqrt(2 / math.pi)


class Network:
    """The network of one predictor, ready to run: norms and scales are folded into the products that follow them."""

    def __init__(self, shape: Shape, weights: Mapping[str, Floats]) -> None:
        """Take the arrays of `network_shapes`; they are not changed."""
        self._shape, self._weights = shape, weights
        self._blocks = [_Block.of(weights, f"block.{layer}.", shape) for layer in range(shape.layers)]

    def last_logits(self, places: Encoded) -> Floats:
        """Return the logits (intents,) at the last of at most `shape.window` places, as predictor.py computes them."""
        shape, weights, length = self._shape, self._weights, len(places)
        x = self._embedded(places)
        bias = _by_distance(weights["relative"], length)
        for block in self._blocks:
            x = block.run(x, bias)
        h = _norm(weights, "norm", x)
        last, intents = h[-1], weights["attention.intents"]  # (D,), (I, D)
        query = _linear(weights, "attention.query", last) + intents @ weights["attention.intent_query.weight"].T
        key = h @ weights["attention.key.weight"].T  # (L, r), query: (I, r)
        score = query @ key.T / math.sqrt(shape.rank) + weights["attention.recency"][:, length - 1 :: -1]
        values = h @ weights["head.pooled.weight"].T  # (L, inner)
        inner = softmax(score) @ values + intents @ weights["head.intent.weight"].T  # eq. 3
        inner += _linear(weights, "head.last", last)
        logits = gelu(inner) @ weights["head.out.weight"][0]  # eq. 4
        direct = intents @ (weights["head.direct.weight"] @ last) / math.sqrt(shape.hidden)
        found: Floats = logits + direct + weights["head.bias"]
        return found

    def _embedded(self, places: Encoded) -> Floats:
        """Return the tokens (L, D): context, weekday, half hour and event, and what is known of the moment."""
        weights = self._weights
        event = weights["embed.intent"][places.intent]
        if self._shape.offsets:
            event = event + weights["embed.event"][places.event]
        context, weekday, slot = (weights[f"embed.{name}"] for name in ("context", "weekday", "slot"))
        x = np.concatenate([context[places.context], weekday[places.weekday], slot[places.slot], event], axis=1)
        gap = weights["embed.gap"][places.now_gap]
        now = np.concatenate([weekday[places.now_weekday], slot[places.now_slot], gap], axis=1)  # (L, 3 d)
        found: Floats = x + _linear(weights, "embed.now", now)
        return found


@dataclass(frozen=True)
class _Block:
    """A block as in GPT-2, with biases by distance instead of positions. Each product is (matrix, bias)."""

    heads: int
    qkv: tuple[Floats, Floats]
    out: tuple[Floats, Floats]
    up: tuple[Floats, Floats]
    down: tuple[Floats, Floats]

    @classmethod
    def of(cls, weights: Mapping[str, Floats], prefix: str, shape: Shape) -> _Block:
        """Fold the two norms of a block, and the scale of its scores, into its products."""
        qkv, bias = _after_norm(weights, f"{prefix}norm1", f"{prefix}qkv")
        scale = np.ones(3 * shape.hidden, np.float32)
        scale[: shape.hidden] = 1 / math.sqrt(shape.hidden // shape.heads)
        out, down = ((weights[f"{prefix}{n}.weight"].T, weights[f"{prefix}{n}.bias"]) for n in ("out", "down"))
        return cls(
            shape.heads, (qkv * scale, bias * scale), out, _after_norm(weights, f"{prefix}norm2", f"{prefix}up"), down
        )

    def run(self, x: Floats, bias: Floats) -> Floats:
        """Return (L, D) after the block; `bias` is (heads, L, L)."""
        length, hidden = x.shape
        qkv = _normed(x, *self.qkv).reshape(length, 3, self.heads, hidden // self.heads)
        q, k, v = qkv.transpose(1, 2, 0, 3)  # each (heads, L, D / heads)
        score = q @ k.transpose(0, 2, 1) + bias
        mixed = (softmax(score) @ v).transpose(1, 0, 2).reshape(length, hidden)
        x = x + _product(mixed, *self.out)
        return x + _product(gelu(_normed(x, *self.up)), *self.down)


def _after_norm(weights: Mapping[str, Floats], norm: str, linear: str) -> tuple[Floats, Floats]:
    """Return matrix (D, any) and bias of a product with its layer norm folded in, for `_normed`.

    With the mean taken out of the columns of the matrix, x need not be centred: (x - mean) @ A = x @ (A - mean of A).
    """
    matrix = (weights[f"{linear}.weight"] * weights[f"{norm}.weight"]).T
    bias = weights[f"{linear}.weight"] @ weights[f"{norm}.bias"] + weights[f"{linear}.bias"]
    return np.ascontiguousarray(matrix - matrix.mean(0)), bias


def _product(x: Floats, matrix: Floats, bias: Floats) -> Floats:
    found: Floats = x @ matrix
    found += bias
    return found


def _normed(x: Floats, matrix: Floats, bias: Floats) -> Floats:
    """Return a product of the layer norm of x (L, D); see `_after_norm`."""
    width = x.shape[1]
    mean = x.sum(1) / width
    variance = np.einsum("ij,ij->i", x, x) / width - mean * mean
    found: Floats = x @ matrix
    found /= np.sqrt(variance + LAYER_NORM_EPS)[:, None]
    found += bias
    return found


def _by_distance(relative: Floats, length: int) -> Floats:
    """Return a view (heads, L, L) of biases by distance: row i has those of i, i - 1, ... 0, then -inf."""
    later = np.full((len(relative), length - 1), -np.inf, np.float32)
    line = np.concatenate([relative[:, length - 1 :: -1], later], axis=1)
    return np.lib.stride_tricks.sliding_window_view(line, length, axis=1)[:, ::-1]


def softmax(x: Floats) -> Floats:
    """Return exp(x) / sum along the last axis; -inf becomes 0."""
    e: Floats = x - x.max(-1, keepdims=True)
    np.exp(e, out=e)
    e /= e.sum(-1, keepdims=True)
    return e


def gelu(x: Floats) -> Floats:
    """Return the tanh form of GELU; arXiv 1606.08415, section 2."""
    inner: Floats = x * x  # in place from here on: a third of the time
    inner *= 0.044715 * GELU_SCALE
    inner += GELU_SCALE
    inner *= x
    np.tanh(inner, out=inner)
    inner += 1
    inner *= x
    inner *= 0.5
    return inner


def network_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every array that the network of a predictor of this shape runs on."""
    d, hidden, rank = shape.width, shape.hidden, shape.rank
    found: dict[str, tuple[int, ...]] = {
        "embed.intent": (masked_row(shape.intents) + 2, d),
        "embed.context": (shape.contexts + 1, d),
        "embed.weekday": (WEEKDAYS + 1, d),
        "embed.slot": (DAY_SLOTS + 1, d),
        "embed.gap": (GAPS, d),
        "embed.now.weight": (hidden, 3 * d),
        "embed.now.bias": (hidden,),
        "relative": (shape.heads, shape.window),
        "norm.weight": (hidden,),
        "norm.bias": (hidden,),
        "attention.intents": (shape.intents, hidden),
        "attention.query.weight": (rank, hidden),
        "attention.query.bias": (rank,),
        "attention.intent_query.weight": (rank, hidden),
        "attention.key.weight": (rank, hidden),
        "attention.recency": (shape.intents, shape.window),
        "head.pooled.weight": (shape.inner, hidden),
        "head.intent.weight": (shape.inner, hidden),
        "head.last.weight": (shape.inner, hidden),
        "head.last.bias": (shape.inner,),
        "head.out.weight": (1, shape.inner),
        "head.direct.weight": (hidden, hidden),
        "head.bias": (shape.intents,),
    }
    if shape.offsets:
        found["embed.event"] = (shape.events + 1, d)
    sizes = {
        "qkv": (3 * hidden, hidden),
        "out": (hidden, hidden),
        "up": (4 * hidden, hidden),
        "down": (hidden, 4 * hidden),
    }
    for layer in range(shape.layers):
        for name, (rows, columns) in sizes.items():
            found[f"block.{layer}.{name}.weight"] = (rows, columns)
            found[f"block.{layer}.{name}.bias"] = (rows,)
        for name in ("norm1", "norm2"):
            found[f"block.{layer}.{name}.weight"] = found[f"block.{layer}.{name}.bias"] = (hidden,)
    return found


def _linear(weights: Mapping[str, Floats], name: str, x: Floats) -> Floats:
    return _product(x, weights[f"{name}.weight"].T, weights[f"{name}.bias"])


def _norm(weights: Mapping[str, Floats], name: str, x: Floats) -> Floats:
    width = x.shape[-1]
    found: Floats = x - x.sum(-1, keepdims=True) / width
    found /= np.sqrt(np.einsum("ij,ij->i", found, found) / width + LAYER_NORM_EPS)[:, None]
    found *= weights[f"{name}.weight"]
    found += weights[f"{name}.bias"]
    return found
