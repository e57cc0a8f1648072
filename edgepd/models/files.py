"""Writing files so that a crash leaves either the old or the new one, and hashing bytes on their way.

What this does not do: choose names or permissions beyond 0600, which every new file gets.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

COPY_CHUNK_BYTES = 1 << 20


def copy_hashed(parts: Sequence[IO[bytes]], target: Path, report: Callable[[int], None] | None = None) -> str:
    """Write the concatenation of `parts` to the new file `target`, fsync it and return its SHA-256.

    `report` is called with the number of bytes written so far.
    """
    digest = hashlib.sha256()
    done = 0
    with target.open("xb") as out:
        target.chmod(0o600)
        for part in parts:
            while chunk := part.read(COPY_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
                done += len(chunk)
                if report:
                    report(done)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def hash_file(path: Path, report: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file, reporting the number of bytes read so far."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(COPY_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if report:
                report(done)
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a crash leaves either the old or the new content."""
    handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames and deletions in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
