"""/v1/embeddings and /v1/models as OpenAI's own client and its types see them, over a scripted engine."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import CreateEmbeddingResponse, Model

from tests.daemon.running import wait_for
from tests.daemon.scripted import Scripted, scripted

PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def api() -> Iterator[Scripted]:
    """The API over a scripted engine."""
    with scripted(context_tokens=64) as started:
        yield started


def embedded(api: Scripted, **body: Any) -> dict[str, Any]:
    """Post, and check the answer against the types of the real client."""
    response = api.client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    if body.get("encoding_format") != "base64":
        CreateEmbeddingResponse.model_validate(found)
    return found


def test_the_real_client(api: Scripted) -> None:
    found = api.openai().embeddings.create(model="default", input=["Hello", "Hi"])
    assert [e.index for e in found.data] == [0, 1]
    assert [len(e.embedding) for e in found.data] == [8, 8]
    assert math.hypot(*found.data[0].embedding) == pytest.approx(1)
    assert found.data[0].embedding != found.data[1].embedding
    assert found.usage.prompt_tokens == found.usage.total_tokens == 7


def test_both_encodings_say_the_same(api: Scripted) -> None:
    [as_floats] = embedded(api, input="Hello", dimensions=8)["data"]
    [as_text] = embedded(api, input="Hello", encoding_format="base64")["data"]
    assert list(struct.unpack("<8f", base64.b64decode(as_text["embedding"]))) == as_floats["embedding"]


@pytest.mark.parametrize("given", ["Hi", ["Hi"], [72, 105], [[72, 105]]])
def test_every_form_of_input(api: Scripted, given: Any) -> None:
    embedded(api, input=given)
    assert api.engine.embedded[-1] == [72, 105]


@pytest.mark.parametrize(
    ("model", "answered"),
    [("default", "tiny@1"), ("tiny", "tiny@1"), ("base", "tiny@1"), ("tiny@1", "tiny@1"), ("tiny@2", "tiny@2")],
)
def test_the_default_stays_the_same_while_the_model_learns(api: Scripted, model: str, answered: str) -> None:
    assert embedded(api, model=model, input="x")["model"] == answered


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({}, 400, "invalid_request", "body.input"),
        ({"input": ""}, 400, "invalid_request", "the input is empty"),
        ({"input": []}, 400, "invalid_request", "the input is empty"),
        ({"input": ["a", ""]}, 400, "invalid_request", "the input is empty"),
        ({"input": [[1], []]}, 400, "invalid_request", "the input is empty"),
        ({"input": ["a"] * 2049}, 400, "invalid_request", "there are 2049 inputs, but at most 2048"),
        ({"input": ["a", "x" * 65]}, 400, "context_length_exceeded", "input 1 has 65 tokens"),
        ({"input": [99999]}, 400, "invalid_request", "token 99999 is not in the vocabulary"),
        ({"input": "a", "dimensions": 4}, 400, "invalid_request", "`dimensions` is 4, but this model's vectors have 8"),
        ({"input": "a", "encoding_format": "int8"}, 400, "invalid_request", "body.encoding_format"),
        ({"input": "a", "truncate": True}, 400, "invalid_request", "`truncate` is not supported"),
        ({"input": "a", "model": "other"}, 404, "not_found", "model 'other'"),
    ],
)
def test_what_is_refused(api: Scripted, body: dict[str, Any], status: int, code: str, message: str) -> None:
    response = api.client.post(PATH, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert message in error["message"]


def test_an_input_may_fill_the_context(api: Scripted) -> None:
    assert embedded(api, input="x" * 64)["usage"]["prompt_tokens"] == 64


def test_a_client_that_hangs_up_stops_the_work(api: Scripted) -> None:
    api.engine.hold_embeddings = True
    with pytest.raises(httpx.ReadTimeout):
        api.client.post(PATH, json={"input": "x"}, timeout=0.3)
    api.engine.hold_embeddings = False
    [held] = api.engine.held
    wait_for(held.cancelled, 20)


def test_models_are_listed(api: Scripted) -> None:
    listed = api.client.get("/v1/models").json()
    for entry in listed["data"]:
        Model.model_validate(entry)
    assert [(m["id"], m["generation"]) for m in listed["data"]] == [
        ("default", 2),
        ("base", 1),
        ("tiny@1", 1),
        ("tiny@2", 2),
    ]


def test_one_model(api: Scripted) -> None:
    client = api.openai()
    for entry in client.models.list():
        assert client.models.retrieve(entry.id) == entry
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("tiny@9")
    assert "use default, base, tiny@1, tiny@2" in error.value.message
