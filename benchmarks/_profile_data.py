"""Synthetic profiles for `make bench-profiles`: as many exchanges as wanted, written fast.

Words are made up and drawn by Zipf's law, as in real text, so that a search meets words that are everywhere and words
that are nearly nowhere. Sessions have one to four turns, each of which sends those before it again; they come from
several apps, two of which have few. A fifth of the exchanges have feedback. Rows are inserted by SQL in large
transactions, the triggers of the schema fill the search index, and nothing is synced: it is not what is measured.
"""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepd_profiles.interactions import CROCKFORD
from edgepd_profiles.rows import canonical_json
from edgepd_profiles.selection import embeddings
from edgepd_profiles.store import Store

VOCABULARY = 100_000
APPS = ("cli", "editor", "mail", "wiki", "notes")
SHARES = (0.45, 0.35, 0.1949, 0.005, 0.0001)
COMMON_APP, UNCOMMON_APP, RARE_APP = "mail", "wiki", "notes"
SPACING_S = 30.0  # between two exchanges; 1,000,000 of them take a year
SESSIONS = 5000  # in one transaction
PROMPT_WORDS, RESPONSE_WORDS = (4, 25), (15, 90)
TURNS = (0.7, 0.15, 0.1, 0.05)  # share of the sessions with one, two, ... turns
JUDGED = 0.2  # share of the exchanges with feedback
MODEL_SHA256 = "b" * 64
WIDTH = 576  # of SmolLM2-135M's embeddings

_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "il", "os")]
_COLUMNS = """
    INSERT INTO interactions (id, conversation, created_at, app, model, generation, messages, kind, response, state,
        finish_reason, prompt_tokens, completion_tokens, ttft_ms, duration_ms, prompt, personal)
    VALUES (?, ?, ?, ?, 'synthetic', 1, ?, 'chat', ?, 'done', 'stop', 20, 60, 90.0, 2000.0, ?, '{}')
"""


def vocabulary() -> list[str]:
    """Return VOCABULARY different words, the most common first: the more common, the shorter."""
    words = ("".join(parts) for length in (1, 2, 3) for parts in itertools.product(_SYLLABLES, repeat=length))
    return list(itertools.islice(words, VOCABULARY))


class Texts:
    """Draws words by Zipf's law with exponent 1, again and again the same for one seed."""

    def __init__(self, seed: int) -> None:
        """Make the words and their probabilities."""
        self.words = vocabulary()
        self.rng = np.random.default_rng(seed)
        self._objects = np.array(self.words, dtype=object)
        weights = 1.0 / np.arange(1, VOCABULARY + 1)
        self._cumulative = np.cumsum(weights) / weights.sum()

    def draw(self, lengths: npt.NDArray[np.int64]) -> Iterator[str]:
        """Yield one text of each of these numbers of words."""
        ranks = np.searchsorted(self._cumulative, self.rng.random(int(lengths.sum())))
        flat = self._objects[np.minimum(ranks, VOCABULARY - 1)]
        start = 0
        for length in lengths.tolist():
            yield " ".join(flat[start : start + length])
            start += length

    def rows(self, sessions: int, first: int, begin: float) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of sessions; `first` is the number of the first exchange, `begin` its time."""
        turns = self.rng.choice(len(TURNS), sessions, p=TURNS) + 1
        total = int(turns.sum())
        prompts = self.draw(self.rng.integers(*PROMPT_WORDS, total))
        responses = self.draw(self.rng.integers(*RESPONSE_WORDS, total))
        number = first
        for count, app in zip(turns.tolist(), self.rng.choice(APPS, sessions, p=SHARES).tolist(), strict=True):
            messages: list[dict[str, str]] = []
            conversation = row_id(number) if count == 1 else f"c{number}"
            for _ in range(count):
                prompt, response = next(prompts), next(responses)
                messages.append({"role": "user", "content": prompt})
                text = canonical_json(messages)
                at = begin + (number - first) * SPACING_S
                yield row_id(number), conversation, at, str(app), text, response, prompt
                messages.append({"role": "assistant", "content": response})
                number += 1

    def feedback(self, rows: list[tuple[Any, ...]]) -> Iterator[tuple[str, str, int | None, str | None, float]]:
        """Yield feedback on JUDGED of the rows: mostly thumbs up, some thumbs down, ratings, corrections, signs."""
        kinds = self.rng.choice(5, len(rows), p=(0.7, 0.1, 0.1, 0.05, 0.05))
        for row, judged, kind in zip(rows, self.rng.random(len(rows)) < JUDGED, kinds.tolist(), strict=True):
            if not judged:
                continue
            name, value, text = (
                ("thumb", 1, None),
                ("thumb", -1, None),
                ("rating", 4, None),
                ("edit", None, f"dear {row[5]}"),
                ("corrected", None, "shorter"),
            )[kind]
            yield row[0], name, value, text, row[2] + 10


def row_id(number: int) -> str:
    """Return an id that has the form of one of edgepd's, and sorts by number."""
    return "i_" + "".join(CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def fill(path: Path, count: int, seed: int) -> float:
    """Make a profile with about `count` exchanges that end now; return the seconds that it took."""
    Store.open(path).close()
    started = time.perf_counter()
    texts = Texts(seed)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA synchronous = OFF")
        conn.execute("PRAGMA cache_size = -262144")
        written, begin = 0, time.time() - count * SPACING_S
        while written < count:
            average = sum(n * share for n, share in enumerate(TURNS, start=1))
            sessions = max(1, min(SESSIONS, round((count - written) / average)))
            rows = list(texts.rows(sessions, written + 1, begin + written * SPACING_S))
            conn.execute("BEGIN")
            conn.executemany(_COLUMNS, rows)
            conn.executemany(
                "INSERT INTO feedback (interaction, kind, value, text, source, at) VALUES (?, ?, ?, ?, 'user', ?)",
                texts.feedback(rows),
            )
            conn.execute("COMMIT")
            written += len(rows)
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return time.perf_counter() - started


def embed_newest(store: Store, count: int, seed: int) -> int:
    """Store random unit vectors for those of the newest `count` pieces of feedback; return how many exchanges."""
    rng = np.random.default_rng(seed)

    def write(conn: sqlite3.Connection) -> int:
        rows = conn.execute(
            "SELECT DISTINCT interaction FROM (SELECT interaction FROM feedback ORDER BY rowid DESC LIMIT ?)", (count,)
        ).fetchall()
        return sum(embed(conn, row, rng) for (row,) in rows)

    return store.write(write).result()


def embed(conn: sqlite3.Connection, interaction: str, rng: np.random.Generator) -> bool:
    """Give an exchange a random vector and entropy."""
    vector = rng.standard_normal(WIDTH).astype(np.float32)
    return embeddings.store(conn, interaction, MODEL_SHA256, vector, float(rng.random()))
