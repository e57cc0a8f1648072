"""The exchanges that are most like a new one, to be shown to the model as models of what is wanted.

The idea: BM25 over prompt and response of each wanted example, by an FTS5 index that lives in memory as long as the
object. It is asked with the new prompt only, because the response is what is to be predicted.
The invariant: neither the example itself nor a near-duplicate of it comes back, because that would show the model the
answer that it is judged by; nor does an answer that the user did not want.
What this does not do: understand. A text that says the same in other words is not found.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import closing
from types import TracebackType

from edgepd_profiles import near_duplicates
from edgepd_profiles.examples import Example

MAX_TERMS = 200  # of a pasted document, the first words; the time that FTS5 takes grows with their number


class Index:
    """A searchable pool of examples. Use it in a `with` statement, in the thread that made it."""

    def __init__(self, pool: Sequence[Example]) -> None:
        self._pool = [example for example in pool if example.desirable]
        self._texts = [example.text for example in self._pool]
        self._style = near_duplicates.style_of(self._texts)
        self._conn = sqlite3.connect(":memory:")
        self._conn.execute("CREATE VIRTUAL TABLE pool USING fts5(words, tokenize = 'unicode61')")
        # The words as they are compared, so that scripts without spaces can be searched too.
        rows = ((n, " ".join(_terms(text.prompt + text.response))) for n, text in enumerate(self._texts))
        self._conn.executemany("INSERT INTO pool (rowid, words) VALUES (?, ?)", rows)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the index; it cannot be searched any more."""
        self._conn.close()

    def similar(self, example: Example, k: int = 2) -> list[Example]:
        """Return at most `k` examples whose words are most like the prompt of `example`, the best first.

        Of two that are equally like it, the later one in the pool comes first. There are fewer than `k` where fewer
        share a word with it.
        """
        found: list[Example] = []
        with closing(self._ranked(example)) as ranked:
            for n in ranked:
                if len(found) >= k:
                    break
                same = self._pool[n].id == example.id
                if not same and not near_duplicates.alike(self._texts[n], example.text, self._style):
                    found.append(self._pool[n])
        return found

    def _ranked(self, example: Example) -> Generator[int, None, None]:
        terms = list(dict.fromkeys(_terms(example.text.prompt)))[:MAX_TERMS]
        if not terms:
            return
        asked = " OR ".join('"' + term.replace('"', '""') + '"' for term in terms)  # quoted, nothing is an operator
        rows = self._conn.execute("SELECT rowid FROM pool WHERE pool MATCH ? ORDER BY rank, rowid DESC", (asked,))
        with closing(rows):
            for (n,) in rows:
                yield n


def similar(pool: Sequence[Example], example: Example, k: int = 2) -> list[Example]:
    """Return at most `k` examples of `pool` that are most like the prompt of `example`; see `Index.similar`.

    To ask more than once of one pool, keep an Index: it is made anew here.
    """
    with Index(pool) as index:
        return index.similar(example, k)


def _terms(words: Sequence[str]) -> list[str]:
    """Leave out what FTS5 has no name for, and may not even take: lone signs, NUL, half characters."""
    return [word for word in words if any(map(str.isalnum, word))]
