"""The real `ollama` package against a real daemon with a tiny model, over its loopback port."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import ollama
import pytest

from tests.daemon.running import TINY_SETTINGS, Daemon, install_tiny, short_directory, wait_for


@pytest.fixture(scope="module")
def client() -> Iterator[ollama.Client]:
    """A client with the token of a daemon."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with short_directory() as directory:
        models, home = install_tiny(directory / "models"), directory / "home"
        home.mkdir()
        daemon = Daemon(home, models, *TINY_SETTINGS, f"serve.tcp_port={port}")
        try:
            token = (daemon.paths.socket.parent / "token").read_text().strip()
            headers = {"Authorization": f"Bearer {token}"}
            with ollama.Client(f"http://127.0.0.1:{port}", headers=headers) as connected:
                yield connected
        finally:
            daemon.close()


def test_it_answers_streams_embeds_loads_and_unloads(client: ollama.Client) -> None:
    hello = [{"role": "user", "content": "Hello"}]
    options = {"num_predict": 20, "seed": 1}
    assert client.ps().models == []
    whole = client.chat("default", messages=hello, options=options)
    parts = list(client.chat("default", messages=hello, options=options, stream=True))
    assert "".join(p.message.content or "" for p in parts) == whole.message.content
    assert (parts[-1].done_reason, parts[-1].eval_count) == (whole.done_reason, whole.eval_count)
    assert [m.model for m in client.ps().models] == ["default:latest"]
    same, other = client.embed("default", ["one text", "another text"]).embeddings
    assert client.embed("base", "one text").embeddings[0] == pytest.approx(same, abs=1e-5)
    assert same != pytest.approx(other, abs=1e-3)
    assert client.generate("default", keep_alive=0).done_reason == "unload"
    wait_for(lambda: client.ps().models == [])
    assert client.generate("default").done_reason == "load"
    assert [m.model for m in client.ps().models] == ["default:latest"]


def test_raw_log_probabilities_are_those_of_a_distribution(client: ollama.Client) -> None:
    answer = client.generate("default", "the ", raw=True, logprobs=True, top_logprobs=3, options={"num_predict": 4})
    assert answer.logprobs is not None
    assert len(answer.logprobs) == answer.eval_count
    for token in answer.logprobs:
        likeliest = [other.logprob for other in token.top_logprobs or []]
        assert len(likeliest) == 3
        assert likeliest == sorted(likeliest, reverse=True)
        assert token.logprob <= likeliest[0] <= 0
