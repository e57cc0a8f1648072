"""Pairs like the user's own, made by the model that serves, so that a consolidation has more to learn from.

The idea: the model is asked for a question like one that was corrected or accepted, and for the answer in the same
manner; a pair that is like its example, but no copy of it, is kept (a band of ROUGE-1, after Qin et al. 2311.12275).
The invariants: at most `select.similar_pairs` for each example, and none unless that setting says so; no model is
loaded for them.
What this does not do: judge whether a pair is true, or decide what is trained on.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable

from edgepd.settings import Settings
from edgepd_daemon.ask import Ask
from edgepd_daemon.choices import Piece
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.types import Sampling
from edgepd_daemon.exchange import Exchanges
from edgepd_daemon.generations import Generations
from edgepd_daemon.training_jobs import find_examples
from edgepd_profiles import similar_pairs
from edgepd_profiles.examples import Example
from edgepd_profiles.store import Store

AT_ONCE = 4  # pairs in one pass
MAX_TOKENS = 256
SAMPLING = Sampling(temperature=0.8, top_p=0.95)


class Pairing:
    """Makes the pairs that are missing."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        generations: Generations,
        exchanges: Exchanges,
        settings: Callable[[], Settings],
    ) -> None:
        """Ask for nothing yet."""
        self._store = store
        self._engine = engine
        self._generations = generations
        self._exchanges = exchanges
        self._settings = settings
        self._failed: set[str] = set()  # examples that the model has made nothing of in this run

    async def make_missing(self) -> int:
        """Make some pairs; return how many were kept. Raises what an exchange raises."""
        wanted = self._settings().select.similar_pairs
        if not wanted or not self._engine.is_prepared(self._generations.current):
            return 0
        waiting = await asyncio.to_thread(self._waiting, wanted)
        kept = [await self._make(example) for example in waiting[:AT_ONCE]]
        return sum(kept)

    def _waiting(self, wanted: int) -> list[Example]:
        settings = self._settings()
        found = [e for e in find_examples(self._store, settings.train, settings.select) if e.desirable]
        with self._store.read() as conn:
            have = similar_pairs.of(conn, [e.id for e in found])
        counts = {e.id: sum(pair.interaction == e.id for pair in have) for e in found}
        return [e for e in found if counts[e.id] < wanted and e.id not in self._failed]

    async def _make(self, example: Example) -> bool:
        """Ask for one pair; return whether it was kept."""
        ask = Ask(
            model="default",
            max_tokens=MAX_TOKENS,
            sampling=SAMPLING,
            messages=similar_pairs.prompt_for(example),
            overflow="shift",
            store=False,
            personal=False,
        )
        exchange = await self._exchanges.start(ask)
        text = "".join([piece.text async for piece in exchange.events() if isinstance(piece, Piece)])
        pair = similar_pairs.parse(text)
        select = self._settings().select
        likeness = similar_pairs.similarity(example, *pair) if pair else 0.0
        if pair is None or not similar_pairs.in_band(likeness, select.similar_min, select.similar_max):
            self._failed.add(example.id)
            return False
        prompt, response = pair

        def write(conn: sqlite3.Connection) -> None:
            similar_pairs.add(conn, example.id, prompt, response, likeness)

        await asyncio.wrap_future(self._store.write(write))
        return True
