"""The three scores of Qin et al. (DAC 2024, arXiv 2311.12275); for all of them higher is better.

The idea: an exchange is worth keeping if its text is rich (entropy of embedding), about something that this user is
about (domain specific score), and unlike what is kept of the same domain (in-domain dissimilarity). Where the paper
leaves something open, the choice and the reason stand here and in docs/selection.md.
The invariant: each score depends on its arguments only, and the order of tokens, words or bins does not matter.
What this does not do: know a model. Token states and vectors come from whoever runs one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgepd_profiles.selection.candidates import NO_DOMAIN, Vector

MAX_STATES = 256  # tokens whose states count; the cost grows with the cube
SAME = 1e-20  # spread of the states, relative to their size, below which it is rounding


def entropy(states: npt.NDArray[np.floating]) -> float:
    """Return the entropy of embedding (EOE), in [0, 1], of the last hidden states (n, d) of a text's tokens.

    The paper writes EOE = -sum_i p(e_i) log p(e_i) / log n and does not say what the probability of a vector is. Here
    p are the eigenvalues of the Gram matrix of the centred states over their sum: how many directions the text takes,
    and how evenly. States after the first MAX_STATES do not count; fewer than two, or equal ones, have 0.
    Raises ValueError for another shape and for numbers that are not finite.
    """
    if states.ndim != 2:
        raise ValueError(f"states have {states.ndim} dimensions, but must have two: (tokens, width)")
    kept = np.asarray(states[:MAX_STATES], dtype=np.float64)  # (n, d)
    if not np.isfinite(kept).all():
        raise ValueError("some states are not finite numbers")
    n, width = kept.shape
    if n < 2 or width == 0:
        return 0.0
    centred = kept - kept.mean(axis=0)
    gram = centred @ centred.T if n <= width else centred.T @ centred  # the same eigenvalues, zeros apart
    eigenvalues = np.linalg.eigvalsh(gram)
    total = float(eigenvalues.sum())
    if total <= SAME * float((kept**2).sum()):
        return 0.0
    p = eigenvalues[eigenvalues > 0] / total
    return min(1.0, max(0.0, float(-(p * np.log(p)).sum() / np.log(n))))


def domain_score(words: Collection[str], lexicons: Mapping[int, Collection[str]]) -> tuple[float, int]:
    """Return the domain specific score (DSS), in [0, 1], of a text's words, and its dominant domain.

    DSS = 1/m sum_j |T and l_j| / n over the m lexicons l_j, where T are the text's n distinct words: one that is
    repeated says no more. The dominant domain has most of them (of equal ones the lowest number), or is NO_DOMAIN.
    """
    own = frozenset(words)
    if not own or not lexicons:
        return 0.0, NO_DOMAIN
    shared = {domain: len(own.intersection(lexicons[domain])) for domain in sorted(lexicons)}
    most = max(shared, key=lambda domain: shared[domain])
    return sum(shared.values()) / len(own) / len(lexicons), most if shared[most] else NO_DOMAIN


def dissimilarity(vector: Vector, others: Sequence[Vector] | Vector) -> float:
    """Return the in-domain dissimilarity (IDD), in [0, 2]: the mean of 1 - cos to the bins of the same domain.

    `vector` is (d,), `others` is (m, d). Without any it is 1, as if they were at right angles.
    """
    if len(others) == 0:
        return 1.0
    mine, theirs = unit(np.asarray(vector)), np.stack([unit(np.asarray(other)) for other in others])
    return float(1.0 - (theirs @ mine).mean())


def dissimilarities(vectors: Vector, domains: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]) -> Vector:
    """Return the IDD of each bin over the other ones of its domain: (n,) from unit vectors (n, d).

    The mean over a domain follows from the sum of its vectors, so the cost is linear in n. Bins that are not `known`
    have no vector (a row of zeros): they count for nobody, and their own number here means nothing.
    """
    found = np.ones(len(vectors), dtype=np.float32)
    for domain in np.unique(domains):
        rows = np.flatnonzero((domains == domain) & known)
        if len(rows) > 1:
            block = vectors[rows]  # (r, d)
            itself = np.einsum("ij,ij->i", block, block)
            found[rows] = 1.0 - (block @ block.sum(axis=0) - itself) / (len(rows) - 1)
    return found


def unit(vector: npt.NDArray[np.floating]) -> Vector:
    """Return a vector at length 1, as float32; one of zeros stays as it is."""
    wide = np.asarray(vector, dtype=np.float64)
    length = float(np.linalg.norm(wide))
    return (wide / length if length > 0 else wide).astype(np.float32)
