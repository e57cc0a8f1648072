"""/v1/responses as OpenAI's own client and its types see it, over a scripted engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from edgepd.errors import ModelError
from tests.daemon.running import wait_for
from tests.daemon.scripted import Scripted, scripted, sse_events

PATH = "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tell the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.fixture
def api() -> Iterator[Scripted]:
    """The API over a scripted engine."""
    with scripted() as started:
        yield started


def whole(api: Scripted, given: Any = "Hi", **body: Any) -> dict[str, Any]:
    """Post, and check the answer against the types of the real client."""
    response = api.client.post(PATH, json={"input": given, **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    Response.model_validate(found)
    return found


def streamed(api: Scripted, given: Any = "Hi", **body: Any) -> list[dict[str, Any]]:
    """Stream, and check the events against the types of the real client, their names and their numbers."""
    response = api.client.post(PATH, json={"input": given, "stream": True, **body})
    assert response.status_code == 200, response.text
    events = sse_events(response.text)
    for number, (name, data) in enumerate(events):
        EVENT.validate_python(data)
        assert (name, number) == (data["type"], data["sequence_number"])
    return [data for _, data in events]


def texts(found: dict[str, Any]) -> list[str]:
    return [part["text"] for item in found["output"] if item["type"] == "message" for part in item["content"]]


def test_a_whole_response(api: Scripted) -> None:
    api.engine.enqueue("Hello you")
    found = whole(api, instructions="Be brief.", metadata={"a": "b"}, temperature=0.2, max_output_tokens=20)
    [row] = api.rows()
    assert (found["id"], found["interaction_id"], found["model"]) == (f"resp_{row.id}", row.id, "tiny@2")
    assert (found["object"], found["status"], found["error"]) == ("response", "completed", None)
    [item] = found["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert texts(found) == ["Hello you"]
    assert (found["metadata"], found["temperature"], found["max_output_tokens"]) == ({"a": "b"}, 0.2, 20)
    assert (found["usage"]["output_tokens"], found["logged"], found["generation"]) == (9, True, 2)
    assert row.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert (api.engine.requests[0].max_tokens, api.engine.requests[0].sampling.temperature) == (20, 0.2)


def test_the_real_client(api: Scripted) -> None:
    class City(BaseModel):
        name: str

    api.engine.enqueue("Hello", '{"name": "Oslo"}', "streamed")
    client = api.openai().responses
    assert client.create(model="default", input="Hi").output_text == "Hello"
    parsed = client.parse(model="default", input="Where?", text_format=City)
    assert parsed.output_parsed == City(name="Oslo")
    grammar = api.engine.requests[1].grammar
    assert grammar is not None
    assert "name" in grammar.gbnf
    with client.stream(model="default", input="Hi") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(deltas) == stream.get_final_response().output_text == "streamed"


def test_the_events_of_a_text(api: Scripted) -> None:
    api.engine.enqueue(["Hel", "lo"], pace=0.02)
    events = streamed(api)
    assert [e["type"].removeprefix("response.") for e in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [e["delta"] for e in events if "delta" in e] == ["Hel", "lo"]
    assert events[6]["text"] == "Hello"
    final = events[-1]["response"]
    assert final["output"] == [events[8]["item"]]
    assert {e["item_id"] for e in events if "item_id" in e} == {final["output"][0]["id"]}
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["id"] == final["id"]


def test_the_events_of_calls(api: Scripted) -> None:
    api.engine.enqueue(f"See:{CALL}", CALL)
    events = streamed(api, tools=[WEATHER])
    kinds = [e["type"].removeprefix("response.") for e in events]
    assert kinds[-6:] == [
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    message, call = events[-1]["response"]["output"]
    assert message["content"][0]["text"] == "See:"
    assert (call["type"], call["name"], json.loads(call["arguments"])) == ("function_call", "weather", {"city": "Oslo"})
    assert call["call_id"].startswith("call_")
    assert [e["output_index"] for e in events if e["type"] == "response.output_item.done"] == [0, 1]
    [only] = whole(api, tools=[WEATHER])["output"]
    assert only["type"] == "function_call"


def test_an_answer_that_is_cut_is_incomplete(api: Scripted) -> None:
    api.engine.enqueue("abcdef", "abcdef")
    found = whole(api, max_output_tokens=2)
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (texts(found), found["output"][0]["status"]) == (["ab"], "incomplete")
    assert streamed(api, max_output_tokens=2)[-1]["type"] == "response.incomplete"


def test_an_empty_answer_is_an_empty_message(api: Scripted) -> None:
    api.engine.enqueue([])
    assert texts(whole(api)) == [""]


def test_items_become_messages(api: Scripted) -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "In Oslo?"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Wait.", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ]
    whole(api, items)
    rendered, _ = api.engine.rendered[0]
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    assert rendered == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "In Oslo?"},
        {"role": "assistant", "content": "Wait.", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
    ]


def test_a_response_is_continued(api: Scripted) -> None:
    api.engine.enqueue("Oslo.", "Yes.", "No.")
    first = whole(api, "Where?", instructions="Be brief.")
    second = whole(api, "Sure?", previous_response_id=first["id"])
    whole(api, "Really?", previous_response_id=second["id"], instructions="Be long.")
    assert [m["content"] for m in api.rows()[1].messages] == ["Be brief.", "Where?", "Oslo.", "Sure?"]
    assert [m["content"] for m in api.rows()[2].messages] == ["Be long.", "Where?", "Oslo.", "Sure?", "Yes.", "Really?"]
    assert len({row.conversation for row in api.rows()}) == 1
    assert second["previous_response_id"] == first["id"]


def test_what_cannot_be_continued(api: Scripted) -> None:
    unstored = whole(api, store=False)
    for name in (unstored["id"], "resp_i_unknown", "anything"):
        with pytest.raises(openai.NotFoundError) as error:
            api.openai().responses.create(model="default", input="x", previous_response_id=name)
        assert "send the whole conversation as `input`" in error.value.message
    api.client.post("/v1/completions", json={"prompt": "x"})
    response = api.client.post(PATH, json={"input": "x", "previous_response_id": f"resp_{api.rows()[-1].id}"})
    assert response.status_code == 404


def test_log_probabilities(api: Scripted) -> None:
    api.engine.enqueue("a", "a")
    wanted: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    expected = [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}],
        }
    ]
    assert whole(api, **wanted)["output"][0]["content"][0]["logprobs"] == expected
    events = streamed(api, **wanted)
    assert [e["logprobs"] for e in events if e["type"] == "response.output_text.delta"] == [expected]


def test_a_prompt_that_may_be_truncated(api: Scripted) -> None:
    assert whole(api, truncation="auto")["truncation"] == "auto"
    assert api.engine.requests[0].shift
    assert whole(api)["truncation"] == "disabled"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"background": True}, "body.background"),
        ({"reasoning": {"effort": "low"}}, "`reasoning` is not supported"),
        ({"include": ["reasoning.encrypted_content"]}, "`include` has 'reasoning.encrypted_content'"),
        ({"top_logprobs": 2}, "`top_logprobs` needs `include`"),
        ({"max_tokens": 5}, "`max_tokens` is not supported; did you mean `max_output_tokens`?"),
        ({"prompt": {"id": "x"}}, "`prompt` is not supported"),
        ({"max_tool_calls": 2}, "`max_tool_calls` is not supported"),
        ({"conversation": {"id": "conv_1"}}, "body.conversation"),
        ({"text": {"verbosity": "low"}}, "`text.verbosity` is not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools[0] is of type 'web_search'"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "names the function 'x'"),
        ({"tools": [WEATHER], "text": {"format": {"type": "json_object"}}}, "exclude each other"),
        ({"input": []}, "`input` is empty"),
        ({"input": " "}, "the last message is empty"),
        ({"input": [{"type": "reasoning", "id": "r"}]}, "input[0] is of type 'reasoning'"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0] has the role 'tool'"),
        ({"input": [{"role": "user"}]}, "input[0] has no content"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input[0] needs a name and a call_id"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0] needs a call_id and an output"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0] is of type 'input_image'",
        ),
    ],
)
def test_what_is_refused(shared: Scripted, body: dict[str, Any], message: str) -> None:
    response = shared.client.post(PATH, json={"input": "Hi", **body})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_request")
    assert message in error["message"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Scripted]:
    """One for the requests that come to nothing."""
    with scripted() as started:
        yield started


def test_a_failure_in_mid_stream_is_the_last_event(api: Scripted) -> None:
    api.engine.enqueue(["Hel", ModelError("the file is gone")], pace=0.02)
    last = streamed(api)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"] == {"code": "server_error", "message": "the file is gone"}


def test_a_failure_before_the_first_token_has_a_status(api: Scripted) -> None:
    api.engine.enqueue([ModelError("the file is gone")])
    assert api.client.post(PATH, json={"input": "Hi", "stream": True}).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up(api: Scripted, stream: bool) -> None:
    api.engine.enqueue(["first", threading.Event()])
    with pytest.raises(httpx.ReadTimeout):
        api.client.post(PATH, json={"input": "Hi", "stream": stream}, timeout=0.3)
    wait_for(api.engine.is_idle, 20)
    assert [f.reason for f in api.engine.finished] == ["cancelled"]
    wait_for(lambda: [(r.state, r.response) for r in api.rows()] == [("cancelled", "first")], 20)
