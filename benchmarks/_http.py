"""A streaming client as lean as it can be, the same for every server, so that what is measured is the server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Connect = Callable[[], socket.socket]


@dataclass(frozen=True)
class Answer:
    """When the pieces of an answer arrived, in seconds after the request was sent; and the last event but [DONE]."""

    times: list[float]
    last: dict[str, Any]
    text: str

    @property
    def ttft_ms(self) -> float:
        """Time to first token."""
        return self.times[0] * 1000

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token. Pieces that came together count by the tokens that the server says it made."""
        made = (self.last.get("usage") or {}).get("completion_tokens") or len(self.times)
        return float((made - 1) / (self.times[-1] - self.times[0]))


def unix(path: str) -> Connect:
    """Connect to a Unix socket."""

    def connect() -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.connect(path)
        return made

    return connect


def tcp(address: str) -> Connect:
    """Connect to http://HOST:PORT."""
    host, port = address.removeprefix("http://").split(":")
    return lambda: socket.create_connection((host, int(port)))


def call(connect: Connect, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> dict[str, Any]:
    """Send one request and return the JSON of the answer."""
    with connect() as connection, connection.makefile("rb") as file:
        _send(connection, method, path, body)
        status = int(file.readline().split()[1])
        while file.readline().strip():
            continue
        data = file.read()
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {data[:500]!r}")
        return dict(json.loads(data))


def stream(connect: Connect, body: dict[str, Any], on_piece: Callable[[int], None] | None = None) -> Answer:
    """Send a chat completion and read its stream to the end."""
    times: list[float] = []
    parts: list[str] = []
    last: dict[str, Any] = {}
    body = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "ignore_eos": True} | body
    with connect() as connection, connection.makefile("rb") as file:
        started = time.perf_counter()
        _send(connection, "POST", "/v1/chat/completions", body)
        status = file.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{status!r} {file.read(2000)!r}")
        for line in file:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            now = time.perf_counter() - started
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            content = ((event.get("choices") or [{}])[0].get("delta") or {}).get("content")
            if content:
                times.append(now)
                parts.append(content)
                if on_piece is not None:
                    on_piece(len(times))
            last = event
    return Answer(times, last, "".join(parts))


def together(connect: Connect, bodies: Sequence[dict[str, Any]]) -> tuple[list[Answer], float]:
    """Stream several at once; return the answers and the seconds from the first piece of any to the last of all."""
    answers: list[Answer | None] = [None] * len(bodies)
    begun = [0.0] * len(bodies)

    def one(index: int) -> None:
        begun[index] = time.perf_counter()
        answers[index] = stream(connect, bodies[index])

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [a for a in answers if a is not None]
    if len(done) != len(bodies):
        raise RuntimeError("a stream failed")
    first = min(b + a.times[0] for b, a in zip(begun, done, strict=True))
    end = max(b + a.times[-1] for b, a in zip(begun, done, strict=True))
    return done, end - first


def _send(connection: socket.socket, method: str, path: str, body: dict[str, Any] | None) -> None:
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode() + data)
