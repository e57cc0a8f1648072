"""The real `ollama` package against the scripted daemon, over a loopback port with a token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ollama

from edgepd_profiles.registry import Generation
from edgepd_quant.types import GGMLType
from tests.daemon.scripted import BASE_SHA256, Scripted, scripted
from tests.tiny_gguf import tiny_llama

TOKEN = "a-token-of-a-test"  # noqa: S105


@dataclass
class Ollama:
    """The client of a user, and the daemon that it talks to."""

    client: ollama.Client
    daemon: Scripted

    def refused(self, status: int, path: str, body: dict[str, Any] | None = None) -> str:
        """POST over the Unix socket, expect an error in Ollama's form and return its sentence."""
        response = self.daemon.client.post(path, json=body or {})
        assert response.status_code == status, response.text
        assert list(response.json()) == ["error"]
        sentence = response.json()["error"]
        assert isinstance(sentence, str)
        return sentence


@contextmanager
def serving(**fields: Any) -> Iterator[Ollama]:
    """Serve, with a model file that can be read, and connect as `ollama.Client` does it."""
    with scripted(tcp=True, token=TOKEN, **fields) as daemon:
        file = tiny_llama(daemon.generations.base.path, qtype=GGMLType.Q4_1, seed=1)
        _give_files(daemon, file)
        with ollama.Client(daemon.base_url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
            yield Ollama(client, daemon)


def _give_files(daemon: Scripted, file: Path) -> None:
    def model_path(_: Generation) -> Path:
        return file

    def model_sha256(_: Generation) -> str:
        return BASE_SHA256

    generations: Any = daemon.generations
    generations.model_path, generations.model_sha256 = model_path, model_sha256
