"""Adapter files: what is written is what llama.cpp and gguf-py read, and what does not fit is refused."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from edgepd.errors import AdapterError, StoreError
from edgepd_quant.adapter_file import Adapter, Kind, LowRank, Vector, check_adapter, read_adapter, write_adapter
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import GGMLType
from tests.tiny_gguf import llama_logits, tiny_llama, write_gguf

BASE_SHA = "ab" * 32
F32 = int(GGMLType.F32)
TOKENS = [1, 120, 118, 266, 13, 272, 2]


def factors(rows: int, columns: int, rank: int = 4, seed: int = 0) -> LowRank:
    rng = np.random.default_rng(seed)
    a = rng.normal(0, 0.3, (rank, columns)).astype(np.float32)
    return LowRank(a, rng.normal(0, 0.3, (rows, rank)).astype(np.float32))


def gains(count: int, seed: int = 0) -> Vector:
    return Vector(np.random.default_rng(seed).normal(0, 0.3, count).astype(np.float32))


def lora(**tensors: LowRank) -> Adapter:
    named = {name.replace("__", "."): pair for name, pair in tensors.items()}
    return Adapter("lora", "llama", 8.0, named, {"base_sha256": BASE_SHA, "config": "r=4"})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "base.gguf", qtype=GGMLType.Q4_1, seed=1)


def refusal(path: Path, base: Path) -> str:
    with GGUFFile.open(base) as file, pytest.raises(AdapterError) as caught:
        check_adapter(path, file, BASE_SHA)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["lora", "scale", "shift"])
def test_what_is_written_is_read_back(tmp_path: Path, kind: Kind) -> None:
    tensors = {"blk.0.attn_q.weight": factors(64, 64), "blk.1.ffn_down.weight": factors(64, 96, rank=2)}
    metadata = {"base_sha256": BASE_SHA, "scores": '{"held_out": 2.5}'}
    adapter = Adapter(kind, "llama", 16.0, tensors, metadata)
    path = tmp_path / "adapter.gguf"
    write_adapter(path, adapter)
    found = read_adapter(path)
    assert (found.kind, found.architecture, found.alpha) == (kind, "llama", 16.0)
    assert dict(found.metadata) == metadata
    assert list(found.tensors) == list(tensors)
    for name, pair in tensors.items():
        read = found.tensors[name]
        assert isinstance(read, LowRank)
        assert np.array_equal(read.a, pair.a)
        assert np.array_equal(read.b, pair.b)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter.gguf"]


def test_gains_are_written_and_read_back(tmp_path: Path, base: Path) -> None:
    """Of a matrix (32, 64), a norm, and a bias that this base does not have."""
    path = tmp_path / "gain.gguf"
    values = {"blk.0.attn_k.weight": gains(32), "blk.0.attn_norm.weight": gains(64)}
    write_adapter(path, Adapter("gain", "llama", 0.0, values, {"base_sha256": BASE_SHA}))
    oracle = gguf.GGUFReader(path)
    assert [(t.name, t.shape.tolist()) for t in oracle.tensors] == [
        ("blk.0.attn_k.weight.gain", [32]),
        ("blk.0.attn_norm.weight.gain", [64]),
    ]
    found = read_adapter(path)
    assert (found.kind, list(found.tensors)) == ("gain", list(values))
    for name, vector in values.items():
        read = found.tensors[name]
        assert isinstance(read, Vector)
        assert read.values.dtype == np.float32
        assert np.array_equal(read.values, vector.values)
    with GGUFFile.open(base) as file:
        assert check_adapter(path, file, BASE_SHA).ranks == dict.fromkeys(values, 0)
    write_adapter(path, Adapter("gain", "llama", 0.0, values | {"blk.0.attn_k.bias": gains(32)}, {}))
    assert "has no tensor 'blk.0.attn_k.bias'" in refusal(path, base)


def test_gains_of_a_bias_fit_a_bias_and_no_other_vector_is_changed(tmp_path: Path) -> None:
    vector = (np.ones(8, dtype=np.float32), F32)
    base = write_gguf(tmp_path / "base.gguf", {}, {"blk.0.attn_q.bias": vector, "rope_freqs.weight": vector})
    path = tmp_path / "gain.gguf"
    write_adapter(path, Adapter("gain", "llama", 0.0, {"blk.0.attn_q.bias": gains(8)}, {}))
    with GGUFFile.open(base) as file:
        assert check_adapter(path, file, BASE_SHA).kind == "gain"
    write_adapter(path, Adapter("gain", "llama", 0.0, {"rope_freqs.weight": gains(8)}, {}))
    assert "only matrices, norm gains and biases are adapted" in refusal(path, base)


def test_gguf_py_reads_the_lora(tmp_path: Path) -> None:
    pair = factors(96, 64)
    path = tmp_path / "adapter.gguf"
    write_adapter(path, lora(blk__0__ffn_up__weight=pair))
    oracle = gguf.GGUFReader(path)
    assert {name: oracle.fields[name].contents() for name in oracle.fields if not name.startswith("GGUF.")} == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
        "edgepd.base_sha256": BASE_SHA,
        "edgepd.config": "r=4",
    }
    assert [(t.name, t.shape.tolist()) for t in oracle.tensors] == [
        ("blk.0.ffn_up.weight.lora_a", [64, 4]),
        ("blk.0.ffn_up.weight.lora_b", [4, 96]),
    ]
    assert np.array_equal(oracle.tensors[1].data, pair.b)


def test_llama_cpp_applies_the_lora_as_written(tmp_path: Path) -> None:
    """Base plus adapter gives the logits of a model whose weights were changed by alpha / r B A."""
    plain = tiny_llama(tmp_path / "plain.gguf", qtype=GGMLType.F32, seed=2)
    name, pair, alpha = "blk.1.ffn_down.weight", factors(64, 96), 8.0
    write_adapter(tmp_path / "adapter.gguf", Adapter("lora", "llama", alpha, {name: pair}, {}))
    merged = tmp_path / "merged.gguf"
    content = bytearray(plain.read_bytes())
    with GGUFFile.open(plain) as file:
        info = file.tensors[name]
        weights = file.f32(name) + np.float32(alpha / 4) * (pair.b @ pair.a)
        content[info.offset : info.offset + info.nbytes] = weights.astype("<f4").tobytes()
    merged.write_bytes(content)
    adapted = llama_logits(plain, TOKENS, tmp_path / "adapter.gguf")
    assert np.abs(adapted - llama_logits(merged, TOKENS)).max() < 0.02
    assert np.abs(adapted - llama_logits(plain, TOKENS)).max() > 0.5


def test_check_returns_the_header(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "adapter.gguf"
    write_adapter(path, lora(blk__0__attn_k__weight=factors(32, 64), blk__0__ffn_down__weight=factors(64, 96, 2)))
    with GGUFFile.open(base) as file:
        header = check_adapter(path, file, BASE_SHA)
    assert (header.kind, header.architecture, header.alpha) == ("lora", "llama", 8.0)
    assert header.ranks == {"blk.0.attn_k.weight": 4, "blk.0.ffn_down.weight": 2}
    assert header.metadata == {"base_sha256": BASE_SHA, "config": "r=4"}


@pytest.mark.parametrize("kind", ["scale", "shift"])
def test_factors_for_blocks_are_as_wide_as_a_row_has_blocks(tmp_path: Path, base: Path, kind: Kind) -> None:
    path = tmp_path / "delta.gguf"
    name = "blk.0.ffn_down.weight"  # rows of 96 values: 3 blocks of Q4_1
    write_adapter(path, Adapter(kind, "llama", 0.0, {name: factors(64, 3)}, {}))
    with GGUFFile.open(base) as file:
        assert check_adapter(path, file, BASE_SHA).ranks == {name: 4}
    write_adapter(path, Adapter(kind, "llama", 0.0, {name: factors(64, 96)}, {}))
    assert "needs (r, 3) and (64, r)" in refusal(path, base)


def test_half_precision_factors_from_elsewhere_are_read(tmp_path: Path, base: Path) -> None:
    pair, name = factors(64, 64), "blk.0.attn_q.weight"
    path = write_gguf(
        tmp_path / "adapter.gguf",
        {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 2.0},
        {f"{name}.lora_a": (pair.a, GGMLType.F16), f"{name}.lora_b": (pair.b, GGMLType.F16)},
    )
    with GGUFFile.open(base) as file:
        check_adapter(path, file, BASE_SHA)  # names no base, so none is compared
    found = read_adapter(path).tensors[name]
    assert isinstance(found, LowRank)
    assert np.array_equal(found.a, pair.a.astype(np.float16).astype(np.float32))


def test_missing_truncated_and_foreign_files_are_refused(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "adapter.gguf"
    assert "No such file" in refusal(path, base)
    write_adapter(path, lora(blk__0__attn_q__weight=factors(64, 64)))
    path.write_bytes(path.read_bytes()[:-1])
    assert "restore it or train again" in refusal(path, base)
    path.write_bytes(b"not a GGUF file, but long enough to be one")
    assert "not a GGUF file" in refusal(path, base)
    with GGUFFile.open(base) as file, pytest.raises(AdapterError, match="is not an adapter: general.type is None"):
        check_adapter(base, file, BASE_SHA)


def test_another_base_or_architecture_is_refused(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "adapter.gguf"
    tensors = {"blk.0.attn_q.weight": factors(64, 64)}
    write_adapter(path, Adapter("lora", "llama", 8.0, tensors, {"base_sha256": "cd" * 32}))
    assert f"SHA-256 {'cd' * 32}, but" in refusal(path, base)
    write_adapter(path, Adapter("lora", "qwen3", 8.0, tensors, {}))
    assert "architecture 'qwen3', but" in refusal(path, base)


A, B = np.zeros((4, 64), dtype=np.float32), np.zeros((64, 4), dtype=np.float32)
Q = "blk.0.attn_q.weight"
REFUSED: dict[str, tuple[Mapping[str, npt.NDArray[np.float32]], str]] = {
    "tensor not in base": ({"blk.7.attn_q.weight.lora_a": A, "blk.7.attn_q.weight.lora_b": B}, "has no tensor 'blk.7."),
    "a too narrow": ({f"{Q}.lora_a": A[:, :32], f"{Q}.lora_b": B}, "needs (r, 64) and (64, r)"),
    "b too short": ({f"{Q}.lora_a": A, f"{Q}.lora_b": B[:32]}, "needs (r, 64) and (64, r)"),
    "ranks differ": ({f"{Q}.lora_a": A, f"{Q}.lora_b": B[:, :3]}, f"factors for '{Q}' differ: 4 and 3"),
    "lone a": ({f"{Q}.lora_a": A}, f"{Q}.lora_b is missing"),
    "lone b": ({f"{Q}.lora_b": B}, f"{Q}.lora_a is missing"),
    "DoRA": (
        {f"{Q}.lora_a": A, f"{Q}.lora_b": B, f"{Q}.lora_magnitude_vector": A[0]},
        "makes it a DoRA adapter",
    ),
    "embedding": ({"token_embd.weight.lora_a": A, "token_embd.weight.lora_b": B}, "'token_embd.weight' are not"),
    "head": ({"output.weight.lora_a": A, "output.weight.lora_b": B}, "'output.weight' are not supported"),
    "other suffix": ({f"{Q}.lora_a": A, f"{Q}.lora_b": B, f"{Q}.lora_c": A}, "is not a factor of a lora adapter"),
    "scale in lora": ({f"{Q}.scale_a": A, f"{Q}.scale_b": B}, "is not a factor of a lora adapter"),
    "norm": (
        {"blk.0.attn_norm.weight.lora_a": A, "blk.0.attn_norm.weight.lora_b": B},
        "only matrices are adapted",
    ),
    "vector": ({f"{Q}.lora_a": A[0], f"{Q}.lora_b": B}, "factors are matrices"),
    "gain in lora": ({f"{Q}.gain": A[:, 0]}, "is not a factor of a lora adapter"),
    "nothing": ({}, "holds no tensors"),
}
REFUSED_GAINS: dict[str, tuple[Mapping[str, npt.NDArray[np.float32]], str]] = {
    "too short": ({f"{Q}.gain": B[:63, 0]}, "the gains for 'blk.0.attn_q.weight' are (63,), but this base needs (64,)"),
    "matrix": ({f"{Q}.gain": A}, "has shape (4, 64), but gains are vectors"),
    "norm too long": ({"blk.0.attn_norm.weight.gain": np.zeros(65, dtype=np.float32)}, "needs (64,)"),
    "factor": ({f"{Q}.lora_a": A, f"{Q}.lora_b": B}, "is not a factor of a gain adapter"),
    "head": ({"output.weight.gain": B[:, 0]}, "'output.weight' are not supported"),
    "embedding": ({"token_embd.weight.gain": B[:, 0]}, "'token_embd.weight' are not supported"),
    "tensor not in base": ({"blk.7.attn_q.weight.gain": B[:, 0]}, "has no tensor 'blk.7."),
    "nothing": ({}, "holds no tensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, base: Path, name: str) -> None:
    tensors, problem = REFUSED[name]
    path = write_gguf(
        tmp_path / "adapter.gguf",
        {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0},
        {tensor: (array, F32) for tensor, array in tensors.items()},
    )
    assert problem in refusal(path, base)


@pytest.mark.parametrize("name", REFUSED_GAINS)
def test_gains_that_do_not_fit_are_refused(tmp_path: Path, base: Path, name: str) -> None:
    tensors, problem = REFUSED_GAINS[name]
    path = write_gguf(
        tmp_path / "adapter.gguf",
        {"general.type": "adapter", "adapter.type": "edgepd.gain"},
        {tensor: (array, F32) for tensor, array in tensors.items()},
    )
    assert problem in refusal(path, base)


def test_other_adapter_types_and_bad_alpha_are_refused(tmp_path: Path, base: Path) -> None:
    tensors = {f"{Q}.lora_a": (A, F32), f"{Q}.lora_b": (B, F32)}
    path = tmp_path / "adapter.gguf"
    write_gguf(path, {"general.type": "adapter", "adapter.type": "ia3"}, tensors)
    assert "type 'ia3' is not supported" in refusal(path, base)
    write_gguf(path, {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": float("nan")}, tensors)
    assert "alpha is nan" in refusal(path, base)


def test_factors_that_do_not_belong_together_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(4, 64\) and \(64, 3\) do not belong together"):
        write_adapter(tmp_path / "adapter.gguf", lora(blk__0__attn_q__weight=LowRank(A, B[:, :3])))
    wrong: list[tuple[Kind, LowRank | Vector, str]] = [
        ("gain", LowRank(A, B), "LowRank does not belong into an adapter of kind gain"),
        ("shift", Vector(A[0]), "Vector does not belong into an adapter of kind shift"),
        ("gain", Vector(A), r"gains are a vector, not \(4, 64\)"),
    ]
    for kind, values, problem in wrong:
        with pytest.raises(ValueError, match=problem):
            write_adapter(tmp_path / "adapter.gguf", Adapter(kind, "llama", 0.0, {Q: values}, {}))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "adapter.gguf"
    write_adapter(path, lora(blk__0__attn_q__weight=factors(64, 64)))
    before = path.read_bytes()

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError, match="No space left on device"):
        write_adapter(path, lora(blk__0__attn_q__weight=factors(64, 64, seed=9)))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter.gguf"]


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="absent/adapter.gguf: cannot be written: No such file"):
        write_adapter(tmp_path / "absent" / "adapter.gguf", lora(blk__0__attn_q__weight=factors(64, 64)))


def test_file_parts_import_neither_torch_nor_gguf() -> None:
    roots = [str(Path(__file__).parents[2] / part) for part in (".", "quant")]
    script = (
        f"import sys; sys.path[:0] = {roots!r}; import edgepd_quant.bake, edgepd_quant.adapter_file;"
        " print([name for name in ('torch', 'gguf', 'llama_cpp') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"
