from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from edgepd_profiles.interactions import Interaction
from edgepd_profiles.selection import bins
from edgepd_profiles.selection.bins import offer_new
from edgepd_profiles.store import Store

Log = Callable[..., Interaction]
Do = Callable[..., None]
Make = Callable[..., str]


def kept(conn: sqlite3.Connection, pool: str = "examples") -> list[str]:
    return sorted(bins.ids(conn, pool))


def offer_all(conn: sqlite3.Connection, pool: str, policy: str, slots: int, limit: int = 200) -> int:
    passed = 0
    while more := offer_new(conn, pool, policy, slots, limit):
        passed += more
    return passed


def test_feedback_that_teaches_makes_a_candidate(conn: sqlite3.Connection, log: Log, judge: Do) -> None:
    conn.execute("INSERT INTO apps (name, teaches) VALUES ('mail', 0)")
    for name in ("up", "down", "rated", "edit", "preferred", "none", "middle", "copied"):
        log(name)
    log("cut", finish_reason="length")
    log("mended", finish_reason="length")
    log("tools", kind="tools")
    log("private", app="mail")
    judge("up")
    judge("down", value=-1)
    judge("rated", "rating", 2)
    judge("edit", "edit", None)
    judge("preferred", "preferred", None)
    judge("middle", "rating", 3)
    judge("copied", "copied", None)
    for name in ("cut", "tools", "private"):
        judge(name)
    judge("mended", "edit", None)
    assert offer_new(conn, "examples", "recency", 100) == 11
    assert kept(conn) == ["down", "edit", "mended", "preferred", "rated", "up"]
    assert offer_new(conn, "examples", "recency", 100) == 0


def test_ended_chats_without_feedback_are_candidates_for_questions(
    conn: sqlite3.Connection, log: Log, judge: Do
) -> None:
    for name in ("open", "judged", "middle", "asked"):
        log(name)
    log("failed", state="failed")
    log("tools", kind="tools")
    judge("judged")
    judge("middle", "rating", 3)
    conn.execute("INSERT INTO questions VALUES ('asked', 1.0, 'skipped')")
    assert offer_new(conn, "questions", "recency", 100) == 6
    assert kept(conn, "questions") == ["middle", "open"]


def test_late_feedback_is_found_although_its_time_is_earlier(
    conn: sqlite3.Connection, log: Log, judge: Do, judged: Make
) -> None:
    judged(50)
    offer_new(conn, "examples", "recency", 10)
    log("late")
    judge("late", at=3.0)
    assert offer_new(conn, "examples", "recency", 10) == 1
    assert kept(conn) == ["i050", "late"]


def test_changed_feedback_is_found_although_its_row_was_passed(conn: sqlite3.Connection, log: Log, judge: Do) -> None:
    for n, name in enumerate(("a", "b", "c")):
        log(name)
        judge(name, "rating", 3, at=10.0 + n)
    assert offer_new(conn, "examples", "recency", 10) == 3
    judge("b", "rating", 5, at=20.0)
    judge("a", "rating", 1, at=20.0)
    assert offer_new(conn, "examples", "recency", 10, limit=1) == 2  # those of one time are not torn apart
    assert kept(conn) == ["a", "b"]
    assert offer_new(conn, "examples", "recency", 10) == 0


def test_more_feedback_on_what_is_kept_changes_nothing_but_its_worth(
    conn: sqlite3.Connection, judge: Do, judged: Make
) -> None:
    for n in range(3):
        judged(n)
    offer_new(conn, "examples", "reward", 3)
    before = conn.execute("SELECT * FROM bins").fetchall()
    judge("i001", "edit", None, at=90.0)
    judge("i002", "thumb", -1, at=91.0)
    offer_new(conn, "examples", "reward", 3)
    assert conn.execute("SELECT * FROM bins").fetchall() == before
    judged(3)
    offer_new(conn, "examples", "reward", 3)
    assert kept(conn) == ["i000", "i001", "i003"]  # the one that is not liked any more had to go


def test_what_is_judged_no_more_or_may_not_teach_or_is_deleted_goes(
    conn: sqlite3.Connection, log: Log, judge: Do, judged: Make
) -> None:
    for n in range(3):
        judged(n)
    log("mail", app="mail")
    judge("mail")
    offer_new(conn, "examples", "recency", 10)
    conn.execute("DELETE FROM feedback WHERE interaction = 'i001'")
    conn.execute("DELETE FROM interactions WHERE id = 'i002'")
    conn.execute("INSERT INTO apps (name, teaches) VALUES ('mail', 0)")
    assert offer_new(conn, "examples", "recency", 10) == 0
    assert kept(conn) == ["i000"]


def test_a_question_that_was_judged_goes_over_to_the_examples(conn: sqlite3.Connection, log: Log, judge: Do) -> None:
    log("a")
    offer_new(conn, "questions", "recency", 10)
    judge("a")
    for pool in bins.POOLS:
        offer_new(conn, pool, "recency", 10)
    assert (kept(conn), kept(conn, "questions")) == (["a"], [])


def test_row_numbers_that_are_given_out_again_are_not_missed(conn: sqlite3.Connection, judged: Make) -> None:
    for n in range(5):
        judged(n)
    for pool in bins.POOLS:
        offer_new(conn, pool, "recency", 10)
    conn.execute("DELETE FROM interactions WHERE id >= 'i003'")
    judged(1_00)
    offer_new(conn, "examples", "recency", 10)
    assert kept(conn) == ["i000", "i001", "i002", "i100"]


@pytest.mark.parametrize("policy", ["qin", "kcenter"])
def test_an_exchange_waits_for_its_vector_and_those_after_it_too(
    conn: sqlite3.Connection, judged: Make, embed: Do, policy: str
) -> None:
    for n in range(3):
        judged(n)
    embed("i000", 0)
    embed("i002", 90)
    assert offer_new(conn, "examples", policy, 10) == 1
    assert kept(conn) == ["i000"]
    embed("i001", 45)
    assert offer_new(conn, "examples", policy, 10) == 2
    assert kept(conn) == ["i000", "i001", "i002"]


def test_it_is_not_waited_for_longer_than_500_others(conn: sqlite3.Connection, log: Log, embed: Do) -> None:
    log("never")
    for n in range(499):
        log(f"i{n:03}")
        embed(f"i{n:03}", n)
    assert offer_new(conn, "questions", "qin", 600, limit=1000) == 0
    log("last")
    embed("last", 0)
    assert offer_new(conn, "questions", "qin", 600, limit=1000) == 501
    assert len(kept(conn, "questions")) == 500


def test_the_other_policies_do_not_wait_but_get_the_scores_later(
    conn: sqlite3.Connection, judged: Make, embed: Do
) -> None:
    judged(1)
    offer_new(conn, "examples", "recency", 10)
    assert conn.execute("SELECT entropy, dissimilarity FROM bins").fetchall() == [(0.0, 0.0)]
    embed("i001", 0, entropy=0.75)
    assert offer_new(conn, "examples", "recency", 10) == 0
    assert conn.execute("SELECT entropy, dissimilarity FROM bins").fetchall() == [(0.75, 1.0)]


def test_what_still_streams_is_waited_for(conn: sqlite3.Connection, log: Log) -> None:
    log("a")
    log("b", state="streaming")
    log("c")
    assert offer_new(conn, "questions", "recency", 10) == 1
    conn.execute("UPDATE interactions SET state = 'done' WHERE id = 'b'")
    assert offer_new(conn, "questions", "recency", 10) == 2
    assert kept(conn, "questions") == ["a", "b", "c"]


@pytest.mark.parametrize("policy", ["recency", "fifo", "reward", "random"])
def test_it_does_not_matter_in_how_many_calls_they_are_offered(
    conn: sqlite3.Connection, judged: Make, policy: str
) -> None:
    for n in range(40):
        judged(n)
    assert offer_all(conn, "examples", policy, 7) == 40
    at_once = kept(conn)
    conn.execute("DELETE FROM pools")
    assert offer_all(conn, "examples", policy, 7, limit=3) == 40
    assert kept(conn) == at_once
    assert len(at_once) == 7


def test_another_policy_goes_through_the_newest_again(conn: sqlite3.Connection, judged: Make) -> None:
    for n in range(30):
        judged(n)
    offer_all(conn, "examples", "recency", 2)
    assert kept(conn) == ["i028", "i029"]
    assert offer_all(conn, "examples", "random", 2) == 20
    assert len(kept(conn)) == 2
    assert min(kept(conn)) >= "i010"


def test_the_first_call_on_a_long_history_does_not_read_all_of_it(conn: sqlite3.Connection, log: Log) -> None:
    for n in range(60):
        log(f"i{n:03}")
    assert offer_all(conn, "questions", "fifo", 2) == 20


def test_fewer_slots_keep_the_best_and_more_slots_take_what_comes(conn: sqlite3.Connection, judged: Make) -> None:
    for n in range(6):
        judged(n)
    offer_new(conn, "examples", "recency", 5)
    offer_new(conn, "examples", "recency", 2)
    assert kept(conn) == ["i004", "i005"]
    judged(6)
    offer_new(conn, "examples", "recency", 3)
    assert kept(conn) == ["i004", "i005", "i006"]


def test_a_correction_is_worth_most_for_learning(conn: sqlite3.Connection, log: Log, judge: Do) -> None:
    for name, kind, value in (("down", "thumb", -1), ("edit", "edit", None), ("rated", "rating", 4)):
        log(name)
        judge(name, kind, value)
    offer_new(conn, "examples", "reward", 2)
    assert kept(conn) == ["edit", "rated"]
    assert [found.reason for found in bins.listing(conn, "examples")] == [
        "the highest satisfaction is kept, and its own is +0.5",
        "the highest satisfaction is kept, and its own is +1.0",
    ]


COOKING = "Knead the dough with flour and put it into the oven."
MONEY = "Enter the invoice and the tax into the account."


def cook_and_pay(log: Log, embed: Do, number: int) -> None:
    for n in range(number):
        log(f"i{n:03}", response=COOKING if n % 2 else MONEY)
        embed(f"i{n:03}", (n % 2) * 90 + n / 10, entropy=n / 100)


def test_lexicons_are_made_when_32_are_embedded_and_give_the_bins_their_domains(
    conn: sqlite3.Connection, log: Log, embed: Do
) -> None:
    cook_and_pay(log, embed, 31)
    offer_new(conn, "questions", "qin", 100)
    assert conn.execute("SELECT count(*) FROM lexicons").fetchone() == (0,)
    assert conn.execute("SELECT DISTINCT domain, domain_score FROM bins").fetchall() == [(0, 0.0)]
    log("i031", response=COOKING)
    embed("i031", 93.1)
    offer_new(conn, "questions", "qin", 100)
    cooking, money = (
        conn.execute("SELECT domain FROM lexicons WHERE word = ?", (word,)).fetchone()[0] for word in ("flour", "tax")
    )
    assert cooking != money
    domains = dict(conn.execute("SELECT interaction, domain FROM bins"))
    assert {domains["i001"], domains["i031"]} == {cooking}
    assert domains["i000"] == money
    reasons = {found.interaction: found.reason for found in bins.listing(conn, "questions")}
    assert reasons["i000"].startswith(f"there was room for it (domain {money}: ")
    assert "tax" in reasons["i000"] or "invoice" in reasons["i000"] or "account" in reasons["i000"]


def test_lexicons_are_made_anew_when_what_was_offered_has_doubled_or_they_are_gone(
    conn: sqlite3.Connection, log: Log, embed: Do
) -> None:
    def builds() -> int:
        return int(conn.execute("SELECT seen FROM pools WHERE pool = 'lexicons'").fetchone()[0])

    cook_and_pay(log, embed, 66)
    found = []
    for _ in range(4):
        offer_new(conn, "questions", "qin", 100, limit=33)
        found.append(builds())
    assert found == [0, 0, 66, 66]  # before anything was offered, and when twice 32 had been
    conn.execute("DELETE FROM lexicons")
    assert offer_new(conn, "questions", "qin", 100) == 0
    assert conn.execute("SELECT count(*) > 0 FROM lexicons").fetchone() == (1,)


def test_no_word_of_the_user_is_in_a_stored_reason(conn: sqlite3.Connection, log: Log, embed: Do) -> None:
    cook_and_pay(log, embed, 40)
    offer_all(conn, "questions", "qin", 3)
    reasons = [reason for (reason,) in conn.execute("SELECT reason FROM bins")]
    assert len(reasons) == 3
    assert not any(word in reason for reason in reasons for word in ("tax", "flour", "oven", "invoice"))


def test_after_a_change_of_model_what_is_kept_stays_until_it_has_new_vectors(
    conn: sqlite3.Connection, judged: Make, embed: Do
) -> None:
    for n in range(3):
        embed(judged(n), n * 40)
    offer_new(conn, "examples", "kcenter", 3)
    embed(judged(3), 0, model="m2")
    offer_new(conn, "examples", "kcenter", 3)
    assert kept(conn) == ["i000", "i001", "i002"]
    offer_new(conn, "examples", "kcenter", 2)
    assert kept(conn) == ["i001", "i002"]


def test_an_app_sees_its_own_and_no_words_of_others(conn: sqlite3.Connection, log: Log) -> None:
    log("mine", app="mail")
    log("theirs", app="editor")
    offer_new(conn, "questions", "recency", 10)
    conn.execute("UPDATE bins SET domain = 1, reason = 'about {domain}'")
    conn.execute("INSERT INTO lexicons VALUES (1, 'tax', 0.5), (1, 'invoice', 0.75)")
    assert [(b.interaction, b.reason) for b in bins.listing(conn, "questions", "mail")] == [("mine", "about domain 1")]
    assert {b.reason for b in bins.listing(conn, "questions")} == {"about domain 1: invoice, tax, ..."}


def test_what_is_unknown_is_refused(conn: sqlite3.Connection) -> None:
    for call in (bins.listing, bins.ids):
        with pytest.raises(ValueError, match="pool 'best' is not known"):
            call(conn, "best")
    with pytest.raises(ValueError, match="pool 'best' is not known"):
        offer_new(conn, "best", "qin", 3)
    for policy, slots in (("best", 3), ("qin", 0)):
        with pytest.raises(ValueError, match=f"policy '{policy}' with {slots} slots"):
            offer_new(conn, "examples", policy, slots)


def test_a_call_that_fails_leaves_pool_and_marks_as_they_were(tmp_path: Path) -> None:
    def log_one(conn: sqlite3.Connection) -> None:
        conn.execute(
            "INSERT INTO interactions (id, conversation, created_at, app, model, generation, messages, response,"
            " state, prompt_tokens, completion_tokens) VALUES ('a', 'c', 1, '', 'm', 1, '[]', 'Yes.', 'done', 1, 1)"
        )

    def offer_and_fail(conn: sqlite3.Connection) -> None:
        assert offer_new(conn, "questions", "recency", 10) == 1
        raise RuntimeError("power cut")

    with Store.open(tmp_path / "profile.db") as store:
        store.write(log_one).result()
        with pytest.raises(RuntimeError, match="power cut"):
            store.write(offer_and_fail).result()
        with store.read() as conn:
            assert conn.execute("SELECT count(*) FROM pools").fetchone() == (0,)
            assert bins.ids(conn, "questions") == set()
        assert store.write(lambda conn: offer_new(conn, "questions", "recency", 10)).result() == 1
