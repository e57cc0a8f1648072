"""/v1/chat/completions as OpenAI's own client and its types see it, over a scripted engine."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from edgepd.errors import BusyError, ModelError
from edgepd_daemon.engine.types import Sampling
from tests.daemon.running import wait_for
from tests.daemon.scripted import Scripted, scripted, sse_events

PATH = "/v1/chat/completions"
HI: list[Any] = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME: Any = {"type": "function", "function": {"name": "time"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.fixture
def api() -> Iterator[Scripted]:
    """The API over a scripted engine."""
    with scripted() as started:
        yield started


def post(api: Scripted, **body: Any) -> httpx.Response:
    return api.client.post(PATH, json={"messages": HI, **body})


def whole(api: Scripted, **body: Any) -> dict[str, Any]:
    """Post, and check the answer against the types of the real client."""
    response = post(api, **body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    ChatCompletion.model_validate(found)
    return found


def chunks(api: Scripted, **body: Any) -> list[dict[str, Any]]:
    """Stream, check each chunk against the types of the real client, and the end of the stream."""
    response = post(api, stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last = [data for _, data in sse_events(response.text)]
    assert last == "[DONE]"
    for event in events:
        ChatCompletionChunk.model_validate(event)
    return events


def refused(api: Scripted, **body: Any) -> tuple[int, str, str]:
    response = post(api, **body)
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]


def test_a_whole_answer(api: Scripted) -> None:
    api.engine.enqueue("Hello you")
    found = whole(api, conversation="c-1", app="tests")
    [choice] = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello you", "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert (found["object"], found["model"], found["generation"]) == ("chat.completion", "tiny@2", 2)
    assert found["usage"]["prompt_tokens"] == len("user: Hi\n")
    assert found["usage"]["completion_tokens"] == found["timings"]["completion_tokens"] == 9
    [row] = api.rows()
    assert found["interaction_id"] == row.id
    assert found["id"] == f"chatcmpl-{row.id}"
    assert (found["logged"], found["warnings"]) == (True, [])
    assert (row.conversation, row.app, row.response, row.messages) == ("c-1", "tests", "Hello you", HI)


def test_the_real_client(api: Scripted) -> None:
    api.engine.enqueue("Hello you", "Hello again")
    client = api.openai()
    answer = client.chat.completions.create(model="default", messages=HI)
    assert answer.choices[0].message.content == "Hello you"
    with client.chat.completions.stream(model="default", messages=HI) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(texts) == final.choices[0].message.content == "Hello again"


def test_the_real_client_with_a_transport_of_httpx(api: Scripted) -> None:
    http: Any = api.client
    client = openai.OpenAI(base_url="http://edgepd/v1", api_key="-", http_client=http)
    assert client.chat.completions.create(model="default", messages=HI).choices[0].message.content == "OK."


def test_a_stream(api: Scripted) -> None:
    api.engine.enqueue(["He", "l\u2028l", "ö\n", '"'], pace=0.01)
    events = chunks(api)
    *texts, end = events
    assert "".join(e["choices"][0]["delta"]["content"] for e in texts) == 'Hel\u2028lö\n"'
    assert [e["choices"][0]["delta"].get("role") for e in events] == ["assistant"] + [None] * (len(events) - 1)
    assert [e["choices"][0]["finish_reason"] for e in events] == [None] * len(texts) + ["stop"]
    assert len({e["id"] for e in events}) == 1
    assert {e["interaction_id"] for e in events} == {api.rows()[0].id}
    assert all("usage" not in e for e in events)
    assert (end["logged"], end["warnings"], end["timings"]["completion_tokens"]) == (True, [], 4)


def test_a_stream_is_one_line_per_event_for_every_line_reader(api: Scripted) -> None:
    api.engine.enqueue("a\u2028b\u2029c\x85d")
    with api.client.stream("POST", PATH, json={"messages": HI, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)


def test_text_arrives_while_the_answer_is_generated(api: Scripted) -> None:
    gate = threading.Event()
    api.engine.enqueue(["first", gate, " second"])
    stream = api.openai().chat.completions.create(model="default", messages=HI, stream=True)
    assert next(stream).choices[0].delta.content == "first"
    gate.set()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == " second"


def test_usage_in_a_stream_comes_when_asked(api: Scripted) -> None:
    api.engine.enqueue("four")
    events = chunks(api, stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 4
    assert all(e["usage"] is None for e in events[:-1])


def test_an_empty_answer(api: Scripted) -> None:
    api.engine.enqueue([], [])
    assert whole(api)["choices"][0]["message"]["content"] == ""
    [only] = chunks(api)
    assert only["choices"][0] == {"index": 0, "delta": {"role": "assistant"}, "finish_reason": "stop", "logprobs": None}


def test_every_sampling_field_reaches_the_engine(api: Scripted) -> None:
    given: dict[str, Any] = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.8,
        "repeat_penalty": 1.2,
        "repeat_last_n": 32,
        "frequency_penalty": 0.3,
        "presence_penalty": -0.4,
        "dry_multiplier": 0.6,
        "dry_base": 1.5,
        "dry_allowed_length": 4,
        "dry_penalty_last_n": 100,
        "dry_sequence_breakers": ["\n", "."],
        "seed": -7,
        "logit_bias": {"42": -100, "7": 1.5},
    }
    whole(api, **given)
    expected = given | {"dry_sequence_breakers": ("\n", "."), "logit_bias": ((42, -100.0), (7, 1.5))}
    assert api.engine.requests[0].sampling == Sampling(**expected)
    whole(api)
    assert api.engine.requests[1].sampling == Sampling()


def test_every_other_field_reaches_the_engine(api: Scripted) -> None:
    whole(
        api,
        max_completion_tokens=5,
        max_tokens=9,
        stop=["a", "b"],
        ignore_eos=True,
        cache_prompt=False,
        context_overflow="shift",
        keep_alive="5m",
        grammar='root ::= "x"',
        model="base",
    )
    request = api.engine.requests[0]
    assert (request.max_tokens, request.stop, request.ignore_end, request.reuse_cache) == (5, ("a", "b"), True, False)
    assert (request.shift, request.keep_alive, request.logprobs, request.version.generation) == (True, 300.0, None, 1)
    assert request.grammar is not None
    assert 'root ::= "x"' in request.grammar.gbnf
    whole(api, max_tokens=9, stop="c", keep_alive=-1)
    request = api.engine.requests[1]
    assert (request.max_tokens, request.stop, request.shift) == (9, ("c",), False)
    assert request.keep_alive == math.inf
    whole(api)
    assert (api.engine.requests[2].max_tokens, api.engine.requests[2].keep_alive) == (512, None)


def test_fields_that_only_a_service_needs_are_ignored(api: Scripted) -> None:
    whole(
        api,
        user="me",
        metadata={"a": "b"},
        service_tier="auto",
        safety_identifier="x",
        prompt_cache_key="y",
        modalities=["text"],
        verbosity="medium",
        audio=None,
        tools=[],
        n=1,
        logprobs=False,
        response_format={"type": "text"},
    )


def test_several_answers(api: Scripted) -> None:
    api.engine.enqueue("one", "three")
    found = whole(api, n=2)
    rows = api.rows()
    assert [(c["index"], c["message"]["content"]) for c in found["choices"]] == [(0, "one"), (1, "three")]
    assert {c["interaction_id"] for c in found["choices"]} == {r.id for r in rows}
    assert found["interaction_id"] == found["choices"][0]["interaction_id"]
    assert [c["timings"]["completion_tokens"] for c in found["choices"]] == [3, 5]
    assert found["usage"]["completion_tokens"] == 8


def test_several_answers_in_one_stream(api: Scripted) -> None:
    api.engine.enqueue("one", "three", pace=0.002)
    events = chunks(api, n=2, stream_options={"include_usage": True})
    texts = {0: "", 1: ""}
    for event in events[:-1]:
        [choice] = event["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "one", 1: "three"}
    ends = [e["choices"][0] for e in events[:-1] if e["choices"][0]["finish_reason"]]
    assert {c["interaction_id"] for c in ends} == {r.id for r in api.rows()}
    roles = [e["choices"][0]["index"] for e in events[:-1] if "role" in e["choices"][0]["delta"]]
    assert sorted(roles) == [0, 1]
    assert events[-1]["usage"]["completion_tokens"] == 8


def test_log_probabilities(api: Scripted) -> None:
    api.engine.enqueue(["a", "ö"], ["a", "ö"], "x")
    expected = [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [
                {"token": "a", "logprob": -0.5, "bytes": [97]},
                {"token": "b", "logprob": -1.5, "bytes": [98]},
            ],
        },
        {
            "token": "ö",
            "logprob": -0.5,
            "bytes": [195, 182],
            "top_logprobs": [
                {"token": "ö", "logprob": -0.5, "bytes": [195, 182]},
                {"token": "b", "logprob": -1.5, "bytes": [98]},
            ],
        },
    ]
    assert whole(api, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"] == expected
    scored = [e["choices"][0]["logprobs"] for e in chunks(api, logprobs=True, top_logprobs=2)]
    assert [token for part in scored if part for token in part["content"]] == expected
    [token] = whole(api, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert (token["token"], token["top_logprobs"]) == ("x", [])


def test_tool_calls(api: Scripted) -> None:
    api.engine.enqueue(f"Let me see.{CALL}", CALL)
    found = whole(api, tools=[WEATHER])
    [choice] = found["choices"]
    [call] = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
    assert whole(api, tools=[WEATHER])["choices"][0]["message"]["content"] is None
    messages, tools = api.engine.rendered[0]
    assert messages[-1] == HI[0]
    assert tools == [WEATHER]


def test_tool_calls_in_a_stream(api: Scripted) -> None:
    api.engine.enqueue(CALL + "\n" + CALL.replace("Oslo", "Rome"))
    with api.openai().chat.completions.stream(model="default", messages=HI, tools=[WEATHER]) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls or []
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Oslo", "Rome"]
    assert len({call.id for call in calls}) == 2
    api.engine.enqueue(CALL)
    *_, called, end = chunks(api, tools=[WEATHER])
    [delta] = called["choices"][0]["delta"]["tool_calls"]
    assert (delta["index"], delta["type"], delta["function"]["name"]) == (0, "function", "weather")
    assert end["choices"][0]["finish_reason"] == "tool_calls"


def test_what_tools_said_goes_to_the_template(api: Scripted) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "In "}, {"type": "text", "text": "Oslo?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
    ]
    whole(api, messages=messages, tools=[WEATHER, TIME], tool_choice="none")
    rendered, tools = api.engine.rendered[0]
    assert tools is None
    assert rendered == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "In Oslo?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
            ],
        },
        {"role": "tool", "content": "", "tool_call_id": "call_1", "name": "weather"},
    ]


@pytest.mark.parametrize(
    ("choice", "shown"),
    [
        ("auto", ["weather", "time"]),
        ("required", ["weather", "time"]),
        ({"type": "function", "function": {"name": "time"}}, ["weather", "time"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TIME]}}, ["time"]),
    ],
)
def test_the_choice_of_tools(api: Scripted, choice: Any, shown: list[str]) -> None:
    whole(api, tools=[WEATHER, TIME], tool_choice=choice, parallel_tool_calls=False)
    _, tools = api.engine.rendered[0]
    assert [t["function"]["name"] for t in tools or []] == shown
    grammar = api.engine.requests[0].grammar
    assert grammar is not None
    free = choice == "auto" or isinstance(choice, dict) and choice["type"] == "allowed_tools"
    assert bool(grammar.triggers) == free


def test_structured_output(api: Scripted) -> None:
    class City(BaseModel):
        name: str

    api.engine.enqueue('{"name": "Oslo"}', "{}")
    answer = api.openai().chat.completions.parse(model="default", messages=HI, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Oslo")
    whole(api, response_format={"type": "json_object"})
    first, second = [request.grammar for request in api.engine.requests]
    assert first is not None
    assert second is not None
    assert "name" in first.gbnf
    assert first.gbnf != second.gbnf


def test_a_busy_engine(api: Scripted) -> None:
    api.engine.refuse = BusyError("32 requests are waiting already")
    response = post(api, stream=True)
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert response.json()["error"]["code"] == "busy"


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token_has_a_status(api: Scripted, stream: bool) -> None:
    api.engine.enqueue([ModelError("the file is gone")])
    assert refused(api, stream=stream) == (503, "model_unavailable", "the file is gone")


def test_a_failure_in_mid_stream_is_the_last_event(api: Scripted) -> None:
    api.engine.enqueue(["Hel", ModelError("the file is gone")], pace=0.02)
    (_, first), (_, last) = sse_events(post(api, stream=True).text)
    assert first["choices"][0]["delta"]["content"] == "Hel"
    assert last["error"]["message"] == "the file is gone"
    assert [(r.state, r.response) for r in api.rows()] == [("failed", "Hel")]


def test_what_shall_not_be_stored_is_not(api: Scripted) -> None:
    found = whole(api, store=False)
    assert (found["interaction_id"], found["logged"]) == (None, False)
    assert {e["interaction_id"] for e in chunks(api, store=False)} == {None}
    assert api.rows() == []


def test_a_client_that_hangs_up_cancels_its_stream(api: Scripted) -> None:
    api.engine.enqueue_endless()
    with api.client.stream("POST", PATH, json={"messages": HI, "stream": True, "max_tokens": 10**6}) as response:
        next(response.iter_lines())
    wait_for(api.engine.is_idle, 20)
    assert [f.reason for f in api.engine.finished] == ["cancelled"]
    wait_for(lambda: [r.state for r in api.rows()] == ["cancelled"], 20)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_before_the_first_token(api: Scripted, stream: bool) -> None:
    api.engine.enqueue([threading.Event(), "never"])
    with pytest.raises(httpx.ReadTimeout):
        api.client.post(PATH, json={"messages": HI, "stream": stream}, timeout=1)
    wait_for(lambda: [f.reason for f in api.engine.finished] == ["cancelled"], 20)


def test_a_client_that_hangs_up_on_a_whole_answer(api: Scripted) -> None:
    api.engine.enqueue_endless()
    with pytest.raises(httpx.ReadTimeout):
        api.client.post(PATH, json={"messages": HI, "max_tokens": 10**6}, timeout=0.3)
    began = time.monotonic()
    wait_for(api.engine.is_idle, 20)
    assert time.monotonic() - began < 5
    wait_for(lambda: [r.state for r in api.rows()] == ["cancelled"], 20)
