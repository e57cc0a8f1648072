"""`edgepd good`, `bad`, `rate`, `comment`, `fix`, `prefer`, `report` and `undo`."""

from __future__ import annotations

import json

import pytest

from edgepd.cli.feedback import KINDS
from edgepd_profiles import feedback_kinds
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import INTERACTION, STATUS, FakeDaemon, error

FEEDBACK = "POST /edgepd/v1/feedback"
PATH = "/edgepd/v1/feedback"


@pytest.fixture
def judged(daemon: FakeDaemon) -> FakeDaemon:
    daemon.on(FEEDBACK, {"interaction_id": "i7", "feedback": [{"kind": "thumb", "value": 1}]})
    daemon.on("GET /edgepd/v1/interactions/last", INTERACTION)
    return daemon


def test_good_means_the_last_answer(judged: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("good")
    assert (result.exit_code, result.stdout) == (0, "thumb up for i7\n")
    assert judged.asked(PATH) == [{"interaction_id": "last", "thumb": 1, "source": "cli"}]


def test_bad_with_an_id(judged: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("bad", "i7")
    assert (result.exit_code, result.stdout) == (0, "thumb down for i7\n")
    assert judged.asked(PATH) == [{"interaction_id": "i7", "thumb": -1, "source": "cli"}]


def test_json(judged: FakeDaemon, edgepd: Edgepd) -> None:
    assert json.loads(edgepd("good", "--json").stdout) == {
        "interaction_id": "i7",
        "feedback": [{"kind": "thumb", "value": 1}],
    }


def test_unknown_id(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(FEEDBACK, error(404, "not_found", "no interaction 'zz'"))
    result = edgepd("bad", "zz")
    assert (result.exit_code, result.stderr) == (4, "Error: no interaction 'zz'\n")


@pytest.mark.parametrize(("args", "stdin"), [(("--text", " Yes, sir. "), "not this"), ((), "Yes, sir.\n")])
def test_fix_from_option_or_pipe(judged: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], stdin: str) -> None:
    result = edgepd("fix", *args, stdin=stdin)
    assert (result.exit_code, result.stdout) == (0, "correction kept for i7\n")
    assert judged.asked(PATH) == [{"interaction_id": "last", "edit": "Yes, sir.", "source": "cli"}]


@pytest.mark.parametrize("args", [(), ("--text", "")])
def test_empty_fix_is_refused(judged: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...]) -> None:
    result = edgepd("fix", *args, stdin="")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: the corrected text is empty")
    assert judged.requests == []


def test_fix_opens_the_editor_on_the_answer(
    judged: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepd.cli.feedback.stdin_is_terminal", lambda: True)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i s/Me/You/")
    result = edgepd("fix")
    assert (result.exit_code, result.stdout) == (0, "correction kept for i7\n")
    # The id, not "last": another answer may have come while the editor was open.
    assert judged.asked(PATH) == [{"interaction_id": "i7", "edit": "You.", "source": "cli"}]


def test_closing_the_editor_without_a_change_keeps_nothing(
    judged: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepd.cli.feedback.stdin_is_terminal", lambda: True)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "true")
    result = edgepd("fix")
    assert (result.exit_code, judged.asked(PATH)) == (2, [])
    assert result.stderr == "Error: the answer was not changed, so no correction was kept\n"


@pytest.mark.parametrize(
    ("args", "query", "removed", "text"),
    [
        ((), "", 2, "feedback on i7: 2 taken back\n"),
        (("i7", "--kind", "edit"), "kind=edit", 1, "feedback on i7: 1 taken back\n"),
        (("i7", "--kind", "preferred"), "kind=preferred", 1, "feedback on i7: 1 taken back\n"),
        (("--kind", "corrected"), "kind=corrected", 1, "feedback on i7: 1 taken back\n"),
        (("i7",), "", 0, "feedback on i7: there was none\n"),
    ],
)
def test_undo(judged: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], query: str, removed: int, text: str) -> None:
    judged.on("DELETE /edgepd/v1/feedback/i7", {"interaction_id": "i7", "removed": removed})
    result = edgepd("undo", *args)
    assert (result.exit_code, result.stdout) == (0, text)
    last = judged.requests[-1]
    assert (last.method, last.path, last.query) == ("DELETE", "/edgepd/v1/feedback/i7", query)


def test_prefer(judged: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("prefer", "i7", "i6")
    assert (result.exit_code, result.stdout) == (0, "i7 is preferred over i6\n")
    assert judged.asked(PATH) == [{"interaction_id": "i7", "preferred_over": "i6", "source": "cli"}]


def test_an_answer_is_not_better_than_itself(judged: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("prefer", "i7", "i7")
    assert (result.exit_code, judged.requests) == (2, [])
    assert result.stderr == "Error: answer 'i7' cannot be better than itself; give the IDs of two answers\n"


@pytest.mark.parametrize(
    ("args", "given", "text"),
    [
        (("rate", "4"), {"interaction_id": "last", "rating": 4}, "rated 4 of 5: i7\n"),
        (("rate", "1", "i7"), {"interaction_id": "i7", "rating": 1}, "rated 1 of 5: i7\n"),
        (("comment", " too long "), {"interaction_id": "last", "comment": "too long"}, "comment kept for i7\n"),
        (("comment", "x", "i7"), {"interaction_id": "i7", "comment": "x"}, "comment kept for i7\n"),
        (("report", "copied"), {"interaction_id": "last", "copied": True}, "copied kept for i7\n"),
        (("report", "abandoned", "i7"), {"interaction_id": "i7", "abandoned": True}, "abandoned kept for i7\n"),
        (
            ("report", "dwell", "i7", "--ms", "4200"),
            {"interaction_id": "i7", "dwell_ms": 4200},
            "dwell of 4200 ms kept for i7\n",
        ),
        (("report", "dwell", "--ms", "0"), {"interaction_id": "last", "dwell_ms": 0}, "dwell of 0 ms kept for i7\n"),
    ],
)
def test_other_kinds(
    judged: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], given: dict[str, object], text: str
) -> None:
    result = edgepd(*args)
    assert (result.exit_code, result.stdout) == (0, text)
    assert judged.asked(PATH) == [given | {"source": "cli"}]
    answered = {"interaction_id": "i7", "feedback": [{"kind": "thumb", "value": 1}]}
    assert json.loads(edgepd(*args, "--json").stdout) == answered


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("rate", "0"), "0 is not in the range 1<=x<=5"),
        (("rate", "6"), "6 is not in the range 1<=x<=5"),
        (("rate", "good"), "'good' is not a valid integer"),
        (("comment", " "), "the comment is empty"),
        (("report", "dwell"), "edgepd report dwell needs --ms"),
        (("report", "copied", "--ms", "5"), "edgepd report copied takes no --ms"),
        (("report", "dwell", "--ms", "-1"), "-1 is not in the range"),
        (("undo", "--kind", "liked"), "'liked' is not one of 'thumb', 'rating'"),
    ],
)
def test_feedback_that_makes_no_sense_is_not_sent(
    judged: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], message: str
) -> None:
    result = edgepd(*args)
    assert (result.exit_code, judged.requests) == (2, [])
    assert message in result.stderr


def test_every_kind_that_can_be_stored_can_be_taken_back() -> None:
    assert set(KINDS) == set(feedback_kinds.KINDS)


def test_status_counts_what_was_said_and_observed(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    more = {"rating": 2, "comment": 0, "preferred": 1, "dwell": 30, "abandoned": 1, "regenerated": 0}
    daemon.on("GET /edgepd/v1/status", STATUS | {"profile": STATUS["profile"] | more})
    lines = edgepd("status").stdout.splitlines()
    said = "3 thumbs up, 1 down, 12 corrections, 2 ratings, 1 preferences; 13 examples to learn from"
    assert f"feedback      {said}" in lines
    assert "observed      30 looked at, 1 abandoned" in lines
    daemon.on("GET /edgepd/v1/status", STATUS)
    assert "observed" not in edgepd("status").stdout
