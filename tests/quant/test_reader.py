"""The lazy GGUF reader: what it reads, what it costs and how it fails."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd.errors import FormatError, ModelError
from edgepd_quant.header import parse_header
from edgepd_quant.metadata import LazyArray, ValueType
from edgepd_quant.reader import GGUFFile
from edgepd_quant.types import BLOCK_SIZES, GGMLType, row_bytes
from tests.tiny_gguf import tiny_llama, write_gguf

UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9
ROOTS = [str(Path(__file__).parents[2] / part) for part in (".", "quant")]


def text(value: str | bytes) -> bytes:
    """A GGUF string: uint64 length, bytes."""
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def key(name: str, kind: int, value: bytes) -> bytes:
    """A metadata entry: string key, uint32 type, value."""
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, extents: list[int], qtype: int = 0, offset: int = 0) -> bytes:
    """A tensor entry: name, uint32 dimensions, uint64 extents (row length first), uint32 type, uint64 offset."""
    return text(name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, qtype, offset)


def build(
    keys: list[bytes], tensors: list[bytes], data: bytes = b"", version: int = 3, counts: tuple[int, int] | None = None
) -> bytes:
    """A whole file with alignment 32: magic, uint32 version, uint64 tensors, uint64 keys, entries, padding,
    data.
    """
    n_tensors, n_keys = counts or (len(tensors), len(keys))
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


def saved(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "file.gguf"
    path.write_bytes(content)
    return path


def test_reads_a_file_built_by_hand(tmp_path: Path) -> None:
    content = build(
        [
            key("general.architecture", STRING, text("llama")),
            key("a.flag", 7, b"\x01"),
            key("a.int", 5, struct.pack("<i", -3)),
            key("a.double", 12, struct.pack("<d", 0.25)),
            key("a.list", ARRAY, struct.pack("<IQ3H", 2, 3, 7, 8, 9)),
            key("a.names", ARRAY, struct.pack("<IQ", STRING, 2) + text("x") + text("yz")),
        ],
        [tensor("w", [32, 2], GGMLType.Q4_1, 0), tensor("v", [3], GGMLType.F32, 64)],
        bytes(range(40)) + bytes(24) + struct.pack("<3f", 1.0, 2.0, 3.0),
    )
    with GGUFFile.open(saved(tmp_path, content)) as file:
        assert (file.version, file.alignment, file.size) == (3, 32, len(content))
        assert file.data_offset % 32 == 0
        assert file.metadata["general.architecture"] == "llama"
        assert file.metadata["a.flag"] is True
        assert (file.metadata["a.int"], file.metadata["a.double"]) == (-3, 0.25)
        numbers, names = file.metadata["a.list"], file.metadata["a.names"]
        assert isinstance(numbers, LazyArray) and isinstance(names, LazyArray)
        assert (numbers.element_type, len(numbers), numbers.values()) == (ValueType.UINT16, 3, [7, 8, 9])
        assert names.values() == ["x", "yz"]
        info = file.tensors["w"]
        assert (info.shape, info.qtype, info.nbytes) == ((2, 32), GGMLType.Q4_1, 40)
        assert info.offset == file.data_offset
        assert file.rows("w").tolist() == [list(range(20)), list(range(20, 40))]
        assert file.f32("v").tolist() == [1.0, 2.0, 3.0]
        assert file.sha256() == hashlib.sha256(content).hexdigest()


def test_agrees_with_gguf_py_on_a_model(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m.gguf", qtype=GGMLType.Q5_0, seed=3)
    oracle = gguf.GGUFReader(path)
    with GGUFFile.open(path) as file:
        assert list(file.tensors) == [t.name for t in oracle.tensors]
        for expected in oracle.tensors:
            info = file.tensors[expected.name]
            assert info.shape == tuple(int(n) for n in reversed(expected.shape))
            assert (int(info.qtype), info.offset, info.nbytes) == (
                int(expected.tensor_type),
                int(expected.data_offset),
                int(expected.n_bytes),
            )
            assert file.rows(info.name).tobytes() == expected.data.tobytes()
        tokens = file.metadata["tokenizer.ggml.tokens"]
        assert isinstance(tokens, LazyArray)
        assert tokens.values() == oracle.fields["tokenizer.ggml.tokens"].contents()


def test_custom_alignment_moves_the_data(tmp_path: Path) -> None:
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = write_gguf(tmp_path / "m.gguf", {"general.alignment": 256}, {"w": (weights, 0), "v": (weights, 0)})
    with GGUFFile.open(path) as file:
        assert file.alignment == 256
        assert file.tensors["v"].offset - file.tensors["w"].offset == 256
        assert file.f32("v").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_three_dimensions_are_joined_into_rows(tmp_path: Path) -> None:
    weights = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with GGUFFile.open(write_gguf(tmp_path / "m.gguf", {}, {"w": (weights, 0)})) as file:
        assert file.tensors["w"].shape == (2, 3, 4)
        assert file.rows("w").shape == (6, 16)
        assert file.f32("w")[1, 2, 3] == 23.0


def test_views_outlive_the_file_and_writing_to_them_does_not_reach_it(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, {"w": (np.ones((1, 4), dtype=np.float32), 0)})
    before = path.read_bytes()
    with GGUFFile.open(path) as file:
        view = file.f32("w")
    file.close()  # twice does no harm
    view[:] = 5.0
    assert view.tolist() == [[5.0, 5.0, 5.0, 5.0]]
    assert path.read_bytes() == before


def resident_bytes() -> int:
    """How much of mapped files is in the memory of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile:"))
    return int(line.split()[1]) * 1024


def test_released_pages_leave_memory_and_come_back_when_read(tmp_path: Path) -> None:
    rows = 4 << 20  # bytes
    numbers = np.arange(rows // 4, dtype=np.float32).reshape(-1, 1024)
    tensors = {"small": (np.ones((1, 8), np.float32), 0), "large": (numbers, 0), "last": (numbers[:1], 0)}
    with GGUFFile.open(write_gguf(tmp_path / "m.gguf", {}, tensors)) as file:
        view = file.rows("large")
        before = resident_bytes()
        total = int(view.sum(dtype=np.int64))
        read = resident_bytes()
        assert read - before > 0.8 * rows
        file.release("large")
        assert resident_bytes() < read - 0.8 * rows
        assert int(view.sum(dtype=np.int64)) == total, "views stay valid"
        for name in tensors:
            file.release(name)
            file.release(name)  # twice does no harm
        assert file.f32("small").tolist() == [[1.0] * 8]
        assert np.array_equal(file.f32("large"), numbers)
        assert np.array_equal(file.f32("last"), numbers[:1])
        with pytest.raises(ModelError, match="no tensor named 'blk'"):
            file.release("blk")


def test_a_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, {"w": (np.ones((1, 4), dtype=np.float32), 0)})
    reads: list[int] = []
    pread = os.pread

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        reads.append(offset)
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    with GGUFFile.open(path) as file:
        assert reads == [], "opening does not hash"
        assert file.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
        first = len(reads)
        assert first > 0
        assert file.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
        assert len(reads) == first


def test_unknown_or_unsuitable_tensors_are_named(tmp_path: Path) -> None:
    with GGUFFile.open(tiny_llama(tmp_path / "m.gguf", qtype=GGMLType.Q8_0, seed=0)) as file:
        with pytest.raises(ModelError, match="no tensor named 'blk.9.attn_q.weight'"):
            file.rows("blk.9.attn_q.weight")
        with pytest.raises(ModelError, match="'token_embd.weight' is Q8_0, but F32 is needed"):
            file.f32("token_embd.weight")


GOOD_KEY = key("k", UINT32, struct.pack("<I", 1))  # 17 bytes: a following entry begins at offset 41
HUGE = (1 << 64) - 1
MALFORMED = {
    "empty": (b"", 0, "0 bytes, less than the 24"),
    "short": (b"GGUF" + bytes(19), 23, "less than the 24"),
    "magic": (b"GGML" + bytes(28), 0, "not a GGUF file"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), 4, "big-endian"),
    "version 1": (build([], [], version=1), 4, "version 1 is not supported"),
    "version 4": (build([], [], version=4), 4, "version 4 is not supported"),
    "tensor count": (build([], [], counts=(HUGE, 0)), 8, f"{HUGE} tensors declared, but at most 0"),
    "key count": (build([GOOD_KEY], [], counts=(0, 4)), 16, "4 metadata keys declared, but at most 3"),
    "key length": (build([struct.pack("<Q", HUGE) + bytes(99)], []), 24, "a metadata key is"),
    "key past the end": (build([struct.pack("<Q", 200) + bytes(99)], []), 32, "takes 200 bytes"),
    "key not UTF-8": (build([text(b"\xff\xfe") + bytes(99)], []), 24, "not UTF-8"),
    "string length": (build([key("k", STRING, struct.pack("<Q", HUGE) + bytes(99))], []), 37, "metadata key 'k' is"),
    "value type": (build([key("k", 13, bytes(99))], []), 33, "unknown value type 13"),
    "nested array": (build([key("k", ARRAY, struct.pack("<IQ", ARRAY, 1) + bytes(99))], []), 41, "array of arrays"),
    "array element type": (build([key("k", ARRAY, struct.pack("<IQ", 77, 1) + bytes(99))], []), 37, "value type 77"),
    "array length": (
        build([key("k", ARRAY, struct.pack("<IQ", UINT32, 1 << 61))], []),
        49,
        "takes 9223372036854775808",
    ),
    "string array length": (
        build([key("k", ARRAY, struct.pack("<IQ", STRING, HUGE))], []),
        49,
        "but the file has only",
    ),
    "strings past the end": (
        build([key("k", ARRAY, struct.pack("<IQ", STRING, 3) + text("abc") + text("d" * 60))], []),
        128,
        "ends after 2 of 3 strings",
    ),
    "last string past the end": (
        build([key("k", ARRAY, struct.pack("<IQQ", STRING, 1, 1 << 63) + bytes(64))], []),
        128,
        "the last string",
    ),
    "duplicate key": (build([GOOD_KEY, GOOD_KEY], []), 41, "duplicate metadata key 'k'"),
    "alignment 0": (build([key("general.alignment", UINT32, struct.pack("<I", 0))], []), 57, "general.alignment is 0"),
    "alignment 24": (build([key("general.alignment", UINT32, struct.pack("<I", 24))], []), 57, "is 24"),
    "alignment 2 MiB": (build([key("general.alignment", UINT32, struct.pack("<I", 2 << 20))], []), 57, "is 2097152"),
    "alignment text": (build([key("general.alignment", STRING, text("32"))], []), 63, "is '32'"),
    "duplicate tensor": (build([], [tensor("w", [8]), tensor("w", [8], 0, 32)], bytes(64)), 57, "duplicate tensor"),
    "tensor name": (build([], [tensor("n" * 64, [8])], bytes(32)), 24, "64 bytes long; at most 63"),
    "dimensions 0": (build([], [tensor("w", []) + bytes(8)], bytes(32)), 24, "0 dimensions"),
    "dimensions 5": (build([], [tensor("w", [1, 1, 1, 1, 1])], bytes(32)), 24, "5 dimensions"),
    "extent 0": (build([], [tensor("w", [8, 0])], bytes(32)), 24, "impossible shape (0, 8)"),
    "product overflow": (build([], [tensor("w", [1 << 32, 1 << 31])], bytes(32)), 24, "impossible shape"),
    "row length": (
        build([], [tensor("w", [33], GGMLType.Q4_1)], bytes(99)),
        24,
        "row length 33 is not a multiple of Q4_1",
    ),
    "removed type": (build([], [tensor("w", [32], 4)], bytes(99)), 24, "unknown ggml type 4"),
    "unknown type": (build([], [tensor("w", [32], 999)], bytes(99)), 24, "unknown ggml type 999"),
    "misaligned": (build([], [tensor("w", [8], 0, 4)], bytes(64)), 24, "not aligned to 32"),
    "past the end": (build([], [tensor("w", [8])], bytes(31)), 24, "needs bytes 64 to 96, but the file has only 95"),
    "offset past the end": (build([], [tensor("w", [8], 0, 1 << 63)], bytes(32)), 24, "but the file has only"),
    "overlap": (
        build([], [tensor("w", [16]), tensor("v", [8], 0, 32)], bytes(64)),
        128,
        "tensor 'v' overlaps tensor 'w'",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_file_is_refused_with_the_offset(tmp_path: Path, name: str) -> None:
    content, offset, problem = MALFORMED[name]
    with pytest.raises(FormatError) as caught:
        GGUFFile.open(saved(tmp_path, content))
    assert caught.value.offset == offset
    assert problem in caught.value.problem
    assert str(tmp_path / "file.gguf") in str(caught.value)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        GGUFFile.open(tmp_path / "absent.gguf")
    with pytest.raises(FormatError, match="not a regular file"):
        GGUFFile.open(tmp_path)


SAMPLE = build(
    [
        GOOD_KEY,
        key("general.alignment", UINT32, struct.pack("<I", 32)),
        key("s", STRING, text("hello")),
        key("t", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") + text("") + text("ccc")),
        key("f", ARRAY, struct.pack("<IQ3f", FLOAT32, 3, 1.0, 2.0, 3.0)),
    ],
    [tensor("w", [32, 2], GGMLType.Q4_1, 0), tensor("v", [8], GGMLType.F32, 64)],
    bytes(96),
)
FUZZ = settings(max_examples=400, deadline=None, database=None, derandomize=True)


def parse_or_refuse(content: bytes) -> None:
    """Parse; either it works and everything listed can be read, or FormatError is raised. Memory stays small."""
    tracemalloc.start()
    try:
        header = parse_header(Path("fuzz.gguf"), content)
        for value in header.metadata.values():
            if isinstance(value, LazyArray):
                assert len(value.values()) == value.length
        for info in header.tensors.values():
            assert info.offset + info.nbytes <= len(content)
    except FormatError as error:
        assert 0 <= error.offset <= len(content)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1_000_000


def test_the_sample_for_fuzzing_is_valid() -> None:
    assert list(parse_header(Path("sample"), SAMPLE).tensors) == ["w", "v"]


@FUZZ
@given(st.integers(0, len(SAMPLE) - 1))
def test_truncated_files_are_refused(length: int) -> None:
    with pytest.raises(FormatError):
        parse_header(Path("fuzz.gguf"), SAMPLE[:length])


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_bytes_never_crash(changes: list[tuple[int, int]]) -> None:
    content = bytearray(SAMPLE)
    for position, value in changes:
        content[position] = value
    parse_or_refuse(bytes(content))


@FUZZ
@given(st.integers(0, len(SAMPLE) - 8), st.one_of(st.integers(0, HUGE), st.integers(0, 200)))
def test_mutated_lengths_never_crash(position: int, value: int) -> None:
    content = bytearray(SAMPLE)
    content[position : position + 8] = struct.pack("<Q", value)
    parse_or_refuse(bytes(content))


COST = """
import sys, time, psutil
sys.path[:0] = {roots!r}
from pathlib import Path
from edgepd_quant.reader import GGUFFile
process = psutil.Process()
before = process.memory_info().rss
times = []
for _ in range(5):
    start = time.perf_counter()
    GGUFFile.open(Path({path!r})).close()
    times.append(time.perf_counter() - start)
print(min(times), process.memory_info().rss - before, *(name in sys.modules for name in ("torch", "gguf")))
"""


def test_opening_a_large_vocabulary_is_fast_and_small(tmp_path: Path) -> None:
    words = b"".join(text(f"token{i:08}") for i in range(49_152))
    keys = [
        key(f"tokenizer.ggml.{name}", ARRAY, struct.pack("<IQ", STRING, 49_152) + words)
        for name in ("tokens", "merges")
    ]
    content = build(keys, [tensor("w", [1 << 20, 16])], bytes(4 << 24))
    path = saved(tmp_path, content)
    script = COST.format(roots=ROOTS, path=str(path))
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert float(output[0]) <= 0.1
    assert int(output[1]) <= 10_000_000
    assert output[2:] == ["False", "False"]


def test_sizes_equal_those_of_the_c_library() -> None:
    import ctypes

    import llama_cpp

    library = llama_cpp.llama_cpp._lib
    library.ggml_type_name.restype = ctypes.c_char_p
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_blck_size.restype = ctypes.c_int64
    current = {
        number: (library.ggml_blck_size(number), library.ggml_type_size(number))
        for number in range(llama_cpp.GGML_TYPE_COUNT)
        if library.ggml_blck_size(number)  # 0 for types that have been removed
    }
    assert {int(qtype): tuple(size) for qtype, size in BLOCK_SIZES.items()} == current
    assert {library.ggml_type_name(int(qtype)).decode().upper() for qtype in GGMLType} == {t.name for t in GGMLType}


def test_row_bytes() -> None:
    assert row_bytes(GGMLType.Q4_1, 576) == 360
    assert row_bytes(GGMLType.Q6_K, 512) == 420
    with pytest.raises(ValueError, match="row length 33 is not a multiple of Q8_0 block size 32"):
        row_bytes(GGMLType.Q8_0, 33)
