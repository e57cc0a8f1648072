"""The socket and the lock: private, taken over from the dead, refused to a second one."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgepd.errors import ConflictError, StoreError
from edgepd_daemon.listener import hold_lock, listening


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
