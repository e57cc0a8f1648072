"""The guard of the loopback port: a token, a local Host and no web page; nothing of that over the Unix socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import ollama
import pytest
from starlette.types import Message, Receive, Scope, Send

from edgepd_daemon.api.security import TcpGuard
from tests.daemon.ollama_running import TOKEN, Ollama, serving

HOST = (b"host", b"127.0.0.1:8765")
BEARER = (b"authorization", f"Bearer {TOKEN}".encode())
TCP = ("127.0.0.1", 8765)
Headers = list[tuple[bytes, bytes]]


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    """The application behind the guard."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(
    headers: Headers, *, server: object = TCP, path: str = "/v1/models", token: str | None = TOKEN, kind: str = "http"
) -> list[Message]:
    """Send a request through the guard and return the messages of the answer."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": kind, "method": "GET", "path": path, "headers": headers, "server": server}
    asyncio.run(TcpGuard(inner, token)(scope, receive, send))
    return sent


def status(headers: Headers, **options: Any) -> int:
    return int(ask(headers, **options)[0]["status"])


def test_with_token_and_local_host_a_request_passes() -> None:
    assert ask([HOST, BEARER])[1]["body"] == b"inside"


@pytest.mark.parametrize("server", [("/run/user/1000/edgepd/edgepd.sock", None)])
@pytest.mark.parametrize("headers", [[], [(b"origin", b"http://evil.example")], [(b"host", b"evil.example")]])
def test_a_unix_socket_needs_nothing(server: object, headers: Headers) -> None:
    assert status(headers, server=server) == 200
    assert status(headers, server=server, token=None) == 200


@pytest.mark.parametrize("host", [b"127.0.0.1", b"localhost", b"LOCALHOST:1", b"[::1]", b"[::1]:65535"])
def test_names_of_this_machine_pass(host: bytes) -> None:
    assert status([(b"host", host), BEARER]) == 200


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [b""],
        [b"evil.example"],
        [b"evil.example:8765"],
        [b"127.0.0.1.evil.example"],
        [b"localhost.evil.example"],
        [b"evil.example@127.0.0.1"],
        [b"127.0.0.1:80:80"],
        [b"127.0.0.1:"],
        [b"127.0.0.1\n"],
        [b"::1"],
        [b"0.0.0.0"],
        [b"127.0.0.1", b"evil.example"],
    ],
)
def test_any_other_host_is_refused_even_with_the_token(hosts: list[bytes]) -> None:
    """A page that rebinds its own name to 127.0.0.1 still sends that name."""
    assert status([*((b"host", host) for host in hosts), BEARER]) == 403


@pytest.mark.parametrize("origin", [b"http://evil.example", b"null", b"http://localhost:8765", b""])
def test_web_pages_are_refused_even_with_the_token(origin: bytes) -> None:
    assert status([HOST, BEARER, (b"origin", origin)]) == 403


@pytest.mark.parametrize(
    "authorization",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer wrong",
        b"Bearer " + TOKEN.encode() + b"x",
        b"Bearer " + TOKEN.encode()[:-1],
        b"Bearer " + TOKEN.encode() + b" more",
        b"Basic " + TOKEN.encode(),
        TOKEN.encode(),
        b"Bearer \xff\xfe",
    ],
)
def test_without_the_right_token_it_is_401(authorization: bytes) -> None:
    messages = ask([HOST, (b"authorization", authorization)])
    assert messages[0]["status"] == 401
    assert (b"www-authenticate", b"Bearer") in messages[0]["headers"]
    assert TOKEN not in messages[1]["body"].decode()


def test_no_token_or_two_are_401() -> None:
    assert status([HOST]) == 401
    assert status([HOST, BEARER, BEARER]) == 401


def test_the_scheme_may_have_any_case() -> None:
    assert status([HOST, (b"authorization", f"bearer {TOKEN}".encode())]) == 200


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_of_its_own_the_guard_lets_nothing_in(token: str | None) -> None:
    assert status([HOST, BEARER], token=token) == 401
    assert status([HOST, (b"authorization", b"Bearer ")], token=token) == 401
    assert status([HOST], token=token) == 401


def test_an_unknown_kind_of_connection_is_treated_as_tcp() -> None:
    assert status([HOST], server=None) == 401


def test_websockets_over_tcp_are_closed() -> None:
    assert [m["type"] for m in ask([HOST, BEARER], kind="websocket")] == ["websocket.close"]


def test_start_and_end_of_the_application_pass() -> None:
    assert status([], kind="lifespan") == 200


@pytest.mark.parametrize(
    "headers", [[HOST], [(b"host", b"evil.example")], [HOST, BEARER, (b"origin", b"http://a.example")]]
)
def test_refusals_have_no_cors_headers(headers: Headers) -> None:
    names = [name for name, _ in ask(headers)[0]["headers"]]
    assert not [name for name in names if name.startswith(b"access-control")]


def test_refusals_are_in_the_callers_dialect() -> None:
    ollamas = json.loads(ask([HOST], path="/api/chat")[1]["body"])
    openais = json.loads(ask([HOST], path="/v1/models")[1]["body"])
    assert ollamas["error"].startswith("the token is missing or wrong")
    assert openais["error"]["message"] == ollamas["error"]
    assert (openais["error"]["code"], openais["error"]["type"]) == ("unauthorized", "invalid_request_error")


def test_ollamas_client_passes_the_token_as_a_header() -> None:
    with serving() as served, ollama.Client(served.daemon.base_url) as stranger:
        assert served.client.list().models
        with pytest.raises(ollama.ResponseError, match="the token is missing or wrong") as error:
            stranger.list()
    assert error.value.status_code == 401


def test_ollamas_client_takes_the_token_from_its_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as served:
        monkeypatch.setenv("OLLAMA_API_KEY", TOKEN)
        with ollama.Client(served.daemon.base_url) as client:
            assert client.list().models


def browse(served: Ollama, method: str, **headers: str) -> httpx.Response:
    """Ask over TCP as a browser would, token included."""
    authorization = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.request(method, f"{served.daemon.base_url}/api/tags", headers={**authorization, **headers}, timeout=30)


def test_a_browser_gets_nothing_over_the_real_port() -> None:
    with serving() as served:
        preflight = browse(served, "OPTIONS", origin="http://evil.example", access_control_request_method="POST")
        read = browse(served, "GET", origin="http://evil.example")
        rebound = browse(served, "GET", host="evil.example")
        own = browse(served, "GET")
    assert [r.status_code for r in (preflight, read, rebound, own)] == [403, 403, 403, 200]
    assert not [name for r in (preflight, read, own) for name in r.headers if name.startswith("access-control")]
