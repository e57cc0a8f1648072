"""The socket and the lock: private, taken over from the dead, refused to a second one."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgepd.errors import ConfigError, ConflictError, StoreError
from edgepd_daemon.listener import activated, hold_lock, listening, listening_tcp, open_sockets, token


@pytest.fixture
def path(edgepd_home: Path) -> Path:
    return edgepd_home / "run" / "edgepd.sock"


def can_connect(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def leave_stale_socket(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_socket_and_directory_are_private_whatever_the_umask(path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with listening(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert can_connect(path)
            assert os.umask(mask) == mask  # put back
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_directory_that_is_open_to_others_is_closed(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o755)
    with listening(path):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_stale_socket_is_taken_over(path: Path) -> None:
    leave_stale_socket(path)
    assert not can_connect(path)
    with listening(path):
        assert can_connect(path)


def test_a_live_socket_is_refused_and_left_alone(path: Path) -> None:
    with listening(path):
        with pytest.raises(ConflictError, match="is in use by a running daemon; stop it"), listening(path):
            pytest.fail("a second listener")
        assert can_connect(path)


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_what_is_no_socket_is_refused_and_left_alone(path: Path, kind: str) -> None:
    path.parent.mkdir()
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(ConflictError, match="exists and is not a socket; move it away"), listening(path):
        pytest.fail("it was replaced")
    assert os.path.lexists(path)
    assert kind != "file" or path.read_text() == "precious"


def test_the_socket_is_gone_after_a_failure(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), listening(path):
        raise ZeroDivisionError
    assert not path.exists()


def test_the_lock_is_refused_to_a_second_holder(edgepd_home: Path) -> None:
    lock = edgepd_home / "data" / "daemon.lock"
    with hold_lock(lock):
        assert lock.read_text() == f"{os.getpid()}\n"
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
        message = rf"another daemon \(pid {os.getpid()}\) uses {lock.parent}; stop it"
        with pytest.raises(ConflictError, match=message), hold_lock(lock):
            pytest.fail("a second holder")
    with hold_lock(lock):
        pass


def test_the_lock_of_a_process_that_was_killed_is_free(edgepd_home: Path) -> None:
    lock = edgepd_home / "daemon.lock"
    program = (
        "import os, pathlib, sys; from edgepd_daemon.listener import hold_lock\n"
        "with hold_lock(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(lock)], timeout=60).returncode == -9
    assert lock.read_text() != f"{os.getpid()}\n"
    with hold_lock(lock):
        assert lock.read_text() == f"{os.getpid()}\n"


def test_a_lock_that_cannot_be_made(edgepd_home: Path) -> None:
    (edgepd_home / "data").write_text("a file, not a directory")
    with pytest.raises(StoreError, match="cannot be opened"), hold_lock(edgepd_home / "data" / "daemon.lock"):
        pytest.fail("it was made")


def handed_over(*sockets: socket.socket) -> tuple[dict[str, str], int]:
    """The variables of a service manager that hands over these sockets, and the number of the first."""
    numbers = [os.dup(s.fileno()) for s in sockets]
    first = max(numbers) + 1
    for offset, number in enumerate(numbers):
        os.dup2(number, first + offset)
        os.close(number)
    count = {"LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": "a:b"}
    return {"LISTEN_PID": str(os.getpid()), "HOME": "/", **count}, first


def test_sockets_of_the_service_manager_are_taken_over(path: Path) -> None:
    other = path.with_name("other.sock")
    with listening(path) as first, listening(other) as second:
        environment, fd = handed_over(first, second)
        taken = activated(environment, fd)
        assert [s.getsockname() for s in taken] == [str(path), str(other)]
        assert not any(s.get_inheritable() for s in taken)
        assert environment == {"HOME": "/"}
        for one in taken:
            one.close()


def test_a_socket_that_somebody_else_bound_is_left_where_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(path) as bound:
        taken = socket.socket(fileno=os.dup(bound.fileno()))
        monkeypatch.setattr("edgepd_daemon.listener.activated", lambda _: [taken])
        with open_sockets(path, 0, {}) as sockets:
            assert sockets == [taken]
        assert taken.fileno() == -1
        assert path.is_socket()
        assert can_connect(path)


@pytest.mark.parametrize("variables", [{}, {"LISTEN_PID": "1"}, {"LISTEN_FDS": "one"}, {"LISTEN_FDS": ""}])
def test_variables_that_are_not_for_this_process(variables: dict[str, str]) -> None:
    full = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"} if variables else {}
    environment = {**full, **variables}
    assert activated(environment, 1000) == []
    assert environment == {}


@pytest.mark.parametrize("kind", ["closed", "file", "datagram", "tcp", "not listening", "abstract"])
def test_descriptors_that_are_no_listening_unix_socket(path: Path, kind: str) -> None:
    path.parent.mkdir()
    family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM) as given:
        if kind in ("datagram", "not listening"):
            given.bind(str(path))
        if kind == "abstract":
            given.bind(f"\0edgepd-test-{os.getpid()}")
        if kind in ("tcp", "abstract"):
            given.listen()
        environment, fd = handed_over(given)
        if kind in ("closed", "file"):
            os.close(fd)
        if kind == "file":
            os.dup2(os.open("/dev/null", os.O_RDONLY), fd)
        with pytest.raises(ConfigError, match=rf"descriptor {fd}, which LISTEN_FDS names, is no"):
            activated(environment, fd)


def test_the_port_is_on_the_loopback_only_and_refused_if_taken(path: Path) -> None:
    with open_sockets(path, 0, {}) as alone:
        assert [s.family for s in alone] == [socket.AF_UNIX]
    with listening_tcp(0) as first:
        address, port = first.getsockname()
        assert address == "127.0.0.1"
        with pytest.raises(ConflictError, match=rf"port {port} on 127.0.0.1 cannot be opened"):
            listening_tcp(port)
        with pytest.raises(ConflictError), open_sockets(path, port, {}):
            pytest.fail("it was opened")
        assert not path.exists()


def test_the_token_is_private_random_and_kept(path: Path) -> None:
    file = path.with_name("token")
    made = token(file)
    assert len(made) >= 40
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    assert token(file) == made
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [p.name for p in file.parent.iterdir()] == ["token"]
    file.unlink()
    assert token(file) != made


@pytest.mark.parametrize("content", ["", "\n", "  \n"])
def test_a_token_file_without_a_token_gets_one(path: Path, content: str) -> None:
    path.parent.mkdir()
    file = path.with_name("token")
    file.write_text(content)
    assert len(token(file)) >= 40


def test_a_token_file_that_cannot_be_read(path: Path) -> None:
    path.parent.mkdir()
    file = path.with_name("token")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match="the token cannot be read.*remove the file to get a new one"):
        token(file)
