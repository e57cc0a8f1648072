"""Embeddings beside answers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgepd.errors import BusyError, ContextOverflowError
from edgepd.llama import Context, Entry, Model
from edgepd_daemon.engine import embedder
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.types import Version
from tests.daemon.generating import ask, running_engine
from tests.daemon.running import wait_for

TEXTS = [
    [1, *(3 + (7 * n + i) % 250 for i in range(length))]
    for n, length in enumerate([3, 60, 1, 127, 20, 40, 9, 5, 2, 80])
]
LONG = [1, *(3 + i % 250 for i in range(399))]


@pytest.fixture
def version(tiny_model: Path) -> Version:
    return Version(1, tiny_model)


@pytest.fixture
def engine(version: Version) -> Iterator[Engine]:
    with running_engine() as started:
        started.prepare(version)
        yield started


def mean_states(path: Path, tokens: list[int]) -> np.ndarray:
    """The same, in one batch in a context of its own."""
    with (
        Model(path) as model,
        Context(model, context_tokens=512, batch_tokens=512, threads=1, embeddings=True) as context,
    ):
        context.decode([Entry(t, i, 0, True) for i, t in enumerate(tokens)])
        mean = np.mean([context.embedding(i) for i in range(len(tokens))], axis=0)
    return mean / np.linalg.norm(mean)


def test_an_embedding_is_the_mean_of_the_states_at_length_one(
    engine: Engine, version: Version, tiny_model: Path
) -> None:
    inputs = [*TEXTS, LONG]
    vectors = engine.embed(version, inputs).result(timeout=60)
    assert [v.shape for v in vectors] == [(64,)] * len(inputs)
    for tokens, vector in zip(inputs, vectors, strict=True):
        assert float(np.linalg.norm(vector)) == pytest.approx(1.0, abs=1e-5)
        assert float(vector @ mean_states(tiny_model, tokens)) > 0.999
    assert float(vectors[0] @ vectors[1]) < 0.99  # they are not all the same


def test_batching_changes_nothing_that_matters(engine: Engine, version: Version) -> None:
    together = engine.embed(version, TEXTS).result(timeout=60)
    alone = [engine.embed(version, [tokens]).result(timeout=60)[0] for tokens in TEXTS]
    assert all(float(a @ b) > 0.999 for a, b in zip(together, alone, strict=True))


def test_embeddings_and_answers_take_turns(engine: Engine, version: Version) -> None:
    alone = ask(engine, LONG[:40], version, 100, reuse_cache=False).text
    answer = ask(engine, LONG[:40], version, 100, reuse_cache=False)
    answer.wait_for_first()
    vectors = [engine.embed(version, TEXTS) for _ in range(3)]
    assert answer.text == alone
    assert all(len(v.result(timeout=60)) == len(TEXTS) for v in vectors)


def test_a_job_that_is_cancelled_does_not_hold_up_the_next(engine: Engine, version: Version) -> None:
    jobs = [engine.embed(version, [LONG] * 5) for _ in range(4)]
    for job in jobs[1:]:
        job.cancel()
    assert len(engine.embed(version, [LONG]).result(timeout=60)) == 1
    assert len(jobs[0].result(timeout=60)) == 5


def test_what_is_longer_than_the_context_is_refused(engine: Engine, version: Version) -> None:
    with pytest.raises(ContextOverflowError, match="an input has 513 tokens, but the context window holds 512"):
        engine.embed(version, [[1], [1] * 513])


def test_the_context_for_embeddings_goes_when_it_is_idle(
    engine: Engine, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    close = embedder.Embedder.close
    monkeypatch.setattr(embedder.Embedder, "close", lambda self: (closed.append(True), close(self))[1])
    monkeypatch.setattr(embedder, "IDLE_SECONDS", 0.05)
    assert engine.embed(version, [[1, 2]]).result(timeout=60)
    engine.set_keep_alive(math.inf)
    wait_for(lambda: engine.set_keep_alive(math.inf) is None and bool(closed))
    assert engine.embed(version, [[1, 2]]).result(timeout=60)


def test_a_model_that_is_not_there_is_said_so(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(BusyError, match="was unloaded just now"):
        engine.embed(Version(9, tmp_path / "none.gguf"), [[1]]).result(timeout=60)


def test_stopping_ends_embeddings_too(version: Version) -> None:
    with running_engine() as engine:
        engine.prepare(version)
        jobs = [engine.embed(version, [LONG] * 20) for _ in range(3)]
    with pytest.raises(BusyError, match="shutting down"):
        jobs[-1].result(timeout=10)


def test_states_are_observed_one_input_after_the_other(engine: Engine, version: Version) -> None:
    """Their means are the vectors. Those of an input that is longer than a batch are not kept."""
    seen: list[np.ndarray] = []
    inputs = [*TEXTS, LONG]
    vectors = engine.embed(version, inputs, observe=seen.append).result(timeout=60)
    short = [n for n, tokens in enumerate(inputs) if len(tokens) <= embedder.BATCH_TOKENS]
    assert [len(states) for states in seen] == [len(inputs[n]) for n in short]
    assert len(short) == len(inputs) - 1
    for n, states in zip(short, seen, strict=True):
        mean = states.sum(axis=0, dtype=np.float64)
        np.testing.assert_allclose(vectors[n], mean / np.linalg.norm(mean), atol=1e-6)
