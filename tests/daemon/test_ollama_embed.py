"""/api/embed and /api/embeddings as the real `ollama` package calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from tests.daemon.ollama_running import Ollama, serving


@pytest.fixture
def served() -> Iterator[Ollama]:
    """A daemon with a small context window, and the client of a user."""
    with serving(context_tokens=64) as found:
        yield found


def test_one_text(served: Ollama) -> None:
    answer = served.client.embed("default", "hello")
    assert len(answer.embeddings) == 1
    assert sum(x * x for x in answer.embeddings[0]) == pytest.approx(1, abs=1e-5)
    assert (answer.model, answer.prompt_eval_count) == ("default", 5)
    assert answer.total_duration is not None
    assert answer.load_duration is not None
    assert 0 < answer.load_duration < answer.total_duration


def test_several_texts_keep_their_order(served: Ollama) -> None:
    both = served.client.embed("default", ["aaa", "b"])
    assert both.embeddings[0] == served.client.embed("default", "aaa").embeddings[0]
    assert both.embeddings[1] == served.client.embed("default", "b").embeddings[0]
    assert both.embeddings[0] != both.embeddings[1]
    assert both.prompt_eval_count == 4


@pytest.mark.parametrize(
    ("name", "generation"), [("default", 1), ("tiny:latest", 1), ("base", 1), ("tiny@2", 2), ("tiny@1", 1)]
)
def test_plain_names_mean_the_base_so_that_an_index_stays_valid(served: Ollama, name: str, generation: int) -> None:
    served.client.embed(name, "x")
    assert {v.generation for v in served.daemon.engine.prepared} == {generation}


def test_a_long_text_is_cut_unless_the_client_forbids_it(served: Ollama) -> None:
    assert served.client.embed("default", "x" * 100).prompt_eval_count == 64
    with pytest.raises(
        ollama.ResponseError, match=r"`input\[1\]` has 100 tokens, but the context window holds 64"
    ) as e:
        served.client.embed("default", ["y", "x" * 100], truncate=False)
    assert e.value.status_code == 400
    assert served.client.embed("default", "x" * 64, truncate=False).prompt_eval_count == 64


@pytest.mark.parametrize("nothing", ["", []])
def test_nothing_loads_the_model(served: Ollama, nothing: Any) -> None:
    assert served.client.embed("default", nothing).embeddings == []
    assert served.daemon.engine.embedded == []


def test_the_old_form(served: Ollama) -> None:
    assert (
        served.client.embeddings("default", "hello").embedding == served.client.embed("default", "hello").embeddings[0]
    )
    assert served.client.embeddings("default", "").embedding == []
    assert len(served.client.embeddings("default", "x" * 100).embedding) == 8


@pytest.mark.parametrize("dimensions", [None, 8])
def test_all_dimensions_may_be_asked_for(served: Ollama, dimensions: int | None) -> None:
    assert len(served.client.embed("default", "x", dimensions=dimensions).embeddings[0]) == 8


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"input": "x", "dimensions": 4}, "`dimensions` is 4, but the vectors of this model have 8 numbers"),
        ({"input": ["x", ""]}, "`input[1]` is empty"),
        ({"input": 5}, "input"),
        ({"input": "x", "keep_alive": "soon"}, "keep_alive"),
        ({"input": "x", "options": {"num_ctx": 128}}, "serve.context_tokens = 128"),
        ({"input": "x", "encoding": "base64"}, "does not understand `encoding`"),
    ],
)
def test_a_bad_request_is_told_in_the_dialect(served: Ollama, body: dict[str, Any], problem: str) -> None:
    assert problem in served.refused(400, "/api/embed", {"model": "default", **body})
    assert served.daemon.engine.embedded == []


def test_half_a_character_is_refused(served: Ollama) -> None:
    for path, field in (("/api/embed", "input"), ("/api/embeddings", "prompt")):
        response = served.daemon.client.post(path, content=f'{{"model": "default", "{field}": "\\ud83d"}}')
        assert response.status_code == 400
        assert isinstance(response.json()["error"], str)


def test_an_unknown_model_is_404(served: Ollama) -> None:
    assert "model 'nomic' not found" in served.refused(404, "/api/embed", {"model": "nomic", "input": "x"})
    assert "model 'nomic' not found" in served.refused(404, "/api/embeddings", {"model": "nomic", "prompt": "x"})
