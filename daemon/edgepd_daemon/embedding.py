"""Embeddings of exchanges, for the selection of examples and for the user's own embedding.

The idea: the base model's hidden states of the beginning of an exchange give a vector, their mean, and how much there
is in them, their entropy. The base, not what serves now, because vectors of different models cannot be compared.
The invariant: nothing is computed unless the base is in memory already, so an idle daemon stays small.
What this does not do: choose what deserves a vector (see edgepd_profiles.selection.embeddings).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.generations import Generations
from edgepd_profiles.store import Store

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]

TOKENS = 128  # of the beginning of an exchange; as many as the engine embeds in one batch
AT_ONCE = 64  # exchanges in one pass


class Embedding:
    """Makes the vectors that are missing."""

    def __init__(self, store: Store, engine: Engine, generations: Generations) -> None:
        """Compute nothing yet."""
        self._store = store
        self._engine = engine
        self._generations = generations

    async def make_missing(self) -> int:
        """Embed what is missing, AT_ONCE exchanges at most; return how many. Raises what the engine raises."""
        base = self._generations.version(self._generations.original())
        if not self._engine.is_prepared(base):
            return 0
        sha256 = self._generations.base.sha256
        missing = await asyncio.to_thread(self._missing, sha256)
        if not missing:
            return 0
        tokens = await asyncio.to_thread(lambda: [self._engine.tokenize(base, text)[:TOKENS] for _, text in missing])
        kept = [(row, some) for (row, _), some in zip(missing, tokens, strict=True) if some]
        if not kept:
            return 0
        states: list[Vector] = []
        vectors = await asyncio.wrap_future(
            self._engine.embed(base, [some for _, some in kept], observe=lambda part: states.append(part))
        )
        await asyncio.to_thread(self._keep, [row for row, _ in kept], sha256, vectors, states)
        return len(kept)

    def _missing(self, sha256: str) -> list[tuple[str, str]]:
        # Loads numpy, which a daemon that has embedded nothing does without.
        from edgepd_profiles.selection import embeddings  # noqa: PLC0415

        with self._store.read() as conn:
            return embeddings.missing(conn, sha256, AT_ONCE)

    def _keep(self, rows: Sequence[str], sha256: str, vectors: Sequence[Vector], states: Sequence[Vector]) -> None:
        from edgepd_profiles.selection import embeddings, scores  # noqa: PLC0415

        entropies = [scores.entropy(part) for part in states]

        def write(conn: sqlite3.Connection) -> None:
            for row, vector, entropy in zip(rows, vectors, entropies, strict=True):
                embeddings.store(conn, row, sha256, vector, entropy)

        self._store.write(write).result()
