"""`edgepd survey` and `edgepd review`: asking, answering from scripts, and leaving."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import FakeDaemon, Reply, error

NEXT_SURVEY = "GET /edgepd/v1/surveys/next"
SURVEY = "/edgepd/v1/surveys/s1"
NEXT = "GET /edgepd/v1/questions/next"
REVIEW = "/edgepd/v1/questions/"


@pytest.fixture
def asking(daemon: FakeDaemon) -> FakeDaemon:
    """A daemon with one survey question, whose answer it gives back as it came, and two answers to review."""

    def settled(asked: Any) -> Reply | None:
        if asked.method != "POST":
            return None
        if asked.path == SURVEY:
            return Reply({"survey": {"id": "s1", "question": "How was it?", **asked.body}})
        return Reply({"interaction_id": asked.path.removeprefix(REVIEW), "feedback": []})

    daemon.routes.append(settled)
    daemon.on(NEXT_SURVEY, {"survey": {"id": "s1", "question": "How was it?"}})
    first = {"interaction": "i1", "prompt": "Who?", "response": "Me.", "reason": "it is new", "left_today": 2}
    second = first | {"interaction": "i2", "prompt": "Why?", "response": "Because.", "left_today": 1}
    daemon.on(NEXT, {"question": first}, {"question": second}, {"question": None})
    return daemon


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepd.cli.survey.stdin_is_terminal", lambda: True)


@pytest.mark.parametrize(
    ("said", "body", "text"),
    [
        ("4", {"value": 4, "text": None, "skipped": False}, "thank you; your answer is kept\n"),
        ("Too wordy.", {"value": None, "text": "Too wordy.", "skipped": False}, "thank you; your answer is kept\n"),
        ("s", {"value": None, "text": None, "skipped": True}, "skipped\n"),
        ("S", {"value": None, "text": None, "skipped": True}, "skipped\n"),
    ],
)
def test_survey(
    asking: FakeDaemon, edgepd: Edgepd, terminal: None, said: str, body: dict[str, object], text: str
) -> None:
    result = edgepd("survey", stdin=f"{said}\n")
    assert (result.exit_code, result.stdout) == (0, text)
    assert result.stderr.startswith("How was it?\n")
    assert asking.asked(SURVEY) == [body]
    assert edgepd("survey", "--answer", said).stdout == text  # as a script does it
    assert asking.asked(SURVEY) == [body, body]


def test_enter_skips_the_survey(asking: FakeDaemon, edgepd: Edgepd, terminal: None) -> None:
    assert edgepd("survey", stdin="\n").stdout == "skipped\n"
    assert asking.asked(SURVEY) == [{"value": None, "text": None, "skipped": True}]


@pytest.mark.parametrize("said", ["0", "6", "-1", "10"])
def test_number_beside_the_scale_is_no_answer(asking: FakeDaemon, edgepd: Edgepd, said: str) -> None:
    result = edgepd("survey", f"--answer={said}")
    assert (result.exit_code, asking.asked(SURVEY)) == (2, [])
    assert result.stderr.startswith(f"Error: {said} is not on the scale")


def test_survey_with_json_asks_nothing(asking: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("survey", "--json")
    assert json.loads(result.stdout) == {"survey": {"id": "s1", "question": "How was it?"}}
    assert asking.asked(SURVEY) == []


def test_no_survey_today(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(NEXT_SURVEY, {"survey": None})
    result = edgepd("survey")
    assert (result.exit_code, result.stdout) == (
        0,
        "there is no question for you today; edgepd asks only if profile.surveys is set to true\n",
    )
    assert json.loads(edgepd("survey", "--json").stdout) == {"survey": None}
    assert edgepd("survey", "--answer", "5").exit_code == 4


@pytest.mark.parametrize("command", ["survey", "review"])
def test_nobody_to_ask(asking: FakeDaemon, edgepd: Edgepd, command: str) -> None:
    result = edgepd(command, stdin="y\n")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: there is no terminal to ask at; use --")
    assert [asked.method for asked in asking.requests] == ["GET"]


def test_ctrl_d_answers_no_survey(asking: FakeDaemon, edgepd: Edgepd, terminal: None) -> None:
    assert edgepd("survey", stdin="").exit_code == 130
    assert asking.asked(SURVEY) == []


def test_review_until_nothing_is_left(asking: FakeDaemon, edgepd: Edgepd, terminal: None) -> None:
    result = edgepd("review", stdin="y\nn\n")
    assert result.exit_code == 0
    assert result.stdout == (
        "--- you asked\nWho?\n--- the answer\nMe.\n--- asked because it is new; 2 left today\n"
        "--- you asked\nWhy?\n--- the answer\nBecause.\n--- asked because it is new; 1 left today\n"
    )
    assert asking.asked(f"{REVIEW}i1") == [{"outcome": "accepted"}]
    assert asking.asked(f"{REVIEW}i2") == [{"outcome": "bad"}]
    assert result.stderr.endswith("i2: bad\n2 settled, and nothing is left for today\n")


def test_leaving_a_review_keeps_what_was_settled(asking: FakeDaemon, edgepd: Edgepd, terminal: None) -> None:
    result = edgepd("review", stdin="s\nq\n")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (0, "1 settled")
    assert asking.asked(f"{REVIEW}i1") == [{"outcome": "skipped"}]
    assert asking.asked(f"{REVIEW}i2") == []


def test_review_with_the_editor(
    asking: FakeDaemon, edgepd: Edgepd, terminal: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i s/Me/You/")
    # The editor changes the first answer; the second it leaves as it is, so that is asked again.
    result = edgepd("review", stdin="e\ne\nq\n")
    assert asking.asked(f"{REVIEW}i1") == [{"edit": "You."}]
    assert asking.asked(f"{REVIEW}i2") == []
    assert "i1: correction kept\n" in result.stderr
    assert "Error: the answer was not changed, so no correction was kept\n" in result.stderr
    assert result.stdout.count("Why?") == 2


@pytest.mark.parametrize(
    ("args", "body", "text"),
    [
        (("--choose", "y"), {"outcome": "accepted"}, "i1: good\n"),
        (("--choose", "n"), {"outcome": "bad"}, "i1: bad\n"),
        (("--choose", "s"), {"outcome": "skipped"}, "i1: skipped\n"),
        (("--text", " You. "), {"edit": "You."}, "i1: correction kept\n"),
    ],
)
def test_review_from_a_script_settles_exactly_one(
    asking: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], body: dict[str, object], text: str
) -> None:
    result = edgepd("review", *args)
    assert (result.exit_code, result.stdout) == (0, text)
    assert [(asked.path, asked.body) for asked in asking.requests if asked.method == "POST"] == [(f"{REVIEW}i1", body)]


def test_review_from_a_script_that_makes_no_sense(asking: FakeDaemon, edgepd: Edgepd) -> None:
    assert edgepd("review", "--choose", "y", "--text", "x").exit_code == 2
    empty = edgepd("review", "--text", "  ")
    assert (empty.exit_code, empty.stderr.split(";")[0]) == (2, "Error: the corrected text is empty")
    assert [asked.method for asked in asking.requests if asked.method == "POST"] == []


def test_review_with_json_asks_nothing(asking: FakeDaemon, edgepd: Edgepd) -> None:
    assert json.loads(edgepd("review", "--json").stdout)["question"]["interaction"] == "i1"
    assert json.loads(edgepd("review", "--choose", "y", "--json").stdout)["interaction_id"] == "i2"


def test_nothing_to_review(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(NEXT, {"question": None})
    assert edgepd("review").stdout.startswith("there is nothing to review today")
    assert json.loads(edgepd("review", "--json").stdout) == {"question": None}
    assert edgepd("review", "--choose", "y").exit_code == 4


def test_error_of_the_daemon_ends_a_review_with_its_code(asking: FakeDaemon, edgepd: Edgepd, terminal: None) -> None:
    asking.routes.clear()
    asking.on("POST /edgepd/v1/questions/i1", error(409, "conflict", "it is still streaming"))
    result = edgepd("review", stdin="y\n")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (6, "Error: it is still streaming")
