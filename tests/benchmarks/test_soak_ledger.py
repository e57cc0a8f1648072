"""A soak that finds nothing is worth something only if its ledger finds what is there."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from benchmarks._soak_ledger import (
    CHUNK,
    NEEDLE_FROM,
    Answer,
    Ledger,
    canary,
    copied,
    corruption,
    found_in_files,
    lost_answers,
    lost_feedback,
    nearest_rank,
    returned,
    serving,
    wrong_generations,
)
from edgepd import secrets


@pytest.fixture
def profile() -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:")
    conn.execute("CREATE TABLE interactions (id TEXT, response TEXT, state TEXT)")
    conn.execute("CREATE TABLE feedback (interaction TEXT, kind TEXT, value INTEGER, text TEXT)")
    return conn


def ledger(*answers: Answer) -> Ledger:
    return Ledger(answers={answer.row: answer for answer in answers})


def answer(row: str = "a", text: str = "Hello there", **fields: object) -> Answer:
    made = Answer(row, f"word-of-{row}", 100.0, 101.0, 1, text)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_an_answer_that_is_gone_is_lost_even_if_it_was_cut_short(profile: sqlite3.Connection) -> None:
    assert lost_answers(profile, ledger(answer())) == ["answer a is gone"]


def test_an_acknowledged_answer_must_be_whole_and_done(profile: sqlite3.Connection) -> None:
    seen = ledger(answer(acknowledged=True))
    profile.execute("INSERT INTO interactions VALUES ('a', 'Hello there, you', 'done')")
    assert lost_answers(profile, seen) == []
    profile.execute("UPDATE interactions SET response = 'Hello'")
    assert len(lost_answers(profile, seen)) == 1
    profile.execute("UPDATE interactions SET response = 'Hello there', state = 'interrupted'")
    assert len(lost_answers(profile, seen)) == 1


def test_an_answer_that_was_cut_short_may_be_stored_shorter_but_not_otherwise(profile: sqlite3.Connection) -> None:
    profile.execute("INSERT INTO interactions VALUES ('a', 'Hello', 'interrupted')")
    assert lost_answers(profile, ledger(answer())) == []
    profile.execute("UPDATE interactions SET response = 'Good bye'")
    assert len(lost_answers(profile, ledger(answer()))) == 1


def test_what_is_forgotten_is_not_lost_but_must_not_come_back(profile: sqlite3.Connection) -> None:
    seen = ledger(answer(acknowledged=True, forgotten=True))
    seen.feedback["a", "thumb"] = 1
    assert lost_answers(profile, seen) == lost_feedback(profile, seen) == returned(profile, seen) == []
    profile.execute("INSERT INTO interactions VALUES ('a', 'Hello there', 'done')")
    assert returned(profile, seen) == ["answer a was forgotten and is there"]


def test_feedback_must_be_as_it_was_given(profile: sqlite3.Connection) -> None:
    seen = ledger(answer())
    seen.feedback = {("a", "thumb"): -1, ("a", "edit"): "Good day"}
    profile.execute("INSERT INTO feedback VALUES ('a', 'thumb', -1, NULL), ('a', 'edit', NULL, 'Good day')")
    assert lost_feedback(profile, seen) == []
    profile.execute("UPDATE feedback SET value = 1 WHERE kind = 'thumb'")
    profile.execute("DELETE FROM feedback WHERE kind = 'edit'")
    assert lost_feedback(profile, seen) == [
        "thumb -1 on a is stored as 1",
        "edit 'Good day' on a is stored as None",
    ]


@pytest.mark.parametrize(
    ("since", "until", "expected"), [(-5, -1, set()), (11, 12, {2}), (9, 12, {1, 2}), (10, 10, {2}), (15, 99, {2, 3})]
)
def test_serving_is_whatever_was_active_at_some_moment(since: float, until: float, expected: set[int]) -> None:
    assert serving([(0, 1), (10, 2), (20, 3)], since, until) == expected


def test_an_answer_must_come_from_a_generation_that_served(profile: sqlite3.Connection) -> None:
    seen = ledger(answer())
    assert wrong_generations([(0, 1)], seen) == []
    assert wrong_generations([(0, 1), (99.5, 2)], seen) == []  # the switch had only just begun
    assert len(wrong_generations([(0, 1), (90, 2)], seen)) == 1
    assert len(wrong_generations([(0, 2), (102, 1)], seen)) == 1
    seen.answers["a"].slow_disk = True
    assert wrong_generations([(0, 1), (90, 2)], seen) == []


def test_a_generation_named_by_a_receipt_must_not_answer_any_more() -> None:
    seen = ledger(answer())
    seen.stale[1] = 100.5
    assert wrong_generations([(0, 1)], seen) == []
    seen.stale[1] = 99.9
    assert len(wrong_generations([(0, 1)], seen)) == 1


@pytest.mark.parametrize("at", [0, CHUNK - 3, CHUNK + 17])
def test_a_word_is_found_wherever_it_lies_without_its_first_letters(tmp_path: Path, at: int) -> None:
    word = canary(random.Random(7))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"-" * at + word[NEEDLE_FROM:].encode() + b"-" * 10)
    assert found_in_files(tmp_path, {word, canary(random.Random(8))}) == [f"{word} is in file"]
    assert found_in_files(tmp_path, set()) == []


def test_canaries_are_learned_from() -> None:
    chooser = random.Random(1)
    words = [canary(chooser) for _ in range(200)]
    assert len(set(words)) == 200
    assert not any(secrets.find(f"My reference is {word}.") for word in words)


def test_a_torn_database_is_found_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "profile.db"
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE interactions (id TEXT)")
        conn.executemany("INSERT INTO interactions VALUES (?)", [("x" * 500,)] * 200)
    conn.close()
    with copied(path) as conn:
        assert corruption(conn) == []
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\x5a" * 4096
    path.write_bytes(content)
    with copied(path) as conn:
        assert corruption(conn)


def test_quantiles_are_values_that_were_measured() -> None:
    assert nearest_rank([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert nearest_rank([float(n) for n in range(1, 101)], 0.95) == 95.0
    assert nearest_rank([5.0], 0.95) == 5.0
