"""Read the metadata of a GGUF file: keys with scalars, strings and arrays.

The idea: scalars are decoded, arrays are only stepped over and remembered (`LazyArray`), because a vocabulary
holds 100,000 strings that training and serving rarely need. The invariant: every count and length is checked
against the bytes that are really there before anything is allocated or read (`Cursor`).
What this does not do: know what a key means. Layout: docs/gguf.md of the ggml project.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from edgepd.errors import FormatError

MAX_ENTRIES: Final = 100_000  # keys or tensors; the largest known models have a few thousand
MAX_STRING_BYTES: Final = 16 << 20  # of a scalar; the longest known is a chat template of about 100 kB
MAX_KEY_BYTES: Final = 65_535
MIN_KEY_VALUE_BYTES: Final = 8 + 4 + 1  # empty key, type, one-byte value


class ValueType(IntEnum):
    """Types of metadata values (enum gguf_type in gguf.h)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


FIXED_SIZE: Final = MappingProxyType(
    {
        ValueType.UINT8: "B",
        ValueType.INT8: "b",
        ValueType.UINT16: "H",
        ValueType.INT16: "h",
        ValueType.UINT32: "I",
        ValueType.INT32: "i",
        ValueType.FLOAT32: "f",
        ValueType.BOOL: "?",
        ValueType.UINT64: "Q",
        ValueType.INT64: "q",
        ValueType.FLOAT64: "d",
    }
)

Scalar: TypeAlias = str | bool | int | float


@dataclass(frozen=True)
class LazyArray:
    """An array in the metadata that is unpacked only when asked. `offset` is that of its first element."""

    element_type: ValueType
    length: int
    offset: int
    _data: mmap.mmap | bytes = field(repr=False, compare=False)

    def __len__(self) -> int:
        return self.length

    def values(self) -> list[Scalar]:
        """Unpack all elements. Raises ValueError when the file has been closed."""
        if self.element_type is not ValueType.STRING:
            layout = f"<{self.length}{FIXED_SIZE[self.element_type]}"
            return list(struct.unpack_from(layout, self._data, self.offset))
        read_length: Callable[..., tuple[int]] = struct.Struct("<Q").unpack_from
        found: list[Scalar] = []
        position = self.offset
        for _ in range(self.length):
            (length,) = read_length(self._data, position)
            position += 8
            found.append(self._data[position : position + length].decode("utf-8", errors="replace"))
            position += length
        return found


MetadataValue: TypeAlias = Scalar | LazyArray


class Cursor:
    """A position in the file; each read checks first that the bytes are there."""

    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = 0

    def error(self, problem: str, offset: int | None = None) -> FormatError:
        """Return the error for a problem at this offset, or at the current position."""
        return FormatError(self.path, self.position if offset is None else offset, problem)

    def need(self, length: int, what: str) -> None:
        """Raise FormatError unless that many bytes are left."""
        remaining = self.size - self.position
        if length > remaining:
            raise self.error(f"{what} takes {length} bytes, but the file has only {remaining} more")

    def take(self, length: int, what: str) -> bytes:
        """Read bytes and move on."""
        self.need(length, what)
        self.position += length
        return self.data[self.position - length : self.position]

    def u32(self, what: str) -> int:
        """Read a uint32."""
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        """Read a uint64."""
        return int.from_bytes(self.take(8, what), "little")

    def count(self, what: str, least_bytes: int) -> int:
        """Read a number of things that take at least `least_bytes` each."""
        start = self.position
        number = self.u64(f"the number of {what}")
        most = min(MAX_ENTRIES, (self.size - self.position) // least_bytes)
        if number > most:
            raise self.error(f"{number} {what} declared, but at most {most} are possible here", start)
        return number

    def string(self, what: str, limit: int) -> bytes:
        """Read a string of at most `limit` bytes."""
        start = self.position
        length = self.u64(f"the length of {what}")
        if length > limit:
            raise self.error(f"{what} is {length} bytes long; at most {limit} are allowed", start)
        return self.take(length, what)

    def name(self, what: str, limit: int) -> str:
        """Read a string that must be UTF-8."""
        start = self.position
        try:
            return self.string(what, limit).decode("utf-8")
        except UnicodeDecodeError as problem:
            raise self.error(f"{what} is not UTF-8: {problem.reason}", start) from problem

    def value_type(self, what: str) -> ValueType:
        """Read the type of a metadata value."""
        start = self.position
        number = self.u32(f"the type of {what}")
        if number > max(ValueType):
            raise self.error(f"{what} has the unknown value type {number}", start)
        return ValueType(number)


def read_metadata(cursor: Cursor, count: int) -> dict[str, MetadataValue]:
    """Read `count` keys and values from the cursor. Raises FormatError."""
    metadata: dict[str, MetadataValue] = {}
    for _ in range(count):
        start = cursor.position
        key = cursor.name("a metadata key", MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.error(f"duplicate metadata key {key!r}", start)
        metadata[key] = _read_value(cursor, key)
    return metadata


def _read_value(cursor: Cursor, key: str) -> MetadataValue:
    what = f"metadata key {key!r}"
    kind = cursor.value_type(what)
    if kind is ValueType.STRING:
        return cursor.string(what, MAX_STRING_BYTES).decode("utf-8", errors="replace")
    if kind is ValueType.ARRAY:
        return _skip_array(cursor, what)
    layout = struct.Struct("<" + FIXED_SIZE[kind])
    value: Scalar = layout.unpack(cursor.take(layout.size, what))[0]
    return value


def _skip_array(cursor: Cursor, what: str) -> LazyArray:
    element_type = cursor.value_type(f"the elements of {what}")
    if element_type is ValueType.ARRAY:
        raise cursor.error(f"{what} is an array of arrays, which llama.cpp does not read either")
    length = cursor.u64(f"the number of elements of {what}")
    array = LazyArray(element_type, length, cursor.position, cursor.data)
    if element_type is not ValueType.STRING:
        nbytes = length * struct.calcsize("<" + FIXED_SIZE[element_type])
        cursor.need(nbytes, what)
        cursor.position += nbytes
        return array
    cursor.need(length * 8, what)
    cursor.position = _end_of_strings(cursor, length, what)
    return array


def _end_of_strings(cursor: Cursor, length: int, what: str) -> int:
    # A tight loop over local names: it runs 100,000 times for a usual vocabulary and decides the opening time
    read_length: Callable[..., tuple[int]] = struct.Struct("<Q").unpack_from
    data, position, last = cursor.data, cursor.position, cursor.size - 8
    for index in range(length):
        if position > last:
            raise cursor.error(f"{what} ends after {index} of {length} strings", min(position, cursor.size))
        position += 8 + read_length(data, position)[0]
    if position > cursor.size:
        raise cursor.error(f"the last string of {what} runs past the end of the file", cursor.size)
    return position
