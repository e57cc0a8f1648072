"""The prefix cache: it saves work and changes nothing, whatever was served and switched before.

Warm and cold answers are compared exactly. That is possible where llama.cpp computes both in equal batches, so the
prompts here consist of whole batches of 16 tokens and one more, and differ in the first token of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.host import ModelHost
from edgepd_daemon.engine.types import Version
from tests.daemon.adapters import random_lora
from tests.daemon.generating import ask, running_engine

BATCH = 16
BLOCKS = [[100 * (n + 1) % 250 + 3, *(7 * i * (n + 1) % 250 + 3 for i in range(BATCH - 1))] for n in range(3)]
TAILS = [200, 210]

Step = tuple[int, list[int], int]  # version, blocks, tail; version -1: the adapters are freed instead
STEPS = st.lists(st.tuples(st.integers(-1, 2), st.lists(st.integers(0, 2), min_size=1, max_size=3), st.integers(0, 1)))


@pytest.fixture(scope="module")
def versions(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    """The base and two adapters of equal size, so that one can be loaded where the other was."""
    directory = tmp_path_factory.mktemp("adapters")
    files = [random_lora(directory / f"{n}.gguf", tiny_model, seed=n, deviation=0.5) for n in (1, 2)]
    return [Version(1, tiny_model), Version(2, tiny_model, files[0]), Version(3, tiny_model, files[1])]


@pytest.fixture(scope="module")
def cold(versions: list[Version]) -> Iterator[Engine]:
    """An engine that computes every prompt anew."""
    with running_engine(slots=1, batch_tokens=BATCH) as engine:
        for version in versions:
            engine.prepare(version)
        yield engine


def prompt_of(blocks: list[int], tail: int) -> list[int]:
    return [token for n in blocks for token in BLOCKS[n]] + [TAILS[tail]]


def host_of(engine: Engine, version: Version) -> ModelHost:
    host = engine._hosts.get(version.model)
    assert host is not None
    return host


def free_adapters(engine: Engine, version: Version) -> None:
    """What happens by itself after half a minute without requests."""
    engine._call(lambda: host_of(engine, version).release_adapters(set()))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(steps=STEPS)
def test_warm_answers_equal_cold_ones(cold: Engine, versions: list[Version], steps: list[Step]) -> None:
    seen: list[tuple[int, list[int]]] = []
    with running_engine(slots=2, batch_tokens=BATCH) as warm:
        for number, blocks, tail in steps:
            if number < 0:
                warm.prepare(versions[0])
                free_adapters(warm, versions[0])
                continue
            version, prompt = versions[number], prompt_of(blocks, tail)
            warm.prepare(version)
            warm.keep(version)
            answer = ask(warm, prompt, version, 6)
            assert answer.text == ask(cold, prompt, version, 6, reuse_cache=False).text
            known = [common(blocks, other) * BATCH for v, other in seen if v == number]
            assert answer.timings.cached_tokens in {0, *known}
            seen.append((number, blocks))


def common(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def test_a_prefix_is_reused_by_its_own_version_only(versions: list[Version]) -> None:
    prompt = prompt_of([0, 1, 2], 0)
    with running_engine(slots=2, batch_tokens=BATCH) as engine:
        for version in versions:
            engine.prepare(version)

        def cached(version: Version, blocks: list[int], **fields: bool) -> int:
            return ask(engine, prompt_of(blocks, 0), version, 2, **fields).timings.cached_tokens

        assert cached(versions[0], [0, 1, 2]) == 0
        assert cached(versions[1], [0, 1, 2]) == 0
        assert cached(versions[0], [0, 1, 2]) == len(prompt) - 1  # the other slot still holds it
        assert cached(versions[0], [0, 1], reuse_cache=False) == 0
        assert cached(versions[0], [0, 2]) == BATCH
        assert cached(versions[0], [1]) == 0
        assert cached(Version(2, versions[0].model), [1]) == 0  # equal files under another number


def test_a_conversation_reuses_its_own_answer(versions: list[Version]) -> None:
    with running_engine(slots=2) as engine:
        engine.prepare(versions[0])
        assert ask(engine, prompt_of([0], 0), versions[0], 5).finished.reason == "length"
        slot = next(s for s in host_of(engine, versions[0]).slots if s.tokens)
        answered = list(slot.tokens)
        assert len(answered) == BATCH + 1 + 4  # the last token was sent but never computed
        assert ask(engine, [*answered, 5, 6, 7], versions[0], 5).timings.cached_tokens == len(answered)
