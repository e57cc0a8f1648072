"""What the user accepted or wrote before, found again by what a new question is about.

The idea: the facts and the newest accepted exchanges that a viewer may see are kept as bare words in one BM25 index in
memory (retrieval.Words), which is brought up to date before each search by reading only what is new. The texts stay in
the database and are read, and checked again, for the few that are found.
The invariants: nothing is returned that is gone, that its user has judged otherwise since, or that the viewer may not
see. The work depends on what is new and on NEWEST, not on the length of the history. An answer to the same question is
never shown to the model as an example: a small model would copy it, and the gate measures without them too.
What this does not do: lock. One thread at a time may use an index; whoever has several takes a lock of his own. What
was forgotten leaves the memory of the process with `clear`, which the caller must call then.

An exchange is accepted if it is a plain chat and was edited (then the edit is the wanted text); or if its answer came
to its end, has a thumb up, a rating of 4 or 5 or was preferred, and has neither a thumb down nor a rating of 1 or 2.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from edgepd import secrets
from edgepd_profiles import apps, facts, near_duplicates
from edgepd_profiles.examples import Example
from edgepd_profiles.facts import FEW, MAX_STANDING, Fact
from edgepd_profiles.retrieval import Words, same_question
from edgepd_profiles.rows import fetch

NEWEST = 2000  # accepted exchanges that are searched
SLACK = 500  # more than those, before the oldest are dropped
MAX_POOLS = 4  # sets of visible apps that an index is kept for
SCAN = 100_000  # newest pieces of feedback among which the first search looks for accepted ones
TRIES = 64  # places of a ranking that are looked at
INDEXED = 2000  # first characters of a prompt, and of an answer, that are searched
MAX_SHOT = 4000  # characters above which an exchange is no example, for want of room

_ACCEPTED = """
    SELECT i.seq, i.id, i.conversation, i.messages, i.prompt, coalesce(e.text, i.response) AS wanted,
           (SELECT max(g.at) FROM feedback AS g WHERE g.interaction = i.id
                AND (g.kind IN ('edit', 'preferred') OR g.kind = 'thumb' AND g.value = 1
                     OR g.kind = 'rating' AND g.value >= 4)) AS accepted_at
    FROM interactions AS i LEFT JOIN feedback AS e ON e.interaction = i.id AND e.kind = 'edit'
    WHERE i.seq = ? AND i.kind = 'chat' AND accepted_at IS NOT NULL
      AND (e.text IS NOT NULL
           OR i.state = 'done' AND i.finish_reason IS NOT 'length' AND trim(i.response) != ''
              AND NOT EXISTS (SELECT 1 FROM feedback AS b WHERE b.interaction = i.id
                              AND (b.kind = 'thumb' AND b.value = -1 OR b.kind = 'rating' AND b.value <= 2)))
"""
_JUDGED = "kind IN ('edit', 'preferred', 'thumb', 'rating')"
# CROSS JOIN keeps the order of the tables: the newest feedback first, and no more of it than is needed.
_FIRST = f"""
    SELECT i.seq, i.app FROM (SELECT interaction, kind, at FROM feedback ORDER BY at DESC LIMIT {SCAN}) AS f
        CROSS JOIN interactions AS i ON i.id = f.interaction
    WHERE f.{_JUDGED} ORDER BY f.at DESC
"""  # noqa: S608 - constants of this module
_NEW = f"""
    SELECT i.seq, i.app FROM (
            SELECT interaction FROM feedback WHERE at >= :at AND {_JUDGED}
            UNION SELECT interaction FROM feedback WHERE rowid > :row AND {_JUDGED}
        ) AS f CROSS JOIN interactions AS i ON i.id = f.interaction
"""  # noqa: S608


@dataclass(frozen=True)
class Recalled:
    """A fact (`prompt` is "", `id` its number) or an accepted answer (`id` is its interaction's).

    `score` is BM25 over both, only to compare what was found together. `at` is when the fact was given or the answer
    accepted, in unix seconds.
    """

    kind: str
    text: str
    prompt: str
    id: str
    score: float
    at: float


class RecallIndex:
    """What can be recalled, ready to be searched. One thread at a time; see the module."""

    def __init__(self) -> None:
        self._pools: dict[frozenset[str] | None, _Pool] = {}  # by the apps that may be seen, the latest used last

    def facts(
        self, conn: sqlite3.Connection, query: str, k: int, viewer: str | None = None, *, room: int | None = None
    ) -> list[Fact]:
        """Return at most `k` facts that the model should be told with this question.

        Up to FEW facts in all are told with every question. Where there are more: first those that concern every
        answer (facts.is_standing), the newest first and MAX_STANDING at most; then those that share a content word
        with the question, the best by BM25 first. With `room`, their texts have that many characters at most in all;
        one that does not fit is left out, and a shorter one after it may still fit.
        """
        pool = self._pool(conn, viewer, answers=False)
        numbers = _chosen(pool, query) if len(pool.facts) > FEW else sorted(pool.facts)
        found: list[Fact] = []
        for fact in _read_facts(conn, numbers):
            if len(found) >= k:
                break
            if room is None or sum(len(f.text) for f in (*found, fact)) <= room:
                found.append(fact)
        return found

    def shots(
        self,
        conn: sqlite3.Connection,
        query: str,
        k: int,
        viewer: str | None = None,
        *,
        without: Collection[str] = (),
    ) -> list[Example]:
        """Return at most `k` accepted exchanges to show the model before this question, the best by BM25 first.

        Where fewer share a word with it, the newest ones follow: they show the manner all the same, as what the gate
        measures does, which counts the little words too.
        Left out are: those with an id in `without`; answers to the same question (retrieval.same_question), which it
        would copy; near-duplicates of one that is shown; what is longer than MAX_SHOT characters or has a secret.
        """
        found: list[Example] = []
        pool = self._pool(conn, viewer, answers=True)
        for row in chain((row for row, _ in pool.answers(conn, query)), pool.newest(conn)):
            if len(found) >= k:
                break
            example = Example(
                row["id"],
                row["conversation"],
                row["accepted_at"],
                json.loads(row["messages"]),
                row["wanted"],
                weight=1.0,
            )
            taken = [*without, *(other.id for other in found)]
            if example.id not in taken and _may_be_shown(example, query, found):
                found.append(example)
        return found

    def recall(self, conn: sqlite3.Connection, query: str, k: int, viewer: str | None = None) -> list[Recalled]:
        """Return at most `k` facts and accepted answers that share a content word with `query`, the best first."""
        pool = self._pool(conn, viewer, answers=True)
        with closing(pool.words.ranked(query)) as words:
            ranked = list(islice(words, max(TRIES, 2 * k)))
        found: list[Recalled] = []
        for key, score in ranked:
            if len(found) >= k:
                break
            if key < 0:
                found.extend(Recalled("fact", f.text, "", str(f.id), score, f.at) for f in _read_facts(conn, [-key]))
            else:
                rows = fetch(conn, _ACCEPTED, (key,))
                found.extend(
                    Recalled("answer", r["wanted"], r["prompt"], r["id"], score, r["accepted_at"]) for r in rows
                )
        return found

    def clear(self) -> None:
        """Let go of everything, as must be done when something was forgotten. The next search begins anew."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    close = clear

    def _pool(self, conn: sqlite3.Connection, viewer: str | None, *, answers: bool) -> _Pool:
        """Return the pool of what `viewer` may see, up to date; with answers, if they are wanted or there already."""
        seen = apps.visible(conn, viewer)
        key = None if seen is None else frozenset(seen)
        pool = self._pools.pop(key, None)
        if pool is not None and not pool.refresh(conn):
            pool.close()
            pool = None
        if pool is None:
            pool = _Pool(key)
            pool.take_facts(conn)
        if answers and not pool.has_answers:
            pool.take_answers(conn)
        self._pools[key] = pool
        while len(self._pools) > MAX_POOLS:
            self._pools.pop(next(iter(self._pools))).close()
        return pool


def recall(conn: sqlite3.Connection, query: str, k: int, viewer: str | None = None) -> list[Recalled]:
    """Do what RecallIndex.recall does, once: the index is made for this call, which takes a while."""
    with closing(RecallIndex()) as index:
        return index.recall(conn, query, k, viewer)


def shots(conn: sqlite3.Connection, query: str, k: int, viewer: str | None = None) -> list[Example]:
    """Do what RecallIndex.shots does, once: the index is made for this call, which takes a while."""
    with closing(RecallIndex()) as index:
        return index.shots(conn, query, k, viewer)


class _Pool:
    """What those may find who see the same apps. Facts have negative keys, exchanges their `seq`."""

    def __init__(self, seen: frozenset[str] | None) -> None:
        self.seen = seen
        self.words = Words()
        self.facts: set[int] = set()
        self.standing: list[int] = []  # the oldest first
        self.has_answers = False  # they take a second and 10 MB, so facts alone do without
        self._answers: dict[int, float] = {}  # when each was accepted
        self._fact, self._facts_of_all = 0, 0  # the newest number, and how many there are
        self._row, self._at = 0, 0.0  # the last row of feedback, and the newest time

    def close(self) -> None:
        self.words.close()

    def take_answers(self, conn: sqlite3.Connection) -> None:
        """Read the newest accepted exchanges."""
        self.has_answers = True
        self._row, self._at = _end_of_feedback(conn)
        found: dict[int, dict[str, Any]] = {}
        with closing(conn.execute(_FIRST)) as rows:
            for seq, app in rows:
                if len(found) >= NEWEST:
                    break
                if seq not in found and self._sees(app):
                    found.update((seq, row) for row in fetch(conn, _ACCEPTED, (seq,)))
        self._put(list(reversed(found.values())))

    def refresh(self, conn: sqlite3.Connection) -> bool:
        """Read what is new. Return False if it is simpler to build another pool."""
        if not self.take_facts(conn) or self.words.dropped > len(self.words) + SLACK:
            return False
        if not self.has_answers:
            return True
        end = _end_of_feedback(conn)
        if end == (self._row, self._at):
            return True
        if end[0] < self._row or end[1] < self._at:  # something was removed, and its row may be another's now
            return False
        new = conn.execute(_NEW, {"at": self._at, "row": self._row}).fetchmany(NEWEST)
        if len(new) == NEWEST:
            return False
        self._row, self._at = end
        changed = [row for seq, app in new if self._sees(app) for row in fetch(conn, _ACCEPTED, (seq,))]
        self._put([row for row in changed if self._answers.get(row["seq"]) != row["accepted_at"]])
        if len(self._answers) > NEWEST + SLACK:
            for seq in sorted(self._answers, key=lambda s: self._answers[s])[: len(self._answers) - NEWEST]:
                self.words.drop(seq)
                del self._answers[seq]
        return True

    def answers(self, conn: sqlite3.Connection, query: str) -> Iterator[tuple[dict[str, Any], float]]:
        """Yield the accepted exchanges of the first TRIES places that are none of a fact, with their scores."""
        with closing(self.words.ranked(query)) as ranked:
            places = list(islice((place for place in ranked if place[0] > 0), TRIES))
        for key, score in places:
            for row in fetch(conn, _ACCEPTED, (key,)):
                yield row, score

    def newest(self, conn: sqlite3.Connection) -> Iterator[dict[str, Any]]:
        """Yield the TRIES exchanges that were accepted last, the newest first."""
        for seq in sorted(self._answers, key=lambda seq: self._answers[seq], reverse=True)[:TRIES]:
            yield from fetch(conn, _ACCEPTED, (seq,))

    def _sees(self, app: str) -> bool:
        return self.seen is None or app in self.seen

    def take_facts(self, conn: sqlite3.Connection) -> bool:
        """Add new facts. Return False if one is gone: numbers are not used twice, so counting shows it."""
        new = [Fact(**row) for row in fetch(conn, "SELECT * FROM facts WHERE id > ? ORDER BY id", (self._fact,))]
        count = conn.execute("SELECT count(*) FROM facts").fetchone()[0]
        if self._facts_of_all + len(new) != count:
            return False
        self._facts_of_all = count
        self._fact = new[-1].id if new else self._fact
        mine = [fact for fact in new if self._sees(fact.app)]
        if mine:
            self.words.put((-fact.id, fact.text) for fact in mine)
            self.facts.update(fact.id for fact in mine)
            self.standing += [fact.id for fact in mine if facts.is_standing(fact.text)]
        return True

    def _put(self, accepted: list[dict[str, Any]]) -> None:
        if accepted:
            self.words.put((r["seq"], f"{r['prompt'][:INDEXED]}\n{r['wanted'][:INDEXED]}") for r in accepted)
            self._answers.update((r["seq"], r["accepted_at"]) for r in accepted)


def _chosen(pool: _Pool, query: str) -> Iterator[int]:
    """Yield the numbers of facts to be told with a question, if there are too many to tell all."""
    standing = pool.standing[: -MAX_STANDING - 1 : -1]
    yield from standing
    with closing(pool.words.ranked(query)) as ranked:
        fitting = list(islice((-key for key, _ in ranked if key < 0), TRIES))
    yield from (number for number in fitting if number not in standing)


def _read_facts(conn: sqlite3.Connection, numbers: Iterable[int]) -> Iterator[Fact]:
    for number in numbers:
        for row in fetch(conn, "SELECT * FROM facts WHERE id = ?", (number,)):
            yield Fact(**row)


def _may_be_shown(example: Example, query: str, shown: list[Example]) -> bool:
    if len(example.prompt) + len(example.response) > MAX_SHOT or same_question(example.prompt, query):
        return False
    if any(near_duplicates.alike(example.text, other.text, frozenset()) for other in shown):
        return False
    return not secrets.find(f"{example.prompt}\n{example.response}")


def _end_of_feedback(conn: sqlite3.Connection) -> tuple[int, float]:
    """Return the last row and the newest time; two queries, because each of them alone needs one step in an index."""
    (row,) = conn.execute("SELECT max(rowid) FROM feedback").fetchone()
    (at,) = conn.execute("SELECT max(at) FROM feedback").fetchone()
    return row or 0, at or 0.0
