"""Search in all that was said.

The idea: BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009) over prompt and response, but not
FTS5's own, which reads the whole list of places of every word: in a long history that is all of it for "the". Here the
index gives the newest exchanges with the words, a bounded number of them, and those are ranked in Python. How rare a
word is in the whole is estimated from how far back its newest SAMPLE exchanges reach.
The invariant: the text of the user is quoted word by word, so it is never an operator or a mistake in the language of
FTS5; and nothing comes back that the viewer does not see.
What it gives up: of a word that is in more exchanges than the bounds below, only the newest ones are ranked, so an old
exchange may be missed that suits better; rare words find all of theirs. Text beyond MAX_CHARS of a prompt or a response
is found, but does not count for the rank. Exchanges that were imported in another order than that of their time may be
missed by `until` in a long history.
What this does not do: understand, or find a part of a word; and so in a script without spaces only what stands by
itself. An exchange that is still streaming is not found.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgepd_profiles import apps, interactions
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.snippets import snippet, spaced, words_of

CANDIDATES = 300  # exchanges that are ranked at most
WALK = 8000  # exchanges with the words that the index passes at most, for a viewer, a time, or the rarest word
SAMPLE = 100  # the newest exchanges with a word, by which its frequency is estimated
MAX_TERMS = 12  # of a pasted text, the first words
MAX_CHARS = 1500  # of a prompt or a response that count
K1, B = 1.2, 0.75  # as in FTS5

# Between the words of a query. FTS5 ends at NUL, and half characters cannot be given to SQLite.
BETWEEN = re.compile(r'[\s"\x00-\x1f\ud800-\udfff]+')


@dataclass(frozen=True)
class Found:
    """An exchange, how well it suits (higher is better, comparable within one search), and a piece of it to show."""

    interaction: Interaction
    score: float
    snippet: str


@dataclass(frozen=True)
class _Term:
    """One word of the query: quoted for FTS5, as words of the text, and in how many exchanges it is, about."""

    match: str
    words: tuple[str, ...]
    frequency: float
    total: int

    @property
    def rarity(self) -> float:
        """The inverse document frequency; never below zero, so that a word of every exchange counts a little."""
        return math.log(1 + (self.total - min(self.frequency, self.total) + 0.5) / (self.frequency + 0.5))

    @property
    def needle(self) -> bytes:
        """What to look for in `spaced` text."""
        return f" {'  '.join(self.words)} ".encode()


@dataclass(frozen=True)
class _Scope:
    """Where is searched: from which place to which, under which condition; and the places, if they are few."""

    first: int
    last: int
    condition: str
    parameters: tuple[object, ...]
    few: list[int]


@dataclass
class _Candidate:
    """One exchange that may be found, and the terms that FTS5 is known to have found in it."""

    prompt: str
    response: str
    known: set[_Term]


def search(
    conn: sqlite3.Connection,
    query: str,
    limit: int = 20,
    viewer: str | None = None,
    *,
    since: float | None = None,
    until: float | None = None,
) -> list[Found]:
    """Return at most `limit` exchanges (and at most CANDIDATES) that have words of the query, the best first.

    Those with all words come before those with some; some are looked for only if fewer than `limit` have all. A word
    that is joined by signs, as in "re-do", is looked for as it stands there. `since` and `until` are unix seconds, both
    inclusive. Of two that suit alike the newer one comes first. An empty query finds nothing.
    """
    newest = conn.execute("SELECT max(seq) FROM interactions").fetchone()[0] or 0
    terms = _terms(conn, query, newest)
    if not terms or limit < 1:
        return []
    candidates = _candidates(conn, terms, _scope(conn, viewer, since, until, newest), limit)
    scores = _scores(terms, candidates)
    best = sorted(scores, key=lambda seq: (*scores[seq], seq), reverse=True)[:limit]
    rarity = {word: term.rarity for term in terms for word in term.words}
    found = interactions.by_seq(conn, best)
    return [
        Found(found[seq], scores[seq][1], snippet((candidates[seq].prompt, candidates[seq].response), rarity))
        for seq in best
    ]


def _terms(conn: sqlite3.Connection, query: str, newest: int) -> list[_Term]:
    """Return the different words of a query, quoted, each with its estimated frequency."""
    found: dict[tuple[str, ...], str] = {}
    for chunk in BETWEEN.split(query):
        words = tuple(words_of(chunk))
        if words and len(found) < MAX_TERMS:
            found.setdefault(words, f'"{chunk}"')
    return [_Term(match, words, _frequency(conn, match, newest), newest) for words, match in found.items()]


def _frequency(conn: sqlite3.Connection, match: str, newest: int) -> float:
    """Estimate how many exchanges have a word: exact below SAMPLE, else as if it were as frequent everywhere."""
    count, oldest = conn.execute(
        """
        SELECT count(*), min(seq) FROM (
            SELECT rowid AS seq FROM interaction_search WHERE interaction_search MATCH ? ORDER BY rowid DESC LIMIT ?
        )
        """,
        (match, SAMPLE),
    ).fetchone()
    return float(count) if count < SAMPLE else newest * count / (newest - oldest + 1)


def _scope(
    conn: sqlite3.Connection, viewer: str | None, since: float | None, until: float | None, newest: int
) -> _Scope:
    """Return where to search. A viewer or a time with at most CANDIDATES exchanges is searched completely."""
    condition, parameters = apps.visible_sql(viewer, "i.app")
    few: list[int] = []
    if viewer is not None:
        names = json.dumps(apps.visible(conn, viewer))
        rows = conn.execute(
            "SELECT i.seq FROM json_each(?) AS a CROSS JOIN interactions AS i ON i.app = a.value LIMIT ?",
            (names, CANDIDATES + 1),
        ).fetchall()
        few = [seq for (seq,) in rows] if len(rows) <= CANDIDATES else []
    if since is None and until is None:
        return _Scope(0, newest, condition, parameters, few)
    start, end = -math.inf if since is None else since, math.inf if until is None else until
    # The newest by time, and of those the last by place: nearly always the same.
    rows = conn.execute(
        "SELECT seq FROM interactions WHERE created_at BETWEEN ? AND ? ORDER BY created_at DESC LIMIT ?",
        (start, end, WALK),
    ).fetchall()
    seqs = [seq for (seq,) in rows]
    if not few and len(seqs) <= CANDIDATES:
        few = seqs
    return _Scope(
        first=min(seqs, default=0) if len(seqs) < WALK else 0,
        last=max(seqs, default=0),
        condition=f"{condition} AND i.created_at BETWEEN ? AND ?",
        parameters=(*parameters, start, end),
        few=few,
    )


def _candidates(conn: sqlite3.Connection, terms: Sequence[_Term], scope: _Scope, limit: int) -> dict[int, _Candidate]:
    """Return what is to be ranked, by place: exchanges with all terms, and if those are too few, with some."""
    every = " AND ".join(term.match for term in terms)
    found: dict[int, _Candidate] = {}
    for seq, prompt, response in _newest(conn, scope, every, terms, 1):
        found[seq] = _Candidate(prompt, response, set(terms))
    if len(terms) > 1 and len(found) < limit:
        for term in terms:
            for seq, prompt, response in _newest(conn, scope, term.match, [term], len(terms)):
                found.setdefault(seq, _Candidate(prompt, response, set())).known.add(term)
    for seq, prompt, response in _few(conn, scope):
        found.setdefault(seq, _Candidate(prompt, response, set()))
    return found


def _newest(
    conn: sqlite3.Connection, scope: _Scope, match: str, terms: Sequence[_Term], parts: int
) -> Iterator[tuple[int, str, str]]:
    """Yield place, prompt and response of the newest exchanges that match, with one of so many `parts` of the bounds.

    Words that are frequent, but hardly ever together, would else be followed through the whole history.
    """
    rarest = min(terms, key=lambda term: term.frequency)
    first = scope.first
    if len(terms) > 1 and rarest.frequency > WALK:
        first = max(first, int(scope.last - rarest.total * WALK / rarest.frequency))
    # CROSS JOIN keeps the order of the tables, and with it the newest first, so that LIMIT ends the walk early.
    yield from conn.execute(
        f"""
        SELECT i.seq, substr(i.prompt, 1, {MAX_CHARS}), substr(i.response, 1, {MAX_CHARS})
        FROM (
            SELECT rowid AS seq FROM interaction_search WHERE interaction_search MATCH ? AND rowid BETWEEN ? AND ?
            ORDER BY rowid DESC LIMIT ?
        ) AS s CROSS JOIN interactions AS i ON i.seq = s.seq
        WHERE {scope.condition} LIMIT ?
        """,  # noqa: S608 - no text of a user in it
        (match, first, scope.last, WALK // parts, *scope.parameters, CANDIDATES // parts),
    )


def _few(conn: sqlite3.Connection, scope: _Scope) -> Iterator[tuple[int, str, str]]:
    """Yield place, prompt and response of all that is to be searched, if that is little, whatever it says.

    The index may have passed WALK exchanges of others without coming to one of these.
    """
    yield from conn.execute(
        f"""
        SELECT i.seq, substr(i.prompt, 1, {MAX_CHARS}), substr(i.response, 1, {MAX_CHARS}) FROM interactions AS i
        WHERE i.seq IN (SELECT value FROM json_each(?)) AND i.state != 'streaming' AND {scope.condition}
        """,  # noqa: S608 - no text of a user in it
        (json.dumps(scope.few), *scope.parameters),
    )


def _scores(terms: Sequence[_Term], candidates: dict[int, _Candidate]) -> dict[int, tuple[bool, float]]:
    """Return for each candidate that has a term whether it has all of them, and its BM25.

    score = sum over terms of idf tf (K1 + 1) / (tf + K1 (1 - B + B length / mean length)); lengths in bytes.
    """
    weighed = [(term, term.needle, term.rarity * (K1 + 1)) for term in terms]
    texts = {seq: spaced(f"{each.prompt} {each.response}") for seq, each in candidates.items()}
    mean = sum(map(len, texts.values())) / max(len(texts), 1)
    scores: dict[int, tuple[bool, float]] = {}
    for seq, text in texts.items():
        norm = K1 * (1 - B + B * len(text) / mean)
        score, present = 0.0, 0
        for term, needle, weight in weighed:
            # What FTS5 found counts at least once, even if it stands far back or divides words differently.
            times = text.count(needle) or (term in candidates[seq].known)
            if times:
                score += weight * times / (times + norm)
                present += 1
        if present:
            scores[seq] = (present == len(terms), score)
    return scores
