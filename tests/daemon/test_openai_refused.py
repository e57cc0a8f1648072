"""Requests to /v1/chat/completions that are refused, each with what is wrong and the right status."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.daemon.scripted import Scripted, scripted
from tests.daemon.test_openai_chat import HI, PATH, TIME, WEATHER, refused


@pytest.fixture(scope="module")
def shared() -> Iterator[Scripted]:
    """One for the requests that come to nothing."""
    with scripted() as started:
        yield started


def text_part(kind: str) -> list[Any]:
    return [{"role": "user", "content": [{"type": kind, kind: {"url": "x"}}]}]


def called(arguments: str) -> list[Any]:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [*HI, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "x"}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"temprature": 1}, "`temprature` is not supported; did you mean `temperature`?"),
        ({"functions": []}, "`functions` is not supported; describe them in `tools`"),
        ({"function_call": "auto"}, "`function_call` is not supported; use `tool_choice`"),
        ({"audio": {"voice": "x"}}, "`audio` is not supported"),
        ({"prediction": {"type": "content"}}, "`prediction` is not supported; leave it out"),
        ({"web_search_options": {}}, "`web_search_options` is not supported"),
        ({"reasoning_effort": "low"}, "`reasoning_effort` is not supported"),
        ({"modalities": ["text", "audio"]}, "`modalities` can only be ['text']"),
        ({"verbosity": "low"}, "`verbosity` is not supported"),
        ({"n": 5}, "`n` is 5, but at most 4 answers (serve.slots)"),
        ({"top_logprobs": 3}, "`top_logprobs` needs `logprobs`"),
        ({"top_logprobs": 21, "logprobs": True}, "body.top_logprobs"),
        ({"stop": ["a"] * 5}, "`stop` takes at most 4 strings"),
        ({"stop": [""]}, "none of them empty"),
        ({"logit_bias": {"x": 1}}, "the keys of `logit_bias`"),
        ({"logit_bias": {"99999": 1}}, "token 99999 is not in the vocabulary"),
        ({"logit_bias": {"1": 101}}, "body.logit_bias.1"),
        ({"keep_alive": "soon"}, "`keep_alive` is 'soon'"),
        ({"context_overflow": "drop"}, "body.context_overflow"),
        ({"temperature": -1}, "body.temperature"),
        ({"max_tokens": 0}, "body.max_tokens"),
        ({"messages": []}, "body.messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "body.messages.0.role"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "the last message is empty"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
        ({"messages": text_part("image_url")}, "messages[0].content[0] is of type 'image_url'; only text"),
        ({"messages": text_part("input_audio")}, "messages[0].content[0] is of type 'input_audio'"),
        ({"messages": called("{")}, "messages[1].tool_calls: the arguments of the call of 'weather' must be JSON text"),
        ({"messages": called("[1]")}, "must be JSON text, an object"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0] must be"),
        ({"tools": [WEATHER, WEATHER]}, "two tools are called 'weather'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "a tool is called 'a b'"),
        ({"tools": [{"type": "function", "function": {"name": "auto"}}]}, "a tool is called 'auto'"),
        ({"tools": [WEATHER], "tool_choice": "maybe"}, "`tool_choice` is 'maybe'"),
        ({"tools": [WEATHER], "tool_choice": TIME}, "names the function 'time', which is not among"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "`tool_choice` must name a function"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "`allowed_tools` needs `tools`"),
        ({"tool_choice": "required"}, "there are no `tools`"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "exclude each other"),
        ({"grammar": "root ::= [a]", "response_format": {"type": "json_object"}}, "exclude each other"),
        ({"response_format": {"type": "xml"}}, "the format of the answer is of type 'xml'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "has no schema"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused(shared: Scripted, body: dict[str, Any], message: str, stream: bool) -> None:
    status, code, found = refused(shared, **body, stream=stream)
    assert (status, code) == (400, "invalid_request")
    assert message in found
    assert shared.engine.requests == []


def test_prompts_and_models_that_are_refused(shared: Scripted) -> None:
    long: list[Any] = [{"role": "user", "content": "x" * 3000}]
    assert refused(shared, messages=long)[:2] == (400, "context_length_exceeded")
    assert refused(shared, model="other")[:2] == (404, "not_found")
    half = b'{"messages": [{"role": "user", "content": "Hi"}], "%s": "\\ud83d"}'
    for field in (b"app", b"model", b"stop", b"nobody"):
        response = shared.client.post(PATH, content=half % field, headers={"content-type": "application/json"})
        assert response.status_code == 400
    with pytest.raises(openai.BadRequestError) as error:
        shared.openai().chat.completions.create(model="default", messages=long)
    assert error.value.code == "context_length_exceeded"
