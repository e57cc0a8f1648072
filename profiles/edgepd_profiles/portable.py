"""Taking everything out, and in again: JSONL in the chat format that OpenAI's fine-tuning reads.

The idea: a line is one exchange, the messages with the wanted answer at their end (the correction, if there is one);
what only edgepd knows stands beside it under "edgepd", where other programs do not look. Facts, events and the user's
map of events follow, in lines of their own. The invariants: what was exported and is imported into an empty profile is
exported the same again; importing a line twice changes nothing, by its id or, for lines of other programs, by what it
says. A bad line is refused alone.
What this does not do: carry generations over (an exchange that came in has generation 0), or what is made anew:
embeddings, bins, sums of the profile, tuned models of what comes next. Lines of other programs count as accepted: their
answers are there to be learned.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field

from edgepd.errors import RequestError
from edgepd_profiles import apps, events, facts, interactions
from edgepd_profiles.event_rules import Rules
from edgepd_profiles.feedback_kinds import COLUMNS, Feedback
from edgepd_profiles.portable_line import (
    EventLine,
    ExchangeLine,
    FactLine,
    MapLine,
    event_line,
    exchange_line,
    fact_line,
    map_line,
    read_line,
)
from edgepd_profiles.rows import fetch

BATCH = 200  # exchanges that are exported from one snapshot
EVENTS_BATCH = 2000
Reading = Callable[[], AbstractContextManager[sqlite3.Connection]]


@dataclass
class Imported:
    """How many exchanges and facts were added, how many lines were known already, and which were refused and why.

    `refused` has the numbers of lines, from 1. `events` counts the events that were added, `mapped` those that came
    onto the map.
    """

    added: int = 0
    known: int = 0
    facts: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)
    events: int = 0
    mapped: int = 0


def export(reading: Reading, viewer: str | None = None) -> Iterator[str]:
    """Yield the lines, without line ends: exchanges that have ended, in the order of arrival, facts, events, the map.

    The map is the owner's alone. Only what `viewer` may see is among them. `reading` opens the profile, for BATCH
    exchanges at a time: whoever takes the lines slowly must not keep an old snapshot, in which forgotten text would
    live on.
    """
    after = 0
    while True:
        with reading() as conn:
            lines, after = _batch(conn, viewer, after)
            told = [] if lines else [fact_line(fact.text, fact.app, fact.at) for fact in facts.listing(conn, viewer)]
        yield from lines or told
        if not lines:
            break
    yield from _events(reading, viewer)


def _events(reading: Reading, viewer: str | None) -> Iterator[str]:
    after = 0
    while True:
        with reading() as conn:
            batch = events.as_sent(conn, after, EVENTS_BATCH, viewer)
            told = [map_line(*row) for row in events.mapped(conn)] if viewer is None and not batch else []
        yield from (event_line(each) for each in batch)
        yield from told
        if not batch:
            return
        after = batch[-1].seq


def _batch(conn: sqlite3.Connection, viewer: str | None, after: int) -> tuple[list[str], int]:
    """Return the lines of the next exchanges after that place, and the place of the last one."""
    seen, parameters = apps.visible_sql(viewer)
    rows = conn.execute(
        f"SELECT seq, id FROM interactions WHERE seq > ? AND state != 'streaming' AND {seen} "  # noqa: S608 - our own
        f"ORDER BY seq LIMIT {BATCH}",
        (after, *parameters),
    ).fetchall()
    lines = []
    for _, name in rows:
        given = fetch(conn, f"SELECT {COLUMNS} FROM feedback WHERE interaction = ? ORDER BY kind", (name,))  # noqa: S608
        lines.append(exchange_line(interactions.get(conn, name), [Feedback(**row) for row in given]))
    return lines, rows[-1][0] if rows else after


def import_lines(
    conn: sqlite3.Connection, lines: Iterable[str], *, app: str | None = None, now: float | None = None
) -> Imported:
    """Take lines in, in the caller's transaction. With `app`, all of them become that app's. Empty lines say nothing.

    Feedback comes with the exchange that it is on; that of an exchange which is known already is left as it is.
    """
    at = time.time() if now is None else now
    result, rules = Imported(), Rules(at)
    for number, line in enumerate(lines, 1):
        text = line.removeprefix("\ufeff").strip()
        if not text:
            continue
        try:
            found = read_line(text, at, app)
            if isinstance(found, FactLine):
                _take_fact(conn, found, result)
            elif isinstance(found, EventLine):
                _take_event(conn, found, rules, result)
            elif isinstance(found, MapLine):
                _take_mapped(conn, found, app, result)
            else:
                _take(conn, found, result)
        except RequestError as error:
            result.refused.append((number, str(error)))
    return result


def _take(conn: sqlite3.Connection, found: ExchangeLine, result: Imported) -> None:
    name = found.interaction.id
    if conn.execute("SELECT 1 FROM interactions WHERE id = ?", (name,)).fetchone():
        result.known += 1
        return
    interactions.begin(conn, found.interaction)
    # As it was, not through feedback.py: a preference may name an answer that comes later, or never. The sums of the
    # profile are made of the exchange as a whole when profile.catch_up comes to it.
    conn.executemany(
        """
        INSERT INTO feedback (interaction, kind, value, text, source, at)
        VALUES (:interaction, :kind, :value, :text, :source, :at)
        """,
        [asdict(one) for one in found.feedback],
    )
    result.added += 1


def _take_fact(conn: sqlite3.Connection, found: FactLine, result: Imported) -> None:
    changes = conn.total_changes
    facts.remember(conn, found.text, found.app, at=found.at)
    if conn.total_changes > changes:
        result.facts += 1
    else:
        result.known += 1


def _take_event(conn: sqlite3.Connection, found: EventLine, rules: Rules, result: Imported) -> None:
    """Take in an event; one that is a chat belongs to an exchange of the same app, or nothing would take it out."""
    new = found.new
    exchange = "SELECT 1 FROM interactions WHERE id = ? AND app = ?"
    if new.interaction is not None and not conn.execute(exchange, (new.interaction, new.app)).fetchone():
        raise RequestError("the event belongs to an exchange of its app that is not there")
    changes = conn.total_changes
    events.put(conn, new, rules)
    if conn.total_changes > changes:
        result.events += 1
    else:
        result.known += 1


def _take_mapped(conn: sqlite3.Connection, found: MapLine, app: str | None, result: Imported) -> None:
    """Take in a row of the map. What the user has mapped meanwhile stays as it is."""
    if app is not None:
        raise RequestError("the map of events is the user's, not that of an app")
    if found.event in events.known(conn):
        result.known += 1
        return
    events.map_event(conn, found.event, found.intent, at=found.at)
    result.mapped += 1
