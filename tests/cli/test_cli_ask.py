"""`edgepd ask`: from arguments and pipes, streamed and as JSON."""

from __future__ import annotations

import json

import pytest

from edgepd.cli.output import printable
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import FakeDaemon, Reply, answer, chunk, error, stream

CHAT = "POST /v1/chat/completions"
PATH = "/v1/chat/completions"


def test_answer_goes_to_stdout_with_one_newline(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(CHAT, stream("Hel", "lo"))
    result = edgepd("ask", "Say", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n", "")
    assert daemon.asked(PATH) == [
        {"model": "default", "messages": [{"role": "user", "content": "Say hi"}], "app": "cli", "stream": True}
    ]


def test_answer_that_ends_its_line_gets_no_second_newline(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(CHAT, stream("Hello", "\n"))
    assert edgepd("ask", "x").stdout == "Hello\n"


def test_options_are_sent(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(CHAT, stream("x"))
    options = ("--model", "base", "--system", "Be brief.", "--max-tokens", "5", "--temperature", "0", "--seed", "7")
    assert edgepd("ask", *options, "--no-store", "Hi").exit_code == 0
    assert daemon.asked(PATH) == [
        {
            "model": "base",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            "app": "cli",
            "max_tokens": 5,
            "temperature": 0.0,
            "seed": 7,
            "store": False,
            "stream": True,
        }
    ]


@pytest.mark.parametrize(
    ("args", "stdin", "prompt"),
    [
        (("summarise",), "a long letter\n", "summarise\n\na long letter"),
        ((), "what is\n1+1?\n", "what is\n1+1?"),
        (("hi",), "", "hi"),
    ],
)
def test_pipe(daemon: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...], stdin: str, prompt: str) -> None:
    daemon.on(CHAT, stream("x"))
    assert edgepd("ask", *args, stdin=stdin).exit_code == 0
    assert daemon.asked(PATH)[0]["messages"] == [{"role": "user", "content": prompt}]


@pytest.mark.parametrize("args", [(), ("",), ("  ", "\t")])
def test_empty_prompt_is_refused_before_sending(daemon: FakeDaemon, edgepd: Edgepd, args: tuple[str, ...]) -> None:
    result = edgepd("ask", *args, stdin=" \n")
    assert result.exit_code == 2
    assert result.stderr == "Error: the prompt is empty; give it as an argument or through a pipe\n"
    assert daemon.requests == []


def test_pipe_that_is_not_text_is_refused(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    result = edgepd("ask", "x", stdin=b"abc\xff\xfe")
    assert (result.exit_code, result.stderr) == (2, "Error: standard input is not UTF-8 text: byte 3 is bad\n")
    assert daemon.requests == []


def test_json_prints_the_whole_answer(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(CHAT, answer("Grüße"))
    result = edgepd("ask", "--json", "Hi")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["choices"][0]["message"]["content"] == "Grüße"
    assert (found["interaction_id"], found["generation"]) == ("i7", 3)
    assert daemon.asked(PATH)[0]["stream"] is False


def test_warning_goes_to_stderr(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(CHAT, stream("Hi", warnings=("the exchange could not be stored: disk full",)))
    result = edgepd("ask", "x")
    assert (result.exit_code, result.stdout) == (0, "Hi\n")
    assert result.stderr == "Warning: the exchange could not be stored: disk full\n"


def test_too_long_prompt(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on(CHAT, error(400, "context_length_exceeded", "the prompt has 3000 tokens, the context 2048"))
    result = edgepd("ask", "x")
    assert (result.exit_code, result.stderr) == (2, "Error: the prompt has 3000 tokens, the context 2048\n")


def test_failure_in_the_middle_keeps_what_came_and_ends_the_line(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    failed = {"error": {"message": "the model is gone", "code": "model_unavailable"}}
    daemon.on(CHAT, Reply(events=[chunk("Hel"), failed], done=False))
    result = edgepd("ask", "x")
    assert (result.exit_code, result.stdout, result.stderr) == (5, "Hel\n", "Error: the model is gone\n")


def test_control_characters_reach_a_file_but_not_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printable("\x1b[2Ja\tb\n") == "\x1b[2Ja\tb\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert printable("\x1b[2Ja\tb\n\x9b") == "\ufffd[2Ja\tb\n\ufffd"
