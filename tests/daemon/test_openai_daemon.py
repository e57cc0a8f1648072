"""OpenAI's dialect spoken to a real daemon with the tiny model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import httpx2
import openai
import pytest

from tests.daemon.running import Daemon, Json, error_of, joined, question, text_of, wait_for

CHAT = "/v1/chat/completions"


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    """The real client of OpenAI, told nothing but where the socket is."""
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(daemon.paths.socket)), timeout=60) as http:
        yield openai.OpenAI(base_url="http://edgepd/v1", api_key="-", http_client=http, max_retries=0)


def stored(daemon: Daemon, interaction_id: str = "last") -> Json:
    return daemon.get(f"/edgepd/v1/interactions/{interaction_id}")


def test_a_whole_answer(daemon: Daemon) -> None:
    answer = daemon.chat("Hello", max_tokens=12, conversation="c-1", app="tests")
    row = answer["interaction_id"]
    assert answer["id"] == f"chatcmpl-{row}"
    assert (answer["object"], answer["model"], answer["generation"]) == ("chat.completion", "tiny@1", 1)
    [choice] = answer["choices"]
    assert (choice["index"], choice["finish_reason"], choice["message"]["role"]) == (0, "length", "assistant")
    usage = answer["usage"]
    assert usage["completion_tokens"] == answer["timings"]["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12
    assert (answer["logged"], answer["warnings"]) == (True, [])
    kept = stored(daemon, row)
    assert (kept["id"], kept["conversation"], kept["app"]) == (row, "c-1", "tests")
    assert kept["messages"] == [{"role": "user", "content": "Hello"}]
    assert (kept["response"], kept["state"], kept["finish_reason"]) == (text_of(answer), "done", "length")
    assert (kept["model"], kept["generation"], kept["feedback"]) == ("tiny@1", 1, [])
    assert (kept["prompt_tokens"], kept["completion_tokens"]) == (usage["prompt_tokens"], 12)
    assert 0 < kept["ttft_ms"] <= kept["duration_ms"]


def test_a_stream_has_the_text_of_the_whole_answer(daemon: Daemon) -> None:
    whole = daemon.chat("Tell me more", max_tokens=30, cache_prompt=False)
    events = list(daemon.stream("Tell me more", max_tokens=30, cache_prompt=False))
    assert joined(events) == text_of(whole)
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in e["choices"][0]["delta"] for e in events[1:])
    assert [e["choices"][0]["finish_reason"] for e in events] == [None] * (len(events) - 1) + ["length"]
    assert {e["object"] for e in events} == {"chat.completion.chunk"}
    assert len({e["id"] for e in events}) == len({e["interaction_id"] for e in events}) == 1
    assert events[-1]["timings"]["completion_tokens"] == 30
    assert (events[-1]["logged"], events[-1]["warnings"]) == (True, [])
    assert stored(daemon, events[0]["interaction_id"])["response"] == joined(events)


def test_a_stream_reports_usage_when_asked(daemon: Daemon) -> None:
    *_, last = daemon.stream("Hello", max_tokens=5, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("stream", [False, True])
def test_what_shall_not_be_stored_is_not(daemon: Daemon, stream: bool) -> None:
    before = daemon.get("/edgepd/v1/status")["profile"]["interactions"]
    if stream:
        *_, answer = daemon.stream("Secret", max_tokens=3, store=False)
    else:
        answer = daemon.chat("Secret", max_tokens=3, store=False)
    assert (answer["interaction_id"], answer["logged"], answer["warnings"]) == (None, False, [])
    assert daemon.get("/edgepd/v1/status")["profile"]["interactions"] == before


def test_content_parts_and_the_developer_role_mean_the_same_as_plain_ones(daemon: Daemon) -> None:
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello you"}]
    parts: list[Json] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "you"}]},
    ]
    answers = [
        daemon.post(CHAT, {"messages": m, "temperature": 0, "max_tokens": 9, "cache_prompt": False})
        for m in (plain, parts)
    ]
    assert text_of(answers[0]) == text_of(answers[1])
    assert stored(daemon)["messages"] == plain


def test_sampling_and_stop_strings_reach_the_engine(daemon: Daemon) -> None:
    def drawn(seed: int) -> str:
        return daemon.answer("Hello", temperature=2, top_k=0, top_p=1, min_p=0, seed=seed, max_tokens=20)

    assert drawn(1) == drawn(1) != drawn(2)
    whole = daemon.answer("Hello", max_tokens=20)
    assert daemon.answer("Hello", temperature=2, top_k=1, max_tokens=20) == whole
    answer = daemon.chat("Hello", max_tokens=20, stop=whole[5])
    assert (text_of(answer), answer["choices"][0]["finish_reason"]) == (whole[: whole.find(whole[5])], "stop")
    assert daemon.answer("Hello", max_tokens=20, repeat_penalty=5) != whole
    assert daemon.chat("Hello", max_completion_tokens=4, max_tokens=20)["usage"]["completion_tokens"] == 4


def test_a_conversation_that_goes_on_is_not_computed_again(daemon: Daemon) -> None:
    text = "A question that nobody else in this file asks"
    first = daemon.chat(text, max_tokens=3)
    again = daemon.chat(text, max_tokens=3)
    cold = daemon.chat(text, max_tokens=3, cache_prompt=False)
    prompt = first["usage"]["prompt_tokens"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == prompt - 1
    assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_every_listed_model_can_be_named(daemon: Daemon) -> None:
    listed = daemon.get("/v1/models")
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["default", "base", "tiny@1"]
    assert all((m["object"], m["owned_by"], m["generation"]) == ("model", "edgepd", 1) for m in listed["data"])
    for name in ["default", "base", "tiny@1", "tiny", "default@1"]:
        assert daemon.chat("Hi", model=name, max_tokens=1)["model"] == "tiny@1"


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        (question(""), 400, "invalid_request", "the last message is empty"),
        (question(" \n "), 400, "invalid_request", "the last message is empty"),
        ({"messages": []}, 400, "invalid_request", "body.messages"),
        ({}, 400, "invalid_request", "body.messages: Field required"),
        (question("Hi", temperature=-1), 400, "invalid_request", "body.temperature"),
        (question("Hi", max_tokens=0), 400, "invalid_request", "body.max_tokens"),
        (question("Hi", stop=[""]), 400, "invalid_request", "`stop` takes at most 4 strings, none of them empty"),
        (question("Hi", stop=["a"] * 5), 400, "invalid_request", "`stop` takes at most 4"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, 400, "invalid_request", "body.messages.0.role"),
        (question("word " * 1000), 400, "context_length_exceeded", "but the context window holds 512"),
        (question("Hi", model="other"), 404, "not_found", "model 'other' is not known; use 'default', 'base', 'tiny'"),
        (question("Hi", model="tiny@99"), 404, "not_found", "generation 99 is not known"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_requests_that_are_refused(
    daemon: Daemon, body: Json, status: int, code: str, message: str, stream: bool
) -> None:
    found = daemon.refused(CHAT, body | {"stream": stream})
    assert found[:2] == (status, code)
    assert message in found[2]


def test_what_is_supported_when_it_says_nothing(daemon: Daemon) -> None:
    daemon.chat("Hi", max_tokens=1, n=1, tools=[], response_format={"type": "text"}, user="me", logprobs=False)


def test_a_refusal_does_not_repeat_what_the_user_wrote(daemon: Daemon) -> None:
    status, _, message = daemon.refused(CHAT, {"messages": [{"role": "user", "content": {"secret": "swordfish"}}]})
    assert status == 400
    assert "swordfish" not in message


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b'{"messages": "x"}', b""])
def test_a_body_that_is_no_request(daemon: Daemon, content: bytes) -> None:
    response = daemon.client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert error_of(response)[:2] == (400, "invalid_request")


@pytest.mark.parametrize("field", ["content", "model", "app", "conversation", "stop"])
def test_half_a_character_is_refused(daemon: Daemon, field: str) -> None:
    body = b'{"messages": [{"role": "user", "content": "%b"}], "%b": "\\ud83d"}'
    content = body % (b"\\ud83d" if field == "content" else b"Hi", b"x" if field == "content" else field.encode())
    response = daemon.client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert error_of(response)[:2] == (400, "invalid_request")


def test_several_answers_differ(daemon: Daemon) -> None:
    answer = daemon.chat("Hello", n=2, temperature=2, top_k=0, top_p=1, min_p=0, max_tokens=20)
    first, second = [choice["message"]["content"] for choice in answer["choices"]]
    assert first != second
    assert answer["usage"]["completion_tokens"] == sum(c["timings"]["completion_tokens"] for c in answer["choices"])


def test_log_probabilities_belong_to_the_text(daemon: Daemon) -> None:
    answer = daemon.chat("Hello", logprobs=True, top_logprobs=3, temperature=0, max_tokens=8)
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(t["bytes"]) for t in tokens).decode(errors="replace") == text_of(answer)
    for token in tokens:
        assert len(token["top_logprobs"]) == 3
        assert token["logprob"] == token["top_logprobs"][0]["logprob"] <= 0  # greedy


def test_an_answer_in_the_form_of_a_schema(daemon: Daemon) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    answer = daemon.chat("Hello", response_format=form, max_tokens=100)
    assert isinstance(json.loads(text_of(answer))["yes"], bool)


def test_a_text_is_continued(daemon: Daemon) -> None:
    body = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 8, "echo": True}
    [as_text] = daemon.post("/v1/completions", body)["choices"]
    [first, second] = daemon.post("/v1/completions", body | {"prompt": ["Once upon a time", "Hello"]})["choices"]
    assert as_text["text"].startswith("Once upon a time")
    assert (first["text"], second["text"][:5]) == (as_text["text"], "Hello")
    assert daemon.refused("/v1/completions", {"prompt": [99999]})[:2] == (400, "invalid_request")


def test_a_response_and_its_continuation(daemon: Daemon) -> None:
    first = daemon.post("/v1/responses", {"input": "Hello", "max_output_tokens": 5})
    assert (first["status"], first["usage"]["output_tokens"]) == ("incomplete", 5)
    daemon.post("/v1/responses", {"input": "Go on", "max_output_tokens": 5, "previous_response_id": first["id"]})
    said = first["output"][0]["content"][0]["text"]
    assert [m["content"] for m in stored(daemon)["messages"]] == ["Hello", said, "Go on"]


def test_embeddings(daemon: Daemon) -> None:
    found = daemon.post("/v1/embeddings", {"input": ["Hello", "Goodbye", "Hello"]})
    first, other, again = [e["embedding"] for e in found["data"]]
    assert math.hypot(*first) == pytest.approx(1, abs=1e-4)
    assert first == pytest.approx(again, abs=1e-4)
    assert first != pytest.approx(other, abs=1e-4)
    assert daemon.refused("/v1/embeddings", {"input": "word " * 1000})[:2] == (400, "context_length_exceeded")
    assert daemon.refused("/v1/embeddings", {"input": [99999]})[:2] == (400, "invalid_request")


def test_the_real_client_stops_a_stream(daemon: Daemon, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "Go on and on"}],
        stream=True,
        max_tokens=10_000,
        extra_body={"ignore_eos": True, "context_overflow": "shift"},
    )
    said = [next(stream).choices[0].delta.content for _ in range(5)]
    stream.close()
    wait_for(lambda: daemon.get("/edgepd/v1/status")["engine"]["active"] == 0, 20)
    wait_for(lambda: stored(daemon)["state"] == "cancelled", 20)
    assert stored(daemon)["response"].startswith("".join(text or "" for text in said))


def test_the_real_client_uses_every_route(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["default", "base", "tiny@1"]
    assert client.models.retrieve("tiny@1").id == "tiny@1"
    assert client.completions.create(model="base", prompt="Hello", max_tokens=2).usage
    assert (
        client.responses.create(
            model="default",
            input="Hello",
            max_output_tokens=2,
            temperature=0,  # a token drawn at random may end it
        ).status
        == "incomplete"
    )
    assert len(client.embeddings.create(model="default", input="Hello").data[0].embedding) > 1
