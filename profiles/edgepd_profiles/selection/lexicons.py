"""The domains of one user: words that are typical of clusters of his own texts.

The idea: Qin et al. (arXiv 2311.12275) take ready-made lexicons (medicine, feelings, ...). Here they are the user's
own: the exchanges' vectors are clustered (spherical k-means, Dhillon & Modha 2001), and a word belongs to the cluster
in whose texts its mean tf-idf is furthest above that in the other texts. What is said everywhere, such as "the", is
typical of nothing, so no list of stop words is needed, in any language.
The invariant: no word is in two lexicons, and none is from one text only, so no password that was pasted once. The
same texts, vectors and seed give the same lexicons, in any order of the texts.
What this does not do: forget. Words stay when an exchange is deleted, so whoever forgets one empties the table
`lexicons`; the next selection makes it anew.
"""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgepd_profiles import near_duplicates
from edgepd_profiles.rows import fetch
from edgepd_profiles.selection.arrivals import set_mark
from edgepd_profiles.selection.candidates import Vector
from edgepd_profiles.selection.embeddings import decode

FIRST = 32  # embedded exchanges with which the first lexicons are made
TEXTS = 512  # newest embedded exchanges that they are made of
WORDS = 50  # of each lexicon at most
VOCABULARY = 4000  # words of all texts that are looked at, the most common first
ROUNDS = 30  # of k-means at most
TYPICAL = 2.0  # times as heavy inside a cluster as outside is a word that is typical of it
CHARACTERS = 4000  # of a prompt and of a response that are read
COUNTER = "lexicons"  # the row of `pools`: `offered` counts for all pools, `seen` is what it was at the last build

Lexicons = Mapping[int, Mapping[str, float]]


def words_of(prompt: str, response: str) -> tuple[str, ...]:
    """Return the words of an exchange as they are compared."""
    return near_duplicates.words(f"{prompt[:CHARACTERS]}\n{response[:CHARACTERS]}")


def domains_for(n: int) -> int:
    """Return how many domains n texts have: min(8, floor(sqrt(n / 2))), and at least one."""
    return max(1, min(8, math.isqrt(n // 2)))


def build(texts: Sequence[Sequence[str]], vectors: Sequence[Vector] | Vector, k: int, seed: int) -> Lexicons:
    """Return domain (from 1, the largest cluster first) -> word -> weight of at most WORDS typical words.

    `texts` are the words of each text, `vectors` (n, d) their unit vectors. A domain without typical words is left
    out. Raises ValueError if there are not as many texts as vectors, or less than one domain is asked for.
    """
    if len(texts) != len(vectors) or k < 1:
        raise ValueError(f"{len(texts)} texts with {len(vectors)} vectors cannot make {k} domains")
    if not texts:
        return {}
    order = sorted(range(len(texts)), key=lambda n: (tuple(texts[n]), np.asarray(vectors[n]).tobytes()))
    sorted_texts = [texts[n] for n in order]
    cluster = _clusters(np.stack([vectors[n] for n in order]), min(k, len(texts)), np.random.default_rng(seed))
    vocabulary, weights = _tf_idf(sorted_texts)  # (n, v)
    sizes = np.bincount(cluster, minlength=k)
    largest = [int(c) for c in np.argsort(-sizes, kind="stable") if sizes[c]]
    contrast = np.stack([_contrast(weights, cluster == c) for c in largest])  # (domains, v)
    owner = contrast.argmax(axis=0)
    found: dict[int, dict[str, float]] = {}
    for row in range(len(largest)):
        mine = [n for n in np.flatnonzero(owner == row) if contrast[row, n] > 0]
        mine.sort(key=lambda n: (-contrast[row, n], vocabulary[n]))
        if mine:
            found[len(found) + 1] = {vocabulary[n]: float(contrast[row, n]) for n in mine[:WORDS]}
    return found


def renew(conn: sqlite3.Connection, model: str | None, seed: int) -> bool:
    """Make the lexicons anew if that is due, and say whether it was.

    It is due first when FIRST exchanges are embedded, and then each time that what was offered has doubled.
    """
    row = conn.execute("SELECT seen, offered FROM pools WHERE pool = ?", (COUNTER,)).fetchone()
    before, offered = row or (0, 0)
    exist = conn.execute("SELECT 1 FROM lexicons LIMIT 1").fetchone() is not None
    if exist and offered < 2 * max(before, FIRST):
        return False
    rows = fetch(
        conn,
        f"""
        SELECT substr(i.prompt, 1, {CHARACTERS}) AS prompt, substr(i.response, 1, {CHARACTERS}) AS response, e.vector
        FROM (SELECT * FROM embeddings ORDER BY rowid DESC LIMIT {TEXTS}) AS e
            JOIN interactions AS i ON i.id = e.interaction
        WHERE e.model_sha256 = ?
        """,  # noqa: S608 - constants of ours
        (model,),
    )
    if len(rows) < FIRST:
        return False
    texts = [words_of(row["prompt"], row["response"]) for row in rows]
    save(conn, build(texts, [decode(row["vector"]) for row in rows], domains_for(len(rows)), seed))
    set_mark(conn, COUNTER, offered)
    return True


def save(conn: sqlite3.Connection, lexicons: Lexicons) -> None:
    """Replace the stored lexicons."""
    conn.execute("DELETE FROM lexicons")
    conn.executemany(
        "INSERT INTO lexicons (domain, word, weight) VALUES (?, ?, ?)",
        [(domain, word, weight) for domain, words in lexicons.items() for word, weight in words.items()],
    )


def count_offered(conn: sqlite3.Connection, number: int) -> None:
    """Add to the number of exchanges that were offered to any pool."""
    conn.execute(
        """
        INSERT INTO pools (pool, policy, offered) VALUES (?, '', ?)
        ON CONFLICT (pool) DO UPDATE SET offered = offered + excluded.offered
        """,
        (COUNTER, number),
    )


def _clusters(vectors: Vector, k: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the cluster of each unit vector, by k-means on the sphere with k-means++ (Arthur & Vassilvitskii 2007)."""
    centres = vectors[[int(rng.integers(len(vectors)))]]
    for _ in range(k - 1):
        distance = np.clip(1.0 - (vectors @ centres.T).max(axis=1), 0.0, None).astype(np.float64)
        total = distance.sum()
        chosen = int(rng.choice(len(vectors), p=distance / total)) if total > 0 else 0
        centres = np.concatenate([centres, vectors[[chosen]]])
    cluster = np.full(len(vectors), -1, dtype=np.int64)
    for _ in range(ROUNDS):
        before, cluster = cluster, (vectors @ centres.T).argmax(axis=1)
        if np.array_equal(before, cluster):
            break
        for c in range(k):
            total_vector = vectors[cluster == c].sum(axis=0)
            length = np.linalg.norm(total_vector)
            if length > 0:  # an empty cluster keeps its centre
                centres[c] = total_vector / length
    return cluster


def _tf_idf(texts: Sequence[Sequence[str]]) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Return the words of two or more texts, and the rows at length 1 of log(1 + tf) * idf: (n, v)."""
    counts = [Counter(words) for words in texts]
    frequency = Counter(word for count in counts for word in count if _says_something(word))
    common = sorted((word for word in frequency if frequency[word] >= 2), key=lambda word: (-frequency[word], word))
    vocabulary = common[:VOCABULARY]
    place = {word: n for n, word in enumerate(vocabulary)}
    weights = np.zeros((len(texts), len(vocabulary)), dtype=np.float32)
    for row, count in enumerate(counts):
        for word, times in count.items():
            if word in place:
                rarity = math.log((1 + len(texts)) / (1 + frequency[word])) + 1
                weights[row, place[word]] = math.log1p(times) * rarity
    lengths = np.linalg.norm(weights, axis=1, keepdims=True)
    return vocabulary, (weights / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _says_something(word: str) -> bool:
    """Leave out numbers and, in scripts of the first 128 signs, what has fewer than three letters."""
    return word.isalpha() and (len(word) > 2 or not word.isascii())


def _contrast(weights: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return by how much the mean weight of each word inside a cluster is above that outside of it: (v,).

    It is 0 for what is less than TYPICAL times as heavy inside as outside.
    """
    mean = weights[inside].mean(axis=0)
    outside = np.zeros_like(mean) if inside.all() else weights[~inside].mean(axis=0)
    return np.where(mean >= TYPICAL * outside, mean - outside, 0).astype(np.float32)
