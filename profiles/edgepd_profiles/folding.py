"""How exchanges come into the sums of the profile P_u, and out of them again.

The idea: P_u = sum of alpha_i d_i (ASLS section 3.2 eq. 3) with
alpha_i = (weight of the channel) * 2^(-age / half-life). The age is that of the exchange and not of the moment in which
it was folded, so the order of folding does not matter, and new exchanges only add to the sums (section 3.3 eq. 8).
Ages are kept without the present time: a row of `features` belongs to an era of ERA half-lives, counted from 1970, and
its `mass` is the sum of 2^((created_at - begin of the era) / half-life), its `total` that of the same times the value.
Readers bring eras to their time and weigh the channels; a new weight needs no new sums. The column `channel` holds
both, as "active@42".
The invariant: the sums are those of the ended exchanges with reset_seq < seq <= upto of their app, to rounding. Because
an era is short, what is taken out is never so much heavier than what stays that rounding would drown it. A row that no
exchange contributes to is deleted.
What this does not do: read the profile, or change it by hand: see profile.py.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from edgepd_profiles import apps, features, interactions
from edgepd_profiles.feedback_kinds import COLUMNS, Feedback
from edgepd_profiles.rows import fetch

ERA = 16  # half-lives; within one, weights differ by a factor of 2^16 at most
DAY_S = 86_400.0
BATCH = 100  # exchanges whose messages are in memory at once

Key = tuple[str, str, str]  # kind, name, slot


class _Place(NamedTuple):
    """Where an exchange is, and what holds for its app."""

    app: str
    seq: int
    folded: bool
    half_life_days: float
    version: float


def slot(channel: str, created_at: float, half_life_days: float) -> tuple[str, float]:
    """Return the slot of an exchange, and its weight as of the begin of that era: from 1 to 2^ERA."""
    half_lives = created_at / (half_life_days * DAY_S)
    era = math.floor(half_lives / ERA)
    return f"{channel}@{era}", 2.0 ** (half_lives - ERA * era)


def factor(slot_name: str, now: float, half_life_days: float) -> tuple[str, float]:
    """Return the channel of a slot, and what its masses are multiplied by to be those of `now`.

    What lies in an era to come, because a clock was wrong, counts at most as if it were new.
    """
    channel, _, era = slot_name.rpartition("@")
    exponent = ERA * int(era) - now / (half_life_days * DAY_S)
    return channel, 2.0 ** (exponent if exponent <= 0 else -ERA)


def catch_up(conn: sqlite3.Connection, half_life_days: float, limit: int = 2000) -> int:
    """Fold at most `limit` exchanges that have ended since the last time; return how many, 0 if there are none left.

    Of each app, it stops before the first one that is still streaming, so none is left out. Where the half-life or
    features.VERSION is another one than before, the sums of the app begin anew, with its oldest exchange.
    """
    changed = conn.execute(
        "SELECT app FROM profile_state WHERE (half_life_days, version) != (?, ?)", (half_life_days, features.VERSION)
    )
    for (app,) in changed.fetchall():
        begin_anew(conn, app)
    folded = 0
    for app in (known.name for known in apps.listing(conn)):
        while folded < limit and (count := _fold_some(conn, app, half_life_days, min(BATCH, limit - folded))):
            folded += count
    return folded


def recompute(conn: sqlite3.Connection, half_life_days: float) -> int:
    """Make all sums anew from the exchanges that are there; return how many those are.

    The result is the one that folding had led to (but for rounding, below 1e-9 of each mass). It takes as long as the
    history is.
    """
    for (app,) in conn.execute("SELECT app FROM profile_state").fetchall():
        begin_anew(conn, app)
    folded = 0
    while count := catch_up(conn, half_life_days):
        folded += count
    return folded


def begin_anew(conn: sqlite3.Connection, app: str) -> None:
    """Empty the sums of an app, to be made anew by `catch_up` with its oldest exchange that counts."""
    conn.execute("DELETE FROM features WHERE app = ?", (app,))
    conn.execute("UPDATE profile_state SET upto = 0 WHERE app = ?", (app,))


@contextmanager
def refolded(conn: sqlite3.Connection, interaction_id: str) -> Iterator[None]:
    """Change the feedback on an exchange, or delete it, inside of this, in one transaction.

    What it contributed is taken out before, and put in anew after unless it is gone. One that was not folded yet, or
    is not known, needs nothing. It must not be nested for one exchange. Who deletes very many calls `begin_anew` first.
    """
    before = _place(conn, interaction_id)
    if before and before.version != features.VERSION:
        # Nobody knows any more what it contributed; catch_up makes the sums anew in any case.
        begin_anew(conn, before.app)
        before = before._replace(folded=False)
    if before and before.folded:
        _change(conn, before, -1)
    yield
    if before and _place(conn, interaction_id) is None:
        _after_deletion(conn, before.app)
    elif before and before.folded:
        _change(conn, before, 1)


def forget_folded(conn: sqlite3.Connection, app: str, kind: str | None) -> None:
    """Empty the sums of an app, or those of one kind, and begin anew with exchanges that are still to come."""
    last = conn.execute("SELECT coalesce(max(seq), 0) FROM interactions WHERE app = ?", (app,)).fetchone()[0]
    if kind is None:
        conn.execute("DELETE FROM features WHERE app = ?", (app,))
        conn.execute(
            "INSERT INTO profile_state (app, reset_seq) VALUES (?, ?) "
            "ON CONFLICT (app) DO UPDATE SET reset_seq = excluded.reset_seq",
            (app, last),
        )
        return
    conn.execute("DELETE FROM features WHERE app = ? AND kind = ?", (app, kind))
    # A feature has a name, so the row without one is free to say where a kind begins.
    conn.execute(
        "INSERT OR REPLACE INTO feature_edits (app, kind, name, value, at) VALUES (?, ?, '', ?, 0)",
        (app, kind, str(last)),
    )


def _fold_some(conn: sqlite3.Connection, app: str, half_life_days: float, limit: int) -> int:
    state = conn.execute("SELECT upto, reset_seq FROM profile_state WHERE app = ?", (app,)).fetchone()
    after = max(state) if state else 0
    rows = conn.execute(
        "SELECT seq, state FROM interactions WHERE app = ? AND seq > ? ORDER BY seq LIMIT ?", (app, after, limit)
    ).fetchall()
    streaming = next((n for n, (_, now) in enumerate(rows) if now == "streaming"), len(rows))
    seqs = [seq for seq, _ in rows[:streaming]]
    if not seqs:
        return 0
    _add(conn, app, _sums(conn, app, seqs, half_life_days))
    conn.execute(
        """
        INSERT INTO profile_state (app, upto, half_life_days, version) VALUES (?, ?, ?, ?)
        ON CONFLICT (app) DO UPDATE
            SET upto = excluded.upto, half_life_days = excluded.half_life_days, version = excluded.version
        """,
        (app, seqs[-1], half_life_days, features.VERSION),
    )
    return len(seqs)


def _sums(
    conn: sqlite3.Connection, app: str, seqs: Sequence[int], half_life_days: float
) -> dict[Key, tuple[float, float, int]]:
    """Return the (mass, total, count) that exchanges of one app contribute to each key."""
    begins = _kind_begins(conn, app)
    found = interactions.by_seq(conn, seqs)
    given = _feedback(conn, [interaction.id for interaction in found.values()])
    sums: dict[Key, tuple[float, float, int]] = {}
    for seq, interaction in found.items():
        for kind, name, channel, value in features.contributions(interaction, given[interaction.id]):
            if seq > begins.get(kind, 0):
                where, weight = slot(channel, interaction.created_at, half_life_days)
                mass, total, count = sums.get((kind, name, where), (0.0, 0.0, 0))
                sums[kind, name, where] = (mass + weight, total + weight * value, count + 1)
    return sums


def _feedback(conn: sqlite3.Connection, ids: Collection[str]) -> dict[str, list[Feedback]]:
    given = defaultdict(list)
    rows = fetch(
        conn,
        f"SELECT {COLUMNS} FROM feedback WHERE interaction IN (SELECT value FROM json_each(?)) ORDER BY kind",  # noqa: S608
        (json.dumps(list(ids)),),
    )
    for row in rows:
        given[row["interaction"]].append(Feedback(**row))
    return given


def _change(conn: sqlite3.Connection, place: _Place, sign: int) -> None:
    """Add what an exchange contributes as it is now to the sums, or (-1) take it out."""
    sums = _sums(conn, place.app, [place.seq], place.half_life_days)
    if sign > 0:
        _add(conn, place.app, sums)
        return
    keys = [(place.app, *key) for key in sums]
    conn.executemany(
        "UPDATE features SET mass = mass - ?, total = total - ?, count = count - ? "
        "WHERE (app, kind, name, channel) = (?, ?, ?, ?)",
        [(*sums[key], place.app, *key) for key in sums],
    )
    conn.executemany("DELETE FROM features WHERE (app, kind, name, channel) = (?, ?, ?, ?) AND count <= 0", keys)


def _add(conn: sqlite3.Connection, app: str, sums: dict[Key, tuple[float, float, int]]) -> None:
    conn.executemany(
        """
        INSERT INTO features (app, kind, name, channel, mass, total, count) VALUES (?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (app, kind, name, channel) DO UPDATE
            SET mass = mass + excluded.mass, total = total + excluded.total, count = count + excluded.count
        """,
        [(app, *key, *values) for key, values in sums.items()],
    )


def _place(conn: sqlite3.Connection, interaction_id: str) -> _Place | None:
    """Return where an exchange is, or None if it is unknown or nothing of its app was folded or reset yet."""
    row = conn.execute(
        """
        SELECT i.app, i.seq, i.state != 'streaming' AND i.seq <= s.upto AND i.seq > s.reset_seq,
               s.half_life_days, s.version
        FROM interactions AS i JOIN profile_state AS s ON s.app = i.app WHERE i.id = ?
        """,
        (interaction_id,),
    ).fetchone()
    return _Place(row[0], row[1], bool(row[2]), row[3], row[4]) if row else None


def _after_deletion(conn: sqlite3.Connection, app: str) -> None:
    """Bring what counts up to an exchange back to those that are left: SQLite gives the last place away again."""
    last = conn.execute("SELECT coalesce(max(seq), 0) FROM interactions WHERE app = ?", (app,)).fetchone()[0]
    conn.execute(
        "UPDATE profile_state SET upto = min(upto, :last), reset_seq = min(reset_seq, :last) WHERE app = :app",
        {"app": app, "last": last},
    )
    conn.execute(
        "UPDATE feature_edits SET value = min(CAST(value AS INTEGER), :last) "
        "WHERE app = :app AND name = '' AND CAST(value AS INTEGER) > :last",
        {"app": app, "last": last},
    )


def _kind_begins(conn: sqlite3.Connection, app: str) -> dict[str, int]:
    """Return the place after which exchanges count, for each kind that was reset by itself."""
    rows = conn.execute("SELECT kind, value FROM feature_edits WHERE app = ? AND name = ''", (app,))
    return {kind: int(value) for kind, value in rows}
