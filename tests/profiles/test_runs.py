"""Runs that came to nothing, one after another. What else there is of runs, test_registry.py has."""

from __future__ import annotations

import sqlite3

import pytest

from edgepd.errors import ConflictError
from edgepd_profiles import runs


def ended(conn: sqlite3.Connection, state: str, stopped_by: str | None = None, kind: str = "live") -> runs.Run:
    run = runs.start_run(conn, kind, None)
    return runs.finish_run(conn, run.id, state, stopped_by=stopped_by)


@pytest.mark.parametrize(
    ("story", "count"),
    [
        ("", 0),
        ("failed", 1),
        ("failed failed interrupted", 3),
        ("failed promoted", 0),
        ("failed rejected failed", 1),
        ("failed parked interrupted:user interrupted:edgepd failed", 2),
        ("parked parked interrupted:user", 0),
    ],
)
def test_failures_in_a_row(conn: sqlite3.Connection, story: str, count: int) -> None:
    for n, event in enumerate(story.split()):
        state, _, stopper = event.partition(":")
        ended(conn, state, stopper or None, kind="baked" if n % 2 else "live")
    assert runs.failures_in_a_row(conn) == count


def test_when_the_last_failure_was_and_which_run_was_judged_last(conn: sqlite3.Connection) -> None:
    assert (runs.last_failure(conn), runs.last_judged(conn)) == (None, 0)
    for at, state, stopper in ((1.0, "failed", None), (5.0, "interrupted", None), (9.0, "interrupted", "user")):
        run = runs.start_run(conn, "live", None, at=at)
        runs.finish_run(conn, run.id, state, stopped_by=stopper, at=at + 2)
    assert (runs.last_failure(conn), runs.last_judged(conn)) == (7.0, 0)
    assert ended(conn, "rejected").id == 4
    assert (runs.last_failure(conn), runs.last_judged(conn)) == (None, 4)


def test_a_run_is_parked_until_another_one_begins(conn: sqlite3.Connection) -> None:
    assert runs.parked(conn) is None
    ended(conn, "parked", kind="baked")
    assert runs.parked(conn) == "baked"
    runs.start_run(conn, "baked", None)
    assert runs.parked(conn) is None


def test_a_run_that_a_killed_daemon_left_running_counts_as_a_failure(conn: sqlite3.Connection) -> None:
    ended(conn, "failed")
    runs.start_run(conn, "live", None)
    assert runs.failures_in_a_row(conn) == 1
    assert runs.mark_interrupted_runs(conn, at=5.0) == 1
    assert (runs.failures_in_a_row(conn), runs.last_judged(conn)) == (2, 0)


def test_a_parked_run_has_ended_and_another_one_goes_on(conn: sqlite3.Connection) -> None:
    parked = ended(conn, "parked")
    with pytest.raises(ConflictError, match="already parked"):
        runs.finish_run(conn, parked.id, "promoted")
    assert runs.start_run(conn, "live", None).id == parked.id + 1


@pytest.mark.parametrize(("state", "stopper"), [("failed", "user"), ("parked", "edgepd"), ("interrupted", "cat")])
def test_only_an_interrupted_run_was_stopped_by_somebody(conn: sqlite3.Connection, state: str, stopper: str) -> None:
    run = runs.start_run(conn, "live", None)
    with pytest.raises(ValueError, match="cannot be stopped by"):
        runs.finish_run(conn, run.id, state, stopped_by=stopper)
    assert runs.get_run(conn, run.id).state == "running"
