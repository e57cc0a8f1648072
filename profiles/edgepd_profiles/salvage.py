"""What can still be read of a damaged profile, taken into another one.

The idea: exchanges that came after the last one which the other profile has are read one by one in the order of
arrival, with the facts, the newer events and the map of events after them, written as the lines of an export and read
back as an import: so each is checked like a stranger's, and a page of rubbish spoils only what stands on it. The
invariant: the damaged file is opened for reading alone.
What this does not do: carry over what is made anew (sums, embeddings, the search index), feedback on exchanges that the
other profile has already, surveys, or generations.
"""

from __future__ import annotations

import itertools
import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgepd.errors import EdgepdError
from edgepd_profiles import events, facts, feedback, interactions, portable
from edgepd_profiles.portable_line import event_line, exchange_line, fact_line, map_line
from edgepd_profiles.profile_file import reading

log = logging.getLogger(__name__)

SECONDS = 30.0  # in which the daemon should be up again; what was not reached by then stays in the damaged file
BATCH = 200
BROKEN = (sqlite3.Error, EdgepdError, ValueError, TypeError)  # what reading a row of rubbish may raise


def carry_over(damaged: Path, conn: sqlite3.Connection) -> tuple[int, int]:
    """Take what is newer in the damaged profile into the one of `conn`; return how many exchanges came over.

    The second number is of those that were seen and could not be read. Raises nothing for a file that cannot be read
    at all: then nothing came over.
    """
    after = int(conn.execute("SELECT coalesce(max(seq), 0) FROM interactions").fetchone()[0])
    after_event = events.newest_seq(conn)
    taken = unreadable = 0
    try:
        with reading(damaged) as source:
            lines = itertools.chain(_exchanges(source, after), _facts(source))
            while batch := list(itertools.islice(lines, BATCH)):
                readable = [line for line in batch if line is not None]
                conn.execute("BEGIN IMMEDIATE")
                done = portable.import_lines(conn, readable)
                conn.execute("COMMIT")
                taken += done.added
                unreadable += len(batch) - len(readable) + len(done.refused)
            _take_events(source, after_event, conn)
    except EdgepdError as error:
        log.warning("no more can be read of %s: %s", damaged, error)
    return taken, unreadable


def _exchanges(source: sqlite3.Connection, after: int) -> Iterator[str | None]:
    """Yield a line for each exchange that has ended, None for one that cannot be read."""
    end = time.monotonic() + SECONDS
    for _, name in sorted(_names(source, after)):
        if time.monotonic() > end:
            log.warning("reading the damaged profile takes long; what is left of it stays there")
            return
        try:
            found = interactions.get(source, name)
            line = None if found.state == "streaming" else exchange_line(found, feedback.of(source, name))
        except BROKEN:
            yield None
            continue
        if line is not None:
            yield line


def _facts(source: sqlite3.Connection) -> Iterable[str]:
    try:
        return [fact_line(fact.text, fact.app, fact.at) for fact in facts.listing(source)]
    except BROKEN as error:
        log.warning("the facts of the damaged profile cannot be read: %s", error)
        return []


def _take_events(source: sqlite3.Connection, after: int, conn: sqlite3.Connection) -> None:
    """Take the newer events, and what of the map is not there. What is refused had an exchange that did not come."""
    lines = itertools.chain(_event_lines(source, after), _map_lines(source))
    while batch := list(itertools.islice(lines, BATCH)):
        conn.execute("BEGIN IMMEDIATE")
        portable.import_lines(conn, batch)
        conn.execute("COMMIT")


def _event_lines(source: sqlite3.Connection, after: int) -> Iterator[str]:
    try:
        while found := events.as_sent(source, after, BATCH):
            yield from (event_line(each) for each in found)
            after = found[-1].seq
    except BROKEN as error:  # as for the table of a profile from before events were kept
        log.warning("the events of the damaged profile are not all there: %s", error)


def _map_lines(source: sqlite3.Connection) -> Iterable[str]:
    try:
        return [map_line(*row) for row in events.mapped(source)]
    except BROKEN as error:
        log.warning("the map of events of the damaged profile cannot be read: %s", error)
        return []


def _names(source: sqlite3.Connection, after: int) -> set[tuple[int, str]]:
    """Return place and id of the newer exchanges: from both ends up to where a page is lost."""
    found: set[tuple[int, str]] = set()
    for order in ("ASC", "DESC"):
        try:
            for seq, name in source.execute(
                f"SELECT seq, id FROM interactions WHERE seq > ? ORDER BY seq {order}",  # noqa: S608 - our own
                (after,),
            ):
                found.add((int(seq), str(name)))
        except (sqlite3.Error, ValueError) as error:
            log.warning("the exchanges of the damaged profile are not all there: %s", error)
        else:
            break
    return found
