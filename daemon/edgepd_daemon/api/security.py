"""The guard of the loopback port: who reaches the API over TCP has the token and is no web page.

The idea: the Unix socket is guarded by its file mode and the kernel's word on who connects; a TCP port is open to
every program and, through a browser, to every web page. So a request over TCP needs the token, a Host that names
this machine (or a page could rebind its own name to 127.0.0.1), and no Origin, which only web pages send. The
invariant: without a token nothing gets through over TCP. No answer has CORS headers.
What this does not do: guard Unix sockets, which cost it one comparison, or encrypt.

Ollama's clients send the token as an API key: `ollama.Client(host, headers={"Authorization": "Bearer TOKEN"})`, or
the environment variable OLLAMA_API_KEY. OpenAI's send their `api_key` that way anyhow.
"""

from __future__ import annotations

import hmac
import re

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from edgepd_daemon.api.errors import refusal

_LOCAL_HOST = re.compile(rb"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
_BEARER = re.compile(rb"bearer +(?P<token>\S+) *", re.IGNORECASE)


class TcpGuard:
    """ASGI middleware that lets through what came over a Unix socket, and over TCP only what may."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        """Guard `app`. Without a token, everything over TCP is refused."""
        self._app = app
        self._token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on or refuse it."""
        if scope["type"] == "lifespan" or over_unix_socket(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        elif (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """Return what a request is refused with, None if it may pass."""
        path = scope["path"]
        hosts = _header(scope, b"host")
        if len(hosts) != 1 or not _LOCAL_HOST.fullmatch(hosts[0]):
            return _refused(path, 403, "the Host header does not name this machine; use 127.0.0.1 or localhost")
        if _header(scope, b"origin"):
            return _refused(path, 403, "requests from web pages are refused; leave out the Origin header")
        if not self._has_token(_header(scope, b"authorization")):
            sentence = (
                "the token is missing or wrong; send `Authorization: Bearer` and the contents of edgepd's token file"
            )
            return _refused(path, 401, sentence)
        return None

    def _has_token(self, sent: list[bytes]) -> bool:
        if self._token is None or len(sent) != 1:
            return False
        bearer = _BEARER.fullmatch(sent[0])
        # In constant time, so that the answer's delay does not spell the token.
        return bearer is not None and hmac.compare_digest(bearer["token"], self._token)


def over_unix_socket(scope: Scope) -> bool:
    """Whether a request came over a Unix socket, which has a path and no port. In doubt it did not."""
    server = scope.get("server")
    return server is not None and server[1] is None


def _header(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _refused(path: str, status: int, sentence: str) -> JSONResponse:
    """Return an error in the caller's dialect."""
    if status == 401:
        return refusal(path, sentence, code="unauthorized", status=401, headers={"WWW-Authenticate": "Bearer"})
    return refusal(path, sentence, code="forbidden", status=status)
