"""Parse the header of a GGUF file: metadata, the list of tensors and where they lie.

The idea: walk the mapped header once with struct and read nothing of the tensors.
The invariant: every count, shape and offset is checked before it is used, so a malformed file ends in
FormatError with the offset, whatever its bytes are, and a tensor that is listed lies wholly inside the file.
What this does not do: open files (reader.py), or support version 1 and big-endian files.
Layout: docs/gguf.md of the ggml project.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from edgepd.errors import FormatError
from edgepd_quant.metadata import MIN_KEY_VALUE_BYTES, Cursor, MetadataValue, read_metadata
from edgepd_quant.types import BLOCK_SIZES, GGMLType, row_bytes

MAGIC: Final = b"GGUF"
DEFAULT_ALIGNMENT: Final = 32
MAX_ALIGNMENT: Final = 1 << 20
MAX_NAME_BYTES: Final = 63  # GGML_MAX_NAME less the terminating NUL
MAX_DIMENSIONS: Final = 4
MIN_TENSOR_BYTES: Final = 8 + 4 + 8 + 4 + 8  # empty name, one dimension


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `shape` is in torch order (rows, columns), `offset` counts from the start."""

    name: str
    shape: tuple[int, ...]
    qtype: GGMLType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """All that stands before the tensor data."""

    version: int
    alignment: int
    data_offset: int
    metadata: Mapping[str, MetadataValue]
    tensors: dict[str, TensorInfo]


@contextmanager
def opened_header(path: Path) -> Iterator[Header]:
    """Read the header of a file; its arrays can be read while the block runs. Unlike GGUFFile, this needs no numpy.

    Raises FormatError.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield parse_header(path, mapped)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise FormatError(path, 0, f"cannot be read: {error}") from error


def parse_header(path: Path, data: mmap.mmap | bytes) -> Header:
    """Parse the header of a whole file. Raises FormatError; `path` is only for its text."""
    cursor = Cursor(path, data)
    if (magic := cursor.take(4, "the magic")) != MAGIC:
        raise FormatError(path, 0, f"the magic is {magic!r}, not {MAGIC!r}; this is not a GGUF file")
    version = cursor.u32("the version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        reason = "the file is big-endian" if swapped in (2, 3) else "supported are 2 and 3"
        raise FormatError(path, 4, f"GGUF version {version} is not supported: {reason}")
    tensor_count = cursor.count("tensors", MIN_TENSOR_BYTES)
    key_count = cursor.count("metadata keys", MIN_KEY_VALUE_BYTES)
    metadata = read_metadata(cursor, key_count)
    alignment = _alignment(cursor, metadata)
    declared = _read_tensor_list(cursor, tensor_count)
    data_offset = -(-cursor.position // alignment) * alignment
    tensors = _place(cursor, declared, alignment, data_offset)
    return Header(version, alignment, data_offset, MappingProxyType(metadata), tensors)


def _alignment(cursor: Cursor, metadata: Mapping[str, MetadataValue]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.error(f"general.alignment is {value!r}, not a power of two up to {MAX_ALIGNMENT}")
    return int(value)


@dataclass(frozen=True)
class _Declared:
    """A tensor as listed: its offset is relative to the data, `where` is the offset of the entry itself."""

    info: TensorInfo
    where: int


def _read_tensor_list(cursor: Cursor, count: int) -> list[_Declared]:
    declared: list[_Declared] = []
    seen: set[str] = set()
    for _ in range(count):
        start = cursor.position
        name = cursor.name("a tensor name", MAX_NAME_BYTES)
        if name in seen:
            raise cursor.error(f"duplicate tensor name {name!r}", start)
        seen.add(name)
        declared.append(_Declared(_read_tensor_info(cursor, name, start), start))
    return declared


def _read_tensor_info(cursor: Cursor, name: str, start: int) -> TensorInfo:
    what = f"tensor {name!r}"
    dimensions = cursor.u32(f"the number of dimensions of {what}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.error(f"{what} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are possible", start)
    extents = [cursor.u64(f"the extents of {what}") for _ in range(dimensions)]
    elements = 1
    for extent in extents:
        elements *= extent
    if elements == 0 or elements >= 1 << 63:
        raise cursor.error(f"{what} has the impossible shape {tuple(reversed(extents))}", start)
    number = cursor.u32(f"the type of {what}")
    try:
        qtype = GGMLType(number)
    except ValueError as problem:
        raise cursor.error(f"{what} has the unknown ggml type {number}", start) from problem
    if extents[0] % BLOCK_SIZES[qtype].elements:
        block = BLOCK_SIZES[qtype].elements
        raise cursor.error(
            f"{what}: row length {extents[0]} is not a multiple of {qtype.name} block size {block}", start
        )
    nbytes = elements // extents[0] * row_bytes(qtype, extents[0])
    return TensorInfo(name, tuple(reversed(extents)), qtype, cursor.u64(f"the offset of {what}"), nbytes)


def _place(cursor: Cursor, declared: list[_Declared], alignment: int, data_offset: int) -> dict[str, TensorInfo]:
    placed: dict[str, TensorInfo] = {}
    for entry in declared:
        info, offset = entry.info, data_offset + entry.info.offset
        if info.offset % alignment:
            raise cursor.error(f"tensor {info.name!r} lies at {info.offset}, not aligned to {alignment}", entry.where)
        if offset + info.nbytes > cursor.size:
            problem = f"tensor {info.name!r} needs bytes {offset} to {offset + info.nbytes}"
            raise cursor.error(f"{problem}, but the file has only {cursor.size}", entry.where)
        placed[info.name] = TensorInfo(info.name, info.shape, info.qtype, offset, info.nbytes)
    end, before = data_offset, ""
    for info in sorted(placed.values(), key=lambda tensor: tensor.offset):
        if info.offset < end:
            raise cursor.error(f"tensor {info.name!r} overlaps tensor {before!r}", info.offset)
        end, before = info.offset + info.nbytes, info.name
    return placed
