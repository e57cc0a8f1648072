"""What a client may cost: the size of a body, the time of a request, and an answer that nobody reads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from edgepd.settings import Serve
from edgepd_daemon import protocol
from edgepd_daemon.api.limits import Limits
from tests.daemon.running import wait_for
from tests.daemon.serving import Echo, everything, get, served

HEAD = b"POST %b HTTP/1.1\r\nHost: x\r\n"


def limited(app: Any, **limits: Any) -> Limits:
    settings = Serve(**limits)
    return Limits(app, lambda: settings)


def body_of(response: bytes) -> Any:
    return json.loads(response.partition(b"\r\n\r\n")[2])


def post(path: bytes, body: bytes) -> bytes:
    return HEAD % path + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def test_a_body_within_the_limits_arrives_whole() -> None:
    echo = Echo()
    with served(limited(echo, max_body_bytes=300_000)) as server:
        assert server.ask(post(b"/", b"x" * 300_000)).startswith(b"HTTP/1.1 200")
        assert server.ask(get()).startswith(b"HTTP/1.1 200")
    assert [len(body) for body in echo.bodies] == [300_000, 0]


def test_a_body_that_says_it_is_too_large_is_refused_before_it_arrives() -> None:
    echo = Echo()
    with served(limited(echo, max_body_bytes=1024)) as server:
        answer = server.ask(HEAD % b"/v1/x" + b"Content-Length: 1025\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    error = body_of(answer)["error"]
    assert error["message"] == "the body has 1025 bytes, but at most 1024 are taken; raise serve.max_body_bytes"
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_request", None)
    assert echo.bodies == []


def test_a_client_that_goes_on_sending_gets_to_read_why_it_was_refused() -> None:
    with served(limited(Echo(), max_body_bytes=1024)) as server:
        answer = server.ask(post(b"/api/chat", b"x" * 3_000_000))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert body_of(answer) == {
        "error": "the body has 3000000 bytes, but at most 1024 are taken; raise serve.max_body_bytes"
    }


def test_a_body_that_does_not_say_its_size_is_counted() -> None:
    echo = Echo()
    chunk = b"200\r\n" + b"x" * 512 + b"\r\n"
    with served(limited(echo, max_body_bytes=1024)) as server:
        head = HEAD % b"/" + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert server.ask(head + 2 * chunk + b"0\r\n\r\n").startswith(b"HTTP/1.1 200")
        assert server.ask(head + 3 * chunk + b"0\r\n\r\n").startswith(b"HTTP/1.1 413")
    assert echo.bodies == [b"x" * 1024]


def test_half_a_request_is_refused_in_time() -> None:
    echo = Echo()
    with served(limited(echo, request_timeout_s=0.2)) as server:
        answer = server.ask(HEAD % b"/" + b"Content-Length: 10\r\n\r\nhalf")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert body_of(answer)["error"]["message"].startswith("the body did not arrive within 0.2 s")
    assert echo.bodies == []


def test_a_client_that_leaves_in_the_middle_of_its_request_is_forgotten() -> None:
    echo = Echo()
    with served(limited(echo)) as server:
        with server.connected() as client:
            client.sendall(HEAD % b"/" + b"Content-Length: 10\r\n\r\nhalf")
        assert server.ask(get()).startswith(b"HTTP/1.1 200")
    assert echo.bodies == [b""]


def test_the_application_learns_that_the_client_is_gone() -> None:
    gone = threading.Event()

    async def wait_for_it(_scope: Any, receive: Any, _send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        gone.set()

    with served(limited(wait_for_it)) as server, server.connected() as client:
        client.sendall(get())
        client.close()
        assert gone.wait(20)


@pytest.mark.parametrize("beginning", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_does_not_arrive_closes_the_connection(beginning: bytes) -> None:
    with served(Echo(), request_timeout_s=0.2) as server:
        assert server.ask(beginning) == b""


def test_a_second_head_that_does_not_arrive_closes_the_connection() -> None:
    with served(Echo(), request_timeout_s=0.2) as server, server.connected() as client:
        for _ in range(2):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"ok"):
                answer += client.recv(65536)
        client.sendall(b"GET / HT")
        assert everything(client) == b""


def test_a_request_that_takes_long_to_answer_is_not_closed() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)
        await Echo()(scope, receive, send)

    with served(slow, request_timeout_s=0.1) as server:
        assert server.ask(get()).endswith(b"ok")


def test_a_head_without_end_is_refused() -> None:
    with served(Echo()) as server, server.connected() as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        answer = b""
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100_000):
                client.sendall(b"X-More: %b\r\n" % (b"x" * 1000))
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 431 ")


class Flood:
    """An application that streams until the client is gone, like Starlette's streams do."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        """Stream."""
        await receive()
        gone = asyncio.ensure_future(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
            await asyncio.sleep(0)
        self.ended.set()


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    flood = Flood()
    with served(flood, write_timeout_s=0.3) as server, server.connected() as client:
        client.sendall(get())
        assert flood.ended.wait(20)


def test_an_answer_that_is_read_slowly_goes_on() -> None:
    flood = Flood()
    with served(flood, write_timeout_s=0.5) as server, server.connected() as client:
        client.sendall(get())
        for _ in range(20):
            assert client.recv(4096)
            assert not flood.ended.wait(0.1)


def test_an_answer_that_is_complete_but_not_read_does_not_keep_the_connection() -> None:
    async def large(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 3_000_000})

    with served(large, write_timeout_s=0.3) as server, server.connected() as client:
        client.sendall(get())
        connections = server.server.server_state.connections
        wait_for(lambda: connections, 20)
        wait_for(lambda: not connections, 20)


def test_the_peer_is_known_by_its_process() -> None:
    echo = Echo()
    with served(echo) as server:
        server.ask(get())
    assert echo.scopes[0]["client"] == (f"pid:{os.getpid()}", 0)
    assert echo.scopes[0]["server"] == (str(server.path), None)


def test_nobody_speaks_for_another_client() -> None:
    echo = Echo()
    with served(echo) as server:
        server.ask(get("/", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https"))
    assert echo.scopes[0]["client"] == (f"pid:{os.getpid()}", 0)
    assert echo.scopes[0]["scheme"] == "http"


FOREIGNER = """
import os, socket, sys
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
client = socket.socket(socket.AF_UNIX)
client.settimeout(20)
client.connect(sys.argv[1])
try:
    client.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    print(client.recv(100))
except (BrokenPipeError, ConnectionResetError):
    print(b"")
"""


def test_another_user_is_refused(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    echo = Echo()
    if os.getuid() != 0:  # then nobody but we can connect, so the daemon must believe that it is someone else
        monkeypatch.setattr(protocol.os, "geteuid", lambda: os.getuid() + 1)
    with served(echo) as server:
        server.path.parent.chmod(0o755)
        server.path.chmod(0o666)
        done = subprocess.run(
            [sys.executable, "-c", FOREIGNER, str(server.path)], capture_output=True, text=True, timeout=60
        )
    assert done.stdout.strip() == "b''", done.stderr
    assert echo.scopes == []
    assert "refused a connection from uid" in caplog.text


def test_too_many_connections_are_refused_and_the_others_go_on() -> None:
    with served(Echo()) as server:
        server.config.max_connections = 3
        held = [server.connected() for _ in range(3)]
        clients = [manager.__enter__() for manager in held]
        assert server.ask(b"").startswith(b"HTTP/1.1 503 ")
        for client in clients:
            client.sendall(get())
            assert everything(client).endswith(b"ok")
        for manager in held:
            manager.__exit__(None, None, None)
        assert server.ask(get()).endswith(b"ok")


def test_thousands_of_connections_do_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    with served(Echo()) as server:
        for _ in range(3000):
            with server.connected() as client, contextlib.suppress(BrokenPipeError):
                client.sendall(b"GET")
        # Some may still be on their way; a client that is refused until then may come back.
        wait_for(lambda: server.ask(get()).endswith(b"ok"), 20)
    assert len(caplog.records) < 10


@pytest.mark.parametrize("nonsense", [b"\x00\xff\x16\x03\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_no_http_is_refused(nonsense: bytes) -> None:
    with served(Echo()) as server:
        assert server.ask(nonsense).startswith(b"HTTP/1.1 400 ")
        assert server.ask(get()).endswith(b"ok")
