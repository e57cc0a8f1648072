"""A daemon without a model: answers the HTTP API on a Unix socket from a script, and records what it was asked.

What this does not do: check requests as the real one does; a test looks at `requests` itself.
"""

from __future__ import annotations

import json
import os
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

Json = dict[str, Any]
RUN: Json = {
    "id": "r1",
    "kind": "live",
    "state": "running",
    "started_at": 1000.0,
    "ended_at": None,
    "parent_generation": 0,
    "generation": None,
    "reason": None,
    "numbers": {},
}
NUMBERS: Json = {
    "held_out_before": 3.2154,
    "held_out_after": 2.9,
    "held_out_examples": 4,
    "general_perplexity_rise": 0.0041,
    "load_s": 0.31,
    "train_s": 12.04,
}
TIMINGS: Json = {"prompt_tokens": 12, "cached_tokens": 0, "completion_tokens": 2, "tokens_per_second": 98.76}
HEALTH: Json = {
    "status": "ready",
    "live": True,
    "ready": True,
    "loading_percent": None,
    "version": "0.1.0",
    "uptime_s": 1.0,
    "model": "tiny",
    "generation": 3,
}
READINGS: Json = {
    "at": 2000.0,
    "minute_of_day": 600,
    "busy": False,
    "idle_s": 12.0,
    "on_ac": True,
    "battery_percent": 62.0,
    "temperature_c": 56.4,
    "other_cpu_percent": 12.5,
    "available_mb": 3210.0,
    "memory_pressure": 0.0,
    "io_pressure": 0.25,
    "free_disk_mb": 51200.0,
    "trainer_rss_mb": None,
}
DECISION: Json = {
    "at": 1990.0,
    "action": "wait",
    "constraint": "",
    "reason": "1.5 of the weight 4 of new feedback that starts a short run",
    "kind": None,
    "due": False,
}
BUDGET: Json = {  # what all faces of it have in common
    "preset": "laptop",
    "automatic": True,
    "paused": False,
    "paused_until": None,
    "decision": DECISION,
    "today": {"at_work_s": 726.0, "limit_s": 3600.0, "cpu_s": 600.0},
}
FULL_BUDGET: Json = {
    **BUDGET,
    "decisions": [DECISION, {**DECISION, "at": 1000.0, "action": "start", "reason": "12 examples are new"}],
    "readings": READINGS,
    "demand": {"live_weight": 1.5, "baked_weight": 12.0, "examples": 40, "forgotten": None},
    "trainer": None,
    "limits": {"preset": "laptop", "automatic": True, "cpu_percent": 50.0, "ac_only": True, "quiet_hours": ""},
    "origins": {"preset": "default", "automatic": "default", "cpu_percent": "config.toml", "ac_only": "default"},
}
PREDICTION: Json = {  # what the status and the activity of a daemon that predicts have more
    "enabled": True,
    "tuned_at": None,
    "events": 1234,
    "predicted": 40,
    "first": 17,
    "among_three": 30,
    "warmed": 12,
    "warmed_used": 9,
}
STATUS: Json = {
    "version": "0.1.0",
    "pid": 4711,
    "uptime_s": 3725.2,
    "draining": False,
    "socket": "/run/edgepd.sock",
    "tcp_port": None,
    "model": {"name": "tiny", "sha256": "ab" * 32, "path": "/models/tiny.gguf"},
    "generation": {
        "id": 3,
        "kind": "live",
        "model_file": None,
        "adapter_file": "3/adapter.gguf",
        "activated_at": 1000.0,
    },
    "engine": {
        "state": "ready",
        "loading_percent": None,
        "queued": 2,
        "active": 1,
        "slots": 4,
        "threads": 2,
        "versions_in_use": [3],
        "models": [{"path": "/models/tiny.gguf", "size_bytes": 98 * 2**20, "expires_in_s": 243.7}],
        "switches": 5,
        "last_switch_ms": 0.21,
        "tokens_generated": 900,
        "prompt_tokens": 1200,
        "cached_tokens": 300,
        "cancelled": 1,
        "loads": 2,
        "unloads": 1,
    },
    "profile": {"interactions": 40, "thumb_up": 3, "thumb_down": 1, "edit": 12, "examples": 13},
    "training": {"run": None, "progress": None},
    "budget": {**BUDGET, "battery": {"percent": 62.0, "on_ac": True}},
    "memory": {"rss_bytes": 180 * 2**20},
    "needs_restart": [],
    "problems": [],
}
ACTIVITY: Json = {
    "model": "tiny",
    "generation": {"id": 3, "kind": "live"},
    "engine": {
        "state": "ready",
        "loading_percent": None,
        "active": 0,
        "queued": 0,
        "slots": 4,
        "tokens_generated": 900,
    },
    "training": {"run": None, "progress": None, "last": None},
    "curve": [],
    "budget": {name: value for name, value in FULL_BUDGET.items() if name != "origins"},
    "generations": [
        {
            "id": 3,
            "kind": "live",
            "state": "active",
            "active": True,
            "created_at": 1400.0,
            "held_out_before": 3.2154,
            "held_out_after": 2.9,
        },
        {
            "id": 1,
            "kind": "base",
            "state": "retired",
            "active": False,
            "created_at": 1000.0,
            "held_out_before": None,
            "held_out_after": None,
        },
    ],
    "feedback": [
        {"at": 1800.0, "kind": "edit", "value": None, "app": "editor"},
        {"at": 1000.0, "kind": "thumb", "value": 1, "app": ""},
    ],
    "memory": {"rss_bytes": 180 * 2**20},
    "problems": [],
}
PLAIN: Json = {  # what generations have in common here
    "base_sha256": "ab" * 32,
    "adapter_file": None,
    "model_file": None,
    "file_sha256": None,
    "activated_at": None,
    "config": {},
    "scores": {},
    "reason": "",
    "pinned": False,
    "pending": False,
    "confirmed_at": None,
    "healthy": 0,
    "strikes": 0,
    "bytes": None,
    "file": None,
}
GENERATIONS: Json = {
    "active": 2,
    "previous": 1,
    "generations": [
        {**PLAIN, "id": 2, "parent": 1, "kind": "live", "state": "active", "created_at": 1000.0}
        | {"example_ids": ["a", "b"], "scores": {"held_out_before": 3.2154, "held_out_after": 2.9}}
        | {"pinned": True, "pending": True, "strikes": 1, "bytes": 4 * 2**20 + 2**19, "file": "/g/2.gguf"},
        {**PLAIN, "id": 1, "parent": None, "kind": "base", "state": "retired", "created_at": 900.0, "example_ids": []}
        | {"reason": None},
    ],
}
INTERACTION: Json = {
    "id": "i7",
    "conversation": "c1",
    "created_at": 1000.0,
    "app": "cli",
    "model": "tiny",
    "generation": 3,
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Who?"},
    ],
    "response": "Me.",
    "state": "done",
    "finish_reason": "stop",
}


@dataclass
class Reply:
    """What a route answers: JSON, or the events of a stream. `before_end` runs after the first event was sent."""

    body: Any = None
    status: int = 200
    events: list[Any] | None = None
    done: bool = True
    before_end: Callable[[], object] | None = None


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    query: str
    body: Json


def error(status: int, code: str, message: str) -> Reply:
    """Refuse as the API does."""
    return Reply({"error": {"message": message, "type": "t", "param": None, "code": code}}, status)


def chunk(text: str, **more: Any) -> Json:
    """One piece of a streamed answer; `finish_reason` is part of the choice."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": more.pop("finish_reason", None)}
    return {
        "object": "chat.completion.chunk",
        "model": "tiny@3",
        "interaction_id": "i7",
        "generation": 3,
        "choices": [choice],
        **more,
    }


def stream(*pieces: str, interaction_id: str | None = "i7", warnings: tuple[str, ...] = ()) -> Reply:
    """A complete streamed answer."""
    last = chunk("", finish_reason="stop", logged=True, timings=TIMINGS, warnings=list(warnings))
    return Reply(events=[event | {"interaction_id": interaction_id} for event in [*map(chunk, pieces), last]])


def answer(text: str, interaction_id: str | None = "i7") -> Reply:
    """A complete answer that is not streamed."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return Reply({"object": "chat.completion", "choices": [choice], "interaction_id": interaction_id, "generation": 3})


@dataclass
class FakeDaemon:
    """`script` maps "METHOD /path" to replies, used one after another; the last one stays.

    `routes` are asked before the script: functions that answer what they know and return None for the rest.
    """

    socket: Path
    script: dict[str, list[Reply]] = field(default_factory=dict)
    routes: list[Callable[[Asked], Reply | None]] = field(default_factory=list)
    requests: list[Asked] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)  # a client left in the middle of a stream

    def on(self, route: str, *replies: Reply | Json) -> None:
        """Set what a route answers."""
        self.script[route] = [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]

    def asked(self, path: str) -> list[Json]:
        """Return the bodies sent to a path."""
        return [asked.body for asked in self.requests if asked.path == path]

    def reply(self, asked: Asked) -> Reply:
        for route in self.routes:
            if (found := route(asked)) is not None:
                return found
        replies = self.script.get(f"{asked.method} {asked.path}", [])
        if not replies:
            return error(404, "not_found", f"nothing scripted for {asked.method} {asked.path}")
        return replies.pop(0) if len(replies) > 1 else replies[0]

    def __enter__(self) -> Self:
        self.socket.parent.mkdir(parents=True, exist_ok=True)
        self._server = _Server(str(self.socket), _Handler)
        self._server.daemon_state = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.on("GET /healthz", {**HEALTH, "pid": os.getpid()})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.socket.unlink(missing_ok=True)


class _Server(socketserver.ThreadingUnixStreamServer):
    request_queue_size = 128  # as the real one: five would be full when a slow machine accepts late
    daemon_state: FakeDaemon


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def address_string(self) -> str:
        return "unix"  # a Unix socket has no peer address to split

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        asked = Asked(self.command, url.path, url.query, json.loads(raw) if raw else {})
        state = self.server.daemon_state
        state.requests.append(asked)
        reply = state.reply(asked)
        if reply.events is None:
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        self.close_connection = True  # the end of the stream is the end of the connection
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self._events(reply)
        except (BrokenPipeError, ConnectionResetError):
            state.hung_up.set()

    def _events(self, reply: Reply) -> None:
        for index, event in enumerate(reply.events or []):
            self.wfile.write(f": keep-alive\n\ndata: {json.dumps(event)}\n\n".encode())
            if index == 0 and reply.before_end is not None:
                reply.before_end()
        if reply.done:
            self.wfile.write(b"data: [DONE]\n\n")
