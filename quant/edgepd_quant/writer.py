"""Write small GGUF files: string and float metadata, float32 tensors.

The idea: adapters need no more than this, and importing gguf-py for it costs a process 0.3 s (a test reads
the result with gguf-py). The invariant: the same arguments give the same bytes.
What this does not do: quantise, write arrays into the metadata, or make the file durable (atomic.py).
Layout: docs/gguf.md of the ggml project, version 3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from edgepd_quant.header import DEFAULT_ALIGNMENT, MAGIC, MAX_NAME_BYTES
from edgepd_quant.metadata import ValueType
from edgepd_quant.types import GGMLType

VERSION = 3


def write_gguf(
    file: BinaryIO, metadata: Mapping[str, str | float], tensors: Mapping[str, npt.NDArray[np.float32]]
) -> None:
    """Write header and tensors from the current position, which must be 0. Raises ValueError for a name too
    long.
    """
    header = [struct.pack("<4sIQQ", MAGIC, VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        if isinstance(value, str):
            header += [_string(key), struct.pack("<I", ValueType.STRING), _string(value)]
        else:
            header += [_string(key), struct.pack("<If", ValueType.FLOAT32, value)]
    offset = 0
    for name, array in tensors.items():
        if len(name.encode()) > MAX_NAME_BYTES:
            raise ValueError(f"tensor name {name!r} is longer than {MAX_NAME_BYTES} bytes")
        extents = tuple(reversed(array.shape))  # ggml counts the row length first
        header += [_string(name), struct.pack(f"<I{len(extents)}Q", len(extents), *extents)]
        header += [struct.pack("<IQ", GGMLType.F32, offset)]
        offset += _padded(array.size * 4)
    _write_padded(file, b"".join(header))
    for array in tensors.values():
        _write_padded(file, np.ascontiguousarray(array, dtype="<f4").tobytes())


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _padded(length: int) -> int:
    return -(-length // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _write_padded(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.write(bytes(_padded(len(content)) - len(content)))
