"""Merge live adapters: their sum as one adapter, of bounded rank.

The idea: the sum of w_i B_i A_i is [w_1 B_1, ...] [A_1; ...], an adapter whose rank is the sum of the ranks, so
`concatenate` is exact; `recompress` then keeps the best approximation of a given rank. The invariant: no matrix of the
size of a weight is formed, and the result means the same to every reader: its alpha is 0, the factor 1, as alpha / r
would differ from tensor to tensor. What this does not do: add factors to factors (which is another change than the
sum), merge into quantised weights (bake.py does, for other kinds), or judge the result (the gate does).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from edgepd.errors import AdapterError
from edgepd_quant.adapter_file import Adapter, LowRank, Vector

UNSCALED: Final = 0.0  # the alpha that stands for the factor 1, whatever the rank
BASE_KEY: Final = "base_sha256"
# Singular values below this share of the largest are rounding: the factors are float32.
NEGLIGIBLE: Final = 2.0**-30
QR_ELEMENTS: Final = 1 << 12  # of a block; twice as many are still below where OpenBLAS starts threads

_Matrix = npt.NDArray[np.float64]


def concatenate(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Return the adapter of kind "lora" whose delta is the sum of weights[i] * delta of adapters[i].

    Of each tensor the ranks add; tensors that only some of the adapters have are taken from these. Exact up to the
    rounding of float32. The result names the base that the adapters name, and nothing else of their metadata.
    Raises AdapterError unless they are finite LoRAs of one architecture and base with one weight each.
    """
    _check_together(adapters, weights)
    parts: dict[str, list[LowRank]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, values in adapter.tensors.items():
            pair = _low_rank(name, values)
            b = pair.b * (weight * _scaling(adapter, pair))  # float64 for the product only
            parts.setdefault(name, []).append(LowRank(pair.a, _single(name, b)))
    tensors = {name: _stacked(name, pairs) for name, pairs in parts.items()}
    bases = _bases(adapters)  # at most one
    metadata = {BASE_KEY: bases[0]} if bases else {}
    return Adapter("lora", adapters[0].architecture, UNSCALED, tensors, metadata)


def recompress(adapter: Adapter, rank: int) -> Adapter:
    """Return the adapter of kind "lora" of at most this rank that is nearest to this one, tensor by tensor.

    Nearest in the Frobenius norm (Eckart and Young 1936): with B = Q_B R_B and A^T = Q_A R_A, the singular values of
    B A are those of the small core R_B R_A^T. The factors are balanced, each with the roots of the singular values;
    where one is zero, b is zero and a is not, so that training can go on from there. A tensor of lower rank keeps its
    own. Metadata stays. Raises AdapterError for other kinds, values that are not finite, or a rank below 1.
    """
    if rank < 1:
        raise AdapterError(f"adapters cannot be compressed to rank {rank}; choose at least 1")
    _check_kind(adapter)
    tensors: dict[str, LowRank | Vector] = {}
    for name, values in adapter.tensors.items():
        pair = _low_rank(name, values)
        tensors[name] = _nearest(name, pair, _scaling(adapter, pair), rank)
    return replace(adapter, alpha=UNSCALED, tensors=tensors)


def scaled(adapter: Adapter, factor: float) -> Adapter:
    """Return an adapter, of any kind, whose delta is `factor` times that of this one.

    Raises AdapterError when the factor or a result is not finite.
    """
    if not math.isfinite(factor):
        raise AdapterError(f"an adapter cannot be multiplied by {factor}; choose a finite number")
    if adapter.kind == "lora":
        with np.errstate(over="ignore", under="ignore"):
            alpha = float(np.float32(adapter.alpha * factor))  # as a file holds it
        if alpha != 0 and math.isfinite(alpha):  # alpha 0 would mean the factor 1
            return replace(adapter, alpha=alpha)
    tensors: dict[str, LowRank | Vector] = {}
    for name, values in adapter.tensors.items():
        if isinstance(values, Vector):
            tensors[name] = Vector(_single(name, values.values * np.float64(factor)))
        else:
            tensors[name] = LowRank(values.a, _single(name, values.b * np.float64(factor)))
    return replace(adapter, tensors=tensors)


def _check_together(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    if not adapters:
        raise AdapterError("there is nothing to merge; name at least one adapter")
    if len(adapters) != len(weights):
        raise AdapterError(f"{len(adapters)} adapters need as many weights, but there are {len(weights)}")
    for weight in weights:
        if not math.isfinite(weight):
            raise AdapterError(f"an adapter cannot be merged with weight {weight}; choose a finite number")
    for adapter in adapters:
        _check_kind(adapter)
    if len(architectures := sorted({adapter.architecture for adapter in adapters})) > 1:
        raise AdapterError(f"adapters for {' and '.join(architectures)} cannot be merged; take those of one model")
    if len(bases := _bases(adapters)) > 1:
        raise AdapterError(f"the adapters were made for different bases: SHA-256 {', '.join(bases)}; take those of one")


def _bases(adapters: Sequence[Adapter]) -> list[str]:
    """Return the SHA-256 of the bases that are named; adapters made elsewhere name none."""
    return sorted({adapter.metadata[BASE_KEY] for adapter in adapters if BASE_KEY in adapter.metadata})


def _check_kind(adapter: Adapter) -> None:
    if adapter.kind != "lora":
        raise AdapterError(
            f"only adapters of kind 'lora' can be merged, but this one is of kind {adapter.kind!r}, which is"
            " multiplied into the weights and does not add up; train again on all examples instead"
        )


def _low_rank(name: str, values: LowRank | Vector) -> LowRank:
    if not isinstance(values, LowRank):
        raise AdapterError(f"{name!r} has gains, which are not of kind 'lora'; export the adapter again")
    if values.a.ndim != 2 or values.b.ndim != 2 or values.a.shape[0] != values.b.shape[1]:
        raise AdapterError(
            f"the factors for {name!r} have the shapes {values.a.shape} and {values.b.shape}, which do not belong"
            " together; export the adapter again"
        )
    if not (np.isfinite(values.a).all() and np.isfinite(values.b).all()):
        raise AdapterError(f"the factors for {name!r} are not finite; train the adapter again")
    return values


def _scaling(adapter: Adapter, pair: LowRank) -> np.float64:
    """Return what B A is multiplied with (llama_adapter_lora_weight::get_scale of llama.cpp)."""
    return np.float64(adapter.alpha / pair.a.shape[0] if adapter.alpha else 1.0)


def _single(name: str, values: _Matrix) -> npt.NDArray[np.float32]:
    """Round to float32. Raises AdapterError where that is not finite."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = values.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise AdapterError(f"the result for {name!r} does not fit into float32; choose smaller weights")
    return rounded


def _stacked(name: str, pairs: Sequence[LowRank]) -> LowRank:
    """Put the factors (r_i, in) and (out, r_i) side by side."""
    shapes = {(pair.b.shape[0], pair.a.shape[1]) for pair in pairs}
    if len(shapes) > 1:
        found = " and ".join(str(shape) for shape in sorted(shapes))
        raise AdapterError(f"the adapters change {name!r} in the shapes {found}; they were made for different bases")
    return LowRank(np.concatenate([pair.a for pair in pairs]), np.concatenate([pair.b for pair in pairs], axis=1))


def _nearest(name: str, pair: LowRank, scaling: np.float64, rank: int) -> LowRank:
    q_b, r_b = _qr(pair.b.astype(np.float64) * scaling)  # (out, k), (k, r) with k = min(out, r)
    q_a, r_a = _qr(pair.a.T.astype(np.float64))  # (in, l), (l, r) with l = min(in, r)
    u, singular, v_t = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    kept = slice(min(rank, pair.a.shape[0]))
    u, singular, v_t = u[:, kept], singular[kept], v_t[kept]
    used = singular > NEGLIGIBLE * singular[0]
    root = np.sqrt(singular)
    a = np.where(used, root, 1.0)[:, np.newaxis] * (v_t @ q_a.T)
    b = (q_b @ u) * np.where(used, root, 0.0)
    return LowRank(_single(name, a), _single(name, b))


def _qr(tall: _Matrix) -> tuple[_Matrix, _Matrix]:
    """Return the factors Q (n, k) and R (k, r) of a matrix (n, r), from those of blocks of its rows (TSQR).

    arXiv 0809.2407. Of blocks this small BLAS starts no threads, which wait for each other at every column
    and beside a busy engine take seconds instead of milliseconds.
    """
    rows = max(2 * tall.shape[1], QR_ELEMENTS // tall.shape[1])
    count = len(tall) // rows  # of blocks with at least so many rows
    if count < 2:
        q, r = np.linalg.qr(tall)
        return q, r
    parts = [np.linalg.qr(block) for block in np.array_split(tall, count)]
    joint, r = _qr(np.concatenate([part.R for part in parts]))  # (count * r, r), at most half as many rows
    joints = np.split(joint, count)
    return np.concatenate([part.Q @ of_part for part, of_part in zip(parts, joints, strict=True)]), r
