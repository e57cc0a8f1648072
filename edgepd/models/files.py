"""Hashing the bytes of a model on their way into a file.

What this does not do: give the file its final name; the catalog does that once the content is checked.
"""

from __future__ import annotations

import hashlib
import os
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
