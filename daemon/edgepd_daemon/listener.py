"""The sockets: our own Unix socket or those that systemd hands over, and a loopback port if asked for.

The idea: we bind the Unix socket ourselves, at 0600 in a 0700 directory, because uvicorn would open it to every
user of the machine; it is taken over from a dead daemon and refused to a second one. Where its directory cannot be
made, such as $XDG_RUNTIME_DIR after a logout, the socket goes into the data directory, and the lock file tells clients
where it is. The invariant: a socket that somebody else bound is never unlinked, and the loopback port exists only
together with a token.
What this does not do: accept connections, check who connects (see protocol.py and api/security.py), or notice that a
socket has gone (see watching.py).
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
from edgepd.config import Paths
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
        owner = os.read(descriptor, 32).decode(errors="replace").partition("\n")[0].strip() or "unknown"
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


def note_socket(lock: Path, path: Path | str) -> None:
    """Write the path of the socket below the pid in the lock file, which this process holds. Raises StoreError."""
    try:
        # A lock of flock(2) belongs to the descriptor it was taken with: closing another one does not lose it.
        lock.write_bytes(f"{os.getpid()}\n".encode() + os.fsencode(path) + b"\n")
    except OSError as error:
        raise StoreError(f"{lock}: cannot be written: {error.strerror}") from error


def fallback_of(paths: Paths) -> Path:
    """Return where the socket is if the runtime directory cannot be used."""
    return paths.data_dir / "run" / paths.socket.name


def find_socket(paths: Paths) -> Path:
    """Return where the daemon of this data directory listens: where it said it does, or where it would by itself.

    The two differ if the client has another $XDG_RUNTIME_DIR than the daemon, or none, or the daemon could not use it.
    """
    usual = paths.socket
    try:
        told = paths.lock.read_bytes().split(b"\n")[1:2]
    except OSError:
        return usual
    other = Path(os.fsdecode(told[0])) if told and told[0] else usual
    if other == usual or not other.is_socket():
        return usual
    return other if _answers(other) or not _answers(usual) else usual


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True  # its queue is full
        except OSError:
            return False
    return True


@contextmanager
def open_sockets(
    path: Path, tcp_port: int, environment: MutableMapping[str, str], fallback: Path | None = None
) -> Iterator[list[socket.socket]]:
    """Listen on what systemd hands over, else on `path` or, where that cannot be made, on `fallback`; and on the
    loopback port unless that is 0. The first one is the Unix socket.

    Raises ConflictError if a socket is taken, ConfigError for descriptors that are no listening Unix sockets, and
    StoreError if none can be made.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(taken) for taken in activated(environment)]
        if not sockets:
            sockets.append(stack.enter_context(listening_somewhere(path, fallback)))
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
def listening_somewhere(path: Path, fallback: Path | None = None) -> Iterator[socket.socket]:
    """Listen on `path`, or on `fallback` where that cannot be made. Raises as `listening`."""
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(listening(path))
        except StoreError as error:
            if fallback is None or fallback == path:
                raise
            log.warning("%s; the socket is %s instead, which `edgepd` finds by itself", error, fallback)
            listener = stack.enter_context(listening(fallback))
        yield listener


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Bind and listen on `path`; remove it at the end. Raises ConflictError if someone answers there, or StoreError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        _remove_stale(path)
        listener = _bound(path)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(f"{path} was taken by another process just now") from error
        raise StoreError(f"{path}: the socket cannot be made: {error.strerror or error}") from error
    mine = identity(path)
    try:
        yield listener
    finally:
        listener.close()
        if mine is not None and identity(path) == mine:
            path.unlink(missing_ok=True)


def identity(path: Path) -> tuple[int, int, int] | None:
    """Return what tells a socket from another one of the same name, None if there is nothing of the name."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns  # inode numbers are used again, with another time


def _bound(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        # Before anybody can connect, and without umask, which all threads share. The directory is closed already.
        path.chmod(0o600)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


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
    write_token(path, made)
    return made


def write_token(path: Path, value: str) -> None:
    """Write the token into its file. Raises StoreError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent}: cannot be made: {error.strerror}") from error
    with replacing(path) as file:
        file.write(f"{value}\n".encode("ascii"))


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
