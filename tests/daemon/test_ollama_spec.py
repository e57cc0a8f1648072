"""Requests and answers against Ollama's own OpenAPI document, where `EDGEPD_API_SPECS` says that there is one.

It is a directory with `ollama/openapi.yaml` in it, from github.com/ollama/ollama (docs/openapi.yaml).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.daemon.ollama_running import Ollama, serving
from tests.daemon.test_openai_spec import with_null

SPECS = os.environ.get("EDGEPD_API_SPECS")
pytestmark = pytest.mark.skipif(not SPECS, reason="EDGEPD_API_SPECS names no directory with ollama/openapi.yaml")

CHAT = {"model": "default", "messages": [{"role": "user", "content": "Hi"}]}
REQUESTS = [
    ("/api/chat", CHAT),
    ("/api/chat", {**CHAT, "logprobs": True, "top_logprobs": 2, "keep_alive": "5m", "options": {"temperature": 0.5}}),
    ("/api/generate", {"model": "default", "prompt": "Hi", "system": "Be brief."}),
    ("/api/embed", {"model": "default", "input": ["one", "two"], "truncate": True}),
    ("/api/show", {"model": "default"}),
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The whole document."""
    with (Path(SPECS or "") / "ollama" / "openapi.yaml").open() as file:
        found: dict[str, Any] = with_null(yaml.load(file, Loader=yaml.CSafeLoader))
    return found


@pytest.fixture
def served() -> Iterator[Ollama]:
    """The API over a scripted engine."""
    with serving() as started:
        yield started


def fits(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """Assert that a value is as the document says."""
    jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def answer_schema(document: dict[str, Any], method: str, path: str, media: str) -> dict[str, Any]:
    """Return the schema of the answer to a successful request."""
    found: dict[str, Any] = document["paths"][path][method]["responses"]["200"]["content"][media]["schema"]
    return found


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_whole_answers(document: dict[str, Any], served: Ollama, path: str, body: dict[str, Any]) -> None:
    request = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fits(document, request, body)
    served.daemon.engine.enqueue("Hello there.")
    response = served.daemon.client.post(path, json={**body, "stream": False} if path in STREAMED else body)
    assert response.status_code == 200, response.text
    fits(document, answer_schema(document, "post", path, "application/json"), response.json())


STREAMED = ("/api/chat", "/api/generate")


@pytest.mark.parametrize(("path", "body"), [(path, body) for path, body in REQUESTS if path in STREAMED])
def test_streams(document: dict[str, Any], served: Ollama, path: str, body: dict[str, Any]) -> None:
    served.daemon.engine.enqueue("Hello there.")
    response = served.daemon.client.post(path, json=body)
    schema = answer_schema(document, "post", path, "application/x-ndjson")
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert len(lines) > 1 and lines[-1]["done"]
    for line in lines:
        fits(document, schema, line)


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps", "/api/version"])
def test_lists(document: dict[str, Any], served: Ollama, path: str) -> None:
    response = served.daemon.client.get(path)
    assert response.status_code == 200
    fits(document, answer_schema(document, "get", path, "application/json"), response.json())
