"""/v1/completions as OpenAI's own client and its types see it, over a scripted engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai.types import Completion

from edgepd.errors import BusyError, ModelError
from tests.daemon.running import wait_for
from tests.daemon.scripted import Scripted, scripted, sse_events

PATH = "/v1/completions"


@pytest.fixture
def api() -> Iterator[Scripted]:
    """The API over a scripted engine."""
    with scripted() as started:
        yield started


def whole(api: Scripted, **body: Any) -> dict[str, Any]:
    """Post, and check the answer against the types of the real client."""
    response = api.client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    Completion.model_validate(found)
    return found


def chunks(api: Scripted, **body: Any) -> list[dict[str, Any]]:
    """Stream, and return the events before the end."""
    response = api.client.post(PATH, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    *events, last = [data for _, data in sse_events(response.text)]
    assert last == "[DONE]"
    return events


def test_a_text_is_continued(api: Scripted) -> None:
    api.engine.enqueue(" time")
    found = whole(api, prompt="Once upon a", max_tokens=9, stop="!")
    [choice] = found["choices"]
    assert choice == {"index": 0, "text": " time", "logprobs": None, "finish_reason": "stop"}
    assert (found["object"], found["model"], found["generation"]) == ("text_completion", "tiny@2", 2)
    assert found["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 5,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    [row] = api.rows()
    assert (found["id"], found["interaction_id"], found["logged"]) == (f"cmpl-{row.id}", row.id, True)
    assert row.messages == [{"role": "prompt", "content": "Once upon a"}]
    request = api.engine.requests[0]
    assert (request.prompt, request.max_tokens, request.stop) == (list(b"Once upon a"), 9, ("!",))


def test_the_real_client(api: Scripted) -> None:
    api.engine.enqueue("abc", "def")
    client = api.openai().completions
    assert client.create(model="default", prompt="x").choices[0].text == "abc"
    stream = client.create(model="default", prompt="x", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "def"


def test_tokens_are_continued(api: Scripted) -> None:
    found = whole(api, prompt=[72, 105], echo=True)
    assert found["choices"][0]["text"] == "HiOK."
    assert api.engine.requests[0].prompt == [72, 105]


@pytest.mark.parametrize("prompts", [["A", "B"], [[65], [66]]])
def test_several_prompts_with_several_answers(api: Scripted, prompts: list[Any]) -> None:
    api.engine.enqueue("1", "2", "3", "4")
    found = whole(api, prompt=prompts, n=2, echo=True)
    assert [(c["index"], c["text"]) for c in found["choices"]] == [(0, "A1"), (1, "A2"), (2, "B3"), (3, "B4")]
    assert [c["interaction_id"] for c in found["choices"]] == [
        c.id for c in sorted(api.rows(), key=lambda r: r.response)
    ]
    assert found["usage"]["prompt_tokens"] == 2
    assert found["usage"]["completion_tokens"] == 4


def test_several_prompts_in_one_stream(api: Scripted) -> None:
    api.engine.enqueue("one", "three", pace=0.002)
    events = chunks(api, prompt=["A", "B"], echo=True, stream_options={"include_usage": True})
    texts = {0: "", 1: ""}
    for event in events[:-1]:
        [choice] = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "Aone", 1: "Bthree"}
    ends = {e["choices"][0]["index"]: e["choices"][0] for e in events[:-1] if e["choices"][0]["finish_reason"]}
    assert {c["timings"]["completion_tokens"] for c in ends.values()} == {3, 5}
    assert all(e["usage"] is None for e in events[:-1])
    assert events[-1]["usage"]["total_tokens"] == 10


def test_a_stream_ends_with_our_report(api: Scripted) -> None:
    api.engine.enqueue("ab")
    *_, end = chunks(api, prompt="x")
    assert end["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]
    assert (end["logged"], end["timings"]["completion_tokens"]) == (True, 2)


def test_an_answer_that_is_cut(api: Scripted) -> None:
    api.engine.enqueue("abcdef")
    assert whole(api, prompt="x", max_tokens=2)["choices"][0]["finish_reason"] == "length"


def test_log_probabilities(api: Scripted) -> None:
    api.engine.enqueue(["ab", "c"], ["ab", "c"])
    expected = {
        "tokens": ["ab", "c"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"ab": -0.5, "b": -1.5}, {"c": -0.5, "b": -1.5}],
        "text_offset": [0, 2],
    }
    assert whole(api, prompt="x", logprobs=2)["choices"][0]["logprobs"] == expected
    joined: dict[str, list[Any]] = {name: [] for name in expected}
    for event in chunks(api, prompt="x", logprobs=2):
        for name, values in (event["choices"][0]["logprobs"] or {}).items():
            joined[name] += values
    assert joined == expected


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({}, "invalid_request", "body.prompt"),
        ({"prompt": ""}, "invalid_request", "the prompt is empty"),
        ({"prompt": []}, "invalid_request", "the prompt is empty"),
        ({"prompt": ["a", ""]}, "invalid_request", "the prompt is empty"),
        ({"prompt": [[]]}, "invalid_request", "the prompt is empty"),
        ({"prompt": [-1]}, "invalid_request", "body.prompt"),
        ({"prompt": ["a"] * 40}, "invalid_request", "serve.max_queue is 32"),
        ({"prompt": [99999]}, "invalid_request", "token 99999 is not in the vocabulary"),
        ({"prompt": "a", "suffix": "b"}, "invalid_request", "`suffix` is not supported; put everything into `prompt`"),
        ({"prompt": "a", "best_of": 3}, "invalid_request", "`best_of` is 3"),
        ({"prompt": "a", "n": 9}, "invalid_request", "`n` is 9"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "invalid_request", "`echo` and `logprobs` exclude each other"),
        ({"prompt": "x" * 3000}, "context_length_exceeded", "the prompt has 3000 tokens"),
        ({"prompt": "a", "messages": []}, "invalid_request", "`messages` is not supported"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused(shared: Scripted, body: dict[str, Any], code: str, message: str, stream: bool) -> None:
    response = shared.client.post(PATH, json={**body, "stream": stream})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, code)
    assert message in error["message"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Scripted]:
    """One for the requests that come to nothing."""
    with scripted() as started:
        yield started


def test_if_one_prompt_is_refused_none_is_answered(api: Scripted) -> None:
    api.engine.enqueue_endless()
    response = api.client.post(PATH, json={"prompt": ["short", "x" * 3000], "max_tokens": 10**6})
    assert response.json()["error"]["code"] == "context_length_exceeded"
    wait_for(api.engine.is_idle, 20)
    assert [f.reason for f in api.engine.finished] == ["cancelled"]
    assert api.rows() == []


def test_a_busy_engine(api: Scripted) -> None:
    api.engine.refuse = BusyError("32 requests are waiting already")
    assert api.client.post(PATH, json={"prompt": "x"}).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_one_failing_answer_ends_the_others(api: Scripted, stream: bool) -> None:
    api.engine.enqueue([ModelError("the file is gone")])
    api.engine.enqueue_endless()
    response = api.client.post(PATH, json={"prompt": ["a", "b"], "max_tokens": 10**6, "stream": stream})
    assert "the file is gone" in response.text
    wait_for(api.engine.is_idle, 20)
    assert [f.reason for f in api.engine.finished] == ["cancelled"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_cancels_all_answers(api: Scripted, stream: bool) -> None:
    api.engine.enqueue([threading.Event()], [threading.Event()])
    with pytest.raises(httpx.ReadTimeout):
        api.client.post(PATH, json={"prompt": ["a", "b"], "stream": stream}, timeout=0.3)
    wait_for(api.engine.is_idle, 20)
    assert [f.reason for f in api.engine.finished] == ["cancelled", "cancelled"]
