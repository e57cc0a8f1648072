"""Adapter and model files that must not reach llama.cpp: each is refused with its reason, and the daemon lives."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgepd.config import paths
from edgepd.models import Catalog
from edgepd_profiles import registry
from edgepd_profiles.store import Store
from edgepd_quant.types import GGMLType
from tests.daemon.adapters import random_lora
from tests.daemon.running import TINY_SETTINGS, Daemon, environment, running, short_directory
from tests.tiny_gguf import tiny_llama, write_gguf

QUERY = "blk.0.attn_q.weight"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "0" * 64


def plant(
    home: Path, models: Path, files: dict[str, Path], *, kind: str = "live", model: str = "tiny"
) -> dict[str, int]:
    """Register files as candidates, as if they had passed the gate, and return the generations by name."""
    found = paths(environment(home, models))
    base = Catalog(models).find(model)
    ids = {}
    with Store.open(found.profile) as store:
        store.write(lambda c: registry.ensure_base(c, base.sha256)).result()
        for name, file in files.items():
            add = partial(
                registry.add,
                parent=1,
                kind=kind,
                base_sha256=base.sha256,
                state="candidate",
                file_sha256=sha256(file),
                adapter_file=file.name if kind == "live" else None,
                model_file=file.name if kind == "baked" else None,
            )
            ids[name] = store.write(add).result().id
    return ids


def dora(path: Path, base: Path, base_sha256: str) -> Path:
    """An adapter with the tensor that makes it a DoRA one. llama.cpp crashes on some of these."""
    f32 = int(gguf.GGMLQuantizationType.F32)
    shapes = {"lora_a": (2, 64), "lora_b": (64, 2), "lora_magnitude_vector": (64,)}
    tensors = {f"{QUERY}.{suffix}": (np.ones(shape, np.float32), f32) for suffix, shape in shapes.items()}
    metadata: dict[str, str | float] = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 2.0,
        "edgepd.base_sha256": base_sha256,
    }
    return write_gguf(path, metadata, tensors)


@dataclass
class Planted:
    """A daemon with candidates that nobody should serve, and what each is called."""

    daemon: Daemon
    ids: dict[str, int]


@pytest.fixture(scope="module")
def planted(tiny_models: Path, tiny_model: Path) -> Iterator[Planted]:
    with short_directory() as home:
        where = home / "data" / "generations"
        where.mkdir(parents=True)
        base_sha256 = Catalog(tiny_models).find("tiny").sha256
        good = random_lora(where / "good.gguf", tiny_model, seed=1, deviation=0.5)
        truncated = where / "truncated.gguf"
        truncated.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
        wider = tiny_llama(home / "wider.gguf", qtype=GGMLType.Q4_K, seed=1)
        deeper = tiny_llama(home / "deeper.gguf", qtype=GGMLType.Q4_1, seed=1, layers=3)
        changed = Path(shutil.copy(good, where / "changed.gguf"))
        (where / "garbage.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 64)
        files = {
            "good": good,
            "missing": where / "missing.gguf",
            "empty": where / "empty.gguf",
            "truncated": truncated,
            "garbage": where / "garbage.gguf",
            "other base": random_lora(where / "other.gguf", tiny_model, seed=1, deviation=0.5, base_sha256="ab" * 32),
            "other shapes": random_lora(where / "shapes.gguf", wider, seed=1, deviation=0.5, base_sha256=base_sha256),
            "other tensors": random_lora(
                where / "tensors.gguf", deeper, seed=1, deviation=0.5, base_sha256=base_sha256
            ),
            "DoRA": dora(where / "dora.gguf", tiny_model, base_sha256),
            "a model": Path(shutil.copy(tiny_model, where / "model.gguf")),
            "changed": changed,
        }
        files["empty"].touch()
        ids = plant(home, tiny_models, files)
        data = bytearray(changed.read_bytes())
        data[-1] ^= 1
        changed.write_bytes(data)
        baked = {name: where / f"{name}.gguf" for name in ("baked-missing", "baked-changed")}
        shutil.copy(tiny_model, baked["baked-changed"])
        ids |= plant(home, tiny_models, baked, kind="baked")
        baked["baked-changed"].chmod(0o600)
        with baked["baked-changed"].open("ab") as file:
            file.write(b"x")
        with running(home, tiny_models, *TINY_SETTINGS) as daemon:
            yield Planted(daemon, ids)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "missing.gguf: byte 0: cannot be opened: No such file or directory"),
        ("empty", "empty.gguf: byte 0: the file has 0 bytes"),
        ("truncated", "truncated.gguf: byte "),
        ("garbage", "garbage.gguf: byte "),
        ("other base", f"made for the base with SHA-256 {'ab' * 32}, but "),
        ("other shapes", "the adapter was made for another base"),
        ("other tensors", "has no tensor 'blk.2."),
        ("DoRA", f"'{QUERY}.lora_magnitude_vector' makes it a DoRA adapter, which llama.cpp cannot load; use LoRA"),
        ("a model", "is not an adapter"),
        ("changed", "has changed since it was written"),
    ],
)
def test_adapters_that_are_refused(planted: Planted, name: str, reason: str) -> None:
    daemon = planted.daemon
    before = daemon.answer("Hello", max_tokens=10, cache_prompt=False)
    number = planted.ids[name]
    status, code, message = daemon.refused("/edgepd/v1/generations/activate", {"generation": number})
    assert (status, code) == (409, "adapter_refused")
    assert reason in message
    found = daemon.get("/edgepd/v1/generations")
    assert found["active"] == 1
    assert [g["state"] for g in found["generations"] if g["id"] == number] == ["candidate"]
    body = {"messages": [{"role": "user", "content": "Hi"}], "model": f"tiny@{number}"}
    assert daemon.refused("/v1/chat/completions", body)[:2] == (409, "adapter_refused")
    assert daemon.answer("Hello", max_tokens=10, cache_prompt=False) == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [("baked-missing", "cannot be opened: No such file"), ("baked-changed", "has changed since it was baked")],
)
def test_baked_files_that_are_refused(planted: Planted, name: str, reason: str) -> None:
    found = planted.daemon.refused("/edgepd/v1/generations/activate", {"generation": planted.ids[name]})
    assert found[:2] == (503, "model_unavailable")
    assert reason in found[2]
    assert planted.daemon.get("/edgepd/v1/generations")["active"] == 1
    assert planted.daemon.get("/edgepd/v1/status")["engine"]["models"][0]["path"].endswith("/tiny.gguf")


def test_the_one_that_is_good_is_served(planted: Planted) -> None:
    daemon, good = planted.daemon, planted.ids["good"]
    before = daemon.answer("Hello", max_tokens=10, cache_prompt=False)
    assert daemon.answer("Hello", max_tokens=10, cache_prompt=False, model=f"tiny@{good}") != before
    assert daemon.post("/edgepd/v1/generations/activate", {"generation": good})["previous"] == 1
    assert daemon.answer("Hello", max_tokens=10, cache_prompt=False) != before
    assert daemon.post("/edgepd/v1/generations/rollback", {})["active"] == 1
    assert daemon.answer("Hello", max_tokens=10, cache_prompt=False) == before


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_when_the_active_file_is_gone_at_the_start_the_base_serves(
    edgepd_home: Path, tiny_models: Path, tiny_model: Path, damage: str
) -> None:
    where = edgepd_home / "data" / "generations"
    where.mkdir(parents=True)
    file = random_lora(where / "good.gguf", tiny_model, seed=1, deviation=0.5)
    content = file.read_bytes()
    number = plant(edgepd_home, tiny_models, {"good": file})["good"]
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as daemon:
        before = daemon.answer("Hello", max_tokens=10)
        daemon.post("/edgepd/v1/generations/activate", {"generation": number})
        adapted = daemon.answer("Hello", max_tokens=10)
        assert daemon.stop() == 0
    damages: dict[str, Callable[[], object]] = {
        "missing": file.unlink,
        "truncated": lambda: file.write_bytes(content[:2000]),
    }
    damages[damage]()
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as daemon:
        assert daemon.chat("Hello", max_tokens=10)["generation"] == 1  # the first request finds out
        found = daemon.get("/edgepd/v1/status")
        [problem] = found["problems"]
        assert problem.startswith(f"generation {number} cannot be served, the base serves instead: ")
        assert "good.gguf" in problem
        assert found["generation"]["kind"] == "base"
        assert daemon.chat("Hello", max_tokens=10)["generation"] == 1
        assert daemon.answer("Hello", max_tokens=10) == before
        file.write_bytes(content)
        daemon.post("/edgepd/v1/generations/activate", {"generation": number})
        assert daemon.get("/edgepd/v1/status")["problems"] == []
        assert daemon.answer("Hello", max_tokens=10) == adapted
