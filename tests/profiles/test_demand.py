from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable

import pytest

from edgepd_profiles import apps, demand, examples, feedback, interactions
from edgepd_profiles.interactions import Interaction

Log = Callable[..., Interaction]


def seqs(conn: sqlite3.Connection) -> dict[tuple[str, str], int]:
    return {(name, kind): seq for name, kind, seq in conn.execute("SELECT interaction, kind, seq FROM feedback")}


def judge_many(conn: sqlite3.Connection, first: int, last: int) -> None:
    """Store plain exchanges with an edit each, without going through the profile, which would take longer."""
    conn.execute("BEGIN")
    conn.executemany(
        """
        INSERT INTO interactions (id, conversation, created_at, app, model, generation, messages, response, state,
            prompt_tokens, completion_tokens) VALUES (?, 'c', 1, 'cli', 'm', 1, '[]', 'Yes.', 'done', 1, 1)
        """,
        [(f"i{n}",) for n in range(first, last)],
    )
    conn.executemany(
        "INSERT INTO feedback (interaction, kind, text, source, at) VALUES (?, 'edit', 'No.', 'user', 1)",
        [(f"i{n}",) for n in range(first, last)],
    )
    conn.executemany(
        "INSERT INTO feedback (interaction, kind, value, source, at) VALUES (?, 'dwell', 900, 'app', 1)",
        [(f"i{n}",) for n in range(first, last)],
    )
    conn.execute("COMMIT")


def effort(conn: sqlite3.Connection, call: Callable[[], object]) -> int:
    """Return how many hundreds of steps SQLite's machine takes; the same each time, however busy the processor is."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    conn.set_progress_handler(count, 100)
    call()
    conn.set_progress_handler(None, 0)
    return steps


def test_an_empty_profile_demands_nothing(conn: sqlite3.Connection) -> None:
    assert (demand.measure(conn, 0.5), demand.count(conn, 0.5), demand.newest(conn)) == ((0.0, 0.0), 0, 0)


def test_every_kind_weighs_what_it_weighs_in_training(conn: sqlite3.Connection, log: Log) -> None:
    for n in range(1, 8):
        log(f"i_{n}")
    feedback.set_edit(conn, "i_1", "Green.")  # 1
    feedback.set_thumb(conn, "i_2", 1)  # 0.4
    feedback.set_rating(conn, "i_3", 4)  # 0.3
    feedback.set_rating(conn, "i_4", 5)  # 0.4
    feedback.prefer(conn, "i_5", "i_6")  # 0.4
    feedback.set_rating(conn, "i_6", 3)
    feedback.set_thumb(conn, "i_7", -1)  # 1 where it is learned from
    feedback.note(conn, "i_7", "copied")
    assert demand.measure(conn, 0.4) == pytest.approx((2.5, 2.5))
    assert demand.measure(conn, 0.4, undesirable=True) == pytest.approx((3.5, 3.5))
    assert demand.measure(conn, 0.0) == (1.0, 1.0)
    assert [demand.count(conn, 0.4), demand.count(conn, 0.4, undesirable=True), demand.count(conn, 0.0)] == [5, 6, 1]


@pytest.mark.parametrize("undesirable", [False, True])
def test_every_combination_is_decided_by_the_row_that_decides_in_training(
    conn: sqlite3.Connection, log: Log, undesirable: bool
) -> None:
    """All 144 of them, each with a time of its own for each row: an example has the time of the row that decides."""
    combinations = itertools.product(
        (None, 1, -1), (None, 1, 2, 3, 4, 5), (None, "Grey."), (None, "i_0"), (True, False)
    )
    for n, (thumb, rating, edit, loser, forwards) in enumerate(combinations, 1):
        log(f"i_{n}")
        rows = [("thumb", thumb, None), ("rating", rating, None), ("edit", None, edit), ("preferred", None, loser)]
        for m, (kind, value, text) in enumerate(rows if forwards else rows[::-1]):
            if value is not None or text is not None:
                conn.execute(
                    "INSERT INTO feedback (interaction, kind, value, text, source, at) VALUES (?, ?, ?, ?, 'user', ?)",
                    (f"i_{n}", kind, value, text, 10.0 * n + m),
                )
    found = examples.training_examples(conn, 0.5, undesirable=undesirable)
    assert len(found) == (140 if undesirable else 108)
    seq_at = dict(conn.execute("SELECT at, seq FROM feedback"))
    for mark in range(demand.newest(conn), 0, -1):
        conn.execute("REPLACE INTO learned_marks VALUES ('baked', ?)", (mark,))
        new = sum(e.weight for e in found if seq_at[e.created_at] > mark)
        assert demand.measure(conn, 0.5, undesirable=undesirable) == (new, new)


def test_an_exchange_counts_once_and_only_if_what_decides_is_new(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    log("i_2")
    feedback.set_rating(conn, "i_1", 5)
    feedback.set_thumb(conn, "i_1", 1)
    feedback.set_edit(conn, "i_1", "Green.")
    feedback.set_thumb(conn, "i_2", 1)
    assert (demand.measure(conn, 0.5), demand.count(conn, 0.5)) == ((1.5, 1.5), 2)
    demand.judged(conn, "baked", demand.newest(conn))
    assert demand.measure(conn, 0.5) == (0.0, 0.0)
    feedback.set_thumb(conn, "i_1", -1)
    assert demand.measure(conn, 0.5) == (0.0, 0.0), "the correction was learned, whatever the thumb says"
    feedback.set_edit(conn, "i_1", "Grey.")
    assert demand.measure(conn, 0.5) == (1.0, 1.0)
    feedback.remove(conn, "i_1")
    assert (demand.measure(conn, 0.5), demand.count(conn, 0.5)) == ((0.0, 0.0), 1)


def test_a_consolidation_has_seen_all_and_a_short_run_only_for_its_kind(conn: sqlite3.Connection, log: Log) -> None:
    for n in range(1, 4):
        log(f"i_{n}")
    feedback.set_edit(conn, "i_1", "Green.")
    demand.judged(conn, "live", demand.newest(conn))
    feedback.set_edit(conn, "i_2", "Green.")
    assert demand.measure(conn, 0.5) == (1.0, 2.0)
    demand.judged(conn, "baked", demand.newest(conn))
    feedback.set_thumb(conn, "i_3", 1)
    assert demand.measure(conn, 0.5) == (0.5, 0.5)


def test_feedback_that_came_during_a_run_is_new_after_it(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    log("i_2")
    feedback.set_edit(conn, "i_1", "Green.")
    seen = demand.newest(conn)
    feedback.set_edit(conn, "i_2", "Grey.")
    feedback.set_edit(conn, "i_1", "Red.")  # replaces what the run learns just now
    demand.judged(conn, "live", seen)
    assert demand.measure(conn, 0.5)[0] == 2.0


def test_a_mark_never_goes_back(conn: sqlite3.Connection) -> None:
    for seq in (7, 3, 9, 8):
        demand.judged(conn, "live", seq)
    assert conn.execute("SELECT kind, seq FROM learned_marks").fetchall() == [("live", 9)]
    with pytest.raises(ValueError, match="cannot be of kind 'base'; use one of live, baked"):
        demand.judged(conn, "base", 1)


def test_what_is_due_is_due_since_the_first_time_until_something_was_judged(conn: sqlite3.Connection) -> None:
    assert demand.due_since(conn) is None
    demand.note_due(conn, 50.0)
    demand.note_due(conn, 60.0)
    assert demand.due_since(conn) == 50.0
    demand.judged(conn, "live", 1)
    assert demand.due_since(conn) is None
    demand.note_due(conn, 70.0)
    demand.note_due(conn, None)
    assert demand.due_since(conn) is None


def test_what_cannot_be_learned_from_is_not_demanded(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1", state="cancelled")
    log("i_2", finish_reason="length")
    log("i_3", response="  ")
    log("i_4", kind="tools")
    log("i_5", app="mail")
    for n in range(1, 6):
        feedback.set_thumb(conn, f"i_{n}", 1)
    apps.change(conn, "mail", teaches=False)
    assert (demand.measure(conn, 0.5), demand.count(conn, 0.5)) == ((0.0, 0.0), 0)
    apps.change(conn, "mail", teaches=True)
    assert (demand.measure(conn, 0.5), demand.count(conn, 0.5)) == ((0.5, 0.5), 1)


def test_giving_the_same_again_is_not_new(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    feedback.set_edit(conn, "i_1", "Green.")
    before = seqs(conn)
    feedback.set_edit(conn, "i_1", "Green.", at=9e9)
    assert (seqs(conn), demand.newest(conn)) == (before, 1)


def test_an_app_that_is_told_not_to_teach_changes_the_version(conn: sqlite3.Connection, log: Log) -> None:
    """The other changes are in test_demand_machine.py."""
    log("i_1", app="mail")
    feedback.set_edit(conn, "i_1", "Green.")
    versions = [demand.version(conn), demand.version(conn)]
    apps.change(conn, "mail", teaches=False)
    versions.append(demand.version(conn))
    demand.judged(conn, "live", 1)
    versions.append(demand.version(conn))
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


def test_the_order_is_kept_whatever_program_writes(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    log("i_2")
    conn.execute("INSERT INTO feedback (interaction, kind, value, source, at) VALUES ('i_1', 'thumb', 1, 'x', 50.0)")
    conn.execute("INSERT INTO feedback (interaction, kind, value, source, at) VALUES ('i_2', 'thumb', 1, 'x', 40.0)")
    assert seqs(conn) == {("i_1", "thumb"): 1, ("i_2", "thumb"): 2}
    conn.execute("UPDATE feedback SET value = -1 WHERE interaction = 'i_1'")
    assert seqs(conn) == {("i_1", "thumb"): 3, ("i_2", "thumb"): 2}
    conn.execute("DELETE FROM interactions WHERE id = 'i_1'")
    conn.execute("REPLACE INTO feedback (interaction, kind, value, source, at) VALUES ('i_2', 'thumb', -1, 'x', 1.0)")
    assert seqs(conn)["i_2", "thumb"] > 3, "the number of a row that is gone is not given again"


def test_a_write_that_is_taken_back_takes_its_number_back(conn: sqlite3.Connection, log: Log) -> None:
    log("i_1")
    conn.execute("BEGIN")
    feedback.set_thumb(conn, "i_1", 1)
    conn.execute("ROLLBACK")
    assert (seqs(conn), demand.newest(conn)) == ({}, 0)


def test_only_what_is_new_is_read(conn: sqlite3.Connection) -> None:
    def measured(old: int) -> int:
        judge_many(conn, old, old + 40)
        return effort(conn, lambda: demand.measure(conn, 0.5))

    judge_many(conn, 0, 100)
    demand.judged(conn, "baked", demand.newest(conn))
    small = measured(100)
    assert demand.measure(conn, 0.5) == (40.0, 40.0)
    judge_many(conn, 1000, 6000)
    demand.judged(conn, "baked", demand.newest(conn))
    assert abs(measured(6000) - small) <= 2
    assert effort(conn, lambda: demand.count(conn, 0.5, enough=10_000)) > 20 * small, "this does read everything"


def test_counting_stops_where_it_is_enough(conn: sqlite3.Connection) -> None:
    judge_many(conn, 0, 300)
    before = effort(conn, lambda: demand.count(conn, 0.5, enough=100))
    judge_many(conn, 300, 5000)
    assert abs(effort(conn, lambda: demand.count(conn, 0.5, enough=100)) - before) <= 2
    assert [demand.count(conn, 0.5, enough=100), demand.count(conn, 0.5, enough=10_000)] == [100, 5000]


def test_years_of_dwells_cost_nothing(conn: sqlite3.Connection, log: Log) -> None:
    """They are numbered as well, but not in the index that is read."""
    log("i_1")
    feedback.set_edit(conn, "i_1", "Green.")
    before = effort(conn, lambda: demand.measure(conn, 0.5))
    for n in range(500):
        interactions.begin(conn, Interaction(f"d{n}", "c", 1.0, "cli", "m", 1, [], response="x", state="done"))
    conn.execute(
        "INSERT INTO feedback (interaction, kind, value, source, at) SELECT id, 'dwell', 5, 'a', 1 FROM interactions"
    )
    assert demand.newest(conn) == 502
    assert effort(conn, lambda: demand.measure(conn, 0.5)) <= before + 1
    assert demand.measure(conn, 0.5) == (1.0, 1.0)


def test_reading_uses_the_index(conn: sqlite3.Connection) -> None:
    statements: list[str] = []
    conn.set_trace_callback(statements.append)
    demand.measure(conn, 0.5)
    demand.count(conn, 0.5)
    conn.set_trace_callback(None)
    read = [sql for sql in statements if "INDEXED BY" in sql]
    assert len(read) == 2
    for sql in read:
        plan = [str(row[3]) for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}")]
        assert "SEARCH f USING INDEX feedback_teaching (seq>?)" in plan
        assert not [step for step in plan if step.startswith("SCAN") and "SCAN (" not in step], plan
        assert not [step for step in plan if "TEMP B-TREE" in step], plan
