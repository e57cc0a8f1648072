"""Which events, rows of the user's map, and tuned models a request to forget covers; see forget_plan.py.

The idea: an event of a chat goes with its exchange, and its intent is the name of an app, which is no text; of an event
that an app sent every name is one. The map is the owner's, so no app covers any of it; of the owner, a name whose last
event goes also leaves the map. The invariant: a student is covered if it saw any of that (students.py).
What this does not do: delete anything (see forgetting.py).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from edgepd_profiles import apps, students
from edgepd_profiles.events import TOPIC
from edgepd_profiles.forget_selector import Selector

_TEXTS = f"""
    holds(e.context) OR CASE WHEN e.interaction IS NULL THEN holds(e.event) OR holds(e.intent)
                             ELSE holds(substr(e.event, {len(TOPIC) + 1})) END
"""
_WITHIN = "(? IS NULL OR {0} >= ?) AND (? IS NULL OR {0} < ?)"


def covered(conn: sqlite3.Connection, selector: Selector, viewer: str | None, going: Sequence[str]) -> tuple[int, ...]:
    """Return the `seq` of the events that are named, or belong to the exchanges `going`, in that order.

    Call it where SQL knows the search functions.
    """
    seen, parameters = apps.visible_sql(viewer, "e.app")
    condition, values = "0", list[object]()
    if selector.search is not None:
        condition = _TEXTS
    elif selector.app is not None:
        condition, values = "e.app = ?", [selector.app]
    elif selector.everything:
        condition = "1"
    elif selector.since is not None or selector.until is not None:
        condition, values = _WITHIN.format("e.at"), _times(selector)
    rows = conn.execute(
        f"""
        SELECT e.seq FROM events AS e WHERE ({condition}) AND {seen}
        UNION SELECT seq FROM events WHERE interaction IN (SELECT value FROM json_each(?)) ORDER BY 1
        """,  # noqa: S608 - constants of this module
        (*values, *parameters, json.dumps(list(going))),
    )
    return tuple(seq for (seq,) in rows)


def mapped(conn: sqlite3.Connection, selector: Selector, viewer: str | None, events: Sequence[int]) -> tuple[str, ...]:
    """Return the events of the map that are named, or of which the last events go, by name."""
    if viewer is not None:
        return ()
    condition, values = "0", list[object]()
    if selector.search is not None:
        condition = "holds(m.event) OR holds(m.intent)"
    elif selector.since is not None or selector.until is not None:
        condition, values = _WITHIN.format("m.at"), _times(selector)
    going = json.dumps(list(events))
    rows = conn.execute(
        f"""
        WITH going AS (SELECT seq, event FROM events WHERE seq IN (SELECT value FROM json_each(?)))
        SELECT m.event FROM intent_map AS m WHERE ({condition})
            OR m.event IN (SELECT event FROM going)
                AND NOT EXISTS (SELECT 1 FROM events AS e
                                WHERE e.event = m.event AND e.seq NOT IN (SELECT seq FROM going))
        ORDER BY m.event
        """,  # noqa: S608 - constants of this module
        (going, *values),
    )
    return tuple(name for (name,) in rows)


def touched(
    conn: sqlite3.Connection, selector: Selector, events: Sequence[int], names: Sequence[str]
) -> tuple[int, ...]:
    """Return the ids of the students that saw one of the events, or a name of the map.

    One that saw what is not there any more is among them, whatever is named but facts: nobody knows what that was.
    """
    (of_names,) = conn.execute(
        "SELECT min(seq) FROM events WHERE event IN (SELECT value FROM json_each(?))", (json.dumps(list(names)),)
    ).fetchone()
    first = min((seq for seq in (*events[:1], of_names) if seq is not None), default=None)
    facts_alone = bool(selector.facts) and not selector.ids
    return tuple(students.saw_any(conn, first, gone=not facts_alone))


def in_use(conn: sqlite3.Connection, ids: Sequence[int]) -> int:
    """Return how many of the students could have predicted until now."""
    return sum(each.state in students.IN_USE for each in students.listing(conn) if each.id in ids)


def _times(selector: Selector) -> list[object]:
    return [selector.since, selector.since, selector.until, selector.until]
