"""The profile P_u as people and the model read it: features with their weight and value, and what was set by hand.

The idea: ASLS (section 3.2 eq. 3) leaves open what P_u is. Here it is named features in five groups (features.py), each
with alpha, the sum of the weights alpha_i of the exchanges that bear it, and a value. For a feature in
features.MEANS that is the weighted average. For any other it is a share: (weight of the texts or exchanges that have
it, less the weight of unwanted texts that have it) / max(all wanted, all unwanted), from -1 to 1.
The invariant: a viewer sees sums of the apps that it may see (apps.py). A value set by hand stands over what was
observed; a pinned feature keeps alpha and value, whatever is observed later. What an app set holds for that app, what
the owner set (app "") for all. By-hand values stay when exchanges are deleted, until they are reset.
What this does not do: make the sums (folding.py), bring them to a time (observed.py), or say them in words
(profile_text.py).
"""

from __future__ import annotations

import json
import math
import sqlite3
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepd import secrets
from edgepd.errors import NotFoundError, RequestError
from edgepd_profiles import apps, features, folding
from edgepd_profiles.feedback_kinds import channel_of
from edgepd_profiles.folding import begin_anew, catch_up, recompute, refolded
from edgepd_profiles.observed import Observed, Reader, half_life, joined
from edgepd_profiles.rows import canonical_json

__all__ = [
    "Feature",
    "Profile",
    "begin_anew",
    "catch_up",
    "edit",
    "pin",
    "read",
    "recompute",
    "refolded",
    "reset",
    "user_embedding",
]

SHOWN = 12  # features of each kind, besides those that were set by hand
MAX_NAME_CHARS, MAX_TEXT_CHARS = 100, 300
NEWEST_VECTORS = 500


@dataclass(frozen=True)
class Feature:
    """One feature: `alpha` is its weight, `count` how many exchanges bear it. `value` is a text only if set by hand."""

    name: str
    alpha: float
    value: float | str
    count: int
    pinned: bool = False
    edited: bool = False


@dataclass(frozen=True)
class Profile:
    """The features by kind, in each the heaviest first, and how many exchanges were read."""

    groups: dict[str, list[Feature]]
    exchanges: int

    def only_edited(self) -> Profile:
        """Return the profile with nothing but what the user set or pinned by hand."""
        groups = {kind: [f for f in group if f.edited or f.pinned] for kind, group in self.groups.items()}
        return Profile(groups, self.exchanges)


def read(
    conn: sqlite3.Connection,
    viewer: str | None,
    weights: Mapping[str, float],
    now: float,
    *,
    utc_offset_s: int | None = None,
) -> Profile:
    """Return the profile as a viewer sees it: of each kind the SHOWN heaviest features and all set by hand.

    `weights` are those of the channels in features.STRENGTH; one that is missing counts 0. `now` is unix seconds.
    Hours and weekdays are in local time, `utc_offset_s` east of Greenwich (default: that of this machine at `now`).
    """
    offset = time.localtime(now).tm_gmtoff if utc_offset_s is None else utc_offset_s
    seen = Reader(conn, viewer, now, offset)
    groups, exchanges = {}, 0
    for kind, by_hand in _by_hand(conn, viewer).items():
        observed = {name: joined(parts.values()) for name, parts in seen.top(kind, weights, by_hand).items()}
        group = [
            _feature(name, observed.get(name, Observed()), by_hand.get(name, {}), weights, seen.visible)
            for name in observed.keys() | by_hand.keys()
        ]
        group.sort(key=lambda f: (-f.alpha, f.name))
        heaviest = [f for f in group if f.name not in by_hand and f.alpha > 0][:SHOWN]
        groups[kind] = [f for f in group if f.name in by_hand or f in heaviest]
        exchanges = max(exchanges, seen.exchanges(kind))
    return Profile(groups, exchanges)


def edit(
    conn: sqlite3.Connection,
    app: str | None,
    kind: str,
    name: str,
    value: float | str,
    *,
    at: float | None = None,
) -> None:
    """Set the value of a feature by hand, known or new: a number, or a text for the model to read.

    True stands for 1 and False for -1. Raises RequestError for an unknown kind, for a name or text that is empty, too
    long, not plain or a secret, and for a number that is not finite.
    """
    _refuse_bad(kind, name)
    if isinstance(value, str):
        _refuse_text("the value", value, MAX_TEXT_CHARS)
    elif not math.isfinite(value):
        raise RequestError(f"the value of '{name}' is {value}, but must be a finite number or a text")
    else:
        value = (1.0 if value else -1.0) if isinstance(value, bool) else float(value)
    row = _row(conn, app or "", kind, name)
    _store(conn, app or "", kind, name, row | {"value": value}, at)


def pin(
    conn: sqlite3.Connection, app: str | None, kind: str, name: str, pinned: bool = True, *, at: float | None = None
) -> None:
    """Keep a feature with the alpha and value that it has at `at`, or stop that. Doing it again changes nothing.

    Raises RequestError for an unknown kind, NotFoundError to pin what was neither observed nor set.
    """
    _refuse_bad(kind, name)
    row = _row(conn, app or "", kind, name)
    if pinned == ("frozen" in row):
        return
    if not pinned:
        _store(conn, app or "", kind, name, {key: row[key] for key in row if key != "frozen"}, at)
        return
    now = time.time() if at is None else at
    seen = Reader(conn, app or None, now, time.localtime(now).tm_gmtoff)
    parts = seen.of(kind, [name]).get(name, {})
    if not parts and "value" not in row:
        raise NotFoundError(f"the profile has no {kind} '{name}' to pin; `edgepd profile show` lists what it has")
    # Each app by itself: who reads it later may see fewer of them.
    frozen = {part: [found.sums, found.base, found.count] for part, found in parts.items()}
    _store(conn, app or "", kind, name, row | {"frozen": frozen}, at)


def reset(conn: sqlite3.Connection, app: str | None, kind: str | None = None) -> None:
    """Forget what was observed of an app (None: of all), or one kind of it, and what was set by hand there.

    Exchanges and feedback stay, but only exchanges still to come count. Raises RequestError for an unknown kind.
    """
    if kind is not None:
        _refuse_kind(kind)
    conn.execute(
        "DELETE FROM feature_edits WHERE (:app IS NULL OR app = :app) AND (:kind IS NULL OR kind = :kind)",
        {"app": app, "kind": kind},
    )
    for name in [known.name for known in apps.listing(conn)] if app is None else [app]:
        folding.forget_folded(conn, name, kind)


def user_embedding(
    conn: sqlite3.Connection,
    viewer: str | None,
    weights: Mapping[str, float] | None = None,
    now: float | None = None,
) -> list[float] | None:
    """Return the user as a vector (d,): sum of alpha_i e_i / sum of alpha_i (ASLS eq. 3) over stored embeddings e_i.

    It is read from the NEWEST_VECTORS that the viewer may see, of the model that came last, so that a deleted exchange
    is not in it. `weights` default to 1 for each channel. None if there is nothing.
    """
    condition, parameters = apps.visible_sql(viewer, "i.app")
    rows = conn.execute(
        f"""
        SELECT e.vector, i.created_at, (SELECT group_concat(kind) FROM feedback WHERE interaction = i.id)
        FROM embeddings AS e JOIN interactions AS i ON i.id = e.interaction
        WHERE e.model_sha256 = (SELECT model_sha256 FROM embeddings ORDER BY rowid DESC LIMIT 1) AND {condition}
        ORDER BY e.rowid DESC LIMIT ?
        """,  # noqa: S608 - no text of a user in it
        (*parameters, NEWEST_VECTORS),
    ).fetchall()
    seconds = folding.DAY_S * half_life(conn)
    latest = max((at for _, at, _ in rows), default=0.0) if now is None else now
    mass, total = 0.0, [0.0] * (len(rows[0][0]) // 2 if rows else 0)
    for blob, at, kinds in rows:
        found = {channel_of(kind) for kind in (kinds or "").split(",") if kind} or {"unjudged"}
        channel = min(found, key=features.STRENGTH.index)
        alpha = (1.0 if weights is None else weights.get(channel, 0.0)) * 2.0 ** min(0.0, (at - latest) / seconds)
        mass += alpha
        # Half precision, little-endian: see selection/embeddings.py, which needs numpy.
        vector = struct.unpack(f"<{len(blob) // 2}e", blob)
        total = [t + alpha * x for t, x in zip(total, vector, strict=True)]
    return [t / mass for t in total] if mass > 0 else None


def _feature(
    name: str, observed: Observed, row: Mapping[str, Any], weights: Mapping[str, float], visible: list[str] | None
) -> Feature:
    """Return a feature; `row` is what was set by hand, of which the viewer gets the part of its apps."""
    if "frozen" in row:
        observed = joined(
            Observed({c: (m, t) for c, (m, t) in sums.items()}, {c: (m, t) for c, (m, t) in base.items()}, count)
            for app, (sums, base, count) in row["frozen"].items()
            if visible is None or app in visible
        )
    value = row["value"] if "value" in row else observed.value(name, weights)
    return Feature(name, observed.alpha(weights), value, observed.count, "frozen" in row, "value" in row)


def _by_hand(conn: sqlite3.Connection, viewer: str | None) -> dict[str, dict[str, dict[str, Any]]]:
    """Return by kind and name what was set by hand for all and, before that, for the app that asks."""
    found: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in features.KINDS}
    for app in dict.fromkeys(("", viewer or "")):
        rows = conn.execute("SELECT kind, name, value FROM feature_edits WHERE app = ? AND name != ''", (app,))
        for kind, name, value in rows:
            if kind in found:
                found[kind][name] = found[kind].get(name, {}) | json.loads(value)
    return found


def _row(conn: sqlite3.Connection, app: str, kind: str, name: str) -> dict[str, Any]:
    row = conn.execute(
        "SELECT value FROM feature_edits WHERE (app, kind, name) = (?, ?, ?)", (app, kind, name)
    ).fetchone()
    return dict(json.loads(row[0])) if row else {}


def _store(conn: sqlite3.Connection, app: str, kind: str, name: str, row: Mapping[str, Any], at: float | None) -> None:
    """Keep {"value": set by hand, "frozen": {app: [sums, base, count]}}, either of which may be missing."""
    if not row:
        conn.execute("DELETE FROM feature_edits WHERE (app, kind, name) = (?, ?, ?)", (app, kind, name))
        return
    conn.execute(
        "INSERT OR REPLACE INTO feature_edits (app, kind, name, value, pinned, at) VALUES (?, ?, ?, ?, ?, ?)",
        (app, kind, name, canonical_json(row), "frozen" in row, time.time() if at is None else at),
    )


def _refuse_kind(kind: str) -> None:
    if kind not in features.KINDS:
        raise RequestError(f"the profile has no kind '{kind}'; use one of {', '.join(features.KINDS)}")


def _refuse_bad(kind: str, name: str) -> None:
    _refuse_kind(kind)
    _refuse_text("the name of the feature", name, MAX_NAME_CHARS)
    if name.startswith("*"):
        raise RequestError(f"the name of the feature is '{name}', but those with '*' are edgepd's own; use another")


def _refuse_text(what: str, text: str, most: int) -> None:
    if not text.strip():
        raise RequestError(f"{what} is empty; give some text")
    if len(text) > most:
        raise RequestError(f"{what} has {len(text)} characters, but at most {most} are allowed")
    if not text.isprintable():
        raise RequestError(f"{what} has characters that cannot be shown, or more than one line; use plain text")
    found = secrets.find(text)
    if found:
        raise RequestError(f"{what} seems to hold a secret ({found[0].kind}); leave it out, for models would repeat it")
