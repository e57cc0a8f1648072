"""What is kept in each pool, for those who only read it.

The idea: `bins` as a list with the names of the domains written out. A stored reason holds the text `{domain}`
instead of words, so that words of the user are in the table `lexicons` only, and one DELETE takes them all away.
What this does not do: choose (bins.py), or load numpy.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from edgepd_profiles import apps
from edgepd_profiles.rows import fetch

POOLS = ("examples", "questions")
NAMED_WORDS = 3  # words that stand for a domain in a sentence


@dataclass(frozen=True)
class Bin:
    """One exchange that is kept, with its scores and the reason as a sentence; `at` is unix seconds.

    `domain` is the number of its lexicon, 0 if it has no word of any.
    """

    pool: str
    interaction: str
    prompt: str
    entropy: float
    domain_score: float
    dissimilarity: float
    domain: int
    reason: str
    at: float


def listing(conn: sqlite3.Connection, pool: str, viewer: str | None = None) -> list[Bin]:
    """Return what is kept in a pool and visible to an app (None: to the owner), the newest first.

    An app is not told the words of a domain: they may come from another app. Raises ValueError for an unknown pool.
    """
    check(pool)
    visible, parameters = apps.visible_sql(viewer, "i.app")
    rows = fetch(
        conn,
        f"""
        SELECT b.*, i.prompt FROM bins AS b JOIN interactions AS i ON i.id = b.interaction
        WHERE b.pool = ? AND ({visible}) ORDER BY b.at DESC, i.seq DESC
        """,  # noqa: S608 - the condition is ours
        (pool, *parameters),
    )
    words = lexicons(conn) if viewer is None else {}
    return [Bin(**row | {"reason": sentence(row["reason"], row["domain"], words)}) for row in rows]


def ids(conn: sqlite3.Connection, pool: str) -> set[str]:
    """Return the ids of the interactions that are kept in a pool. Raises ValueError for an unknown pool."""
    check(pool)
    return {found for (found,) in conn.execute("SELECT interaction FROM bins WHERE pool = ?", (pool,))}


def lexicons(conn: sqlite3.Connection) -> dict[int, list[str]]:
    """Return the words of each domain, the most typical first."""
    found: dict[int, list[str]] = {}
    for domain, word in conn.execute("SELECT domain, word FROM lexicons ORDER BY domain, weight DESC, word"):
        found.setdefault(domain, []).append(word)
    return found


def sentence(reason: str, domain: int, words: dict[int, list[str]]) -> str:
    """Return a stored reason with the domain written out."""
    named = ", ".join(words.get(domain, [])[:NAMED_WORDS])
    name = f"domain {domain}" if domain else "no domain yet"
    return reason.replace("{domain}", f"{name}: {named}, ..." if named else name)


def check(pool: str) -> None:
    """Raise ValueError for an unknown pool."""
    if pool not in POOLS:
        raise ValueError(f"pool {pool!r} is not known; use one of {', '.join(POOLS)}")
