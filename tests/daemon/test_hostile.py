"""What must not hurt anybody else: models and requests that are made to do harm, beside an ordinary answer."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgepd.models import Catalog
from edgepd_quant.types import GGMLType
from tests.daemon.running import TINY_SETTINGS, Background, Daemon, joined, question, running
from tests.tiny_gguf import tiny_llama

BOMBS = {
    "time": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "memory": "{{ 'x' * 10000000000 }}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "malformed": "{% for message in messages %}{{ message['content'] }}",
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}
ARRAY = {"type": "array", "items": {"type": "array", "items": {"$ref": "#"}}}
HOSTILE: list[tuple[str, dict[str, Any]]] = [
    ("grammar", {"grammar": 'root ::= root "a" | "b"'}),
    ("grammar", {"grammar": 'root ::= e root "a" | "b"\ne ::= "x"?'}),
    ("grammar", {"grammar": "root ::= " + "(" * 20000 + '"a"' + ")" * 20000}),
    ("grammar", {"grammar": 'root ::= "a"{1,100000000}'}),
    ("schema", {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "wrong"}}}}),
    ("schema", {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#/x/y"}}}}),
    (
        "fetch",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"$ref": "http://127.0.0.1:9/a.json"}},
            }
        },
    ),
]


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_template_is_an_error_and_the_daemon_lives(edgepd_home: Path, name: str) -> None:
    models = edgepd_home / "models"
    models.mkdir()
    file = tiny_llama(edgepd_home / "tiny.gguf", qtype=GGMLType.Q4_1, seed=3, template=BOMBS[name])
    Catalog(models).add(str(file))
    with running(edgepd_home, models, *TINY_SETTINGS) as daemon:
        for _ in range(2):
            status, code, _ = daemon.refused("/v1/chat/completions", question("Hello"))
            assert (status, code) == (400, "template_error")
        assert daemon.get("/healthz")["live"]
        assert daemon.get("/edgepd/v1/status")["memory"]["rss_bytes"] < 500e6
        assert daemon.stop() == 0


def test_hostile_requests_get_their_errors_and_an_answer_beside_them_does_not_suffer(daemon: Daemon) -> None:
    undisturbed = daemon.answer("Tell me a story", max_tokens=300, cache_prompt=False, ignore_eos=True)
    stream = Background(daemon.stream("Tell me a story", max_tokens=300, cache_prompt=False, ignore_eos=True))
    stream.wait_for_first()
    refused: list[tuple[str, int]] = []

    def send(name: str, fields: dict[str, Any]) -> None:
        transport = httpx.HTTPTransport(uds=str(daemon.paths.socket))
        with httpx.Client(transport=transport, base_url="http://edgepd", timeout=60) as client:
            refused.append((name, client.post("/v1/chat/completions", json=question("Hi", **fields)).status_code))

    threads = [threading.Thread(target=send, args=hostile) for hostile in HOSTILE]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(refused) == sorted((name, 400) for name, _ in HOSTILE)
    large = daemon.client.post("/v1/chat/completions", content=b"[" + b"1," * 5_000_000 + b"1]")
    assert large.status_code == 413
    deep = daemon.client.post("/v1/chat/completions", content=b'{"messages":' + b"[" * 100_000)
    assert deep.status_code == 400
    assert joined(stream.join()) == undisturbed
    assert json.loads(daemon.client.get("/healthz").content)["ready"]
