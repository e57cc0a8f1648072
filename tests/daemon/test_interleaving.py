"""Requests, swaps, cancellations and embeddings in any order give the texts of a fresh process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.types import Version
from tests.daemon.adapters import random_lora
from tests.daemon.generating import Answer, ask, running_engine

BLOCK = 16
TOKENS = 10


@dataclass(frozen=True)
class Ask:
    version: int
    blocks: tuple[int, ...]
    cancelled: bool


@dataclass(frozen=True)
class Embed:
    version: int
    length: int


ACTIONS = st.lists(
    st.one_of(
        st.builds(
            Ask,
            st.integers(0, 2),
            st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple),
            st.booleans(),
        ),
        st.builds(Embed, st.integers(0, 2), st.integers(1, 60)),
        st.just("wait"),
    ),
    min_size=2,
    max_size=14,
)


@pytest.fixture(scope="module")
def versions(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    """The base and two adapters."""
    directory = tmp_path_factory.mktemp("adapters")
    adapters = [random_lora(directory / f"{s}.gguf", tiny_model, seed=s, deviation=0.5) for s in (1, 2)]
    return [Version(1, tiny_model), *(Version(n + 2, tiny_model, a) for n, a in enumerate(adapters))]


@pytest.fixture(scope="module")
def fresh(versions: list[Version]) -> Iterator[Engine]:
    """Answers one request at a time, with nothing in its cache."""
    with running_engine(batch_tokens=BLOCK) as engine:
        for version in versions:
            engine.prepare(version)
        yield engine


def prompt_of(blocks: tuple[int, ...]) -> list[int]:
    return [1, *(3 + (97 * b + 7 * i) % 250 for b in blocks for i in range(BLOCK)), 5]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(actions=ACTIONS)
def test_any_interleaving_gives_the_texts_of_a_fresh_process(
    fresh: Engine, versions: list[Version], actions: list[Ask | Embed | str]
) -> None:
    with running_engine(slots=3, batch_tokens=BLOCK, max_queue=50) as engine:
        for version in versions:
            engine.prepare(version)
        answers: list[tuple[Ask, Answer]] = []
        embeddings = []
        for action in actions:
            if isinstance(action, Ask):
                version = versions[action.version]
                engine.keep(version)
                answer = ask(engine, prompt_of(action.blocks), version, TOKENS)
                if action.cancelled:
                    engine.cancel(answer.request)
                answers.append((action, answer))
            elif isinstance(action, Embed):
                embeddings.append(engine.embed(versions[action.version], [[1] * action.length]))
            elif answers:
                assert answers[-1][1].finished
        for asked, answer in answers:
            expected = ask(fresh, prompt_of(asked.blocks), versions[asked.version], TOKENS, reuse_cache=False).text
            if asked.cancelled and answer.finished.reason == "cancelled":
                assert expected.startswith(answer.text.rstrip("\ufffd"))
            else:
                assert answer.text == expected
        assert all(len(e.result(timeout=60)) == 1 for e in embeddings)
        assert (engine.status().active, engine.status().queued) == (0, 0)
