"""Lists of models, as clients poll them: from the files, without ever loading a model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import pytest

from edgepd import __version__
from edgepd.errors import FormatError
from edgepd_daemon.api.ollama.facts import abbreviated, read_facts
from edgepd_daemon.engine.types import LoadedModel
from edgepd_quant.types import GGMLType
from tests.daemon.ollama_running import Ollama, serving
from tests.daemon.scripted import BASE_SHA256
from tests.tiny_gguf import Metadata, tiny_llama, write_gguf


@pytest.fixture
def served() -> Iterator[Ollama]:
    """A daemon and the client of a user."""
    with serving() as found:
        yield found


def loaded(served: Ollama, expires_in_s: float | None) -> None:
    served.daemon.engine.loaded = [LoadedModel(str(served.daemon.generations.base.path), 123_456, expires_in_s)]


def test_every_name_is_listed(served: Ollama) -> None:
    found = served.client.list().models
    assert [m.model for m in found] == ["default:latest", "base:latest", "tiny@1:latest", "tiny@2:latest"]
    path = served.daemon.generations.base.path
    assert {m.size for m in found} == {path.stat().st_size}
    assert [m.modified_at.timestamp() for m in found if m.modified_at] == [2000, 1000, 1000, 2000]
    details = found[0].details
    assert details is not None
    assert (details.format, details.family, details.quantization_level) == ("gguf", "llama", "Q4_1")


def test_listed_names_can_be_used(served: Ollama) -> None:
    for model in served.client.list().models:
        assert served.client.chat(str(model.model), messages=[{"role": "user", "content": "x"}]).done
        assert served.client.show(str(model.model)).details


def test_digests_tell_apart_what_answers_differently(served: Ollama) -> None:
    default, base, first, second = (m.digest for m in served.client.list().models)
    assert base == first == default == second == BASE_SHA256  # neither has an adapter file in this registry


def test_a_live_adapter_changes_the_digest(served: Ollama, monkeypatch: pytest.MonkeyPatch) -> None:
    generations: Any = served.daemon.generations
    rows = generations.listing()
    object.__setattr__(rows[1], "adapter_file", "2.adapter.gguf")
    object.__setattr__(rows[1], "file_sha256", "cd" * 32)
    monkeypatch.setattr(generations, "listing", lambda: rows)
    default, base, first, second = (m.digest for m in served.client.list().models)
    assert base == first == BASE_SHA256
    assert default == second != BASE_SHA256
    assert len(str(default)) == 64


def test_a_model_without_its_file_is_not_listed(served: Ollama) -> None:
    served.daemon.generations.base.path.unlink()
    assert served.client.list().models == []
    assert "tiny.gguf" in served.refused(503, "/api/show", {"model": "default"})


def test_show_tells_what_the_file_says(served: Ollama) -> None:
    shown = served.client.show("default")
    assert shown.capabilities == ["completion", "tools", "embedding"]
    assert shown.template is not None
    assert "<|im_start|>" in shown.template
    assert shown.details is not None
    assert (shown.details.family, shown.details.quantization_level) == ("llama", "Q4_1")
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["general.parameter_count"] > 1000
    assert "tokenizer.chat_template" not in shown.modelinfo
    assert shown.modelinfo["tokenizer.ggml.tokens"] == []
    assert shown.parameters == "num_ctx 2048"


def test_show_has_the_vocabulary_only_if_asked(served: Ollama) -> None:
    body = {"model": "base", "verbose": True}
    shown = served.daemon.client.post("/api/show", json=body).json()
    assert "<|im_start|>" in shown["model_info"]["tokenizer.ggml.tokens"]


def test_show_takes_the_old_field(served: Ollama) -> None:
    assert served.daemon.client.post("/api/show", json={"name": "tiny@1"}).json()["generation"] == 1


@pytest.mark.parametrize("name", ["llama3.2", "tiny@7", "tiny@1234567890", "@", "tiny@"])
def test_showing_an_unknown_model_is_404(served: Ollama, name: str) -> None:
    with pytest.raises(ollama.ResponseError, match=f"model '{name}' not found") as error:
        served.client.show(name)
    assert error.value.status_code == 404


def test_show_needs_a_name(served: Ollama) -> None:
    assert "`model` is missing" in served.refused(400, "/api/show", {})


def test_nothing_is_loaded_at_first(served: Ollama) -> None:
    assert served.client.ps().models == []


def test_a_loaded_model_says_when_it_goes(served: Ollama) -> None:
    loaded(served, 300)
    (model,) = served.client.ps().models
    assert (model.model, model.size, model.size_vram, model.context_length) == ("default:latest", 123_456, 0, 2048)
    assert model.digest == BASE_SHA256
    assert model.expires_at is not None
    assert model.expires_at.timestamp() == pytest.approx(time.time() + 300, abs=60)


def test_a_model_that_stays_goes_in_a_far_future(served: Ollama) -> None:
    loaded(served, None)
    (model,) = served.client.ps().models
    assert model.expires_at is not None
    assert model.expires_at.year > 2300


def test_lists_never_load_a_model(served: Ollama) -> None:
    served.client.list()
    served.client.show("base")
    served.client.ps()
    assert served.daemon.engine.prepared == []


def test_clients_see_that_the_daemon_runs(served: Ollama) -> None:
    client = served.daemon.client
    found = client.get("/")
    assert (found.status_code, found.text) == (200, "edgepd is running")
    assert client.head("/").status_code == 200


def test_the_version_is_that_of_the_api(served: Ollama) -> None:
    found = served.daemon.client.get("/api/version").json()
    assert tuple(int(part) for part in found["version"].split(".")) >= (0, 12, 11)
    assert found["edgepd"] == __version__


@pytest.mark.parametrize(
    ("method", "path", "command"),
    [
        ("POST", "/api/pull", "edgepd model add"),
        ("POST", "/api/create", "edgepd model add"),
        ("POST", "/api/copy", "edgepd model add"),
        ("DELETE", "/api/delete", "edgepd model remove"),
        ("POST", "/api/push", "stays on this machine"),
        ("POST", "/api/blobs/sha256:12", "edgepd model add"),
    ],
)
def test_changing_models_is_refused_with_the_command_for_it(
    served: Ollama, method: str, path: str, command: str
) -> None:
    response = served.daemon.client.request(method, path, json={"model": "llama3.2"})
    assert response.status_code == 501
    assert command in response.json()["error"]


def test_pull_of_the_real_client_gets_the_sentence(served: Ollama) -> None:
    with pytest.raises(ollama.ResponseError, match="edgepd model add"):
        served.client.pull("llama3.2")


def test_an_unknown_route_is_404_in_the_dialect(served: Ollama) -> None:
    response = served.daemon.client.get("/api/unheard-of")
    assert response.status_code == 404
    assert isinstance(response.json()["error"], str)


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [(999, "999"), (1_500, "1.5K"), (134_515_008, "134.5M"), (8_030_261_248, "8.0B"), (1_200_000_000_000, "1.2T")],
)
def test_numbers_of_parameters_are_abbreviated(parameters: int, shown: str) -> None:
    assert abbreviated(parameters) == shown


def test_facts_come_from_the_header(tmp_path: Path) -> None:
    file = tiny_llama(tmp_path / "m.gguf", qtype=GGMLType.Q8_0, seed=1)
    facts = read_facts(file)
    assert (facts.architecture, facts.quantization, facts.size_bytes) == ("llama", "Q8_0", file.stat().st_size)


def test_numbers_that_json_does_not_know_become_text(tmp_path: Path) -> None:
    metadata: Metadata = {"a": float("inf"), "b": [float("nan"), 0.5], "c": 0.25}
    file = write_gguf(tmp_path / "m.gguf", metadata, {"x": (np.zeros((2, 32), np.float32), GGMLType.F32)})
    found = read_facts(file, verbose=True).metadata
    assert (found["a"], found["b"], found["c"]) == ("inf", ["nan", 0.5], 0.25)
    assert read_facts(file).metadata["b"] == []


@pytest.mark.parametrize("contents", [b"", b"GGUF", b"not a model, but long enough to be mapped"])
def test_a_broken_file_is_a_format_error(tmp_path: Path, contents: bytes) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(contents)
    with pytest.raises(FormatError, match=r"m\.gguf"):
        read_facts(file)
