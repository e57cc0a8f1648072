"""The tuned models of what comes next ("students"): which there are, and which one predicts.

The idea: every tuning begins at the model that edgepd ships with, so a student knows what it saw itself, which is all
events up to its `seq`, and nothing of other students. States: candidate -> active -> retired; rejected, if it was no
better; stale, if something that it saw was forgotten. The invariants: at most one is active; what is stale or rejected
never becomes active, and has no claim to its file. A student whose events have gone since, with age for example, may
hold what is no longer there to be searched, so any request to forget makes it stale.
What this does not do: touch files, or tune. No row holds a name of an event: scores are numbers.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepd.errors import ConflictError, NotFoundError, RequestError
from edgepd_profiles.rows import canonical_json, fetch, finite

COLUMNS = "id, at, state, file, sha256, run, seq, scores, reason"
IN_USE = ("candidate", "active", "retired")
FORGOTTEN = "it saw what has been forgotten since"


@dataclass(frozen=True)
class Student:
    """One tuned model, made at `at` in unix seconds by training run `run` from the events up to `seq`.

    `file` is a name in the directory of students.
    """

    id: int
    at: float
    state: str
    file: str
    sha256: str
    run: int | None
    seq: int
    scores: dict[str, Any]
    reason: str


def add(
    conn: sqlite3.Connection,
    *,
    file: str,
    sha256: str,
    seq: int,
    run: int | None = None,
    state: str = "candidate",
    scores: Mapping[str, Any] | None = None,
    reason: str = "",
    at: float | None = None,
) -> Student:
    """Store a new student in state `candidate` or `rejected`.

    `seq` is events.newest_seq as it was when its events were read. Scores and reason must hold no names of events or
    intents, because they outlast forgetting. Raises RequestError for a file name that is a path.
    """
    if state not in ("candidate", "rejected"):
        raise ValueError(f"a student cannot be added in state {state!r}; use candidate or rejected")
    if not file or Path(file).name != file or file in (".", ".."):
        raise RequestError(f"'{file}' is no name of a file; give a name without a directory")
    cursor = conn.execute(
        """
        INSERT INTO intent_students (at, state, file, sha256, run, seq, scores, reason)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        """,
        (
            time.time() if at is None else at, state, file, sha256, run, seq,
            canonical_json(finite(dict(scores or {}))), reason,
        ),
    )  # fmt: skip
    return get(conn, cursor.lastrowid or 0)


def get(conn: sqlite3.Connection, student_id: int) -> Student:
    """Return one student. Raises NotFoundError."""
    found = _all(conn, "WHERE id = ?", student_id)
    if not found:
        raise NotFoundError(f"tuned model {student_id} of what comes next is not known")
    return found[0]


def active(conn: sqlite3.Connection) -> Student | None:
    """Return the student that predicts, None if the one that edgepd ships with does."""
    return next(iter(_all(conn, "WHERE state = 'active'")), None)


def listing(conn: sqlite3.Connection) -> list[Student]:
    """Return all students, the newest first."""
    return _all(conn, "ORDER BY id DESC")


def activate(conn: sqlite3.Connection, student_id: int) -> Student:
    """Let a candidate, or one that was active before, predict from now on; the one that did so is retired.

    Raises NotFoundError, and ConflictError for one that is rejected or stale.
    """
    found = get(conn, student_id)
    if found.state not in IN_USE:
        raise ConflictError(f"tuned model {student_id} of what comes next is {found.state} and cannot become active")
    conn.execute("UPDATE intent_students SET state = 'retired' WHERE state = 'active' AND id != ?", (student_id,))
    conn.execute("UPDATE intent_students SET state = 'active' WHERE id = ?", (student_id,))
    return get(conn, student_id)


def reject(conn: sqlite3.Connection, student_id: int, reason: str) -> Student:
    """Note that a student must not predict (any more); without another one, the one that edgepd ships with does.

    Raises NotFoundError. One that is stale stays so.
    """
    conn.execute(
        "UPDATE intent_students SET state = 'rejected', reason = ? WHERE id = ? AND state != 'stale'",
        (reason, student_id),
    )
    return get(conn, student_id)


def saw_any(conn: sqlite3.Connection, first_seq: int | None, *, gone: bool) -> list[int]:
    """Return the ids of the students, in any state but stale, that saw an event with `first_seq` or a later one.

    With `gone` also those that saw any event that is not there any more. None: no event is asked about.
    """
    rows = conn.execute(
        "SELECT id FROM intent_students WHERE state != 'stale' AND (seq >= ? OR ? AND outlived) ORDER BY id",
        (float("inf") if first_seq is None else first_seq, gone),
    )
    return [number for (number,) in rows]


def mark_stale(conn: sqlite3.Connection, ids: Collection[int], reason: str = FORGOTTEN) -> list[Student]:
    """Take students out of service for good because of what they saw; return them, whose files must be removed.

    Their scores go, too. Ids that are unknown or stale already are passed over.
    """
    rows = conn.execute(
        """
        UPDATE intent_students SET state = 'stale', scores = '{}', reason = ?
        WHERE id IN (SELECT value FROM json_each(?)) AND state != 'stale' RETURNING id
        """,
        (reason, json.dumps(sorted(ids))),
    ).fetchall()
    return [get(conn, number) for (number,) in sorted(rows)]


def file_names(conn: sqlite3.Connection, keep: int) -> set[str]:
    """Return the names of the files that are to be kept: of the active one, candidates, and the `keep` newest retired.

    Every other file in the directory of students may go, and those of stale ones must.
    """
    rows = conn.execute(
        """
        SELECT file FROM intent_students WHERE state IN ('candidate', 'active')
        UNION SELECT file FROM (SELECT file FROM intent_students WHERE state = 'retired' ORDER BY id DESC LIMIT ?)
        """,
        (max(0, keep),),
    )
    return {name for (name,) in rows}


def stale_files(conn: sqlite3.Connection) -> list[str]:
    """Return the names of the files that must not be there any more, because of what was forgotten."""
    rows = conn.execute("SELECT DISTINCT file FROM intent_students WHERE state = 'stale' ORDER BY file")
    return [name for (name,) in rows]


def _all(conn: sqlite3.Connection, condition: str, *parameters: object) -> list[Student]:
    rows = fetch(conn, f"SELECT {COLUMNS} FROM intent_students {condition}", parameters)  # noqa: S608 - our own
    return [Student(**row | {"scores": json.loads(row["scores"])}) for row in rows]
