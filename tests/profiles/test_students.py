"""Tuned models of what comes next: at most one predicts, what is stale never does again, and which files stay."""

from __future__ import annotations

import sqlite3

import pytest

from edgepd.errors import ConflictError, NotFoundError, RequestError
from edgepd_profiles import demand, events, runs, students
from edgepd_profiles.students import Student


def add(conn: sqlite3.Connection, seq: int, state: str = "candidate") -> int:
    count = len(students.listing(conn)) + 1
    return students.add(conn, file=f"s{count}.npz", sha256="ab", seq=seq, state=state, at=9.0).id


def states(conn: sqlite3.Connection) -> list[str]:
    return [each.state for each in reversed(students.listing(conn))]


def test_one_predicts_at_a_time(conn: sqlite3.Connection) -> None:
    assert students.active(conn) is None
    run = runs.start_run(conn, "intent", None)
    made = students.add(conn, file="s.npz", sha256="ab", seq=7, run=run.id, scores={"nll": float("nan")}, at=9.0)
    assert made == Student(1, 9.0, "candidate", "s.npz", "ab", run.id, 7, {"nll": None}, "")
    assert students.activate(conn, made.id) == students.active(conn)
    second = add(conn, 8)
    students.activate(conn, second)
    assert states(conn) == ["retired", "active"]
    students.activate(conn, made.id)
    assert states(conn) == ["active", "retired"]
    students.activate(conn, made.id)
    assert states(conn) == ["active", "retired"]
    assert students.reject(conn, made.id, "it was damaged").reason == "it was damaged"
    assert students.active(conn) is None


def test_what_is_rejected_or_stale_never_predicts(conn: sqlite3.Connection) -> None:
    rejected, stale = add(conn, 1, "rejected"), add(conn, 2)
    students.mark_stale(conn, [stale])
    for number, state in ((rejected, "rejected"), (stale, "stale")):
        with pytest.raises(ConflictError, match=f"is {state} and cannot become active"):
            students.activate(conn, number)
    assert students.reject(conn, stale, "other").state == "stale"
    with pytest.raises(NotFoundError):
        students.activate(conn, 99)


def test_what_cannot_be_added(conn: sqlite3.Connection) -> None:
    for name in ("", "..", "a/b.npz", "/etc/passwd"):
        with pytest.raises(RequestError, match="is no name of a file"):
            students.add(conn, file=name, sha256="ab", seq=1)
    with pytest.raises(ValueError, match="in state 'active'"):
        add(conn, 1, "active")


def test_who_saw_an_event_knows_it(conn: sqlite3.Connection) -> None:
    first, second, third = add(conn, 2), add(conn, 5), add(conn, 9, "rejected")
    assert students.saw_any(conn, 5, gone=False) == [second, third]
    assert students.saw_any(conn, None, gone=True) == []
    events.add(conn, [events.New(float(n), "cafe", "food", "", 0, "") for n in range(1, 7)], now=9.0)
    conn.execute("DELETE FROM events WHERE seq = 4")
    assert students.saw_any(conn, None, gone=True) == [second, third]
    assert students.saw_any(conn, None, gone=False) == []
    stale = students.mark_stale(conn, [first, third, 77])
    assert [(each.id, each.state, each.scores, each.reason) for each in stale] == [
        (first, "stale", {}, students.FORGOTTEN), (third, "stale", {}, students.FORGOTTEN),
    ]  # fmt: skip
    assert students.mark_stale(conn, [first, third]) == []
    assert students.saw_any(conn, 0, gone=True) == [second]


def test_which_files_stay(conn: sqlite3.Connection) -> None:
    for n in range(1, 6):
        students.activate(conn, add(conn, n))
    add(conn, 6, "rejected")
    add(conn, 7)
    assert students.file_names(conn, 2) == {"s7.npz", "s5.npz", "s4.npz", "s3.npz"}
    students.mark_stale(conn, [5, 4])
    assert students.file_names(conn, 2) == {"s7.npz", "s3.npz", "s2.npz"}
    assert students.file_names(conn, 0) == {"s7.npz"}
    assert students.stale_files(conn) == ["s4.npz", "s5.npz"]


def test_a_tuning_run_that_was_judged_leaves_the_other_marks_alone(conn: sqlite3.Connection) -> None:
    demand.judged(conn, "live", 3)
    before = demand.version(conn)
    demand.note_due(conn, 50.0)
    demand.judged(conn, "intent", 40)
    assert demand.due_since(conn) == 50.0, "what is to be learned from feedback is due as before"
    assert demand.version(conn) == before
    demand.judged(conn, "intent", 30)
    demand.begin_again(conn)
    assert conn.execute("SELECT kind, seq FROM learned_marks").fetchall() == [("intent", 40)]
    demand.judged(conn, "live", 4)
    assert demand.due_since(conn) is None


def test_failures_can_be_counted_by_kind(conn: sqlite3.Connection) -> None:
    for kind, state in (("live", "failed"), ("intent", "promoted"), ("live", "failed"), ("intent", "failed")):
        runs.finish_run(conn, runs.start_run(conn, kind, None).id, state, at=float(len(runs.runs(conn, 99))))
    assert runs.failures_in_a_row(conn) == 2
    assert runs.failures_in_a_row(conn, ("live", "baked")) == 2
    assert runs.failures_in_a_row(conn, ("intent",)) == 1
    assert (runs.last_failure(conn, ("live",)), runs.last_failure(conn, ("baked",))) == (3.0, None)
    assert (runs.last_judged(conn), runs.last_judged(conn, ("live",))) == (2, 0)
