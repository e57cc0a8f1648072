"""The bins of a pool: offering what is new, and bringing the scores up to date.

The idea: one call is one transaction of its caller. It takes out what is no candidate any more, reads what is kept
and what came (arrivals.py), lets the policy decide, and writes the difference.
The invariant: a pool never has more than its slots; what is kept is a candidate; a call that is killed leaves the pool
and its marks as they were; the cost depends on slots and limit, not on the history.
What this does not do: say what the marks mean (arrivals.py), or write reasons with words of the user (kept.py).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgepd_profiles.feedback_kinds import COLUMNS, Feedback, satisfaction
from edgepd_profiles.rows import fetch
from edgepd_profiles.selection import arrivals, embeddings, lexicons
from edgepd_profiles.selection.candidates import NEED_VECTORS, POLICIES, Candidate
from edgepd_profiles.selection.kept import POOLS, Bin, check, ids, listing
from edgepd_profiles.selection.kept import lexicons as stored_lexicons
from edgepd_profiles.selection.policies import Buffer, select
from edgepd_profiles.selection.scores import domain_score

__all__ = ["POOLS", "Bin", "ids", "listing", "offer_new"]

UNKNOWN_ENTROPY = 0.0  # of what has no embedding yet

# What of an exchange the policies look at; `at` is when the user said what it teaches, or when it was asked.
_COLUMNS = f"""
    i.id, i.seq, substr(i.prompt, 1, {lexicons.CHARACTERS}) AS prompt,
    substr(i.response, 1, {lexicons.CHARACTERS}) AS response, e.vector, e.entropy, i.created_at,
    (SELECT max(f.at) FROM feedback AS f WHERE f.interaction = i.id AND {arrivals.TEACHING}) AS judged_at,
    (SELECT min(f.rowid) FROM feedback AS f WHERE f.interaction = i.id AND {arrivals.TEACHING}) AS judged_row
"""  # noqa: S608 - constants of ours
_EMBEDDED = "LEFT JOIN embeddings AS e ON e.interaction = i.id AND e.model_sha256 = :model"


def offer_new(conn: sqlite3.Connection, pool: str, policy: str, slots: int, limit: int = 200, seed: int = 0) -> int:
    """Offer what came to a pool since the last call, at most about `limit` exchanges; return how many were passed.

    0 means that nothing is left, or that the next one waits for its embedding; so call it until then, each time in a
    transaction of its own. Another policy than before empties the pool and goes through the newest 10 * slots rows
    again; fewer slots than before keep the best by the policy. Raises ValueError for an unknown pool or policy, and
    for less than one slot.
    """
    check(pool)
    if policy not in POLICIES or slots < 1:
        raise ValueError(f"policy {policy!r} with {slots} slots: use one of {', '.join(POLICIES)} and at least 1 slot")
    state = conn.execute("SELECT policy FROM pools WHERE pool = ?", (pool,)).fetchone()
    if state is None or state[0] != policy:
        arrivals.start_over(conn, pool, policy, slots)
    _take_out(conn, pool)
    model = embeddings.current_model(conn)
    if lexicons.renew(conn, model, seed):
        for each in POOLS:
            _read_again(conn, each, model)
    came = arrivals.arrived(conn, pool, limit, model, embedded=policy in NEED_VECTORS)
    before = _kept(conn, pool, model)
    buffer, reasons = _trimmed([candidate for candidate, _ in before.values()], policy, slots, seed), dict[str, str]()
    fresh = [new for new in _candidates(conn, pool, came.ids, model) if new.id not in before]
    offered = conn.execute("SELECT offered FROM pools WHERE pool = ?", (pool,)).fetchone()[0]
    for count, newcomer in enumerate(fresh, start=offered + 1):
        outcome = buffer.offer(newcomer, np.random.default_rng([seed, count]), count)
        if outcome.kept:
            reasons[newcomer.id] = outcome.reason
    _write(conn, pool, before, buffer, reasons)
    _move_on(conn, pool, came, len(fresh))
    return came.passed


def _take_out(conn: sqlite3.Connection, pool: str) -> None:
    """Delete the bins that are no candidates any more: judged or not, forgotten by their app, or settled."""
    conn.execute(
        f"""
        DELETE FROM bins WHERE pool = :pool AND interaction NOT IN (
            SELECT i.id FROM interactions AS i
            WHERE i.id IN (SELECT interaction FROM bins WHERE pool = :pool) AND {arrivals.CANDIDATE[pool]}
        )
        """,  # noqa: S608 - constants of ours
        {"pool": pool},
    )


def _read_again(conn: sqlite3.Connection, pool: str, model: str | None) -> None:
    """Give each bin of a pool its scores by the lexicons that there are now."""
    known = {domain: frozenset(words) for domain, words in stored_lexicons(conn).items()}
    rows = fetch(
        conn,
        f"""
        SELECT b.interaction, substr(i.prompt, 1, {lexicons.CHARACTERS}) AS prompt,
            substr(i.response, 1, {lexicons.CHARACTERS}) AS response
        FROM bins AS b JOIN interactions AS i ON i.id = b.interaction WHERE b.pool = ?
        """,  # noqa: S608 - constants of ours
        (pool,),
    )
    scored = (
        (*domain_score(set(lexicons.words_of(row["prompt"], row["response"])), known), pool, row["interaction"])
        for row in rows
    )
    conn.executemany("UPDATE bins SET domain_score = ?, domain = ? WHERE pool = ? AND interaction = ?", scored)
    before = _kept(conn, pool, model)
    items = [candidate for candidate, _ in before.values()]
    _write(conn, pool, before, Buffer(items, max(1, len(items)), "recency"), {})


def _kept(conn: sqlite3.Connection, pool: str, model: str | None) -> dict[str, tuple[Candidate, dict[str, Any]]]:
    """Return what is kept by id, with its row as it is stored."""
    rows = fetch(
        conn,
        f"""
        SELECT i.id, i.seq, b.*, e.vector, e.entropy AS embedded_entropy,
            (SELECT min(f.rowid) FROM feedback AS f WHERE f.interaction = i.id AND {arrivals.TEACHING}) AS judged_row
        FROM bins AS b JOIN interactions AS i ON i.id = b.interaction {_EMBEDDED}
        WHERE b.pool = :pool ORDER BY b.interaction
        """,  # noqa: S608 - constants of ours
        {"pool": pool, "model": model},
    )
    rewards = _rewards(conn, [row["id"] for row in rows])
    return {row["id"]: (_known_candidate(row, rewards[row["id"]]), row) for row in rows}


def _known_candidate(row: Mapping[str, Any], reward: float) -> Candidate:
    return Candidate(
        id=row["id"],
        at=row["at"],
        reward=reward,
        entropy=row["entropy"] if row["embedded_entropy"] is None else row["embedded_entropy"],
        domain_score=row["domain_score"],
        domain=row["domain"],
        vector=None if row["vector"] is None else embeddings.decode(row["vector"]),
        order=row["seq"] if row["judged_row"] is None else row["judged_row"],
        dissimilarity=row["dissimilarity"],
    )


def _candidates(conn: sqlite3.Connection, pool: str, wanted: Sequence[str], model: str | None) -> list[Candidate]:
    """Return the candidates with these ids, in this order."""
    if not wanted:
        return []
    rows = fetch(
        conn,
        f"SELECT {_COLUMNS} FROM json_each(:ids) AS j JOIN interactions AS i ON i.id = j.value {_EMBEDDED} ORDER BY j.key",  # noqa: S608, E501
        {"ids": json.dumps(wanted), "model": model},
    )
    rewards = _rewards(conn, wanted)
    known = {domain: frozenset(words) for domain, words in stored_lexicons(conn).items()}
    return [_new_candidate(pool, row, rewards[row["id"]], known) for row in rows]


def _new_candidate(pool: str, row: Mapping[str, Any], reward: float, known: Mapping[int, frozenset[str]]) -> Candidate:
    words = frozenset(lexicons.words_of(row["prompt"], row["response"]))
    score, domain = domain_score(words, known)
    return Candidate(
        id=row["id"],
        at=row["judged_at"] if pool == "examples" else row["created_at"],
        reward=reward,
        entropy=UNKNOWN_ENTROPY if row["entropy"] is None else row["entropy"],
        domain_score=score,
        domain=domain,
        vector=None if row["vector"] is None else embeddings.decode(row["vector"]),
        words=words,
        order=row["judged_row"] if pool == "examples" else row["seq"],
    )


def _rewards(conn: sqlite3.Connection, wanted: Sequence[str]) -> dict[str, float]:
    """Return what the text that each exchange teaches is worth to the user, in [-1, 1].

    A correction is the user's own text: 1, as in Example.reward, though the answer that it replaces was not liked.
    Else it is the mean satisfaction of all feedback on the exchange that says something of it, 0 if none does.
    """
    found: dict[str, list[float]] = {each: [] for each in wanted}
    edited = set()
    rows = fetch(
        conn,
        f"SELECT {COLUMNS} FROM feedback WHERE interaction IN (SELECT value FROM json_each(?))",  # noqa: S608 - our own
        (json.dumps(wanted),),
    )
    for given in (Feedback(**row) for row in rows):
        if given.kind == "edit":
            edited.add(given.interaction)
        if (worth := satisfaction(given)) is not None:
            found[given.interaction].append(worth)
    return {each: 1.0 if each in edited else sum(said) / len(said) if said else 0.0 for each, said in found.items()}


def _trimmed(items: list[Candidate], policy: str, slots: int, seed: int) -> Buffer:
    """Return what is kept as a Buffer; if the slots were reduced, the best of it by the policy."""
    if len(items) > slots:
        chosen = {each.id for each in select(items, slots, policy, seed)}
        # Nothing can be said of what waits for a vector of a new model: the newest of that has the room that is left.
        rest = sorted((item for item in items if item.id not in chosen), key=lambda item: (item.at, item.id))
        chosen.update(item.id for item in rest[len(items) - slots :])
        items = [item for item in items if item.id in chosen]
    return Buffer(items, slots, policy)


def _write(
    conn: sqlite3.Connection,
    pool: str,
    before: Mapping[str, tuple[Candidate, dict[str, Any]]],
    buffer: Buffer,
    reasons: Mapping[str, str],
) -> None:
    """Store what is kept now: what went, what came, and scores that changed."""
    scored = [
        replace(item, dissimilarity=float(value))
        for item, value in zip(buffer.items, buffer.dissimilarities(), strict=True)
    ]
    gone = set(before) - {item.id for item in scored}
    conn.executemany("DELETE FROM bins WHERE pool = ? AND interaction = ?", [(pool, each) for each in sorted(gone)])
    conn.executemany(
        """
        INSERT INTO bins (pool, interaction, entropy, domain_score, dissimilarity, domain, reason, at)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (pool, interaction) DO UPDATE SET entropy = excluded.entropy,
            domain_score = excluded.domain_score, dissimilarity = excluded.dissimilarity, domain = excluded.domain
        """,
        [
            (pool, item.id, *_scores(item), item.domain, reasons.get(item.id, ""), item.at)
            for item in scored
            if item.id not in before or _scores(item) != _stored_scores(before[item.id][1])
        ],
    )


def _scores(item: Candidate) -> tuple[float, float, float]:
    return item.entropy, item.domain_score, item.dissimilarity


def _stored_scores(row: Mapping[str, Any]) -> tuple[float, float, float]:
    return row["entropy"], row["domain_score"], row["dissimilarity"]


def _move_on(conn: sqlite3.Connection, pool: str, came: arrivals.Arrived, offered: int) -> None:
    # Nothing is written where nothing has changed: the disk of a machine at rest sleeps.
    conn.execute(
        "UPDATE pools SET seen = :seen, offered = offered + :more WHERE pool = :pool AND (seen != :seen OR :more != 0)",
        {"seen": came.seen, "more": offered, "pool": pool},
    )
    if pool == "examples":
        arrivals.set_mark(conn, arrivals.CHANGED, came.changed)
    if offered:
        lexicons.count_offered(conn, offered)
