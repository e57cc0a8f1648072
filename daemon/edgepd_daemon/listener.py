"""The Unix socket: bound at 0600 in a 0700 directory, taken over from a dead daemon, refused to a second one.

We bind it ourselves because uvicorn would open it to every user of the machine.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepd.errors import ConflictError, StoreError

BACKLOG = 128


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Own the data directory while the block runs. Raises ConflictError if another daemon does."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise ConflictError(
            f"another daemon (pid {owner}) uses {path.parent}; stop it with `edgepd daemon stop`"
        ) from error
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Bind and listen on `path`; remove it at the end. Raises ConflictError if someone answers there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
        yield listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(f"{path} was taken by another process just now") from error
        raise
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on, left behind by a daemon that was killed."""
    if not os.path.lexists(path):
        return
    if not path.is_socket():
        raise ConflictError(f"{path} exists and is not a socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except TimeoutError as error:
            raise ConflictError(f"{path} is in use by a process that does not answer; stop it first") from error
    raise ConflictError(f"{path} is in use by a running daemon; stop it with `edgepd daemon stop`")
