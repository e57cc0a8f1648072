"""The socket: bound again where it has gone, and found by clients that see other directories than the daemon."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import httpx

from edgepd.config import paths
from edgepd_daemon.listener import find_socket
from tests.daemon.running import START_SECONDS, TINY_SETTINGS, arguments, environment, running, wait_for

FIND = """
from edgepd.config import paths
from edgepd_daemon.listener import find_socket
print(find_socket(paths()))
"""


def test_a_socket_that_has_gone_is_bound_again(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as daemon:
        for whole in (False, True):
            daemon.paths.socket.unlink()
            if whole:
                shutil.rmtree(daemon.paths.runtime_dir)
            wait_for(daemon.paths.socket.exists, 30)
            fresh = httpx.Client(transport=httpx.HTTPTransport(uds=str(daemon.paths.socket)), base_url="http://edgepd")
            with fresh:
                wait_for(lambda client=fresh: client.get("/healthz").is_success)  # type: ignore[misc]
            assert daemon.get("/healthz")["status"]  # the connection that was there goes on
        assert daemon.stop() == 0
    assert not daemon.paths.socket.exists()


def test_a_client_with_another_runtime_directory_finds_the_daemon(edgepd_home: Path, tiny_models: Path) -> None:
    plain = {
        k: v for k, v in environment(edgepd_home, tiny_models).items() if k not in ("EDGEPD_HOME", "XDG_RUNTIME_DIR")
    }
    plain |= {name: str(edgepd_home) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    here = plain | {"XDG_RUNTIME_DIR": str(edgepd_home / "runtime")}
    for daemon_sees, client_sees in ((plain, here), (here, plain)):
        process = subprocess.Popen(arguments(TINY_SETTINGS), env=daemon_sees, stderr=subprocess.DEVNULL)
        try:

            def found(env: dict[str, str] = client_sees) -> str:
                told = subprocess.run([sys.executable, "-c", FIND], env=env, capture_output=True, text=True, check=True)
                path = Path(told.stdout.strip())
                return str(path) if path.is_socket() else ""

            transport = httpx.HTTPTransport(uds=wait_for(found, START_SECONDS))
            with httpx.Client(transport=transport, base_url="http://edgepd") as client:
                assert client.get("/healthz").json()["pid"] == process.pid
        finally:
            process.terminate()
            assert process.wait(30) == 0


def test_where_the_runtime_directory_cannot_be_made_the_socket_is_with_the_data(
    edgepd_home: Path, tiny_models: Path
) -> None:
    (edgepd_home / "run").write_text("in the way")
    process = subprocess.Popen(
        arguments(TINY_SETTINGS), env=environment(edgepd_home, tiny_models), stderr=subprocess.DEVNULL
    )
    try:
        where = paths(environment(edgepd_home, tiny_models))
        expected = where.data_dir / "run" / "edgepd.sock"
        wait_for(expected.is_socket, START_SECONDS)
        assert wait_for(lambda: find_socket(where) == expected)
        transport = httpx.HTTPTransport(uds=str(expected))
        with httpx.Client(transport=transport, base_url="http://edgepd") as client:
            assert client.get("/healthz").json()["pid"] == process.pid
    finally:
        process.terminate()
        assert process.wait(30) == 0
