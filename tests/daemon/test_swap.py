"""The promises of a swap, with the real model: what runs is not touched, what comes next is as in a fresh process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgepd.models import Catalog
from tests.daemon.adapters import random_lora
from tests.daemon.running import Background, Daemon, Json, joined, running, short_directory, text_of
from tests.daemon.test_refused import plant

pytestmark = pytest.mark.real_model

MODEL = "smollm2-135m-instruct-q4_1"
SETTINGS = ("serve.adapt_threads=false", "serve.slots=2", "serve.context_tokens=1024", f"serve.model={MODEL}")
ACTIVATE = "/edgepd/v1/generations/activate"
STORY = "Tell me a long story about a lighthouse keeper and his cat."
OTHER = "What should I cook tonight?"
TURNS = [
    {"role": "user", "content": "My name is Anna. What is a good name for a cat?"},
    {"role": "assistant", "content": "Whiskers is a good name for a cat, Anna."},
    {"role": "user", "content": "And for a dog?"},
]


@dataclass
class Home:
    """A home in which generation 2, an adapter, waits to be activated."""

    home: Path
    models: Path

    def daemon(self) -> AbstractContextManager[Daemon]:
        """A daemon in a process of its own that serves what is active."""
        return running(self.home, self.models, *SETTINGS)


def conversation(daemon: Daemon, turns: list[dict[str, str]]) -> Json:
    return daemon.post("/v1/chat/completions", {"messages": turns, "temperature": 0, "max_tokens": 30})


def cached(answer: Json) -> int:
    found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


@pytest.fixture(scope="module")
def home(model_path: Path) -> Iterator[Home]:
    with short_directory() as directory:
        where = directory / "data" / "generations"
        where.mkdir(parents=True)
        sha256 = Catalog(model_path.parent).find(MODEL).sha256
        adapter = random_lora(where / "a.gguf", model_path, seed=1, deviation=0.05, base_sha256=sha256)
        assert plant(directory, model_path.parent, {"a": adapter}, model=MODEL) == {"a": 2}
        yield Home(directory, model_path.parent)


def test_a_swap_while_an_answer_streams(home: Home) -> None:
    with home.daemon() as daemon:
        undisturbed = daemon.answer(STORY, max_tokens=150, cache_prompt=False)
        before = daemon.answer(OTHER, max_tokens=30, cache_prompt=False)
        first_turn = conversation(daemon, TURNS[:1])
        assert cached(conversation(daemon, TURNS)) > 0  # the conversation is warm

        stream = Background(daemon.stream(STORY, max_tokens=150, cache_prompt=False))
        assert stream.wait_for_first()["generation"] == 1
        assert daemon.post(ACTIVATE, {"generation": 2})["active"] == 2
        warm = conversation(daemon, TURNS)
        assert stream.going_on
        assert (warm["generation"], cached(warm)) == (2, 0)  # what the other generation computed is of no use
        events = stream.join()
        assert joined(events) == undisturbed
        assert {e["generation"] for e in events} == {1}

        after = daemon.answer(OTHER, max_tokens=30, cache_prompt=False)
        assert daemon.get("/edgepd/v1/status")["engine"]["last_switch_ms"] < 50
        assert daemon.stop() == 0
    with home.daemon() as fresh:
        found = conversation(fresh, TURNS)
        assert (found["generation"], cached(found)) == (2, 0)
        assert text_of(warm) == text_of(found) != ""
        assert fresh.answer(OTHER, max_tokens=30, cache_prompt=False) == after != before
        assert fresh.post("/edgepd/v1/generations/rollback", {})["active"] == 1
        assert fresh.answer(OTHER, max_tokens=30, cache_prompt=False) == before
        assert text_of(conversation(fresh, TURNS[:1])) == text_of(first_turn)
        assert fresh.stop() == 0
