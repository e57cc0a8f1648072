"""`edgepd chat`: its commands about the user, what it observes in passing, and incognito."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator

import pytest

from edgepd.cli import screen
from edgepd.cli.conversation import Turn
from edgepd.cli.observation import MAX_DWELL_MS, Observer
from edgepd.client import Client
from edgepd.errors import RequestError
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import FakeDaemon, Reply, chunk, error, stream

CHAT = "POST /v1/chat/completions"
PATH = "/v1/chat/completions"
FEEDBACK = "/edgepd/v1/feedback"
SURVEY = "GET /edgepd/v1/surveys/next"

Type = Callable[..., list[str]]
Json = dict[str, object]


@pytest.fixture
def model(daemon: FakeDaemon) -> FakeDaemon:
    """A daemon whose answers are One, Two, Three, Three, ..."""
    daemon.on(CHAT, stream("One"), stream("Two"), stream("Three"))
    daemon.on(f"POST {FEEDBACK}", {"interaction_id": "i7", "feedback": []})
    return daemon


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Type:
    """Pretend that a terminal is there and these lines are typed. Returns the prompts that will have been shown."""

    def type_lines(*lines: str | type[BaseException]) -> list[str]:
        left: Iterator[str | type[BaseException]] = iter(lines)
        prompts: list[str] = []

        def read(prompt: str) -> str:
            prompts.append(prompt)
            line = next(left, EOFError)
            if isinstance(line, str):
                return line
            raise line

        for module in ("repl", "chat"):
            monkeypatch.setattr(f"edgepd.cli.{module}.stdin_is_terminal", lambda: True)
        monkeypatch.setattr("builtins.input", read)
        return prompts

    return type_lines


def contents(daemon: FakeDaemon) -> list[list[str]]:
    """Return the texts of the messages of each request for an answer."""
    return [[message["content"] for message in body["messages"]] for body in daemon.asked(PATH)]


def given(daemon: FakeDaemon) -> list[Json]:
    """Return the feedback that was given, without how long answers were looked at."""
    return [body for body in daemon.asked(FEEDBACK) if "dwell_ms" not in body]


def test_rate_and_comment(model: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("chat", stdin="first\n/rate 4\n/comment Too  long.\n")
    assert (result.exit_code, result.stderr) == (0, "rated 4 of 5\ncomment kept\n")
    assert model.asked(FEEDBACK) == [
        {"interaction_id": "i7", "rating": 4, "source": "cli"},
        {"interaction_id": "i7", "comment": "Too  long.", "source": "cli"},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/rate", "/rate takes a number from 1 (bad) to 5 (good), not ''"),
        ("/rate 6", "/rate takes a number from 1 (bad) to 5 (good), not '6'"),
        ("/rate good", "/rate takes a number from 1 (bad) to 5 (good), not 'good'"),
        ("/comment", "write /comment and what you think of the answer on one line"),
        ("/copy", "there is no terminal here whose clipboard could be used"),
        ("/forget", "nobody can be asked whether the exchange is to go"),
    ],
)
def test_command_that_cannot_be_done(model: FakeDaemon, edgepd: Edgepd, line: str, message: str) -> None:
    result = edgepd("chat", stdin=f"first\n{line}\n")
    assert (result.exit_code, model.asked(FEEDBACK)) == (2, [])
    assert result.stderr.startswith(f"Error: {message}")


def test_copy(model: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    monkeypatch.setattr("edgepd.cli.repl_commands.copy_to_clipboard", copied.append)
    result = edgepd("chat", stdin="first\n/copy\n")
    assert (copied, result.stderr) == (["One"], "copied, if your terminal allows programs to\n")
    assert model.asked(FEEDBACK) == [{"interaction_id": "i7", "copied": True, "source": "cli"}]


def test_copy_survives_a_report_that_fails(model: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepd.cli.repl_commands.copy_to_clipboard", lambda text: None)
    model.on(f"POST {FEEDBACK}", error(500, "store", "disk full"))
    result = edgepd("chat", stdin="first\n/copy\nsecond\n")
    assert (result.exit_code, result.stdout) == (0, "One\nTwo\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_clipboard_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    screen.copy_to_clipboard("Grüße\n")
    start, end = "\x1b]52;c;", "\x07"
    assert terminal.getvalue().startswith(start)
    assert terminal.getvalue().endswith(end)
    assert base64.b64decode(terminal.getvalue()[len(start) : -len(end)]).decode() == "Grüße\n"
    with pytest.raises(RequestError, match="60000 characters, more than terminals copy"):
        screen.copy_to_clipboard("x" * 60_000)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    with pytest.raises(RequestError, match="no terminal"):
        screen.copy_to_clipboard("x")


def test_remember(model: FakeDaemon, edgepd: Edgepd) -> None:
    fact = {"id": 3, "app": "", "text": "I live in Bonn.", "at": 1000.0}
    model.on("POST /edgepd/v1/facts", {"fact": fact})
    result = edgepd("chat", stdin="/remember I live in Bonn.\n")
    assert (result.exit_code, result.stderr) == (0, "remembered as fact 3\n")
    assert model.asked("/edgepd/v1/facts") == [{"text": "I live in Bonn."}]  # for all apps, not only for this one


SUGGESTED = [
    {"id": "g1", "text": "What is new?", "reason": "you ask it every morning"},
    {"id": "g2", "text": "Shorter?", "reason": "you often ask it next"},
]


def test_suggestion_is_asked_by_its_number(model: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    model.on("GET /edgepd/v1/suggestions", {"suggestions": SUGGESTED})
    model.on("POST /edgepd/v1/suggestions/g2", {"suggestion": SUGGESTED[1]})
    typed("/suggest", "2", "2")
    result = edgepd("chat")
    assert "1  What is new?  (you ask it every morning)\n2  Shorter?  (you often ask it next)\n" in result.stderr
    # The second 2 comes after something else was asked, so it is just a 2.
    assert contents(model) == [["Shorter?"], ["Shorter?", "One", "2"]]
    assert model.asked("/edgepd/v1/suggestions/g2") == [{"outcome": "taken"}]
    asked = next(asked for asked in model.requests if asked.path == "/edgepd/v1/suggestions")
    assert asked.query == "limit=5&app=cli"


@pytest.mark.parametrize("line", ["0", "3", "two", "1.5", "²"])
def test_what_is_no_number_of_a_suggestion_is_a_question(model: FakeDaemon, edgepd: Edgepd, line: str) -> None:
    model.on("GET /edgepd/v1/suggestions", {"suggestions": SUGGESTED})
    edgepd("chat", stdin=f"/suggest\n{line}\n1\n")
    assert contents(model) == [[line], [line, "One", "1"]]


def test_suggestions_with_json_and_none_at_all(model: FakeDaemon, edgepd: Edgepd) -> None:
    model.on("GET /edgepd/v1/suggestions", {"suggestions": SUGGESTED}, {"suggestions": []})
    lines = edgepd("chat", "--json", stdin="/suggest\n/suggest\n").stdout.splitlines()
    assert json.loads(lines[0]) == {"event": "suggestions", "suggestions": SUGGESTED}
    assert json.loads(lines[1])["text"].startswith("there is nothing to suggest yet")


RECEIPT = {"id": "r1", "at": 1.0, "what": "1 id", "counts": {"interactions": 1}, "generations": [4], "active": 2}


def test_forget_takes_the_exchange_out_of_the_conversation(model: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    model.on("POST /edgepd/v1/forget", {"receipt": RECEIPT, "dry_run": False})
    typed("first", "second", "/forget", "third")
    result = edgepd("chat", stdin="y\n")
    assert model.asked("/edgepd/v1/forget") == [{"ids": ["i7"], "dry_run": False}]
    assert contents(model)[2] == ["first", "One", "third"]
    assert (
        "forgotten; receipt r1; retired, because they had learned from it: 4; generation 2 answers now" in result.stderr
    )


def test_forget_that_is_not_confirmed_or_fails_changes_nothing(model: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    model.on("POST /edgepd/v1/forget", error(500, "store", "disk full"))
    typed("first", "/forget", "/forget", "second")
    result = edgepd("chat", stdin="n\ny\n")
    assert len(model.asked("/edgepd/v1/forget")) == 1
    assert "it stays\n" in result.stderr
    assert "Error: disk full\n" in result.stderr
    assert contents(model)[1] == ["first", "One", "second"]


def test_leaving_the_question_whether_to_forget_does_not_end_the_chat(
    model: FakeDaemon, edgepd: Edgepd, typed: Type
) -> None:
    typed("first", "/forget", "second")
    result = edgepd("chat", stdin="")  # Ctrl-D instead of y or n
    assert (result.exit_code, contents(model)[1]) == (0, ["first", "One", "second"])


def test_incognito_leaves_no_trace(model: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    model.on(CHAT, stream("One"), stream("Two", interaction_id=None), stream("Three"))
    prompts = typed("first", "/incognito", "secret", "/incognito", "third")
    edgepd("chat")
    assert prompts == ["> ", "> ", "incognito> ", "incognito> ", "> ", "> "]
    # What was said before goes in, but what was said incognito does not come out.
    assert contents(model) == [["first"], ["first", "One", "secret"], ["first", "One", "third"]]
    assert [(body.get("store"), body.get("personal")) for body in model.asked(PATH)] == [
        (None, None),
        (False, False),
        (None, None),
    ]


def test_question_that_failed_incognito_is_not_asked_again_afterwards(
    model: FakeDaemon, edgepd: Edgepd, typed: Type
) -> None:
    model.on(CHAT, stream("One"), error(503, "busy", "full"), stream("Three"))
    typed("first", "/incognito", "secret", "/incognito", "/retry")
    edgepd("chat")
    assert contents(model) == [["first"], ["first", "One", "secret"], ["first"]]


@pytest.mark.parametrize("line", ["/remember I live in Bonn.", "/suggest"])
def test_incognito_uses_and_keeps_nothing(model: FakeDaemon, edgepd: Edgepd, line: str) -> None:
    result = edgepd("chat", "--incognito", stdin=f"{line}\n")
    assert (result.exit_code, [asked.path for asked in model.requests]) == (2, ["/healthz"])
    assert result.stderr.startswith("Error: an incognito chat ")


def test_incognito_from_the_start(model: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    model.on(CHAT, stream("One", interaction_id=None))
    prompts = typed("first", "/forget", "second")
    result = edgepd("chat", "--incognito", stdin="y\n")
    assert prompts[0] == "incognito> "
    assert [(body["store"], body["personal"]) for body in model.asked(PATH)] == [(False, False)] * 2
    assert contents(model) == [["first"], ["second"]]
    assert "it was not stored; it is out of the conversation\n" in result.stderr
    # Nothing else is asked or told, not even whether there is a survey question.
    assert {asked.path for asked in model.requests} == {"/healthz", PATH}


def test_exchange_whose_id_is_unknown_is_not_called_unstored(model: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    model.on(CHAT, stream("One", interaction_id=None))
    typed("first", "/forget", "second")
    result = edgepd("chat")
    assert "Error: it is not known under which ID this exchange was stored" in result.stderr
    assert contents(model)[1] == ["first", "One", "second"]


def test_ask_incognito(model: FakeDaemon, edgepd: Edgepd) -> None:
    edgepd("ask", "--incognito", "Hi")
    assert [(body["store"], body["personal"]) for body in model.asked(PATH)] == [(False, False)]


def test_lines_from_a_pipe_are_not_observed(model: FakeDaemon, edgepd: Edgepd) -> None:
    edgepd("chat", stdin="first\nsecond\n")
    assert model.asked(FEEDBACK) == []


def test_dwell_is_reported_with_the_next_line_and_at_the_end(model: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    typed("first", "", "/good", "second")
    edgepd("chat")
    paths = [(asked.path, sorted(asked.body)[0]) for asked in model.requests if asked.path in (PATH, FEEDBACK)]
    assert paths == [
        (PATH, "app"),
        (FEEDBACK, "dwell_ms"),  # once for the first answer, before what the line asks for; a blank line is no line
        (FEEDBACK, "interaction_id"),
        (PATH, "app"),
        (FEEDBACK, "dwell_ms"),
    ]


@pytest.mark.parametrize("code", ["store", "not_found", "conflict", "busy"])
def test_failed_report_is_not_seen(model: FakeDaemon, edgepd: Edgepd, typed: Type, code: str) -> None:
    model.on(f"POST {FEEDBACK}", error(500, code, "no"))
    typed("first", "second")
    result = edgepd("chat")
    assert (result.exit_code, result.stdout) == (0, "One\nTwo\n")
    assert result.stderr == "tiny; /help lists the commands\n\n"


def test_stopped_answer_is_reported_as_abandoned(model: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    def interrupted(self: object, text: str) -> None:
        raise KeyboardInterrupt

    model.on(CHAT, Reply(events=[chunk("Once")] * 3), stream("Two"))
    typed("first", "second")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgepd.cli.screen.TextScreen.piece", interrupted)
        edgepd("chat")
    assert given(model) == [{"interaction_id": "i7", "abandoned": True, "source": "cli"}] * 2


def test_observer(daemon: FakeDaemon) -> None:
    now = 100.0
    turn = Turn("Hi", "Hello", "i7")
    kept = {"interaction_id": "i7", "feedback": []}
    daemon.on(f"POST {FEEDBACK}", kept, kept, error(409, "conflict", "it is still streaming"), kept)
    with Client(daemon.socket) as client:
        observer = Observer(client, lambda: now)
        observer.went_on()  # nothing to tell
        observer.answered(turn, stopped=False)
        now += 4.25
        observer.went_on()
        now += 10
        observer.went_on()  # told already
        observer.answered(turn, stopped=False)
        now += 3600
        observer.went_on()
        observer.answered(Turn("Hi", "Hello"), stopped=False)  # not stored
        observer.went_on()
        observer.answered(turn, stopped=True)
        observer.went_on()  # too early: the daemon has not noticed yet
        observer.went_on()
        observer.went_on()
    assert [{k: v for k, v in body.items() if k in ("dwell_ms", "abandoned")} for body in daemon.asked(FEEDBACK)] == [
        {"dwell_ms": 4250},
        {"dwell_ms": MAX_DWELL_MS},
        {"abandoned": True},
        {"abandoned": True},
    ]


def test_survey_question_comes_after_a_chat_on_a_terminal(model: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    model.on(SURVEY, {"survey": {"id": "s1", "question": "How was it?"}})
    model.on("POST /edgepd/v1/surveys/s1", {"survey": {"id": "s1", "value": 5, "text": None}})
    typed("first")
    result = edgepd("chat", stdin="5\n")
    assert result.stderr.endswith("thank you; your answer is kept\n")
    assert model.asked("/edgepd/v1/surveys/s1") == [{"value": 5, "text": None, "skipped": False}]
    assert next(asked for asked in model.requests if asked.path.endswith("/next")).query == "app=cli"


@pytest.mark.parametrize("reply", [{"survey": None}, error(500, "store", "disk full")])
def test_chat_ends_quietly_without_a_survey(
    model: FakeDaemon, edgepd: Edgepd, typed: Type, reply: Json | Reply
) -> None:
    model.on(SURVEY, reply)
    typed("first")
    result = edgepd("chat", stdin="5\n")
    assert (result.exit_code, result.stderr) == (0, "tiny; /help lists the commands\n\n")


def test_leaving_the_survey_question_is_no_error(model: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    model.on(SURVEY, {"survey": {"id": "s1", "question": "How was it?"}})
    typed("first")
    assert edgepd("chat", stdin="").exit_code == 0
    assert model.asked("/edgepd/v1/surveys/s1") == []


def test_no_survey_with_json_or_from_a_pipe(model: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    edgepd("chat", stdin="first\n")
    typed("first")
    edgepd("chat", "--json")
    assert not any(asked.path.endswith("/surveys/next") for asked in model.requests)
