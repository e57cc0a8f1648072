"""The routes of generations on a real daemon: import, merge, show, compare, keep, delete, and every refusal."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from edgepd.config import Paths
from edgepd_quant.adapter_file import Adapter, LowRank, Vector, read_adapter, write_adapter
from edgepd_quant.bake import bake
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType
from tests.daemon.adapters import random_lora
from tests.daemon.broken import crashing, with_value
from tests.daemon.running import TINY_SETTINGS, Daemon, Json, error_of, running, short_directory
from tests.daemon.test_refused import dora
from tests.tiny_gguf import tiny_llama

GENERATIONS = "/edgepd/v1/generations"
QUERY = "blk.0.attn_q.weight"


@dataclass
class Importing:
    """A daemon, its base, and a directory with files to import."""

    daemon: Daemon
    base: Path
    outside: Path

    def take(self, path: Path) -> Json:
        """Import a file and return its generation."""
        found: Json = self.daemon.post(f"{GENERATIONS}/import", {"path": str(path)})["generation"]
        return found

    def refused(self, path: Path | str) -> tuple[int, str, str]:
        """Expect that a file is refused, and that nothing of it is left."""
        before = self.files()
        found = self.daemon.refused(f"{GENERATIONS}/import", {"path": str(path)})
        assert self.files() == before
        assert self.daemon.get("/healthz")["live"]
        return found

    def files(self) -> list[str]:
        return sorted(file.name for file in self.daemon.paths.generations_dir.iterdir())

    def lora(self, seed: int, *, base_sha256: str | None = None, base: Path | None = None) -> Path:
        """Make a LoRA that changes answers."""
        path = self.outside / f"lora-{seed}.gguf"
        return random_lora(path, base or self.base, seed=seed, deviation=0.5, base_sha256=base_sha256)

    def answer(self, generation: int) -> str:
        return self.daemon.answer("Hello", max_tokens=12, cache_prompt=False, model=f"tiny@{generation}")


@pytest.fixture
def importing(tiny_models: Path, tiny_model: Path) -> Iterator[Importing]:
    with short_directory() as home, running(home, tiny_models, *TINY_SETTINGS) as daemon:
        outside = home / "outside"
        outside.mkdir()
        yield Importing(daemon, tiny_model, outside)


@pytest.fixture(scope="module")
def shared(tiny_models: Path, tiny_model: Path) -> Iterator[Importing]:
    """The same for tests that leave no trace."""
    with short_directory() as home, running(home, tiny_models, *TINY_SETTINGS) as daemon:
        (home / "outside").mkdir()
        yield Importing(daemon, tiny_model, home / "outside")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def delta(path: Path, base: Path, seed: int = 1) -> Path:
    """A scale delta on two matrices of a model whose blocks are 32 wide."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, LowRank | Vector] = {}
    with GGUFFile.open(base) as model:
        for name in (QUERY, "blk.1.ffn_down.weight"):
            rows, columns = model.tensors[name].shape
            a = rng.normal(0, 0.5, (2, columns // 32)).astype(np.float32)
            tensors[name] = LowRank(a, rng.normal(0, 0.5, (rows, 2)).astype(np.float32))
        write_adapter(path, Adapter("scale", "llama", 0.0, tensors, {"base_sha256": model.sha256()}))
    return path


def test_a_lora_becomes_a_live_candidate_that_can_serve(importing: Importing) -> None:
    plain = importing.answer(1)
    made = importing.take(importing.lora(1))
    assert (made["id"], made["kind"], made["state"], made["parent"]) == (2, "live", "candidate", 1)
    assert made["config"] == {"origin": "imported", "name": "lora-1.gguf", "kind": "lora"}
    assert Path(made["file"]).stat().st_mode & 0o777 == 0o600
    assert made["bytes"] == (importing.outside / "lora-1.gguf").stat().st_size
    assert importing.answer(1) == plain  # it does not go live by itself
    importing.daemon.post(f"{GENERATIONS}/activate", {"generation": 2, "expected": 1})
    assert importing.answer(2) != plain
    found = importing.daemon.get(GENERATIONS)
    assert (found["active"], [g["pending"] for g in found["generations"]]) == (2, [False, True])
    shutil.rmtree(importing.outside)  # the copy is the daemon's own
    assert importing.daemon.chat("Hello", max_tokens=2)["generation"] == 2


def test_a_delta_is_baked_and_a_whole_model_is_taken_as_it_is(importing: Importing) -> None:
    path = delta(importing.outside / "scale.gguf", importing.base)
    made = importing.take(path)
    assert (made["kind"], made["state"], made["config"]["kind"]) == ("baked", "candidate", "scale")
    assert 0 < made["config"]["max_relative_rounding"] < 2**-10
    expected = importing.outside / "expected.gguf"
    bake(importing.base, read_adapter(path), expected)
    assert Path(made["file"]).read_bytes() == expected.read_bytes()
    assert importing.answer(made["id"]) != importing.answer(1)
    status, code, message = importing.refused(expected)
    assert (status, code) == (409, "conflict")
    assert f"generation {made['id']} has the very same contents" in message

    other = importing.outside / "other.gguf"
    other.write_bytes(with_value(importing.base.read_bytes(), "llama.rope.freq_base", 500.0))
    whole = importing.take(other)
    assert (whole["kind"], whole["config"]["kind"]) == ("baked", "model")
    assert Path(whole["file"]).read_bytes() == other.read_bytes()

    importing.daemon.post(f"{GENERATIONS}/activate", {"generation": made["id"]})
    upon = importing.take(importing.lora(2, base_sha256=sha256(Path(made["file"]))))
    assert (upon["parent"], upon["model_file"]) == (made["id"], made["model_file"])
    elsewhere = importing.take(importing.lora(3, base_sha256=sha256(importing.base)))
    assert (elsewhere["parent"], elsewhere["model_file"]) == (1, None)
    assert importing.daemon.client.delete(f"{GENERATIONS}/{made['id']}").status_code == 409


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "missing.gguf: byte 0: cannot be opened: No such file"),
        ("garbage", "garbage.gguf: byte 0: the magic is"),
        ("directory", "directory: byte 0: is not a regular file"),
        ("pipe", "pipe: byte 0: is not a regular file"),
        ("other base", f"made for the base with SHA-256 {'ab' * 32}, but "),
        ("other shapes", "the adapter was made for another base"),
        ("other layers", "cannot be a generation of tiny: it has a tensor 'blk.2."),
        ("other type", "cannot be a generation of tiny: its tensor "),
        ("delta too large", "train again with a lower learning rate"),
        ("DoRA", "which llama.cpp cannot load"),
    ],
)
def test_files_that_are_refused(shared: Importing, name: str, reason: str) -> None:
    where = shared.outside
    base_sha256 = sha256(shared.base)
    path = where / f"{name}.gguf"
    if name == "garbage":
        path.write_bytes(b"no model" * 100)
    elif name == "directory":
        path = where / "directory"
        path.mkdir()
    elif name == "pipe":
        path = where / "pipe"
        os.mkfifo(path)
    elif name == "other base":
        path = shared.lora(11, base_sha256="ab" * 32)
    elif name == "other shapes":
        wider = tiny_llama(where / "wider.gguf", qtype=GGMLType.Q4_K, seed=1)
        path = shared.lora(12, base=wider, base_sha256=base_sha256)
    elif name == "other layers":
        tiny_llama(path, qtype=GGMLType.Q4_1, seed=3, layers=3)
    elif name == "other type":
        tiny_llama(path, qtype=GGMLType.Q8_0, seed=3)
    elif name == "delta too large":
        a, b = np.full((1, 2), 1e30, np.float32), np.ones((64, 1), np.float32)
        write_adapter(path, Adapter("scale", "llama", 0.0, {QUERY: LowRank(a, b)}, {}))
    elif name == "DoRA":
        dora(path, shared.base, base_sha256)
    status, code, message = shared.refused(path)
    assert (status, code) == (409, "adapter_refused")
    assert reason in message


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("relative.gguf", 400, "relative.gguf is not an absolute path"),
        ("/tmp/zero\0byte", 400, "cannot be the name of a file"),
        ("/" + "x" * 4000, 409, "cannot be opened: File name too long"),
        ("/" + "x" * 5000, 400, "at most 4096 characters"),
        ("", 400, "at least 1 character"),
    ],
)
def test_paths_that_are_refused(shared: Importing, path: str, status: int, reason: str) -> None:
    found = shared.refused(path)
    assert found[0] == status
    assert reason in found[2]


def test_the_base_itself_is_not_imported(shared: Importing) -> None:
    copy = Path(shutil.copy(shared.base, shared.outside / "copy.gguf"))
    assert shared.refused(copy)[1:] == ("conflict", "copy.gguf is the base model itself, which is there already")


def test_a_model_over_which_llama_cpp_crashes_is_a_rejected_generation(importing: Importing) -> None:
    before = importing.answer(1)
    path = crashing(importing.base, importing.outside / "evil.gguf")
    status, code, message = importing.refused(path)
    assert (status, code) == (409, "adapter_refused")
    assert "generation 2 was rejected: llama.cpp crashed on imported-" in message
    assert "(SIGABRT)" in message
    [_, rejected] = importing.daemon.get(GENERATIONS)["generations"]
    assert (rejected["state"], rejected["file"]) == ("rejected", None)
    assert "SIGABRT" in importing.daemon.get(f"{GENERATIONS}/2")["verdict"]
    assert importing.answer(1) == before
    assert importing.daemon.refused(f"{GENERATIONS}/activate", {"generation": 2})[0] == 409


def test_files_are_imported_over_the_unix_socket_only(edgepd_home: Path, tiny_models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running(edgepd_home, tiny_models, *TINY_SETTINGS, f"serve.tcp_port={port}") as daemon:
        headers = {"Authorization": f"Bearer {daemon.paths.token.read_text().strip()}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False) as client:
            response = client.post(f"{GENERATIONS}/import", json={"path": "/etc/passwd"})
            assert error_of(response)[:2] == (403, "forbidden")
            assert client.get(GENERATIONS).status_code == 200


def test_two_adapters_are_merged(importing: Importing) -> None:
    first, second = (importing.take(importing.lora(seed))["id"] for seed in (1, 2))
    made = importing.daemon.post(f"{GENERATIONS}/merge", {"generations": [first, second]})["generation"]
    assert (made["kind"], made["state"], made["parent"]) == ("live", "candidate", 1)
    merged = {"origin": "merged", "merged": [first, second], "weights": [0.5, 0.5], "rank": None}
    assert made["config"] == merged
    exact = read_adapter(Path(made["file"]))
    parts = [read_adapter(importing.outside / f"lora-{seed}.gguf").tensors[QUERY] for seed in (1, 2)]
    assert all(isinstance(part, LowRank) for part in (*parts, exact.tensors[QUERY]))
    wanted = sum(0.5 * part.b @ part.a for part in parts if isinstance(part, LowRank))  # alpha is the rank: no scaling
    found = exact.tensors[QUERY]
    assert isinstance(found, LowRank)
    assert found.a.shape[0] == 8
    np.testing.assert_allclose(found.b @ found.a, wanted, atol=1e-5)
    small = importing.daemon.post(
        f"{GENERATIONS}/merge", {"generations": [first, second], "weights": [1.0, -0.25], "rank": 4}
    )["generation"]
    compressed = read_adapter(Path(small["file"])).tensors[QUERY]
    assert isinstance(compressed, LowRank)
    assert compressed.a.shape[0] == 4
    assert len({importing.answer(number) for number in (1, first, second, made["id"])}) == 4


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"generations": []}, 400, "a merge takes at least two different generations, not none"),
        ({"generations": [1]}, 400, "at least two different generations, not 1"),
        ({"generations": [1, 1]}, 400, "at least two different generations, not 1 and 1"),
        ({"generations": [1, 99]}, 404, "generation 99 is not known"),
        ({"generations": [1, 2]}, 404, "generation 2 is not known"),
        ({"generations": [1, 2], "weights": [1.0]}, 400, "there are 2 generations but 1 weights"),
        ({"generations": [1, 2], "rank": 0}, 400, "body.rank"),
        ({"generations": [1, 0]}, 400, "body.generations.1"),
        ({"generations": [1, 2], "force": True}, 400, "body.force"),
    ],
)
def test_merges_that_are_refused(shared: Importing, body: Json, status: int, reason: str) -> None:
    found = shared.daemon.refused(f"{GENERATIONS}/merge", body)
    assert found[0] == status
    assert reason in found[2]


def test_only_live_generations_on_one_model_file_are_merged(importing: Importing) -> None:
    baked = importing.take(delta(importing.outside / "scale.gguf", importing.base))
    on_base = importing.take(importing.lora(1))["id"]
    importing.daemon.post(f"{GENERATIONS}/activate", {"generation": baked["id"]})
    upon = importing.take(importing.lora(2, base_sha256=baked["file_sha256"]))["id"]
    merge = f"{GENERATIONS}/merge"
    _, code, message = importing.daemon.refused(merge, {"generations": [on_base, upon]})
    assert code == "conflict"
    assert f"these are {on_base} on the base, {upon} on {baked['model_file']}" in message
    _, code, message = importing.daemon.refused(merge, {"generations": [on_base, baked["id"]]})
    assert f"generation {baked['id']} is baked and active; only live ones" in message


def test_what_differs_between_two_generations(importing: Importing) -> None:
    adapter = importing.take(importing.lora(1))
    baked = importing.take(delta(importing.outside / "scale.gguf", importing.base))
    live, full = adapter["id"], baked["id"]
    same = importing.daemon.get(f"{GENERATIONS}/{live}/diff/{live}")
    assert same == {
        "a": live,
        "b": live,
        "examples": {"added": [], "removed": [], "kept": 0},
        "config": {},
        "scores": {},
        "tensors": [],
    }
    found = importing.daemon.get(f"{GENERATIONS}/1/diff/{live}")
    assert found["config"]["origin"] == [None, "imported"]
    assert len(found["tensors"]) == 14  # seven matrices of two layers; the base has no delta at all
    assert {t["relative"] for t in found["tensors"]} == {1.0}
    found = importing.daemon.get(f"{GENERATIONS}/1/diff/{full}")
    assert sorted(t["tensor"] for t in found["tensors"]) == [QUERY, "blk.1.ffn_down.weight"]
    assert all(t["changed_blocks"] > 0 and t["changed_bytes"] > 0 for t in found["tensors"])
    importing.daemon.client.delete(f"{GENERATIONS}/{live}")
    assert importing.daemon.get(f"{GENERATIONS}/1/diff/{live}")["tensors"] == []  # its file is gone


def test_a_generation_is_pinned_shown_and_deleted(importing: Importing) -> None:
    made = importing.take(importing.lora(1))
    path = f"{GENERATIONS}/{made['id']}"
    assert importing.daemon.post(f"{path}/pin", {"pinned": True})["generation"]["pinned"] is True
    status, code, message = error_of(importing.daemon.client.delete(path))
    assert (status, code) == (409, "conflict")
    assert "it is pinned" in message
    assert importing.daemon.post(f"{path}/pin", {"pinned": False})["generation"]["pinned"] is False
    shown = importing.daemon.get(path)
    assert (shown["lineage"], shown["children"], shown["example_count"]) == ([1], [], 0)
    assert shown["model"] == {"path": str(importing.base), "sha256": sha256(importing.base)}
    assert shown["adapter"] == {"path": made["file"], "sha256": made["file_sha256"]}
    deleted = importing.daemon.client.delete(path).json()
    assert (deleted["generation"]["state"], deleted["freed_bytes"]) == ("deleted", made["bytes"])
    assert importing.files() == []
    assert importing.daemon.get(GENERATIONS)["generations"][1]["state"] == "deleted"


@pytest.mark.parametrize("path", [f"{GENERATIONS}/99", f"{GENERATIONS}/1/diff/99"])
def test_generations_that_are_not_known(shared: Importing, path: str) -> None:
    assert error_of(shared.daemon.client.get(path))[:2] == (404, "not_found")


def test_a_deleted_generation_is_gone_for_running_answers_only_when_they_end(importing: Importing) -> None:
    """The file of a model may go while an answer is computed with it: the mapping stays."""
    made = importing.take(delta(importing.outside / "scale.gguf", importing.base))
    number = made["id"]
    undisturbed = importing.daemon.answer("Tell me", max_tokens=200, model=f"tiny@{number}", cache_prompt=False)
    events = importing.daemon.stream("Tell me", max_tokens=200, model=f"tiny@{number}", cache_prompt=False)
    text = [next(events)]
    assert importing.daemon.client.delete(f"{GENERATIONS}/{number}").is_success
    assert not Path(made["file"]).exists()
    text += list(events)
    assert "".join(c["delta"].get("content", "") for e in text for c in e["choices"]) == undisturbed
    body = {"messages": [{"role": "user", "content": "Hi"}], "model": f"tiny@{number}"}
    assert importing.daemon.refused("/v1/chat/completions", body)[:2] == (409, "conflict")


def test_nothing_of_an_import_is_readable_for_others(importing: Importing) -> None:
    importing.take(importing.lora(1))
    paths: Paths = importing.daemon.paths
    assert {file.stat().st_mode & 0o777 for file in paths.generations_dir.iterdir()} == {0o600}


def test_one_answer_is_preferred_to_another(shared: Importing) -> None:
    daemon = shared.daemon
    ids = [daemon.chat("Compare", max_tokens=n, conversation=f"c{n}")["interaction_id"] for n in (2, 3)]
    body = {"interaction_id": ids[0], "preferred_over": ids[1]}
    [kept] = daemon.post("/edgepd/v1/feedback", body)["feedback"]
    assert (kept["kind"], kept["text"]) == ("preferred", ids[1])
    [opposite] = daemon.post("/edgepd/v1/feedback", {"interaction_id": "last", "preferred_over": ids[0]})["feedback"]
    assert opposite["text"] == ids[0]
    removed = daemon.client.delete(f"/edgepd/v1/feedback/{ids[1]}", params={"kind": "preferred"}).json()
    assert removed == {"interaction_id": ids[1], "removed": 1}
    for wrong, status in (
        ({"preferred_over": "i_unknown"}, 404),
        ({"preferred_over": ""}, 404),
        ({"interaction_id": ids[0], "preferred_over": ids[0]}, 400),
        ({"preferred_over": ids[0], "thumb": 1}, 400),
    ):
        assert daemon.refused("/edgepd/v1/feedback", wrong)[0] == status
