"""/api/chat as the real `ollama` package calls it, over the loopback port, and as others do over the socket."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import ollama
import pytest

from edgepd.errors import BusyError, ContextOverflowError, ModelError
from edgepd_daemon.api.durations import FOREVER
from edgepd_daemon.engine.types import Sampling
from tests.daemon.ollama_running import Ollama, serving
from tests.daemon.running import wait_for

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Look out of the window",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def served() -> Iterator[Ollama]:
    """A daemon and the client of a user."""
    with serving() as found:
        yield found


def lines(served: Ollama, body: dict[str, Any], path: str = "/api/chat") -> list[dict[str, Any]]:
    """POST over the Unix socket and return the objects of the stream."""
    response = served.daemon.client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


def test_a_whole_answer(served: Ollama) -> None:
    served.daemon.engine.enqueue("Grüße")
    answer = served.client.chat("default", messages=HELLO)
    assert (answer.message.role, answer.message.content, answer.message.tool_calls) == ("assistant", "Grüße", None)
    assert (answer.model, answer.done, answer.done_reason) == ("default", True, "stop")
    assert answer.eval_count == 5
    assert answer.prompt_eval_count == len(served.daemon.engine.requests[0].prompt)


def test_times_are_nanoseconds_that_add_up(served: Ollama) -> None:
    served.daemon.engine.enqueue("slow", pace=0.02)
    answer = served.client.chat("default", messages=HELLO)
    parts = (answer.load_duration, answer.prompt_eval_duration, answer.eval_duration)
    assert all(isinstance(part, int) and part > 0 for part in parts)
    assert answer.eval_duration is not None
    assert answer.eval_duration > 20_000_000
    assert answer.total_duration is not None
    assert sum(part or 0 for part in parts) <= answer.total_duration < 60 * 10**9


def test_the_time_of_creation_is_rfc_3339(served: Ollama) -> None:
    answer = served.client.chat("default", messages=HELLO)
    assert answer.created_at is not None
    assert answer.created_at.endswith("Z")
    assert abs(datetime.now().timestamp() - datetime.fromisoformat(answer.created_at).timestamp()) < 3600


def test_a_stream_is_the_same_text_in_pieces(served: Ollama) -> None:
    served.daemon.engine.enqueue('a "b"\n😀', pace=0.005)
    parts = list(served.client.chat("default", messages=HELLO, stream=True))
    assert "".join(p.message.content or "" for p in parts) == 'a "b"\n😀'
    assert len(parts) > 3
    assert [p.done for p in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].message.content == ""
    assert parts[-1].done_reason == "stop"
    assert parts[-1].eval_count == 7


def test_what_line_readers_split_at_is_escaped(served: Ollama) -> None:
    """httpx, below the real client, splits lines at these characters too."""
    text = "a\u2028b\u2029c\x85d"
    served.daemon.engine.enqueue([text], [text])
    parts = served.client.chat("default", messages=HELLO, stream=True)
    assert "".join(p.message.content or "" for p in parts) == text
    parts = served.client.chat("default", messages=HELLO, stream=True, logprobs=True)
    assert "".join(p.message.content or "" for p in parts) == text


def test_streaming_is_the_default(served: Ollama) -> None:
    served.daemon.engine.enqueue("abc")
    found = lines(served, {"model": "default", "messages": HELLO})
    assert "".join(line["message"]["content"] for line in found) == "abc"
    assert found[-1]["done"] is True
    assert set(found[0]) == {"model", "created_at", "message", "done"}


def test_the_last_object_carries_what_feedback_needs(served: Ollama) -> None:
    last = lines(served, {"model": "default", "messages": HELLO})[-1]
    row = served.daemon.rows()[-1]
    assert last["interaction_id"] == row.id
    assert (last["generation"], last["warnings"]) == (2, [])
    assert (row.state, row.messages) == ("done", HELLO)


def test_nothing_is_stored_if_so_asked(served: Ollama) -> None:
    last = lines(served, {"model": "default", "messages": HELLO, "store": False})[-1]
    assert last["interaction_id"] is None
    assert served.daemon.rows() == []


def test_the_length_limit_is_a_reason(served: Ollama) -> None:
    served.daemon.engine.enqueue("abcdef")
    answer = served.client.chat("default", messages=HELLO, options={"num_predict": 3})
    assert (answer.message.content, answer.done_reason, answer.eval_count) == ("abc", "length", 3)


def test_options_reach_the_engine(served: Ollama) -> None:
    served.daemon.engine.enqueue("abcSTOPdef")
    options = ollama.Options(temperature=0.2, top_k=7, seed=3, stop=["STOP"], num_ctx=1024, num_thread=2, num_keep=4)
    answer = served.client.chat("default", messages=HELLO, options=options, keep_alive="10m")
    request = served.daemon.engine.requests[0]
    assert request.sampling == Sampling(temperature=0.2, top_k=7, seed=3)
    assert (request.stop, request.max_tokens, request.keep_alive, request.shift) == (("STOP",), 512, 600.0, True)
    assert answer.message.content == "abc"


def test_what_is_accepted_but_not_followed_is_said(served: Ollama) -> None:
    last = lines(served, {"model": "default", "messages": HELLO, "options": {"num_keep": 4}})[-1]
    assert last["warnings"] == ["`options.num_keep` is not followed: a full context always keeps the system message"]
    assert last["interaction_id"] is not None


@pytest.mark.parametrize(("keep_alive", "seconds"), [(None, None), (0, 0.0), (-1, FOREVER), ("1h30m", 5400.0)])
def test_keep_alive_reaches_the_engine(served: Ollama, keep_alive: float | str | None, seconds: float | None) -> None:
    served.client.chat("default", messages=HELLO, keep_alive=keep_alive)
    assert served.daemon.engine.requests[0].keep_alive == seconds


def test_a_full_context_shifts_unless_the_client_forbids_it(served: Ollama) -> None:
    for extra in ({}, {"shift": False}, {"truncate": False}):
        lines(served, {"model": "default", "messages": HELLO, **extra})
    assert [r.shift for r in served.daemon.engine.requests] == [True, False, False]


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("default", 2),
        ("default:latest", 2),
        ("tiny", 2),
        ("tiny:latest", 2),
        ("base", 1),
        ("tiny@1", 1),
        ("tiny@1:latest", 1),
    ],
)
def test_models_are_found_by_name_with_or_without_the_tag(served: Ollama, name: str, generation: int) -> None:
    answer = served.client.chat(name, messages=HELLO)
    assert answer.model == name
    assert served.daemon.engine.requests[0].version.generation == generation


@pytest.mark.parametrize("name", ["llama3.2", "tiny@9", "tiny:1b"])
@pytest.mark.parametrize("messages", [HELLO, []])
def test_an_unknown_model_is_404(served: Ollama, name: str, messages: list[Any]) -> None:
    with pytest.raises(ollama.ResponseError, match=f"model '{name}' not found") as error:
        served.client.chat(name, messages=messages)
    assert error.value.status_code == 404


def test_tools_are_called_with_arguments_that_are_objects(served: Ollama) -> None:
    served.daemon.engine.enqueue('Wait.<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>')
    answer = served.client.chat("default", messages=HELLO, tools=[WEATHER])
    assert answer.message.tool_calls is not None
    call = answer.message.tool_calls[0].function
    assert (call.name, call.arguments) == ("weather", {"city": "Zürich"})
    assert answer.message.content == "Wait."
    assert answer.done_reason == "stop"


def test_streamed_tool_calls_come_whole(served: Ollama) -> None:
    served.daemon.engine.enqueue('<tool_call>{"name": "weather", "arguments": {"city": "\\ud83d"}}</tool_call>')
    found = lines(served, {"model": "default", "messages": HELLO, "tools": [WEATHER]})
    calls = [call for line in found for call in line["message"].get("tool_calls", [])]
    assert [call["function"] for call in calls] == [{"index": 0, "name": "weather", "arguments": {"city": "\ud83d"}}]
    assert calls[0]["id"]
    assert found[-1]["done_reason"] == "stop"


def test_a_python_function_is_a_tool(served: Ollama) -> None:
    def weather(city: str) -> str:
        """
        Look out of the window.

        Args:
          city: where the window is
        """
        return city

    served.client.chat("default", messages=HELLO, tools=[weather])
    tool = served.daemon.engine.rendered[0][1]
    assert tool is not None
    assert tool[0]["function"]["name"] == "weather"
    assert tool[0]["function"]["parameters"]["required"] == ["city"]


def test_the_results_of_tools_are_read(served: Ollama) -> None:
    call = ollama.Message.ToolCall(
        function=ollama.Message.ToolCall.Function(name="weather", arguments={"city": "Bern"})
    )
    messages: list[Any] = [
        *HELLO,
        ollama.Message(role="assistant", tool_calls=[call]),
        ollama.Message(role="tool", content="sunny", tool_name="weather"),
    ]
    served.client.chat("default", messages=messages)
    rendered = served.daemon.engine.rendered[0][0]
    assert rendered[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Bern"}}
    assert rendered[2] == {"role": "tool", "content": "sunny", "tool_call_id": "call_0", "name": "weather"}


def test_log_probabilities(served: Ollama) -> None:
    served.daemon.engine.enqueue("ä")
    answer = served.client.chat("default", messages=HELLO, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None
    assert [(p.token, p.logprob) for p in answer.logprobs] == [("ä", -0.5)]
    assert [(p.token, p.logprob) for p in answer.logprobs[0].top_logprobs or []] == [("ä", -0.5), ("b", -1.5)]


def test_streamed_log_probabilities_come_with_their_text(served: Ollama) -> None:
    served.daemon.engine.enqueue("äb")
    found = lines(served, {"model": "default", "messages": HELLO, "logprobs": True})
    scored = [token for line in found for token in line.get("logprobs", [])]
    assert scored == [
        {"token": "ä", "logprob": -0.5, "bytes": [195, 164]},
        {"token": "b", "logprob": -0.5, "bytes": [98]},
    ]
    assert "logprobs" not in found[-1]


@pytest.mark.parametrize("form", ["json", {"type": "object", "properties": {"a": {"type": "integer"}}}])
def test_a_format_becomes_a_grammar(served: Ollama, form: Any) -> None:
    served.daemon.engine.enqueue("{}")
    served.client.chat("default", messages=HELLO, format=form)
    grammar = served.daemon.engine.requests[0].grammar
    assert grammar is not None
    assert re.search(r"^root\s*::=", grammar.gbnf, re.MULTILINE)


def test_a_bad_schema_is_refused(served: Ollama) -> None:
    served.refused(400, "/api/chat", {"messages": HELLO, "format": {"type": "no such type"}})
    assert served.daemon.engine.requests == []


def test_no_messages_load_the_model(served: Ollama) -> None:
    answer = served.client.chat("base", messages=[])
    assert (answer.message.content, answer.done, answer.done_reason) == ("", True, "load")
    assert [v.generation for v in served.daemon.engine.prepared] == [1]
    assert served.daemon.engine.requests == []


def test_no_messages_and_keep_alive_0_unload_it(served: Ollama) -> None:
    answer = served.client.chat("default", messages=[], keep_alive=0)
    assert answer.done_reason == "unload"
    assert served.daemon.engine.unloaded == [served.daemon.generations.base.path]
    assert served.daemon.engine.prepared == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"messages": HELLO, "think": True}, "`think` is not supported"),
        ({"messages": HELLO, "options": {"num_ctx": 9999}}, "set serve.context_tokens = 9999"),
        ({"messages": HELLO, "options": {"mirostat": 1}}, "`options.mirostat` is not supported"),
        ({"messages": HELLO, "options": {"temperature": 99}}, "temperature"),
        ({"messages": HELLO, "optoins": {}}, "does not understand `optoins`"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"messages": "hello"}, "messages"),
        ({"messages": HELLO, "keep_alive": "soon"}, "keep_alive"),
        ({"messages": [], "keep_alive": "soon"}, "keep_alive"),
        ({"messages": [], "options": {"num_ctx": 9999}}, "num_ctx"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools"),
        ({"messages": HELLO, "top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_a_bad_request_is_told_in_the_dialect(served: Ollama, body: dict[str, Any], problem: str) -> None:
    assert problem in served.refused(400, "/api/chat", {"model": "default", **body})
    assert served.daemon.engine.requests == []


def test_a_body_that_is_not_json_is_400(served: Ollama) -> None:
    response = served.daemon.client.post("/api/chat", content=b'{"model": ')
    assert response.status_code == 400
    assert isinstance(response.json()["error"], str)


def test_curl_calls_its_body_a_form_and_is_understood(served: Ollama) -> None:
    body = json.dumps({"model": "default", "messages": HELLO, "stream": False})
    for kind in ("application/x-www-form-urlencoded", "text/plain"):
        response = served.daemon.client.post("/api/chat", content=body, headers={"content-type": kind})
        assert response.json()["message"]["content"] == "OK."


def test_a_full_queue_is_503_before_the_stream_begins(served: Ollama) -> None:
    served.daemon.engine.refuse = BusyError("9 requests are waiting already; try again later")
    response = served.daemon.client.post("/api/chat", json={"messages": HELLO})
    assert response.status_code == 503
    assert response.json()["error"] == "9 requests are waiting already; try again later"
    assert int(response.headers["retry-after"]) > 0


def test_a_prompt_that_is_too_long_is_400(served: Ollama) -> None:
    served.daemon.engine.refuse = ContextOverflowError("the prompt has 3000 tokens")
    assert served.refused(400, "/api/chat", {"messages": HELLO}) == "the prompt has 3000 tokens"


def test_a_failure_before_the_first_token_has_its_status(served: Ollama) -> None:
    served.daemon.engine.enqueue([ModelError("the model broke")])
    assert served.refused(503, "/api/chat", {"messages": HELLO}) == "the model broke"


def test_a_failure_in_the_middle_is_a_line_with_an_error(served: Ollama) -> None:
    served.daemon.engine.enqueue(["abc", ModelError("the model broke")], ["abc", ModelError("the model broke")])
    found = lines(served, {"model": "default", "messages": HELLO})
    assert found[-1] == {"error": "the model broke"}
    assert [line["done"] for line in found[:-1]] == [False]
    with pytest.raises(ollama.ResponseError, match="the model broke"):
        list(served.client.chat("default", messages=HELLO, stream=True))


def test_a_failure_of_a_whole_answer_has_its_status(served: Ollama) -> None:
    served.daemon.engine.enqueue(["abc", ModelError("the model broke")])
    assert served.refused(503, "/api/chat", {"messages": HELLO, "stream": False}) == "the model broke"


def test_a_stream_whose_client_goes_is_cancelled(served: Ollama) -> None:
    served.daemon.engine.enqueue_endless()
    for _ in served.client.chat("default", messages=HELLO, stream=True, options={"num_predict": -1}):
        break
    served.client._client.close()
    wait_for(served.daemon.engine.is_idle, 20)
    assert served.daemon.engine.finished[0].reason == "cancelled"
    wait_for(lambda: served.daemon.rows()[-1].state == "cancelled", 20)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_before_the_first_token_is_noticed(served: Ollama, stream: bool) -> None:
    served.daemon.engine.enqueue([threading.Event(), "never said"])
    with pytest.raises(httpx.ReadTimeout):
        body = {"messages": HELLO, "stream": stream}
        served.daemon.client.post("/api/chat", json=body, timeout=httpx.Timeout(20, read=0.3))
    wait_for(served.daemon.engine.is_idle, 20)
    assert served.daemon.engine.finished[0].reason == "cancelled"


def test_deep_nesting_is_refused_and_nothing_else_suffers(served: Ollama) -> None:
    deep = b'{"messages": [{"role": "user", "content": "x"}], "format": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001
    response = served.daemon.client.post("/api/chat", content=deep)
    assert response.status_code == 400
    assert isinstance(response.json()["error"], str)
    assert served.client.chat("default", messages=HELLO).done
