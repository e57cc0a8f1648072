"""Write a file so that a crash leaves either the old one or the new one, never half of one.

The idea: write to a temporary name beside the target, fsync, rename, fsync the directory. The invariant: the
target name only ever points at a complete file of mode 0600, and an error leaves no temporary file behind.
What this does not do: remove what a killed process left behind; those names begin with a dot and end in
".tmp".
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgepd.errors import StoreError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to read and write that becomes `path` when the block ends without an error.

    Raises StoreError when the directory is missing, not writable or full.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise _failed(path, error) from error
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _failed(path, error) from error
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames and deletions in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path}: cannot be written: {error.strerror}; check the folder, its rights and its free space")
