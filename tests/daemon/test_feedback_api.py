"""The routes of feedback, each channel, over the real application and profile and a scripted engine."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from edgepd.settings import Profile, Settings
from edgepd_profiles import surveys
from tests.daemon.profiled import ask, call, get, ok, post, profiled, put, refused
from tests.daemon.running import Json, question, wait_for
from tests.daemon.scripted import Scripted

DAY = 86_400.0
ANSWERED = [{"role": "user", "content": "Describe a tide"}, {"role": "assistant", "content": "Fine."}]


@pytest.fixture(scope="module")
def served() -> Iterator[Scripted]:
    with profiled() as found:
        yield found


@pytest.fixture
def surveyed() -> Iterator[Scripted]:
    with profiled(settings=Settings(profile=Profile(surveys=True))) as found:
        yield found


def kinds(served: Scripted, row: str) -> Json:
    given = get(served, f"/interactions/{row}")["feedback"]
    return {f["kind"]: f["value"] if f["text"] is None else f["text"] for f in given}


@pytest.mark.parametrize(
    ("given", "kind", "value", "text"),
    [
        ({"thumb": -1}, "thumb", -1, None),
        ({"rating": 4}, "rating", 4, None),
        ({"edit": " Better.\n"}, "edit", None, " Better.\n"),
        ({"comment": "Too long"}, "comment", None, "Too long"),
        ({"copied": True}, "copied", None, None),
        ({"dwell_ms": 0}, "dwell", 0, None),
        ({"abandoned": True}, "abandoned", None, None),
    ],
)
def test_every_kind_is_stored_once_and_can_be_undone(
    served: Scripted, given: Json, kind: str, value: int | None, text: str | None
) -> None:
    row = ask(served, f"Something about {kind}")
    answer = post(served, "/feedback", interaction_id=row, source="test", **given)
    [stored] = answer["feedback"]
    assert answer["interaction_id"] == row
    assert (stored.pop("at") > 0, stored) == (True, {"kind": kind, "value": value, "text": text, "source": "test"})
    assert post(served, "/feedback", source="test", **given) == post(served, "/feedback", source="test", **given)
    undone = [ok(call(served, "DELETE", f"/feedback/{row}", params={"kind": kind})) for _ in range(2)]
    assert undone == [{"interaction_id": row, "removed": 1}, {"interaction_id": row, "removed": 0}]
    assert kinds(served, row) == {}


def test_kinds_stand_beside_each_other_and_the_same_again_changes_nothing(served: Scripted) -> None:
    row = ask(served, "All kinds of things")
    first = post(served, "/feedback", interaction_id=row, rating=2)["feedback"]
    assert post(served, "/feedback", interaction_id=row, rating=2)["feedback"] == first  # not even a new time
    for given in ({"rating": 5}, {"thumb": 1}, {"copied": True}, {"dwell_ms": 1200}, {"abandoned": True}):
        post(served, "/feedback", interaction_id=row, **given)
    # Who went away did not copy: the later one of the two stands.
    assert kinds(served, row) == {"abandoned": None, "dwell": 1200, "rating": 5, "thumb": 1}
    assert ok(call(served, "DELETE", f"/feedback/{row}")) == {"interaction_id": row, "removed": 4}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "give exactly one of `thumb`, `edit`, `preferred_over`, `rating`, `comment`, `copied`, `dwell_ms`"),
        ({"thumb": 1, "rating": 5}, 400, "give exactly one of `thumb`"),
        ({"thumb": 0}, 400, "a thumb is 0, but must be 1 (good) or -1 (bad)"),
        ({"rating": 6}, 400, "a rating is 6, but must be a whole number from 1 (bad) to 5 (good)"),
        ({"rating": 0}, 400, "a rating is 0"),
        ({"rating": 2.5}, 400, "body.rating"),
        ({"edit": " \n"}, 400, "the corrected answer is empty"),
        ({"edit": "x" * (2**20 + 1)}, 400, "the corrected answer has 1048577 bytes, but at most 1048576 are allowed"),
        ({"comment": ""}, 400, "the comment is empty"),
        ({"comment": "x" * 16_385}, 400, "the comment has 16385 bytes, but at most 16384 are allowed"),
        ({"copied": False}, 400, "body.copied"),
        ({"abandoned": False}, 400, "body.abandoned"),
        ({"dwell_ms": -1}, 400, "body.dwell_ms"),
        ({"dwell_ms": 86_400_001}, 400, "body.dwell_ms"),
        ({"thumb": 1, "stars": 3}, 400, "body.stars"),
        ({"thumb": 1, "interaction_id": "i_no"}, 404, "interaction 'i_no' is not known"),
        ({"preferred_over": "i_no"}, 404, "interaction 'i_no' is not known"),
        ({"preferred_over": "last"}, 400, "cannot be preferred to itself"),
    ],
)
def test_feedback_that_is_refused(served: Scripted, body: Json, status: int, message: str) -> None:
    row = ask(served, "Judge this")
    found = refused(call(served, "POST", "/feedback", **body))
    assert found[0] == status
    assert message in found[1]
    assert kinds(served, row) == {}


def test_half_a_character_is_refused(served: Scripted) -> None:
    row = ask(served, "Judge this")
    for body in (b'{"comment": "\\ud800"}', b'{"edit": "\\ud800"}', b'{"thumb": 1, "source": "\\ud800"}'):
        assert refused(served.client.post("/edgepd/v1/feedback", content=body))[0] == 400
    assert kinds(served, row) == {}


def test_an_answer_that_goes_on_cannot_be_judged_yet(served: Scripted) -> None:
    more = threading.Event()
    served.engine.enqueue(["Well", more, "."])
    body = question("Slowly, please") | {"stream": True}
    with served.client.stream("POST", "/v1/chat/completions", json=body):
        row = wait_for(lambda: next((r.id for r in served.rows() if r.state == "streaming"), None))
        status, message = refused(call(served, "POST", "/feedback", interaction_id=row, thumb=1))
        more.set()
    assert (status, message.startswith(f"interaction '{row}' is still streaming")) == (409, True)


def test_undoing_what_is_not_known(served: Scripted) -> None:
    row = ask(served, "Judge this")
    assert refused(call(served, "DELETE", "/feedback/i_no"))[0] == 404
    status, message = refused(call(served, "DELETE", f"/feedback/{row}", params={"kind": "stars"}))
    assert (status, message.startswith("feedback kind 'stars' is not known; use one of thumb,")) == (400, True)


def test_a_question_asked_again_counts_as_implicit_feedback_until_one_answer_is_preferred(served: Scripted) -> None:
    first = ask(served, "Name a harbour", conversation="again", answer="Kiel.")
    second = ask(served, "Name a harbour", conversation="again", answer="Brest.")
    assert (kinds(served, first), kinds(served, second)) == ({"regenerated": "same messages"}, {})
    post(served, "/feedback", interaction_id=second, preferred_over=first)
    assert (kinds(served, first), kinds(served, second)) == ({}, {"preferred": first})
    status, message = refused(
        call(served, "POST", "/feedback", interaction_id=second, preferred_over=ask(served, "Another question"))
    )
    assert (status, "answer different messages" in message) == (400, True)


def test_a_follow_up_that_asks_for_another_form_counts_and_can_be_undone(served: Scripted) -> None:
    first = ask(served, ANSWERED[:1], conversation="form")
    second = ask(served, [*ANSWERED, {"role": "user", "content": "shorter, please"}], conversation="form")
    assert (kinds(served, first), kinds(served, second)) == ({"corrected": "shorter"}, {})
    assert ok(call(served, "DELETE", f"/feedback/{first}", params={"kind": "corrected"}))["removed"] == 1
    third = ask(served, "And how is the weather?", conversation="form")
    assert (kinds(served, second), kinds(served, third)) == ({}, {})


def test_the_rules_can_be_read(served: Scripted) -> None:
    rules = get(served, "/feedback/rules")["rules"]
    assert {frozenset(rule) for rule in rules} == {frozenset({"name", "pattern", "example"})}
    assert {"shorter", "longer", "wrong", "again", "language:de"} <= {rule["name"] for rule in rules}
    assert all(re.compile(rule["pattern"], re.VERBOSE) and rule["example"] for rule in rules)


def test_channels_are_reported() -> None:
    with profiled() as served:
        for n in range(4):
            put(served, f"i_{n}", f"Question {n}", ago=DAY + n)
        post(served, "/feedback", interaction_id="i_0", rating=5)
        post(served, "/feedback", interaction_id="i_1", thumb=-1)
        post(served, "/feedback", interaction_id="i_1", copied=True)
        found = get(served, "/feedback/channels")
        assert found["days"] == 30
        assert {c["channel"]: c for c in found["channels"]} == {
            "active": reported("active", 4, 2, 3.0),
            "passive": reported("passive", 4, 1, 4.2),
            "survey": reported("survey", 0, 0, None),
            "implicit": reported("implicit", 3, 0, None),
            "suggestion": reported("suggestion", 0, 0, None),
        }
        found = get(served, "/feedback/channels", days=0.5)
        assert (found["days"], [c["opportunities"] for c in found["channels"]]) == (0.5, [0, 0, 0, 0, 0])
        for days in ("0", "-1", "36501", "nan", "x"):
            status, message = refused(call(served, "GET", "/feedback/channels", params={"days": days}))
            assert (status, message.startswith("query.days")) == (400, True)


def reported(channel: str, opportunities: int, given: int, satisfaction: float | None) -> Json:
    share = given / opportunities if opportunities else 0.0
    score = None if satisfaction is None else pytest.approx(satisfaction)
    counted = {"opportunities": opportunities, "given": given}
    return {"channel": channel, **counted, "engagement": share, "satisfaction": score}


def test_no_survey_unless_they_are_wanted(served: Scripted) -> None:
    for n in range(surveys.MIN_EXCHANGES):
        put(served, f"i_unasked{n}", "Anything")
    assert get(served, "/surveys/next") == {"survey": None}


def test_one_survey_a_day_after_enough_answers(surveyed: Scripted) -> None:
    for n in range(4):
        put(surveyed, f"i_{n}", "Anything", "mail", ago=60)
    assert get(surveyed, "/surveys/next") == {"survey": None}
    put(surveyed, "i_4", "Anything", "mail", ago=60)
    pending = get(surveyed, "/surveys/next", app="mail")["survey"]
    assert pending == {"id": pending["id"], "question": surveys.QUESTIONS[0]}
    assert get(surveyed, "/surveys/next", app="mail")["survey"] == pending  # the same until it is answered
    assert get(surveyed, "/surveys/next")["survey"] == pending  # the owner may answer it as well
    path = f"/surveys/{pending['id']}"
    answered = post(surveyed, path, value=4, text="Quite", app="mail")["survey"]
    assert {k: answered[k] for k in ("app", "outcome", "value", "text")} == {
        "app": "mail", "outcome": "answered", "value": 4, "text": "Quite",
    }  # fmt: skip
    assert post(surveyed, path, value=4, text="Quite")["survey"] == answered
    assert kinds(surveyed, "i_4") == {"survey": pending["id"]}
    assert get(surveyed, "/surveys/next", app="mail") == {"survey": None}  # one a day
    skipped = post(surveyed, path, skipped=True)["survey"]
    assert (skipped["outcome"], skipped["value"], kinds(surveyed, "i_4")) == ("skipped", None, {})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "give `value` (1 to 5) or `text`, or `skipped`: true alone"),
        ({"value": 3, "skipped": True}, "give `value` (1 to 5) or `text`"),
        ({"value": 6}, "body.value"),
        ({"text": "x" * 10_001}, "body.text"),
        ({"text": "  "}, "the answer to a survey has neither a number nor words"),
        ({"stars": 1}, "body.stars"),
    ],
)
def test_answers_to_a_survey_that_are_refused(surveyed: Scripted, body: Json, message: str) -> None:
    for n in range(5):
        put(surveyed, f"i_{n}", "Anything", ago=60)
    pending = get(surveyed, "/surveys/next")["survey"]
    found = refused(call(surveyed, "POST", f"/surveys/{pending['id']}", **body))
    assert (found[0], message in found[1]) == (400, True)
    assert get(surveyed, "/surveys/next")["survey"] == pending


def test_a_survey_that_is_not_known_or_has_expired(surveyed: Scripted) -> None:
    status, message = refused(call(surveyed, "POST", "/surveys/s_no", value=3))
    assert (status, message.startswith("survey 's_no' is not known")) == (404, True)
    surveyed.store.write(
        lambda c: c.execute(
            "INSERT INTO surveys (id, app, question, asked_at, outcome) VALUES ('s_1', '', '?', 1, 'expired')"
        )
    ).result()
    assert refused(call(surveyed, "POST", "/surveys/s_1", value=3))[0] == 409


def test_the_most_useful_answer_is_asked_about() -> None:
    with profiled(settings=Settings(profile=Profile(questions_per_day=2))) as served:
        assert get(served, "/questions/next") == {"question": None}
        for n in range(4):
            put(served, f"i_{n}", f"Question about {'abcd'[n]}", ago=60)
        get(served, "/profile/selection")  # fills the pool
        first = get(served, "/questions/next")["question"]
        assert set(first) == {"interaction", "prompt", "response", "reason", "left_today"}
        assert (first["prompt"][:14], first["response"], first["left_today"]) == ("Question about", "Fine.", 1)
        assert get(served, "/questions/next")["question"] == first  # until it is settled
        path = f"/questions/{first['interaction']}"
        answered = post(served, path, outcome="accepted", edit=None)
        assert answered["interaction_id"] == first["interaction"]
        assert [(f["kind"], f["value"], f["source"]) for f in answered["feedback"]] == [("thumb", 1, "review")]
        second = get(served, "/questions/next")["question"]
        assert (second["interaction"] != first["interaction"], second["left_today"]) == (True, 0)
        corrected = post(served, f"/questions/{second['interaction']}", edit="Better.")["feedback"]
        assert [(f["kind"], f["text"], f["source"]) for f in corrected] == [("edit", "Better.", "review")]
        assert get(served, "/questions/next") == {"question": None}  # two a day
        skipped = post(served, path, outcome="bad")["feedback"]  # changed one's mind
        assert [(f["kind"], f["value"]) for f in skipped] == [("thumb", -1)]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/questions/i_0", {}, 400, "give either `outcome` (accepted, bad or skipped) or `edit`"),
        ("/questions/i_0", {"outcome": "bad", "edit": "x"}, 400, "give either `outcome`"),
        ("/questions/i_0", {"outcome": "corrected"}, 400, "body.outcome"),
        ("/questions/i_0", {"edit": " "}, 400, "the corrected answer is empty"),
        ("/questions/i_1", {"outcome": "bad"}, 404, "nothing was asked about interaction 'i_1'"),
        ("/questions/i_no", {"outcome": "bad"}, 404, "interaction 'i_no' is not known"),
    ],
)
def test_answers_to_a_question_that_are_refused(path: str, body: Json, status: int, message: str) -> None:
    with profiled() as served, closing(served.client):
        put(served, "i_0", "Anything", ago=60)
        get(served, "/profile/selection")
        assert get(served, "/questions/next")["question"]["interaction"] == "i_0"
        put(served, "i_1", "Anything else")
        found = refused(call(served, "POST", path, **body))
        assert (found[0], message in found[1]) == (status, True)
        # Nothing of it was kept: the question is still open.
        assert get(served, "/questions/next")["question"]["interaction"] == "i_0"
        assert kinds(served, "i_0") == {}
