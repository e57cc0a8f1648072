"""`edgepd chat`: the loop on a pipe and on a terminal, its commands, and Ctrl-C."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import HEALTH, INTERACTION, FakeDaemon, Reply, chunk, error, stream

CHAT = "POST /v1/chat/completions"
PATH = "/v1/chat/completions"
FEEDBACK = "/edgepd/v1/feedback"

Type = Callable[..., list[str]]  # the prompts that were shown, as they come


@pytest.fixture
def model(daemon: FakeDaemon) -> FakeDaemon:
    """A daemon whose answers are One, Two, Three, Three, ..."""
    daemon.on(CHAT, stream("O", "ne"), stream("Two"), stream("Three"))
    daemon.on(f"POST {FEEDBACK}", {"interaction_id": "i7", "feedback": []})
    return daemon


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Type:
    """Pretend that a terminal is there and these lines are typed. An exception among them is raised."""

    prompts: list[str] = []

    def type_lines(*lines: str | type[BaseException]) -> list[str]:
        left: Iterator[str | type[BaseException]] = iter(lines)

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


def test_lines_from_a_pipe_are_one_conversation(model: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("chat", stdin="first\n\n  second  \n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "One\nTwo\n", "")
    assert contents(model) == [["first"], ["first", "One", "second"]]
    bodies = model.asked(PATH)
    assert [m["role"] for m in bodies[1]["messages"]] == ["user", "assistant", "user"]
    assert bodies[0]["conversation"] == bodies[1]["conversation"] != ""
    assert {(body["model"], body["app"], body["stream"]) for body in bodies} == {("default", "cli", True)}


def test_two_chats_are_two_conversations(model: FakeDaemon, edgepd: Edgepd) -> None:
    edgepd("chat", stdin="a\n")
    edgepd("chat", stdin="b\n")
    first, second = model.asked(PATH)
    assert first["conversation"] != second["conversation"]
    assert contents(model) == [["a"], ["b"]]


def test_options_are_sent(model: FakeDaemon, edgepd: Edgepd) -> None:
    options = ("--model", "tiny@2", "--system", "Be brief.", "--temperature", "0.5", "--max-tokens", "9")
    assert edgepd("chat", *options, stdin="hi").exit_code == 0
    body = model.asked(PATH)[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny@2", 0.5, 9)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_quit_leaves_the_rest_unread(model: FakeDaemon, edgepd: Edgepd) -> None:
    assert edgepd("chat", stdin="first\n/quit\nsecond\n").exit_code == 0
    assert contents(model) == [["first"]]


def test_good_and_bad(model: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("chat", stdin="first\n/good\n/bad\n")
    assert (result.exit_code, result.stderr) == (0, "thumb up\nthumb down\n")
    assert model.asked(FEEDBACK) == [
        {"interaction_id": "i7", "thumb": 1, "source": "cli"},
        {"interaction_id": "i7", "thumb": -1, "source": "cli"},
    ]


def test_fix_corrects_the_history_too(model: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("chat", stdin="first\n/fix Uno, dos.\nsecond\n")
    assert result.exit_code == 0
    assert model.asked(FEEDBACK) == [{"interaction_id": "i7", "edit": "Uno, dos.", "source": "cli"}]
    assert contents(model) == [["first"], ["first", "Uno, dos.", "second"]]


def test_fix_with_the_editor(model: FakeDaemon, edgepd: Edgepd, typed: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i s/One/Uno/")
    typed("first", "/fix")
    edgepd("chat")
    assert {"interaction_id": "i7", "edit": "Uno", "source": "cli"} in model.asked(FEEDBACK)


def test_fix_without_text_needs_a_terminal(model: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("chat", stdin="first\n/fix\n")
    assert result.exit_code == 2
    assert "write /fix and the corrected text on one line" in result.stderr
    assert model.asked(FEEDBACK) == []


def test_retry_replaces_the_last_answer(model: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("chat", stdin="first\nsecond\n/retry\nthird\n")
    assert result.stdout == "One\nTwo\nThree\nThree\n"
    assert contents(model)[2:] == [["first", "One", "second"], ["first", "One", "second", "Three", "third"]]


def test_base_is_shown_beside_and_changes_nothing(model: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("chat", "--system", "S", stdin="first\n/base\nthird\n")
    assert result.stdout == "One\n--- generation 3\nOne\n--- base\nTwo\nThree\n"
    assert contents(model) == [["S", "first"], ["S", "first"], ["S", "first", "One", "third"]]
    compared = model.asked(PATH)[1]
    assert (compared["model"], compared["store"], compared["personal"]) == ("base", False, False)


def test_stats(model: FakeDaemon, edgepd: Edgepd) -> None:
    lines = edgepd("chat", stdin="first\n/stats\n").stderr.splitlines()
    found = {line.split()[0]: line.split()[1] for line in lines}
    assert found["interaction"] == "i7"
    assert (found["generation"], found["turns"], found["model"]) == ("3", "1", "tiny@3")
    assert (found["prompt_tokens"], found["tokens_per_second"]) == ("12", "98.8")


def test_help_names_every_command(model: FakeDaemon, edgepd: Edgepd) -> None:
    shown = edgepd("chat", stdin="/help\n").stderr
    for command in ("/good", "/bad", "/rate", "/comment", "/fix", "/copy", "/retry", "/base", "/remember"):
        assert command in shown
    for command in ("/suggest", "/forget", "/incognito", "/stats", "/help", "/quit"):
        assert command in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nope", "unknown command /nope"),
        ("/good", "there is no answer yet"),
        ("/fix x", "there is no answer yet"),
        ("/retry", "there is no answer yet"),
        ("/base", "there is no answer yet"),
        ("/stats", "there is no answer yet"),
        ("/copy", "there is no answer yet"),
        ("/rate 5", "there is no answer yet"),
        ("/comment x", "there is no answer yet"),
        ("/forget", "there is no answer yet"),
        ("/remember", "write /remember and what is to be remembered"),
    ],
)
def test_command_that_makes_no_sense(model: FakeDaemon, edgepd: Edgepd, typed: Type, line: str, message: str) -> None:
    piped = edgepd("chat", stdin=f"{line}\nhi\n")
    assert piped.exit_code == 2  # as a script would
    assert piped.stderr.startswith(f"Error: {message}")
    assert contents(model) == []
    typed(line, "hi")
    result = edgepd("chat")
    assert (result.exit_code, result.stdout) == (0, "One\n")  # a person goes on
    assert f"Error: {message}" in result.stderr


def test_message_that_begins_with_a_slash(model: FakeDaemon, edgepd: Edgepd) -> None:
    edgepd("chat", stdin=" /etc is what?\n")
    assert contents(model) == [["/etc is what?"]]


def test_answer_that_was_not_stored_cannot_be_judged(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(CHAT, stream("Hi", interaction_id=None, warnings=("not stored: disk full",)))
    result = edgepd("chat", stdin="a\n/good\n")
    assert result.exit_code == 2
    assert result.stderr == (
        "Warning: not stored: disk full\nError: the last answer was not stored, so it cannot be judged\n"
    )


def test_error_on_a_pipe_ends_with_its_code(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(CHAT, error(503, "busy", "the queue is full"))
    result = edgepd("chat", stdin="a\nb\n")
    assert (result.exit_code, result.stderr) == (6, "Error: the queue is full\n")
    assert contents(daemon) == [["a"]]


def test_error_on_a_terminal_keeps_the_history_and_can_be_retried(
    daemon: FakeDaemon, edgepd: Edgepd, typed: Type
) -> None:
    failed = Reply(events=[chunk("Tw"), {"error": {"message": "gone", "code": "busy"}}], done=False)
    daemon.on(CHAT, stream("One"), failed, failed, stream("Two"), stream("Three"))
    typed("first", "second", "/retry", "/retry", "third")
    result = edgepd("chat")
    assert result.exit_code == 0
    assert result.stdout == "One\nTw\nTw\nTwo\nThree\n"
    assert contents(daemon)[1:] == [
        *[["first", "One", "second"]] * 3,
        ["first", "One", "second", "Two", "third"],
    ]


def test_failed_retry_does_not_lose_the_answer(daemon: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    daemon.on(CHAT, stream("One"), error(503, "busy", "full"), stream("Two"))
    typed("first", "/retry", "second")
    edgepd("chat")
    assert contents(daemon) == [["first"], ["first"], ["first", "One", "second"]]


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Send SIGINT to the main thread, as a terminal does, a moment from now."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        time.sleep(0.1)  # until the client waits for the next chunk
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.2)  # until it has hung up

    yield press
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_the_answer_only(
    daemon: FakeDaemon, edgepd: Edgepd, typed: Type, ctrl_c: Callable[[], None]
) -> None:
    endless = Reply(events=[chunk("Once upon")] + [chunk(" and on")] * 500, before_end=ctrl_c)
    daemon.on(CHAT, endless, stream("Two"))
    daemon.on(f"POST {FEEDBACK}", {"interaction_id": "i7", "feedback": []})
    typed("first", "/good", "second")
    result = edgepd("chat")
    assert (result.exit_code, result.stdout) == (0, "Once upon\nTwo\n")
    assert daemon.hung_up.wait(5)
    # What was seen is part of the conversation, and can be judged.
    assert contents(daemon) == [["first"], ["first", "Once upon", "second"]]
    assert "(stopped)" in result.stderr
    assert "thumb up" in result.stderr


def test_ctrl_c_before_the_first_word_leaves_no_turn(
    daemon: FakeDaemon, edgepd: Edgepd, typed: Type, ctrl_c: Callable[[], None]
) -> None:
    daemon.on(CHAT, Reply(events=[chunk("")] * 500, before_end=ctrl_c), stream("Two"), stream("Three"))
    typed("first", "/retry", "second")
    assert edgepd("chat").exit_code == 0
    assert contents(daemon) == [["first"], ["first"], ["first", "Two", "second"]]


def test_ctrl_c_in_ask_ends_the_line_and_gives_130(
    daemon: FakeDaemon, edgepd: Edgepd, ctrl_c: Callable[[], None]
) -> None:
    daemon.on(CHAT, Reply(events=[chunk("Once upon")] + [chunk(" and on")] * 500, before_end=ctrl_c))
    result = edgepd("ask", "x")
    assert (result.exit_code, result.stdout) == (130, "Once upon\n")


def test_ctrl_c_and_ctrl_d_at_the_prompt(model: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    typed("first", KeyboardInterrupt, "second", EOFError, "third")
    result = edgepd("chat")
    assert (result.exit_code, result.stdout) == (0, "One\nTwo\n")
    assert result.stderr.startswith("tiny; /help lists the commands\n")


def test_going_on_with_a_conversation(model: FakeDaemon, edgepd: Edgepd) -> None:
    other = {**INTERACTION, "id": "i8", "conversation": "c2"}
    edit = {"kind": "edit", "text": "It is me.", "value": None}
    model.on("GET /edgepd/v1/interactions", {"interactions": [other, INTERACTION]})
    model.on("GET /edgepd/v1/interactions/i7", {**INTERACTION, "feedback": [edit]})
    result = edgepd("chat", "--conversation", "c1", stdin="/good\nMore\n")
    assert (result.exit_code, result.stderr) == (0, "2 turns so far\nthumb up\n")
    assert contents(model) == [["Be brief.", "Hi", "Hello", "Who?", "It is me.", "More"]]
    assert model.asked(PATH)[0]["conversation"] == "c1"


def test_json_is_one_object_per_line(model: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("chat", "--json", stdin="first\n/good\n/base\n/nope\n")
    answered, judged, compared = map(json.loads, result.stdout.splitlines())
    assert (answered["event"], answered["answer"], answered["interaction_id"]) == ("answer", "One", "i7")
    assert (answered["stopped"], answered["finish_reason"], answered["generation"]) == (False, "stop", 3)
    assert judged == {"event": "notice", "text": "thumb up"}
    assert compared == {"event": "comparison", "current": "One", "base": "Two"}
    assert result.exit_code == 2
    assert json.loads(result.stderr)["error"]["code"] == "invalid_request"


def test_errors_on_a_terminal_are_json_too(daemon: FakeDaemon, edgepd: Edgepd, typed: Type) -> None:
    daemon.on(CHAT, error(503, "busy", "full"))
    typed("first")
    last = json.loads(edgepd("chat", "--json").stdout.splitlines()[-1])
    assert (last["event"], last["error"]["code"]) == ("error", "busy")


@pytest.mark.parametrize(
    ("status", "message"), [("failed", "engine has failed and its log says why"), ("draining", "daemon is stopping")]
)
def test_daemon_that_serves_no_more_says_so_before_the_first_question(
    model: FakeDaemon, edgepd: Edgepd, status: str, message: str
) -> None:
    model.on("GET /healthz", Reply({**HEALTH, "status": status, "pid": 4711}, 503))
    result = edgepd("chat", stdin="hello\n")
    assert (result.exit_code, result.stdout, model.asked(PATH)) == (6, "", [])
    assert message in result.stderr


def test_unloaded_model_is_loaded_by_the_first_question(model: FakeDaemon, edgepd: Edgepd) -> None:
    model.on("GET /healthz", {**HEALTH, "status": "unloaded", "pid": 4711})
    assert edgepd("chat", stdin="hello\n").stdout == "One\n"


@pytest.mark.parametrize("roles", [("user", "assistant", "tool"), ("user", "assistant"), ()])
def test_conversation_of_another_program_with_more_than_questions_and_answers(
    model: FakeDaemon, edgepd: Edgepd, roles: tuple[str, ...]
) -> None:
    made = {**INTERACTION, "messages": [{"role": role, "content": "x"} for role in roles], "feedback": []}
    model.on("GET /edgepd/v1/interactions", {"interactions": [made]})
    model.on("GET /edgepd/v1/interactions/i7", made)
    result = edgepd("chat", "--conversation", "c1", stdin="hello\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is not just questions and answers" in result.stderr
