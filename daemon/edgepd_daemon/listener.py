"""The sockets: our own Unix socket or those that systemd hands over, and a loopback port if asked for.

The idea: we bind the Unix socket ourselves, at 0600 in a 0700 directory, because uvicorn would open it to every
user of the machine; it is taken over from a dead daemon and refused to a second one. The invariant: a socket that
somebody else bound is never unlinked, and the loopback port exists only together with a token.
What this does not do: accept connections, or check who connects (see protocol.py and api/security.py).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edgepd.atomic import replacing
from edgepd.errors import ConfigError, ConflictError, StoreError

log = logging.getLogger(__name__)

BACKLOG = 128
FIRST_FD = 3  # SD_LISTEN_FDS_START
LOOPBACK = "127.0.0.1"
TOKEN_BYTES = 32


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
def open_sockets(path: Path, tcp_port: int, environment: MutableMapping[str, str]) -> Iterator[list[socket.socket]]:
    """Listen on what systemd hands over, else on `path`; and on the loopback port unless that is 0.

    Raises ConflictError if a socket is taken, ConfigError for descriptors that are no listening Unix sockets.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(taken) for taken in activated(environment)]
        if not sockets:
            sockets.append(stack.enter_context(listening(path)))
        elif str(path) not in [taken.getsockname() for taken in sockets]:
            log.warning("none of the sockets of systemd is at %s, where `edgepd` looks for the daemon", path)
        if tcp_port:
            sockets.append(stack.enter_context(listening_tcp(tcp_port)))
        yield sockets


def activated(environment: MutableMapping[str, str], first_fd: int = FIRST_FD) -> list[socket.socket]:
    """Take over the sockets that systemd handed to this process, and the variables that say so.

    Raises ConfigError for a descriptor that is not a listening Unix stream socket.
    """
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return [_taken_over(fd) for fd in range(first_fd, first_fd + int(count))]


def _taken_over(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        taken = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"descriptor {fd}, which LISTEN_FDS names, is no socket: {error.strerror}") from error
    unix = taken.family == socket.AF_UNIX and taken.type == socket.SOCK_STREAM
    # A name that is not a path is abstract, and has no mode that would keep other users out.
    if (
        not unix
        or not isinstance(taken.getsockname(), str)
        or not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        taken.close()
        raise ConfigError(
            f"descriptor {fd}, which LISTEN_FDS names, is not a listening Unix stream socket; the .socket unit may "
            "have nothing but ListenStream= with a path (for a loopback port set serve.tcp_port)"
        )
    return taken


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


def listening_tcp(port: int) -> socket.socket:
    """Listen on a loopback port. Raises ConflictError if it is taken."""
    try:
        return socket.create_server((LOOPBACK, port), backlog=BACKLOG)
    except OSError as error:
        raise ConflictError(
            f"port {port} on {LOOPBACK} cannot be opened: {error.strerror}; set serve.tcp_port to another one"
        ) from error


def token(path: Path) -> str:
    """Return the token in the file, which is made if it is not there. Raises StoreError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_file():
            path.chmod(0o600)
            if kept := path.read_text(encoding="ascii").strip():
                return kept
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: the token cannot be read: {error}; remove the file to get a new one") from error
    made = secrets.token_urlsafe(TOKEN_BYTES)
    with replacing(path) as file:
        file.write(f"{made}\n".encode("ascii"))
    return made


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
