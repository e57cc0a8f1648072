"""What the user did: events that apps send, and chats, each with the intent that it belongs to.

The idea: an event is kept as its sender names it. The user's map of events to intents stands beside and over that, so
what it says holds for events that were stored before it, and no longer once it is taken back.
The invariants: the same event of an app at the same time is stored once; of two that were stored the later one has the
larger `seq`, and no number is given twice; nothing is stored for an app that is not stored (apps.py); who names a
viewer gets only what that app may see. What is returned is in the order of time, whatever order it came in.
What this does not do: decide whether events are kept at all (`intent.enabled`), predict, or let old ones go
(expiry.py).
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgepd.errors import ConflictError, NotFoundError, RequestError
from edgepd_profiles import apps
from edgepd_profiles.event_rules import New, Rules
from edgepd_profiles.features import interests
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.rows import fetch, last_user_text

__all__ = [
    "CHAT",
    "MAX_MAPPED",
    "New",
    "Stored",
    "add",
    "as_sent",
    "count_after",
    "history",
    "known",
    "local_offset",
    "map_event",
    "mapped",
    "newest_seq",
    "note_chat",
    "of_chat",
    "put",
    "remove_map",
    "take_chats",
    "version",
]

CHAT = "chat"
TOPIC = f"{CHAT}:"  # before the word that tells what a chat was about
MAX_MAPPED = 2000  # events on the map
TEACHING = "NOT EXISTS (SELECT 1 FROM apps WHERE apps.name = e.app AND NOT apps.teaches)"


@dataclass(frozen=True)
class Stored(New):
    """An event that is stored; `seq` is its place in the order of storing."""

    seq: int = 0


def add(conn: sqlite3.Connection, new: Sequence[New], *, now: float | None = None) -> list[int]:
    """Store events and return the `seq` of each; one that is stored already keeps its own, and all else of it.

    Raises RequestError for one that cannot be stored (event_rules.py), and ConflictError for an app of which nothing is
    stored; call it in a transaction, so that then none of them is. `now` is in unix seconds.
    """
    rules = Rules(time.time() if now is None else now)
    for app in {each.app for each in new}:
        if not apps.get(conn, app).stored:
            raise ConflictError(
                f"nothing of app '{app}' is stored, so its events were not either; "
                f"to change that: edgepd profile apps '{app}' --store"
            )
    return [put(conn, each, rules) for each in new]


def put(conn: sqlite3.Connection, new: New, rules: Rules) -> int:
    """Store one event, whether its app is stored or not, and return its `seq`. Raises RequestError."""
    rules.check(new)
    found = conn.execute(
        "SELECT seq FROM events WHERE app = ? AND at = ? AND event = ?", (new.app, new.at, new.event)
    ).fetchone()
    if found is None:
        found = conn.execute(
            """
            INSERT INTO events (at, utc_offset_s, app, context, event, intent, interaction)
            VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING seq
            """,
            (new.at, new.utc_offset_s, new.app, new.context, new.event, new.intent, new.interaction),
        ).fetchone()
    return int(found[0])


def history(
    conn: sqlite3.Connection,
    limit: int = 2000,
    viewer: str | None = None,
    *,
    teaching: bool = False,
    until: float = math.inf,
) -> list[Stored]:
    """Return the newest `limit` events that a viewer sees, the oldest first, with their intents by the user's map.

    With `teaching` only those of apps that may teach: what a model is tuned on. `until` is in unix seconds: of what
    came later, nothing.
    """
    seen, parameters = apps.visible_sql(viewer, "e.app")
    rows = fetch(
        conn,
        f"""
        SELECT n.seq, n.at, n.utc_offset_s, n.app, n.context, n.event, coalesce(m.intent, n.intent) AS intent,
               n.interaction
        FROM (SELECT e.* FROM events AS e WHERE e.at <= ? AND {seen} AND {TEACHING if teaching else "1"}
              ORDER BY e.at DESC, e.seq DESC LIMIT ?) AS n
        LEFT JOIN intent_map AS m ON m.event = n.event
        ORDER BY n.at, n.seq
        """,  # noqa: S608 - no text of a user in it
        (until, *parameters, limit),
    )
    return [Stored(**row) for row in rows]


def as_sent(conn: sqlite3.Connection, after: int, limit: int, viewer: str | None = None) -> list[Stored]:
    """Return the next `limit` events after a `seq`, in that order, with the intents of their senders.

    Those of exchanges that are being answered are left out.
    """
    seen, parameters = apps.visible_sql(viewer, "e.app")
    rows = fetch(
        conn,
        f"""
        SELECT e.* FROM events AS e WHERE e.seq > ? AND {seen} AND NOT EXISTS
            (SELECT 1 FROM interactions AS i WHERE i.id = e.interaction AND i.state = 'streaming')
        ORDER BY e.seq LIMIT ?
        """,  # noqa: S608 - no text of a user in it
        (after, *parameters, limit),
    )
    return [Stored(**row) for row in rows]


def count_after(conn: sqlite3.Connection, seq: int) -> int:
    """Return how many events were stored after that one, whoever sent them."""
    return int(conn.execute("SELECT count(*) FROM events WHERE seq > ?", (seq,)).fetchone()[0])


def newest_seq(conn: sqlite3.Connection) -> int:
    """Return a number that no event so far exceeds and all events to come do; 0 if there never was one."""
    return _last_number(conn, "events")


def version(conn: sqlite3.Connection) -> tuple[int, int, int]:
    """Return a value that changes with every new event and every change of the map, but not with what goes."""
    (count,) = conn.execute("SELECT count(*) FROM intent_map").fetchone()
    return newest_seq(conn), _last_number(conn, "intent_map"), int(count)


# The user's map


def known(conn: sqlite3.Connection) -> dict[str, str]:
    """Return which intent the user has given to which event, by the event's name."""
    return dict(conn.execute("SELECT event, intent FROM intent_map ORDER BY event").fetchall())


def mapped(conn: sqlite3.Connection) -> list[tuple[str, str, float]]:
    """Return event, intent and time of each row of the map, in unix seconds, the first one first."""
    return conn.execute("SELECT event, intent, at FROM intent_map ORDER BY seq").fetchall()


def map_event(conn: sqlite3.Connection, event: str, intent: str, *, at: float | None = None) -> None:
    """Give an event an intent, also where it is stored already, in place of any other.

    Raises RequestError for a name that cannot be stored, and if MAX_MAPPED events are mapped.
    """
    now = time.time() if at is None else at
    rules = Rules(now)
    rules.name(event, "event")
    rules.name(intent, "intent")
    old = conn.execute("SELECT intent FROM intent_map WHERE event = ?", (event,)).fetchone()
    if old == (intent,):
        return
    if old is None and conn.execute("SELECT count(*) FROM intent_map").fetchone()[0] >= MAX_MAPPED:
        raise RequestError(f"the map has {MAX_MAPPED} events, which is all that are kept; take some off it first")
    conn.execute("INSERT OR REPLACE INTO intent_map (event, intent, at) VALUES (?, ?, ?)", (event, intent, now))


def remove_map(conn: sqlite3.Connection, event: str) -> None:
    """Take an event off the map: it has the intent of its sender again. Raises NotFoundError if it is not on it."""
    if not conn.execute("DELETE FROM intent_map WHERE event = ?", (event,)).rowcount:
        raise NotFoundError(f"event '{event}' is not on the map; `edgepd events map` shows what is")


# Chats


def of_chat(interaction: Interaction, utc_offset_s: int | None = None) -> New | None:
    """Return the event that an exchange is: "chat:" with the word that tells its topic, for the app that asked.

    None for what is not a chat. The offset is in seconds; None stands for that of this machine at that time.
    """
    offset = local_offset(interaction.created_at) if utc_offset_s is None else utc_offset_s
    prompt = last_user_text(interaction.messages)
    return _of_prompt(interaction.id, interaction.app, interaction.kind, interaction.created_at, prompt, offset)


def note_chat(conn: sqlite3.Connection, interaction: Interaction) -> int | None:
    """Store the event that an exchange is, and return its `seq`.

    None if it is none, if it was forgotten meanwhile, if nothing of its app is stored, or if the name of the app does
    not do for an intent.
    """
    if not conn.execute("SELECT 1 FROM interactions WHERE id = ?", (interaction.id,)).fetchone():
        return None
    return _note(conn, of_chat(interaction), Rules(interaction.created_at))


def take_chats(
    conn: sqlite3.Connection, limit: int, *, now: float | None = None, offset: Callable[[float], int] | None = None
) -> int:
    """Make events of the next `limit` chats that were there before events were; return how many were looked at.

    0 means that nothing is left to do. `offset` tells how many seconds local time was ahead of UTC at a unix time; None
    stands for this machine. What it costs is a look at each prompt, about a millisecond.
    """
    place = conn.execute("SELECT next, last FROM chats_to_take").fetchone()
    if place is None:
        return 0
    rows = conn.execute(
        """
        SELECT seq, id, app, kind, created_at, prompt FROM interactions
        WHERE seq BETWEEN ? AND ? AND kind = 'chat' ORDER BY seq LIMIT ?
        """,
        (*place, limit),
    ).fetchall()
    rules, ahead = Rules(time.time() if now is None else now), offset or local_offset
    for _, name, app, kind, at, prompt in rows:
        _note(conn, _of_prompt(name, app, kind, at, prompt, ahead(at)), rules)
    if len(rows) < limit:
        conn.execute("DELETE FROM chats_to_take")
    else:
        conn.execute("UPDATE chats_to_take SET next = ?", (rows[-1][0] + 1,))
    return len(rows)


def local_offset(at: float) -> int:
    """Return how many seconds this machine's local time is ahead of UTC at a unix time; 0 for one beyond its calendar.

    See tm_gmtoff of localtime(3).
    """
    try:
        return time.localtime(at).tm_gmtoff
    except (ValueError, OverflowError, OSError):
        return 0


def _of_prompt(name: str, app: str, kind: str, at: float, prompt: str, utc_offset_s: int) -> New | None:
    if kind != CHAT:
        return None
    topic = next(iter(interests(prompt)), "")
    return New(at, TOPIC + topic, app or CHAT, "", utc_offset_s, app, name)


def _note(conn: sqlite3.Connection, new: New | None, rules: Rules) -> int | None:
    if new is None or not apps.get(conn, new.app).stored:
        return None
    try:
        return put(conn, new, rules)
    except RequestError:  # nobody sent it who could be told
        return None


def _last_number(conn: sqlite3.Connection, table: str) -> int:
    """Return the largest number that a table with AUTOINCREMENT ever gave; see sqlite.org/autoinc.html."""
    row = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return int(row[0]) if row else 0
