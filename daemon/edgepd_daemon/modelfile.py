"""The file of the base model is what was installed, or it is not served.

The idea: hashing a model takes from a third of a second to half a minute, so it is done once, and what `stat` said
then is kept; as long as it says the same, the file is the same. The invariant: a base model is opened only if its
SHA-256 was that of the catalog when the file was as it is now; adapters and the gate's results belong to those weights.
What this does not do: look at files of generations (generations.py hashes them), or undo what has happened. A file
that was replaced by rename goes on being served as it was, because the mapping keeps it; one that is cut off or
rewritten in place ends the process with SIGBUS or changes its answers, which is why the catalog makes models read-only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from edgepd.atomic import replacing
from edgepd.errors import ModelError, StoreError
from edgepd_daemon.known import Base

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Stamp:
    """What tells a file from another without reading it. Times in nanoseconds; `changed` cannot be set by programs."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


class ModelFile:
    """The base model's file. Any thread."""

    def __init__(self, base: Base, remembered: Path) -> None:
        """`remembered` is the file that keeps the stamp of the last check."""
        self.problem: str | None = None  # what is wrong with it, in a sentence for the user
        self._base = base
        self._remembered = remembered
        self._good = self._read()
        self._checking = threading.Lock()
        self._closed = False

    @property
    def changed(self) -> bool:
        """Whether the file is not the one that was checked last, or was never checked. Costs one stat."""
        return self._stamp() != self._good

    def check(self, path: Path) -> None:
        """Raise ModelError if `path` is the base model and not what was installed. Reads the file if it has changed."""
        if path == self._base.path:
            self.look()
            if self.problem is not None:
                raise ModelError(self.problem)

    def look(self) -> None:
        """Find out whether the file is what was installed, and set `problem`."""
        with self._checking:
            stamp = self._stamp()
            if stamp is not None and stamp == self._good:
                self.problem = None
                return
            problem = self._compared(stamp)
            if problem != self.problem and problem is not None:
                log.error("%s", problem)
            self.problem = problem

    def _compared(self, stamp: Stamp | None) -> str | None:
        """Hash the file and remember its stamp if it is good; return what is wrong with it."""
        base = self._base
        mend = f"run `edgepd model remove {base.name}`, add it again, and restart the daemon"
        try:
            found = self._hashed()
        except FileNotFoundError:
            return f"the model file {base.path} is gone; {mend}"
        except OSError as error:
            return f"the model file {base.path} cannot be read: {error.strerror}; {mend}"
        if found is None:
            return self.problem
        if found != base.sha256:
            return (
                f"the model file {base.path} is not what was installed any more: its SHA-256 is {found[:12]}…, not "
                f"{base.sha256[:12]}…, and what was learned does not fit it; {mend}"
            )
        if stamp is not None and stamp == self._stamp():  # not changed while it was read
            self._good = stamp
            self._write(stamp)
        return None

    def _hashed(self) -> str | None:
        """Return the SHA-256 of the file in hexadecimal, None if the daemon ends meanwhile."""
        digest = hashlib.sha256()
        with self._base.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                if self._closed:
                    return None
                digest.update(chunk)
        return digest.hexdigest()

    def close(self) -> None:
        """Give up a check that is going on."""
        self._closed = True

    def _stamp(self) -> Stamp | None:
        try:
            found = self._base.path.stat()
        except OSError:
            return None
        return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def _read(self) -> Stamp | None:
        try:
            kept = json.loads(self._remembered.read_bytes())
            return Stamp(**kept["stamp"]) if kept["sha256"] == self._base.sha256 else None
        except (OSError, ValueError, TypeError, KeyError):
            return None  # the file is hashed again

    def _write(self, stamp: Stamp) -> None:
        try:
            with replacing(self._remembered) as file:
                file.write(json.dumps({"sha256": self._base.sha256, "stamp": asdict(stamp)}).encode())
        except StoreError as error:  # a full disk; the next start hashes once more
            log.warning("%s", error)
