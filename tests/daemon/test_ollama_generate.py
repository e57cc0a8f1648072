"""/api/generate as the real `ollama` package calls it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from tests.daemon.ollama_running import Ollama, serving


@pytest.fixture
def served() -> Iterator[Ollama]:
    """A daemon and the client of a user."""
    with serving() as found:
        yield found


def test_a_whole_answer(served: Ollama) -> None:
    served.daemon.engine.enqueue("42")
    answer = served.client.generate("default", "What is six times seven?", system="Be brief")
    assert (answer.response, answer.done, answer.done_reason, answer.eval_count) == ("42", True, "stop", 2)
    assert served.daemon.engine.rendered[0][0] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "What is six times seven?"},
    ]


def test_a_stream(served: Ollama) -> None:
    served.daemon.engine.enqueue("forty-two", pace=0.002)
    parts = list(served.client.generate("default", "six times seven", stream=True))
    assert "".join(p.response or "" for p in parts) == "forty-two"
    assert [p.done for p in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].total_duration is not None
    assert parts[-1].total_duration > 0


def test_raw_is_prefilled_as_it_is(served: Ollama) -> None:
    served.client.generate("default", "<bare>", raw=True)
    assert served.daemon.engine.requests[0].prompt == list(b"<bare>")
    assert served.daemon.engine.rendered == []


def test_log_probabilities(served: Ollama) -> None:
    served.daemon.engine.enqueue("a")
    answer = served.client.generate("default", "x", logprobs=True, top_logprobs=1)
    assert answer.logprobs is not None
    assert (answer.logprobs[0].token, answer.logprobs[0].logprob) == ("a", -0.5)


def test_the_last_object_carries_what_feedback_needs(served: Ollama) -> None:
    body = {"model": "base", "prompt": "x", "stream": False, "app": "mail", "conversation": "c9"}
    answer = served.daemon.client.post("/api/generate", json=body).json()
    row = served.daemon.rows()[-1]
    assert (answer["interaction_id"], answer["generation"], answer["warnings"]) == (row.id, 1, [])
    assert (row.app, row.conversation) == ("mail", "c9")


@pytest.mark.parametrize("fields", [{}, {"prompt": ""}, {"prompt": None}])
def test_no_prompt_loads_the_model(served: Ollama, fields: dict[str, Any]) -> None:
    answer = served.client.generate("default", **fields)
    assert (answer.response, answer.done, answer.done_reason) == ("", True, "load")
    assert [v.generation for v in served.daemon.engine.prepared] == [2]
    assert served.daemon.engine.requests == []


@pytest.mark.parametrize("keep_alive", [0, "0", "0s"])
def test_no_prompt_and_keep_alive_0_unload_it(served: Ollama, keep_alive: float | str) -> None:
    assert served.client.generate("default", keep_alive=keep_alive).done_reason == "unload"
    assert served.daemon.engine.unloaded == [served.daemon.generations.base.path]
    assert served.daemon.engine.prepared == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"suffix": "end"}, "`suffix` is not supported"),
        ({"template": "{{ .Prompt }}"}, "`template` is not supported"),
        ({"context": [1, 2, 3]}, "send the conversation with /api/chat"),
        ({"images": [b"not a picture"]}, "`images` are not supported"),
        ({"think": "high"}, "`think` is not supported"),
        ({"raw": True, "system": "Be brief"}, "`system` would be lost"),
    ],
)
def test_what_cannot_be_done_is_refused(served: Ollama, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ollama.ResponseError, match=problem) as error:
        served.client.generate("default", "x", **fields)
    assert error.value.status_code == 400
    assert served.daemon.engine.requests == []
