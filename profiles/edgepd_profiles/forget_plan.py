"""What a request to forget means: which rows it covers, and which generations must not serve any more.

The idea: a `Selector` is what the user names (forget_selector.py), a `Plan` what follows from it. A search finds a text
wherever a row holds it, whatever its case and however its characters are composed; what is found in feedback on an
exchange, or in a pair made from it, finds the exchange. Later exchanges that repeat a forgotten one are carried along
(see carried.py).
The invariant: making a plan changes nothing, and the same profile gives the same plan, so that what a dry run says is
what happens. What this does not do: find other words for the same thing; that is what ids are for.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from edgepd.errors import ConflictError, NotFoundError
from edgepd_profiles import apps, forget_events, lineage, students
from edgepd_profiles.carried import carried_along
from edgepd_profiles.forget_selector import Selector
from edgepd_profiles.lineage import Switch
from edgepd_profiles.rows import fetch
from edgepd_profiles.text_search import folded, search_functions


@dataclass(frozen=True)
class Plan:
    """What goes. `interactions` are all exchanges in the order of arrival, `carried` those that were not named.

    If `everything` is set, `interactions` and the other ids stay empty; `counts` is always complete. `generations` are
    those that were taught any of it, in any state, and `switches` what has to serve instead. `events` are given by
    their `seq`, `mapped` by their names, and `students` are the tuned models of what comes next that saw any of it.
    """

    selector: Selector
    interactions: tuple[str, ...]
    carried: tuple[str, ...]
    facts: tuple[int, ...]
    suggestions: tuple[str, ...]
    surveys: tuple[str, ...]
    edits: tuple[tuple[str, str, str], ...]
    generations: tuple[int, ...]
    switches: tuple[Switch, ...]
    counts: dict[str, int]
    everything: bool = False
    events: tuple[int, ...] = ()
    mapped: tuple[str, ...] = ()
    students: tuple[int, ...] = ()


def find(conn: sqlite3.Connection, selector: Selector, viewer: str | None = None) -> Plan:
    """Return what goes if this is forgotten; named is only what `viewer` may see.

    It reads the whole history for a search. Raises NotFoundError for an unknown id, and ConflictError for an exchange
    that is being answered.
    """
    if selector.everything and viewer is None:
        return _everything(conn)
    with search_functions(conn, selector.search):
        chosen = _interactions(conn, selector, viewer)
        _refuse_streaming(conn, chosen)
        carried = carried_along(conn, chosen)
        _refuse_streaming(conn, carried)
        going = _in_order(conn, [*chosen, *carried]) if carried else chosen
        facts = tuple(row[0] for row in _matching(conn, selector, viewer, "facts", "id", "at", ("text",)))
        if missing := set(selector.facts) - set(facts):
            raise NotFoundError(f"fact {min(missing)} is not known; `edgepd facts` lists them")
        columns = ("text", "reason")
        suggestions = {row[0] for row in _matching(conn, selector, viewer, "suggestions", "id", "shown_at", columns)}
        suggestions |= _suggested_by(conn, going)
        surveys = [row[0] for row in _matching(conn, selector, viewer, "surveys", "id", "asked_at", ("text",))]
        edits = _matching(conn, selector, viewer, "feature_edits", "app, kind, name", "at", ("name", "value"))
        edits = [edit for edit in edits if edit[2]]  # a row without a name says since when a kind is observed
        events = forget_events.covered(conn, selector, viewer, going)
        mapped = forget_events.mapped(conn, selector, viewer, events)
    tuned = forget_events.touched(conn, selector, events, mapped)
    touched = lineage.taught_any(conn, going)
    return Plan(
        selector,
        tuple(going),
        tuple(carried),
        facts,
        tuple(sorted(suggestions)),
        tuple(surveys),
        tuple((app, kind, name) for app, kind, name in edits),
        tuple(sorted(touched)),
        tuple(lineage.switches(conn, touched)),
        {
            "interactions": len(chosen),
            "carried_along": len(carried),
            "facts": len(facts),
            "suggestions": len(suggestions),
            "surveys": len(surveys),
            "edits": len(edits),
            "events": len(events),
            "mapped_events": len(mapped),
            "generations": _in_use(conn, touched),
            "students": forget_events.in_use(conn, tuned),
        },
        events=events,
        mapped=mapped,
        students=tuned,
    )


def _everything(conn: sqlite3.Connection) -> Plan:
    rows = conn.execute("SELECT id FROM interactions WHERE state = 'streaming' ORDER BY seq LIMIT 1").fetchall()
    _refuse_streaming(conn, [row[0] for row in rows])
    touched = {row[0] for row in conn.execute("SELECT id FROM generations WHERE kind != 'base'")}
    tables = {
        "interactions": "interactions",
        "facts": "facts",
        "suggestions": "suggestions",
        "surveys": "surveys",
        "edits": "feature_edits",
        "events": "events",
        "mapped_events": "intent_map",
    }
    counts = {
        name: int(conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - names from above
        for name, table in tables.items()
    }
    tuned = tuple(each.id for each in students.listing(conn) if each.state != "stale")
    counts |= {"carried_along": 0, "generations": _in_use(conn, touched), "students": forget_events.in_use(conn, tuned)}
    switches = tuple(lineage.switches(conn, touched))
    generations = tuple(sorted(touched))
    return Plan(
        Selector(everything=True), (), (), (), (), (), (), generations, switches, counts, True, students=tuned
    )  # fmt: skip


def _interactions(conn: sqlite3.Connection, selector: Selector, viewer: str | None) -> list[str]:
    """Return the ids of the exchanges that are named, in the order of arrival."""
    seen, parameters = apps.visible_sql(viewer, "i.app")
    values: dict[str, Any] = {
        "ids": json.dumps([lineage.interaction_of(name) for name in selector.ids]),
        "since": selector.since,
        "until": selector.until,
        "app": selector.app,
    }
    within = "(:since IS NULL OR {0} >= :since) AND (:until IS NULL OR {0} < :until)"
    if selector.ids:
        condition = "i.id IN (SELECT value FROM json_each(:ids))"
    elif selector.facts:
        return []
    elif selector.search is not None:
        condition = """(holds(i.prompt) OR holds(i.response) OR holds_json(i.messages)
            OR i.id IN (SELECT interaction FROM feedback WHERE holds(text))
            OR i.id IN (SELECT interaction FROM similar_pairs WHERE holds(prompt) OR holds(response)))"""
    elif selector.app is not None:
        condition = "i.app = :app"
    elif selector.everything:
        condition = "1"
    else:
        given = f"SELECT interaction FROM feedback WHERE kind IN ('edit', 'comment') AND {within.format('at')}"  # noqa: S608
        condition = f"({within.format('i.created_at')} OR i.id IN ({given}))"
    for n, value in enumerate(parameters):  # SQLite does not mix named and numbered parameters
        seen = seen.replace("?", f":seen{n}", 1)
        values[f"seen{n}"] = value
    sql = f"SELECT i.id FROM interactions AS i WHERE {condition} AND {seen} ORDER BY i.seq"  # noqa: S608 - ours
    found = [name for (name,) in conn.execute(sql, values)]
    unknown = {lineage.interaction_of(name) for name in selector.ids} - set(found)
    if unknown:
        raise NotFoundError(
            f"interaction '{min(unknown)}' is not known; `GET /edgepd/v1/interactions` lists the recent ones"
        )
    return found


def _matching(
    conn: sqlite3.Connection,
    selector: Selector,
    viewer: str | None,
    table: str,
    key: str,
    time_column: str,
    texts: tuple[str, ...],
) -> list[tuple[Any, ...]]:
    """Return the keys of the rows of a table that are named. All names in the SQL come from this module."""
    if selector.ids or (selector.facts and table != "facts"):
        return []
    seen, parameters = apps.visible_sql(viewer)
    values: list[object] = []
    if selector.facts:
        condition, values = "id IN (SELECT value FROM json_each(?))", [json.dumps(selector.facts)]
    elif selector.search is not None:
        condition = " OR ".join(f"holds({text})" for text in texts)
    elif selector.app is not None:
        condition, values = "app = ?", [selector.app]
    elif selector.everything:
        condition = "1"
    else:
        condition = f"(? IS NULL OR {time_column} >= ?) AND (? IS NULL OR {time_column} < ?)"
        values = [selector.since, selector.since, selector.until, selector.until]
    sql = f"SELECT {key} FROM {table} WHERE ({condition}) AND {seen} ORDER BY {key}"  # noqa: S608 - see above
    return conn.execute(sql, (*values, *parameters)).fetchall()


def _suggested_by(conn: sqlite3.Connection, going: list[str]) -> set[str]:
    """Return the suggestions that come from exchanges which go, or are words of their questions."""
    ids = json.dumps(going)
    rows = conn.execute("SELECT id FROM suggestions WHERE source IN (SELECT value FROM json_each(?))", (ids,))
    found = {name for (name,) in rows}
    texts = conn.execute("SELECT DISTINCT text FROM suggestions").fetchall()
    if texts:
        questions = conn.execute("SELECT prompt FROM interactions WHERE id IN (SELECT value FROM json_each(?))", (ids,))
        asked = "\0".join(folded(prompt) for (prompt,) in questions)
        same = [text for (text,) in texts if folded(text.strip()) in asked]
        rows = conn.execute(
            "SELECT id FROM suggestions WHERE text IN (SELECT value FROM json_each(?))", (json.dumps(same),)
        )
        found |= {name for (name,) in rows}
    return found


def _refuse_streaming(conn: sqlite3.Connection, ids: list[str]) -> None:
    row = conn.execute(
        """
        SELECT id FROM interactions WHERE state = 'streaming' AND id IN (SELECT value FROM json_each(?))
        ORDER BY seq LIMIT 1
        """,
        (json.dumps(ids),),
    ).fetchone()
    if row:
        raise ConflictError(f"interaction '{row[0]}' is being answered; stop it first, or wait for its end")


def _in_order(conn: sqlite3.Connection, ids: list[str]) -> list[str]:
    rows = fetch(
        conn,
        "SELECT id FROM interactions WHERE id IN (SELECT value FROM json_each(?)) ORDER BY seq",
        (json.dumps(ids),),
    )
    return [row["id"] for row in rows]


def _in_use(conn: sqlite3.Connection, touched: set[int]) -> int:
    """Return how many of the generations could have served until now."""
    rows = conn.execute("SELECT id FROM generations WHERE state IN ('training', 'candidate', 'active', 'retired')")
    return len(touched & {generation_id for (generation_id,) in rows})
