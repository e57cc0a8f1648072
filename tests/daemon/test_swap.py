"""The promises of a swap: what runs is not touched, what comes next is as in a fresh process, what is old is closed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgepd.models import Catalog
from edgepd_daemon.engine.types import Text, Version
from edgepd_quant.types import GGMLType
from tests.daemon.adapters import random_lora
from tests.daemon.generating import ask, running_engine
from tests.daemon.running import Background, Daemon, Json, joined, running, short_directory, text_of, wait_for
from tests.daemon.test_refused import plant
from tests.tiny_gguf import tiny_llama

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


@pytest.mark.real_model
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


def test_the_old_model_file_is_closed_after_its_last_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two baked files: the stream on the old one ends as it began while the new one serves, then the old one goes."""
    monkeypatch.setattr("edgepd_daemon.engine.loop.IDLE_CLOSE_SECONDS", 0.2)
    monkeypatch.setattr("edgepd_daemon.engine.loop.GRACE_SECONDS", 0.2)
    old, new = (Version(seed, tiny_llama(tmp_path / f"{seed}.gguf", qtype=GGMLType.Q4_1, seed=seed)) for seed in (1, 2))
    maps = Path("/proc/self/maps")
    with running_engine(context_tokens=2048) as engine:
        engine.prepare(old)
        engine.keep(old)
        undisturbed = ask(engine, [5, 6, 7], old, 1500, reuse_cache=False).text
        stream = ask(engine, [5, 6, 7], old, 1500, reuse_cache=False)
        stream.wait_for_first()
        engine.prepare(new)
        engine.keep(new)
        after = ask(engine, [5, 6, 7], new, 20, reuse_cache=False).text
        assert isinstance(stream.events[-1], Text), "the stream was over too early to show anything"
        assert {model.path for model in engine.status().models} == {str(old.model), str(new.model)}
        assert str(old.model) in maps.read_text()
        assert stream.text == undisturbed
        wait_for(lambda: str(old.model) not in maps.read_text(), 20)
        assert [model.path for model in engine.status().models] == [str(new.model)]
        assert ask(engine, [5, 6, 7], new, 20, reuse_cache=False).text == after != undisturbed
