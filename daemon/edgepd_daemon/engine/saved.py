"""Conversations' KV caches on disk, so that an idle model can be unloaded and a restart does not start cold.

The idea: one file for each conversation, named by a hash of everything that its cells depend on: the contents of the
model and adapter files, the scale, the context size, the KV types and the build of llama.cpp. llama.cpp would accept
cells of another adapter without a word. The invariants: a file is used only whole and unchanged (its digest says so)
and only under its own key; together they stay below a number of bytes, the oldest go first.
What this does not do: fsync. These files are a cache; one that a crash tore is recognised and removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

from edgepd_daemon.engine.types import EngineSizes, Version

log = logging.getLogger(__name__)

HEADER = struct.Struct("<8sIQ32s")  # magic, tokens, bytes of state, digest of both
MAGIC = b"EDGEKV1\0"
SUFFIX = ".kv"


class SavedStates:
    """The files of one directory. Only the engine thread uses it."""

    def __init__(self, directory: Path, budget_bytes: int, sizes: EngineSizes, build: str) -> None:
        """Keep at most `budget_bytes`; 0 keeps nothing. `build` names the llama.cpp that computes."""
        self._directory = directory
        self._budget = budget_bytes
        self._context = f"{sizes.context_tokens}/{sizes.slots}/{sizes.kv_type}/{build}"

    def key(self, version: Version) -> str:
        """Return what the files of a version are named by."""
        known = f"{version.fingerprint}/{version.scale!r}/{self._context}"
        return hashlib.sha256(known.encode()).hexdigest()[:32]

    def save(self, version: Version, tokens: list[int], state: bytes) -> None:
        """Write one conversation. A failure is logged; nothing depends on it."""
        if not version.fingerprint or HEADER.size + 4 * len(tokens) + len(state) > self._budget:
            return
        body = array("i", tokens).tobytes() + state
        digest = hashlib.blake2b(body, digest_size=32).digest()
        name = f"{self.key(version)}-{digest.hex()[:16]}{SUFFIX}"
        temporary = self._directory / f".{name}.tmp"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(HEADER.pack(MAGIC, len(tokens), len(state), digest))
                file.write(body)
            temporary.replace(self._directory / name)
            self._keep_budget()
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            log.warning("a conversation's cache could not be saved: %s", error)

    def load(self, version: Version, limit: int) -> Iterator[tuple[list[int], bytes]]:
        """Yield tokens and state of the newest conversations of a version, at most `limit`.

        Their files are removed: what they hold is in memory from now on, and will be saved again from there.
        """
        if not version.fingerprint:
            return
        found = self._files(f"{self.key(version)}-*{SUFFIX}")
        for path in found[:limit]:
            read = _read(path)
            if read is None:
                log.warning("%s is broken and removed", path.name)
            path.unlink(missing_ok=True)
            if read is not None:
                yield read

    def clear(self) -> int:
        """Remove every saved conversation; return how many there were. Raises OSError if one cannot be removed."""
        found = [*self._files("*" + SUFFIX), *self._files(".*.tmp")]
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    def _keep_budget(self) -> None:
        for torn in self._files(".*.tmp"):
            torn.unlink(missing_ok=True)
        total = 0
        for path in self._files(f"*{SUFFIX}"):
            total += path.stat().st_size
            if total > self._budget:
                path.unlink(missing_ok=True)

    def _files(self, pattern: str) -> list[Path]:
        """Return the matching files, the newest first."""
        return sorted(self._directory.glob(pattern), key=lambda p: p.stat().st_mtime_ns, reverse=True)


def _read(path: Path) -> tuple[list[int], bytes] | None:
    """Return tokens and state, None if the file is not whole. Sizes are checked before anything is allocated."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER.size)
            if len(head) != HEADER.size:
                return None
            magic, count, size, digest = HEADER.unpack(head)
            if magic != MAGIC or path.stat().st_size != HEADER.size + 4 * count + size:
                return None
            body = file.read()
    except OSError as error:
        log.warning("%s cannot be read: %s", path.name, error)
        return None
    if hashlib.blake2b(body, digest_size=32).digest() != digest:
        return None
    tokens = array("i")
    tokens.frombytes(body[: 4 * count])
    return tokens.tolist(), body[4 * count :]
