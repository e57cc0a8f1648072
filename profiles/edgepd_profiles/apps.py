"""What each app may see, and whether its exchanges are stored and learned from.

The idea: an app is the name that a client gives itself. "" is a client without a name, whose exchanges are common
ground. A viewer is the name of the app that asks, or None for the owner, who sees everything. The invariant: a viewer
"x" sees what belongs to "x", to "" and to apps that the owner shares, and nothing else.
What this does not do: authenticate. Every program of the same user can give any name, and can read the file; the names
keep honest apps apart.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from edgepd.errors import RequestError
from edgepd_profiles.rows import fetch

MAX_NAME_CHARS = 200  # as the API allows for the name of an app in a request


@dataclass(frozen=True)
class App:
    """One app: whether others may see its exchanges, whether they are stored, and whether they may teach."""

    name: str
    shared: bool = False
    stored: bool = True
    teaches: bool = True


def get(conn: sqlite3.Connection, name: str) -> App:
    """Return what holds for an app; one that is not listed has the defaults. The app "" is always shared."""
    rows = fetch(conn, "SELECT name, shared, stored, teaches FROM apps WHERE name = ?", (name,))
    return _from_row(rows[0]) if rows else App(name, shared=name == "")


def change(
    conn: sqlite3.Connection,
    name: str,
    *,
    shared: bool | None = None,
    stored: bool | None = None,
    teaches: bool | None = None,
) -> App:
    """Change what is given, leave the rest, and return what holds now. Doing it again changes nothing.

    It holds for exchanges from now on, but `shared` also for those that are stored already. Raises RequestError for a
    name that no client can give, and for an attempt to hide the app "".
    """
    refuse_bad_name(name)
    if name == "" and shared is False:
        raise RequestError("exchanges of clients without a name are seen by all; give the client a name to keep them")
    old = get(conn, name)
    app = App(
        name,
        shared=old.shared if shared is None else shared,
        stored=old.stored if stored is None else stored,
        teaches=old.teaches if teaches is None else teaches,
    )
    conn.execute(
        "INSERT OR REPLACE INTO apps (name, shared, stored, teaches) VALUES (?, ?, ?, ?)",
        (app.name, app.shared, app.stored, app.teaches),
    )
    return app


def listing(conn: sqlite3.Connection) -> list[App]:
    """Return every app that is listed or has an exchange or an event, by name."""
    listed = fetch(conn, "SELECT name, shared, stored, teaches FROM apps")
    known = {row["name"]: _from_row(row) for row in listed}
    return [known.get(name) or get(conn, name) for name in sorted(known.keys() | _seen(conn))]


def counts(conn: sqlite3.Connection) -> dict[str, int]:
    """Return how many exchanges each app has. It reads an index with one entry for each exchange: for listings only."""
    return dict(conn.execute("SELECT app, count(*) FROM interactions GROUP BY app").fetchall())


def visible(conn: sqlite3.Connection, viewer: str | None) -> list[str] | None:
    """Return the names of the apps that a viewer sees, sorted, or None if those are all (the owner)."""
    if viewer is None:
        return None
    shared = conn.execute("SELECT name FROM apps WHERE shared = 1")
    return sorted({"", viewer, *(name for (name,) in shared)})


def visible_sql(viewer: str | None, column: str = "app") -> tuple[str, tuple[str, ...]]:
    """Return an SQL condition for what a viewer sees, and its parameters.

    `column` is the name of the column with the app, never text of a user. The condition is in brackets, so it can be
    put after AND.
    """
    if viewer is None:
        return "(1)", ()
    return f"({column} IN ('', ?) OR {column} IN (SELECT name FROM apps WHERE shared = 1))", (viewer,)  # noqa: S608


def _seen(conn: sqlite3.Connection) -> set[str]:
    """Return the apps that have an exchange or an event, by a step in an index for each instead of one for each row."""
    found: set[str] = set()
    for table in ("interactions", "events"):
        rows = conn.execute(
            f"""
            WITH RECURSIVE named (app) AS (
                SELECT min(app) FROM {table}
                UNION ALL
                SELECT (SELECT min(app) FROM {table} WHERE app > named.app) FROM named WHERE named.app IS NOT NULL
            )
            SELECT app FROM named WHERE app IS NOT NULL
            """  # noqa: S608 - names from above
        )
        found |= {name for (name,) in rows}
    return found


def _from_row(row: dict[str, object]) -> App:
    return App(
        str(row["name"]),
        shared=bool(row["shared"]) or row["name"] == "",
        stored=bool(row["stored"]),
        teaches=bool(row["teaches"]),
    )


def refuse_bad_name(name: str) -> None:
    """Raise RequestError for a name that cannot be shown, or is too long."""
    if len(name) > MAX_NAME_CHARS:
        raise RequestError(f"the name of the app has {len(name)} characters, but at most {MAX_NAME_CHARS} are allowed")
    if not name.isprintable():  # half characters are not, either
        raise RequestError(f"the name of the app, {ascii(name)}, has characters that cannot be shown; use plain text")
