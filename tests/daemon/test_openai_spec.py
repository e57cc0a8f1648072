"""Requests and answers against OpenAI's own OpenAPI document, where `EDGEPD_API_SPECS` says that there is one.

It is a directory with `openai/openapi.yaml` in it, from github.com/openai/openai-openapi.
"""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from edgepd_daemon.api.openai.chat import ChatRequest
from edgepd_daemon.api.openai.completions import CompletionRequest
from edgepd_daemon.api.openai.embeddings import EmbeddingRequest
from edgepd_daemon.api.openai.fields import IGNORED, Body
from edgepd_daemon.api.openai.responses import ResponseRequest
from tests.daemon.scripted import Scripted, scripted, sse_events
from tests.daemon.test_openai_chat import CALL, HI, WEATHER
from tests.daemon.test_openai_responses import WEATHER as FLAT_WEATHER

Check = Callable[[str, Any], None]
SPECS = os.environ.get("EDGEPD_API_SPECS")
pytestmark = pytest.mark.skipif(not SPECS, reason="EDGEPD_API_SPECS names no directory with openai/openapi.yaml")


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    """The schemas of the document, by name."""
    with (Path(SPECS or "") / "openai" / "openapi.yaml").open() as file:
        document = yaml.load(file, Loader=yaml.CSafeLoader)
    found: dict[str, Any] = with_null(document["components"]["schemas"])
    return found


@pytest.fixture(scope="module")
def check(schemas: dict[str, Any]) -> Check:
    """Asserts that a value fits the schema of that name."""

    @functools.cache
    def validator(name: str) -> jsonschema_rs.Draft202012Validator:
        schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
        return jsonschema_rs.Draft202012Validator(schema)

    def fits(name: str, value: Any) -> None:
        validator(name).validate(value)

    return fits


@pytest.fixture
def api() -> Iterator[Scripted]:
    """The API over a scripted engine."""
    with scripted() as started:
        yield started


def with_null(schema: Any) -> Any:
    """Write OpenAPI 3.0's `nullable`, which the document still has in places, as JSON Schema has it."""
    if isinstance(schema, list):
        return [with_null(part) for part in schema]
    if not isinstance(schema, dict):
        return str(schema) if isinstance(schema, datetime.date) else schema  # YAML has dates, JSON has not
    found = {key: with_null(value) for key, value in schema.items()}
    return {"anyOf": [found, {"type": "null"}]} if found.pop("nullable", None) is True else found


def properties(schemas: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    """Return the names of all properties of a schema."""
    if "$ref" in schema:
        return properties(schemas, schemas[schema["$ref"].rsplit("/", 1)[1]])
    return set(schema.get("properties", {})).union(*(properties(schemas, part) for part in schema.get("allOf", [])))


@pytest.mark.parametrize(
    ("name", "model", "refused"),
    [
        (
            "CreateChatCompletionRequest",
            ChatRequest,
            {
                *("audio", "function_call", "functions", "moderation", "prediction", "reasoning_effort"),
                "web_search_options",
            },
        ),
        ("CreateCompletionRequest", CompletionRequest, {"suffix"}),
        (
            "CreateResponse",
            ResponseRequest,
            {"context_management", "max_tool_calls", "moderation", "prompt", "reasoning"},
        ),
        ("CreateEmbeddingRequest", EmbeddingRequest, set()),
    ],
)
def test_every_field_is_honoured_ignored_or_knowingly_refused(
    schemas: dict[str, Any], name: str, model: type[Body], refused: set[str]
) -> None:
    assert properties(schemas, schemas[name]) - set(model.model_fields) - IGNORED == refused


def post(api: Scripted, check: Check, path: str, request: str, body: dict[str, Any]) -> Any:
    """Post a request that the document allows; return the answer, or the events of a stream."""
    check(request, body)
    response = api.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return [data for _, data in sse_events(response.text)] if body.get("stream") else response.json()


@pytest.mark.parametrize("stream", [False, True])
def test_chat_completions(api: Scripted, check: Check, stream: bool) -> None:
    api.engine.enqueue("ab", "cd", f"See.{CALL}")
    scored = {"logprobs": True, "top_logprobs": 2, "n": 2, "stream_options": {"include_usage": True}}
    for own in (scored if stream else {k: scored[k] for k in ("logprobs", "top_logprobs", "n")}, {"tools": [WEATHER]}):
        body = {"model": "default", "messages": HI, "stream": stream, **own}
        found = post(api, check, "/v1/chat/completions", "CreateChatCompletionRequest", body)
        if stream:
            for event in found[:-1]:
                check("CreateChatCompletionStreamResponse", event)
        else:
            check("CreateChatCompletionResponse", found)


@pytest.mark.parametrize("stream", [False, True])
def test_completions(api: Scripted, check: Check, stream: bool) -> None:
    body = {"model": "default", "prompt": ["a", "b"], "n": 2, "logprobs": 2, "stream": stream}
    found = post(api, check, "/v1/completions", "CreateCompletionRequest", body)
    for answer in found[:-1] if stream else [found]:
        for choice in answer["choices"]:
            # The document does not say so, but OpenAI's own streams have null until the end.
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        check("CreateCompletionResponse", answer)


@pytest.mark.parametrize("stream", [False, True])
def test_responses(api: Scripted, check: Check, stream: bool) -> None:
    api.engine.enqueue("text", f"See.{CALL}")
    include = ["message.output_text.logprobs"]
    for own in ({"include": include, "top_logprobs": 2, "instructions": "Be brief."}, {"tools": [FLAT_WEATHER]}):
        body = {"model": "default", "input": "Hi", "stream": stream, **own}
        found = post(api, check, "/v1/responses", "CreateResponse", body)
        if stream:
            for event in found:
                check("ResponseStreamEvent", event)
        else:
            check("Response", found)


def test_embeddings_and_models(api: Scripted, check: Check) -> None:
    body = {"model": "default", "input": ["a", "b"]}
    check("CreateEmbeddingResponse", post(api, check, "/v1/embeddings", "CreateEmbeddingRequest", body))
    check("ListModelsResponse", api.client.get("/v1/models").json())
    check("Model", api.client.get("/v1/models/tiny@1").json())


def test_errors(api: Scripted, check: Check) -> None:
    check("ErrorResponse", api.client.post("/v1/chat/completions", json={}).json())
