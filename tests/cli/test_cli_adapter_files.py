"""`edgepd adapters bake`, `import` and `export`."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepd_quant.adapter_file import Adapter, Kind, LowRank, Vector, write_adapter
from tests.cli.conftest import Edgepd
from tests.cli.fake_daemon import NUMBERS, PLAIN, RUN, FakeDaemon, Json, Reply, error

ROUTES = "/edgepd/v1/generations"
CONTENT = bytes(range(256)) * 5000  # more than one piece of the copy
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MADE: Json = {**PLAIN, "id": 9, "parent": 2, "kind": "live", "state": "candidate", "created_at": 1.0, "example_ids": []}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "daemon's"  # a blank or quote in the path must survive in the command that is shown
    folder.mkdir()
    path = folder / "7.gguf"
    path.write_bytes(CONTENT)
    return path


def shown(source: Path, kind: str, **fields: object) -> Json:
    """What the daemon says of a generation whose own file is `source`."""
    own = {"path": str(source), "sha256": SHA256}
    base = {"path": "/models/tiny.gguf", "sha256": "ab" * 32}
    generation = {**PLAIN, "id": 7, "kind": kind, "state": "active", **fields}
    if kind == "baked":
        return {"generation": generation, "model": own, "adapter": None}
    return {"generation": generation, "model": base, "adapter": own if kind == "live" else None}


def test_export_of_a_baked_generation(daemon: FakeDaemon, edgepd: Edgepd, source: Path, tmp_path: Path) -> None:
    daemon.on(f"GET {ROUTES}/7", shown(source, "baked", model_file="7.gguf"))
    target = tmp_path / "mine.gguf"
    result = edgepd("adapters", "export", "7", str(target))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (f"{target}: generation 7, a whole model, 1.2 MiB\nrun it with: llama-cli -m {target}\n")
    assert target.read_bytes() == CONTENT
    assert source.read_bytes() == CONTENT


def test_export_of_a_live_generation_names_its_model(
    daemon: FakeDaemon, edgepd: Edgepd, source: Path, tmp_path: Path
) -> None:
    daemon.on(f"GET {ROUTES}/7", shown(source, "live", adapter_file="7.gguf"))
    target = tmp_path / "my style.gguf"
    result = edgepd("adapters", "export", "7", str(target))
    assert result.stdout == (
        f"{target}: generation 7, a LoRA adapter, 1.2 MiB\n"
        "it goes with the model file /models/tiny.gguf and with no other\n"
        f"run it with: llama-cli -m /models/tiny.gguf --lora '{target}'\n"
    )
    assert target.read_bytes() == CONTENT


def test_export_of_a_live_generation_on_a_baked_one(
    daemon: FakeDaemon, edgepd: Edgepd, source: Path, tmp_path: Path
) -> None:
    daemon.on(f"GET {ROUTES}/7", shown(source, "live", adapter_file="7.gguf", model_file="5.gguf"))
    result = edgepd("adapters", "export", "7", str(tmp_path / "mine.gguf"))
    assert "that one is a baked generation's" in result.stdout


def test_export_as_json(
    daemon: FakeDaemon, edgepd: Edgepd, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.on(f"GET {ROUTES}/7", shown(source, "live", adapter_file="7.gguf"))
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "mine.gguf"
    assert json.loads(edgepd("adapters", "export", "7", "mine.gguf", "--json").stdout) == {
        "generation": 7,
        "kind": "live",
        "file": str(target),
        "bytes": len(CONTENT),
        "sha256": SHA256,
        "model": "/models/tiny.gguf",
        "run": f"llama-cli -m /models/tiny.gguf --lora {target}",
    }


def test_an_existing_file_is_replaced_only_by_force(
    daemon: FakeDaemon, edgepd: Edgepd, source: Path, tmp_path: Path
) -> None:
    daemon.on(f"GET {ROUTES}/7", shown(source, "baked", model_file="7.gguf"))
    target = tmp_path / "mine.gguf"
    target.write_text("precious")
    refused = edgepd("adapters", "export", "7", str(target))
    assert (refused.exit_code, target.read_text()) == (6, "precious")
    assert refused.stderr == f"Error: {target} exists; choose another name, or replace it with --force\n"
    assert edgepd("adapters", "export", "7", str(target), "--force").exit_code == 0
    assert target.read_bytes() == CONTENT


def test_a_file_that_is_not_as_noted_is_not_exported(
    daemon: FakeDaemon, edgepd: Edgepd, source: Path, tmp_path: Path
) -> None:
    daemon.on(f"GET {ROUTES}/7", shown(source, "baked", model_file="7.gguf"))
    source.write_bytes(b"\x01" + CONTENT[1:])
    target = tmp_path / "mine.gguf"
    result = edgepd("adapters", "export", "7", str(target))
    assert result.exit_code == 8
    assert f"not {SHA256[:12]}… as noted when it was made" in result.stderr
    assert sorted(tmp_path.iterdir()) == [source.parent]  # neither the target nor a temporary file


def test_a_full_disk_is_noticed_before_copying(
    daemon: FakeDaemon, edgepd: Edgepd, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.on(f"GET {ROUTES}/7", shown(source, "baked", model_file="7.gguf"))
    free = shutil.disk_usage(tmp_path)._replace(free=2 * 2**20)
    monkeypatch.setattr("edgepd.cli.adapter_files.shutil.disk_usage", lambda path: free)
    result = edgepd("adapters", "export", "7", str(tmp_path / "mine.gguf"))
    assert result.exit_code == 8
    assert result.stderr == f"Error: {tmp_path} has 2.0 MiB free, but the copy needs 2.2 MiB; make room first\n"
    assert sorted(tmp_path.iterdir()) == [source.parent]


def test_a_disk_that_fills_up_while_copying(
    daemon: FakeDaemon, edgepd: Edgepd, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(original: Any, copy: Any, length: int) -> None:
        copy.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    daemon.on(f"GET {ROUTES}/7", shown(source, "baked", model_file="7.gguf"))
    monkeypatch.setattr("edgepd.cli.adapter_files.shutil.copyfileobj", fill)
    result = edgepd("adapters", "export", "7", str(tmp_path / "mine.gguf"))
    assert result.exit_code == 8
    assert "No space left on device" in result.stderr
    assert sorted(tmp_path.iterdir()) == [source.parent]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("daemon's", 2, "is a folder; name the file to write in it"),
        ("daemon's/7.gguf", 6, "is the generation's own file; choose another name"),
        ("missing/x.gguf", 8, "is not a folder; make it first"),
    ],
)
def test_where_nothing_is_exported_to(
    daemon: FakeDaemon, edgepd: Edgepd, source: Path, tmp_path: Path, name: str, code: int, message: str
) -> None:
    daemon.on(f"GET {ROUTES}/7", shown(source, "baked", model_file="7.gguf"))
    result = edgepd("adapters", "export", "7", str(tmp_path / name), "--force")
    assert result.exit_code == code
    assert message in result.stderr
    assert source.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("kind", "fields", "code", "message"),
    [
        ("base", {}, 2, "generation 7 is the base model itself and has no file of its own; it is /models/tiny.gguf"),
        ("baked", {"state": "deleted"}, 6, "generation 7 is deleted; there is no file to export"),
        ("live", {"state": "training"}, 6, "generation 7 is training; there is no file to export"),
    ],
)
def test_generations_without_a_file(
    daemon: FakeDaemon, edgepd: Edgepd, source: Path, tmp_path: Path, kind: str, fields: Json, code: int, message: str
) -> None:
    daemon.on(f"GET {ROUTES}/7", shown(source, kind, **fields))
    result = edgepd("adapters", "export", "7", str(tmp_path / "mine.gguf"))
    assert (result.exit_code, result.stderr) == (code, f"Error: {message}\n")


def test_a_file_whose_hash_was_never_known(daemon: FakeDaemon, edgepd: Edgepd, source: Path, tmp_path: Path) -> None:
    unknown = shown(source, "baked") | {"model": {"path": str(source), "sha256": None}}
    daemon.on(f"GET {ROUTES}/7", unknown)
    assert edgepd("adapters", "export", "7", str(tmp_path / "mine.gguf")).exit_code == 6


def test_a_file_that_is_gone(daemon: FakeDaemon, edgepd: Edgepd, source: Path, tmp_path: Path) -> None:
    daemon.on(f"GET {ROUTES}/7", shown(source, "baked", model_file="7.gguf"))
    source.unlink()
    result = edgepd("adapters", "export", "7", str(tmp_path / "mine.gguf"))
    assert result.exit_code == 4
    assert result.stderr.startswith(f"Error: {source} is not there any more")


def test_import_names_the_absolute_path(
    daemon: FakeDaemon, edgepd: Edgepd, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.on(f"POST {ROUTES}/import", {"generation": MADE})
    monkeypatch.chdir(source.parent)
    result = edgepd("adapters", "import", "7.gguf")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "generation 9 (live) is a candidate\n"
        'see how it answers: edgepd compare -b 9 "a question"\n'
        "make it live:       edgepd adapters use 9\n"
    )
    assert daemon.asked(f"{ROUTES}/import") == [{"path": str(source)}]
    assert json.loads(edgepd("adapters", "import", str(source), "--json").stdout) == {"generation": MADE}


def test_import_of_what_is_not_there_or_does_not_fit(daemon: FakeDaemon, edgepd: Edgepd, source: Path) -> None:
    assert edgepd("adapters", "import", str(source.parent / "none.gguf")).exit_code == 2
    assert daemon.requests == []
    daemon.on(f"POST {ROUTES}/import", error(409, "adapter_refused", "made for another model"))
    result = edgepd("adapters", "import", str(source))
    assert (result.exit_code, result.stderr) == (5, "Error: made for another model\n")


def adapter(path: Path, kind: Kind) -> Path:
    """Write a tiny adapter of this kind."""
    ones = np.ones((1, 1), dtype=np.float32)
    values = Vector(ones[0]) if kind == "gain" else LowRank(ones, ones)
    name = "blk.0.attn_norm.weight" if kind == "gain" else "blk.0.attn_q.weight"
    write_adapter(path, Adapter(kind, "llama", 0.0, {name: values}, {}))
    return path


@pytest.mark.parametrize("kind", ["scale", "shift", "gain"])
def test_bake_of_a_delta(daemon: FakeDaemon, edgepd: Edgepd, tmp_path: Path, kind: Kind) -> None:
    daemon.on(f"POST {ROUTES}/import", {"generation": {**MADE, "kind": "baked"}})
    path = adapter(tmp_path / "delta.gguf", kind)
    result = edgepd("adapters", "bake", "--delta", str(path))
    assert result.stdout.startswith("generation 9 (baked) is a candidate\n"), result.stderr
    assert daemon.asked(f"{ROUTES}/import") == [{"path": str(path)}]


def test_what_cannot_be_baked(daemon: FakeDaemon, edgepd: Edgepd, source: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "lora.gguf", "lora")
    result = edgepd("adapters", "bake", "--delta", str(path))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {path} is an adapter of type 'lora', but only types edgepd.scale, ")
    assert edgepd("adapters", "bake", "--delta", str(source)).exit_code == 5  # no GGUF at all
    assert daemon.requests == []


@pytest.mark.parametrize(("state", "code"), [("promoted", 0), ("rejected", 7)])
def test_bake_is_the_normal_path_of_training(
    daemon: FakeDaemon, edgepd: Edgepd, monkeypatch: pytest.MonkeyPatch, state: str, code: int
) -> None:
    monkeypatch.setattr("edgepd.cli.train.POLL_S", 0.001)
    daemon.on("POST /edgepd/v1/training", Reply({"run": {**RUN, "kind": "baked"}}, 202))
    ended = {**RUN, "kind": "baked", "state": state, "generation": 4, "reason": "worse", "numbers": NUMBERS}
    daemon.on("GET /edgepd/v1/training/r1", {"run": ended, "progress": None})
    result = edgepd("adapters", "bake")
    assert (result.exit_code, result.stderr) == (code, "")
    first = {"promoted": "promoted: generation 4 (baked) is live", "rejected": "rejected: worse"}[state]
    assert result.stdout.splitlines()[0] == first
    assert daemon.asked("/edgepd/v1/training") == [{"kind": "baked"}]


def test_bake_without_waiting(daemon: FakeDaemon, edgepd: Edgepd) -> None:
    daemon.on("POST /edgepd/v1/training", Reply({"run": RUN}, 202))
    assert json.loads(edgepd("adapters", "bake", "--no-wait", "--json").stdout) == {"run": RUN}
    assert [asked.method for asked in daemon.requests] == ["POST"]
