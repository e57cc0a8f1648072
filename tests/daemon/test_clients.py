"""Programs that people have already, unmodified: openai and ollama for Python, curl, and llm."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest

from tests.daemon.running import TINY_SETTINGS, Daemon, running, short_directory, wait_for

QUESTION: Any = [{"role": "user", "content": "hello"}]
YES_OR_NO = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def daemon(tiny_models: Path, port: int) -> Iterator[Daemon]:
    settings = (*TINY_SETTINGS, "serve.context_tokens=2048", f"serve.tcp_port={port}")
    with short_directory() as home, running(home, tiny_models, *settings) as started:
        yield started


@pytest.fixture(scope="module")
def token(daemon: Daemon) -> str:
    return daemon.paths.token.read_text().strip()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    transport = httpx.HTTPTransport(uds=str(daemon.paths.socket))
    with (
        httpx.Client(transport=transport) as http,
        openai.OpenAI(base_url="http://edgepd/v1", api_key="unused", http_client=http, max_retries=0) as made,
    ):
        yield made


@pytest.fixture
def ollama_client(daemon: Daemon, port: int, token: str) -> Iterator[ollama.Client]:
    with ollama.Client(f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {token}"}) as made:
        yield made


def test_openai_chat_and_stream(client: openai.OpenAI) -> None:
    settings: Any = {"model": "default", "messages": QUESTION, "max_tokens": 12, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**settings)
    assert whole.usage is not None and whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"
    pieces = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in pieces if c.choices)
    assert text == whole.choices[0].message.content
    assert pieces[-1].usage is not None and pieces[-1].usage.completion_tokens == 12


def test_openai_tools(client: openai.OpenAI) -> None:
    tools: Any = [
        {"type": "function", "function": {"name": "answer", "description": "Say it", "parameters": YES_OR_NO}}
    ]
    called = client.chat.completions.create(
        model="default",
        messages=QUESTION,
        tools=tools,
        tool_choice="required",
        max_tokens=200,
        parallel_tool_calls=False,
    )
    assert called.choices[0].finish_reason == "tool_calls"
    (call,) = called.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "answer"
    assert set(json.loads(call.function.arguments)) == {"ok"}
    messages = [
        *QUESTION,
        called.choices[0].message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}),
        {"role": "tool", "tool_call_id": call.id, "content": "noted"},
    ]
    after: Any = client.chat.completions.create(model="default", messages=messages, tools=tools, max_tokens=4)
    assert after.usage.completion_tokens == 4


def test_openai_json_schema(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": YES_OR_NO, "strict": True}}
    for seed in range(3):
        answer = client.chat.completions.create(
            model="default", messages=QUESTION, response_format=form, max_tokens=100, temperature=1.5, seed=seed
        )
        assert isinstance(json.loads(answer.choices[0].message.content or "")["ok"], bool)


def test_openai_logprobs_and_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=QUESTION, max_tokens=5, logprobs=True, top_logprobs=3, n=2, temperature=0
    )
    assert [c.index for c in answer.choices] == [0, 1]
    drawn = client.chat.completions.create(
        model="default", messages=QUESTION, max_tokens=12, temperature=2, n=2, seed=5, extra_body={"top_k": 0}
    )
    assert drawn.choices[0].message.content != drawn.choices[1].message.content  # each has a seed of its own
    scored = answer.choices[0].logprobs
    assert scored is not None and scored.content is not None and len(scored.content) == 5
    assert all(len(t.top_logprobs) == 3 and t.logprob == t.top_logprobs[0].logprob <= 0 for t in scored.content)


def test_openai_embeddings(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="default", input=["one text", "another", "one text"])
    vectors = [d.embedding for d in found.data]
    assert [len(v) for v in vectors] == [64, 64, 64]
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-3) and vectors[0] != pytest.approx(vectors[1], abs=1e-3)


def test_openai_responses_and_completions(client: openai.OpenAI) -> None:
    response = client.responses.create(model="default", input="hello", max_output_tokens=6)
    assert response.status == "incomplete" and response.output_text
    completion = client.completions.create(model="default", prompt="hello", max_tokens=6)
    assert completion.choices[0].text and completion.choices[0].finish_reason == "length"


def test_openai_models_and_errors(client: openai.OpenAI) -> None:
    assert {"default", "base", "tiny@1"} <= {m.id for m in client.models.list()}
    assert client.models.retrieve("tiny@1").id == "tiny@1"
    with pytest.raises(openai.NotFoundError, match="model 'gpt-9' is not known"):
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="default", messages=QUESTION, temperature=99)


def test_openai_cancel(client: openai.OpenAI, daemon: Daemon) -> None:
    with client.chat.completions.create(model="default", messages=QUESTION, max_tokens=400, stream=True) as stream:
        first: Any = next(iter(stream))
    row = first.interaction_id
    wait_for(lambda: daemon.get(f"/edgepd/v1/interactions/{row}")["state"] == "cancelled")
    wait_for(lambda: daemon.get("/edgepd/v1/status")["engine"]["active"] == 0)


def test_ollama(ollama_client: ollama.Client) -> None:
    options = {"num_predict": 8, "temperature": 0}
    whole = ollama_client.chat("default", QUESTION, options=options)
    assert whole.message.content and whole.done and whole.eval_count == 8
    pieces = list(ollama_client.chat("default", QUESTION, options=options, stream=True))
    assert "".join(p.message.content or "" for p in pieces) == whole.message.content
    assert pieces[-1].done_reason == "length"
    assert ollama_client.generate("default", "hello", options=options).response
    assert len(ollama_client.embed("default", ["one", "two"]).embeddings) == 2
    assert "default" in {str(m.model).removesuffix(":latest") for m in ollama_client.list().models}
    assert ollama_client.show("default").details is not None
    assert ollama_client.ps().models
    with pytest.raises(ollama.ResponseError, match="gpt-9"):
        ollama_client.chat("gpt-9", QUESTION)


def test_the_tcp_port_wants_the_token(daemon: Daemon, port: int, token: str) -> None:
    address = f"http://127.0.0.1:{port}"
    assert httpx.get(f"{address}/v1/models").status_code == 401
    assert httpx.get(f"{address}/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert (daemon.paths.token.stat().st_mode & 0o777) == 0o600


def test_curl(daemon: Daemon) -> None:
    body = json.dumps({"messages": QUESTION, "max_tokens": 4})
    done = subprocess.run(
        ["curl", "-sS", "--unix-socket", str(daemon.paths.socket), "http://localhost/v1/chat/completions", "-d", body],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 4


def test_llm(daemon: Daemon, port: int, token: str, tmp_path: Path) -> None:
    """Simon Willison's llm, with the configuration that docs/clients.md gives."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: edgepd\n  model_name: default\n  api_base: http://127.0.0.1:{port}/v1\n  api_key_name: edgepd\n"
    )
    (tmp_path / "keys.json").write_text(json.dumps({"edgepd": token}))
    for stream in ([], ["--no-stream"]):
        done = subprocess.run(
            [sys.executable, "-m", "llm", "-m", "edgepd", "hello", "-o", "max_tokens", "6", *stream],
            env=os.environ | {"LLM_USER_PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
    asked = daemon.get("/edgepd/v1/interactions", params={"limit": 2})["interactions"]
    assert [i["messages"][-1]["content"] for i in asked] == ["hello", "hello"]
