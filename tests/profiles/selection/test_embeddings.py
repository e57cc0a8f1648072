from __future__ import annotations

import sqlite3
from collections.abc import Callable

import numpy as np
import pytest

from edgepd_profiles.interactions import Interaction
from edgepd_profiles.selection import embeddings

Log = Callable[..., Interaction]


def test_the_direction_is_stored_in_half_precision(conn: sqlite3.Connection, log: Log) -> None:
    log("i1")
    assert embeddings.store(conn, "i1", "m1", np.array([3e5, 0, -4e5], dtype=np.float32), 0.25) is True
    found = embeddings.vector(conn, "i1")
    assert found is not None and found.dtype == np.float32
    assert found == pytest.approx([0.6, 0, -0.8], abs=5e-4)
    assert conn.execute("SELECT length(vector), entropy FROM embeddings").fetchone() == (6, 0.25)


def test_an_exchange_without_a_vector_or_that_is_gone_has_none(conn: sqlite3.Connection, log: Log) -> None:
    log("i1")
    assert embeddings.vector(conn, "i1") is None
    assert embeddings.store(conn, "gone", "m1", np.ones(2), 0.0) is False
    embeddings.store(conn, "i1", "m1", np.ones(2), 0.0)
    conn.execute("DELETE FROM interactions WHERE id = 'i1'")
    assert conn.execute("SELECT count(*) FROM embeddings").fetchone() == (0,)


@pytest.mark.parametrize("vector", [np.zeros(3), np.array([1.0, np.nan]), np.ones((2, 2)), np.array([])])
def test_a_vector_without_a_direction_is_refused(conn: sqlite3.Connection, log: Log, vector: np.ndarray) -> None:
    log("i1")
    with pytest.raises(ValueError, match="'i1' has no direction"):
        embeddings.store(conn, "i1", "m1", vector, 0.0)


def test_the_newest_vector_says_which_model_is_current(
    conn: sqlite3.Connection, log: Log, embed: Callable[..., None]
) -> None:
    assert embeddings.current_model(conn) is None
    for name in ("i1", "i2"):
        log(name)
        embed(name, 0)
    embed("i1", 0, model="m2")
    assert embeddings.current_model(conn) == "m2"
    assert [found for found, _ in embeddings.missing(conn, "m2", 10)] == ["i2"]
    assert embeddings.missing(conn, "m1", 10)[0][0] == "i1"


def test_the_newest_come_first_and_what_cannot_be_a_candidate_not_at_all(conn: sqlite3.Connection, log: Log) -> None:
    conn.execute("INSERT INTO apps (name, teaches) VALUES ('mail', 0)")
    log("i1")
    log("i2", state="streaming")
    log("i3", kind="tools")
    log("i4", app="mail")
    log("i5", messages=[{"role": "user", "content": " "}], response="")
    log("i6", messages=[{"role": "user", "content": "And now?"}], response="Red.")
    assert embeddings.missing(conn, "m1", 10) == [("i6", "And now?\nRed."), ("i1", "Name a colour.\nBlue.")]
    assert [found for found, _ in embeddings.missing(conn, "m1", 1)] == ["i6"]


def test_old_exchanges_matter_only_with_feedback_that_waits_or_if_they_are_kept(
    conn: sqlite3.Connection, log: Log, judge: Callable[..., None]
) -> None:
    for n in range(504):
        log(f"i{n:03}")
    judge("i001")
    conn.execute("INSERT INTO bins VALUES ('questions', 'i002', 0, 0, 0, 0, '', 0)")
    found = [each for each, _ in embeddings.missing(conn, "m1", 1000)]
    assert found == [f"i{n:03}" for n in range(503, 3, -1)] + ["i002", "i001"]
    conn.execute("INSERT INTO pools (pool, policy, seen) VALUES ('examples', 'recency', 1)")
    conn.execute("INSERT INTO pools (pool, policy, seen) VALUES ('examples.changed', '', 2000000001)")
    assert "i001" not in [each for each, _ in embeddings.missing(conn, "m1", 1000)]
    judge("i001", value=-1, at=3000.0)
    assert "i001" in [each for each, _ in embeddings.missing(conn, "m1", 1000)]


def test_a_long_question_leaves_room_for_the_answer_and_the_other_way_round(conn: sqlite3.Connection, log: Log) -> None:
    log("i1", messages=[{"role": "user", "content": "q" * 5000}], response="a" * 5000)
    log("i2", messages=[{"role": "user", "content": "q" * 5000}], response="a" * 24)
    texts = dict(embeddings.missing(conn, "m1", 10))
    assert texts == {"i1": "q" * 512 + "\n" + "a" * 512, "i2": "q" * 1000 + "\n" + "a" * 24}
