"""Open a GGUF file lazily: the header is parsed, the tensors stay in the page cache.

The idea: map the same file that llama.cpp maps, so that weights exist once in memory, and hand out views.
The invariant: opening costs milliseconds and a few megabytes whatever the size of the file, and nothing here
writes to it. What this does not do: decode quantised tensors (blocks/), join split files, or survive another
process shortening the file while it is mapped (models are read-only and replaced only by renaming).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from edgepd.errors import FormatError, ModelError
from edgepd_quant.header import Header, TensorInfo, parse_header
from edgepd_quant.metadata import LazyArray, MetadataValue, ValueType
from edgepd_quant.types import GGMLType

__all__ = ["GGUFFile", "LazyArray", "MetadataValue", "TensorInfo", "ValueType"]

MIN_FILE_BYTES = 24  # magic, version, two counts
HASH_CHUNK_BYTES = 1 << 20


class GGUFFile:
    """A mapped GGUF file. Use `GGUFFile.open(path)`, as a context manager or with `close()`.

    Attributes: path, version, alignment (bytes), data_offset (bytes), size (bytes), metadata (key -> value,
    arrays as LazyArray), tensors (name -> TensorInfo, in the order of the file).
    """

    def __init__(self, path: Path, descriptor: int, mapping: mmap.mmap, header: Header) -> None:
        self.path = path
        self.size = len(mapping)
        self.version = header.version
        self.alignment = header.alignment
        self.data_offset = header.data_offset
        self.metadata = header.metadata
        self.tensors = header.tensors
        self._descriptor = descriptor
        self._map = mapping
        self._sha256: str | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map the file and parse its header. Raises FormatError when it is missing or malformed."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise FormatError(path, 0, f"cannot be opened: {error.strerror}") from error
        mapping: mmap.mmap | None = None
        try:
            mapping = _map(path, descriptor)
            return cls(path, descriptor, mapping, parse_header(path, mapping))
        except BaseException:
            if mapping is not None:
                mapping.close()
            os.close(descriptor)
            raise

    def rows(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the encoded tensor as a view (n_rows, row_bytes); leading dimensions are joined."""
        info = self._info(name)
        n_rows = 1
        for extent in info.shape[:-1]:
            n_rows *= extent
        flat = np.frombuffer(self._map, dtype=np.uint8, count=info.nbytes, offset=info.offset)
        return flat.reshape(n_rows, info.nbytes // n_rows)

    def f32(self, name: str) -> npt.NDArray[np.float32]:
        """Return an F32 tensor as a view in its own shape. Raises ModelError for any other type."""
        info = self._info(name)
        if info.qtype is not GGMLType.F32:
            raise ModelError(f"{self.path}: tensor {name!r} is {info.qtype.name}, but F32 is needed here")
        flat = np.frombuffer(self._map, dtype="<f4", count=info.nbytes // 4, offset=info.offset)
        return flat.reshape(info.shape)

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system's page cache, from where the next access maps them again.

        Resident memory falls by what was read of the tensor; views stay valid.
        """
        info = self._info(name)
        start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)

    def sha256(self) -> str:
        """Hash the whole file, in hexadecimal, once. Memory stays flat; about 0.3 s per 100 MB."""
        if self._sha256 is not None:
            return self._sha256
        digest = hashlib.sha256()
        position = 0
        while chunk := os.pread(self._descriptor, HASH_CHUNK_BYTES, position):
            digest.update(chunk)
            position += len(chunk)
        self._sha256 = digest.hexdigest()
        return self._sha256

    def fileno(self) -> int:
        """Return the descriptor of the open file, for reading past the map (`os.pread`)."""
        return self._descriptor

    def close(self) -> None:
        """Release the file. Views that were handed out stay valid; the map goes with the last of them."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        with suppress(BufferError):  # raised while views exist; the map is then freed with the last view
            self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise ModelError(f"{self.path}: there is no tensor named {name!r}") from None


def _map(path: Path, descriptor: int) -> mmap.mmap:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(path, 0, "is not a regular file")
    if status.st_size < MIN_FILE_BYTES:
        problem = f"the file has {status.st_size} bytes, less than the {MIN_FILE_BYTES} of the smallest GGUF header"
        raise FormatError(path, status.st_size, problem)
    # A private map: numpy and torch see writable memory and do not warn, yet the file cannot change through
    # it.
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
