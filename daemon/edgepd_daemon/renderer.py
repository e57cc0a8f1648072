"""Chat templates in a child process, so that a hostile one cannot freeze or bloat the daemon.

The idea: the template comes out of a downloaded file and is a program. It runs in a process of its own
(`render_child`) that is limited in memory and processor time; the daemon waits for the text for a bounded time and
kills the child if it takes longer. The child starts with the first template, serves all of them, and is started
again when it has died. The invariant: a render returns the text or raises TemplateError, in bounded time.
What this does not do: guard the trainer, which renders in its own process that the daemon can kill as a whole.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from edgepd.errors import TemplateError
from edgepd.messages import MAX_RENDERED_CHARS, Message
from edgepd_daemon.frames import HEADER

RENDER_SECONDS = 2.0  # ordinary templates take 1 ms, a conversation of a megabyte 30 ms; this allows for a busy machine
START_SECONDS = 30.0  # Python and Jinja load in 0.1 s; a small board that swaps may need seconds
MAX_REPLY_BYTES = 12 * MAX_RENDERED_CHARS + 1024  # a character in JSON takes at most two escapes of six bytes


class SafeTemplate:
    """A chat template as `edgepd.template.ChatTemplate`, rendered in the child."""

    def __init__(self, renderer: Renderer, source: str | None, bos: str, eos: str) -> None:
        """Use `Renderer.template`."""
        self._renderer = renderer
        self._request = {"source": source, "bos": bos, "eos": eos}
        self._supports_tools = bool(renderer.ask(self._request)["supports_tools"])

    @property
    def supports_tools(self) -> bool:
        """Whether the template itself tells the model which tools there are."""
        return self._supports_tools

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt text for `messages`, ready for the assistant's turn if asked for."""
        request = {
            **self._request,
            "messages": [dict(m) for m in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": list(tools) if tools else None,
            "extra": dict(extra) if extra else None,
        }
        return str(self._renderer.ask(request)["text"])


class Renderer:
    """Owns the child. Its methods may be called from any thread; renders take turns."""

    def __init__(self) -> None:
        """The child is started by the first use."""
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def template(self, source: str | None, *, bos: str = "", eos: str = "") -> SafeTemplate:
        """Compile a chat template (ChatML if None). Raises TemplateError if it cannot be used."""
        return SafeTemplate(self, source, bos, eos)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the child's reply to a request. Raises TemplateError with what is wrong with the template."""
        body = json.dumps(request).encode()
        with self._lock:
            try:
                reply = self._exchange(body)
            except OSError:  # it may have been killed while it was idle
                reply = self._once_more(body)
        if "error" in reply:
            raise TemplateError(str(reply["error"]))
        return reply

    def close(self) -> None:
        """End the child. The next use starts another."""
        with self._lock:
            self._drop()

    def _once_more(self, body: bytes) -> dict[str, Any]:
        try:
            return self._exchange(body)
        except OSError as error:
            raise TemplateError(
                "the process that renders the model's chat template ended; the template needs too much memory or time"
            ) from error

    def _exchange(self, body: bytes) -> dict[str, Any]:
        if self._child is None:
            self._child = _Child()
        try:
            reply = self._child.exchange(body, time.monotonic() + RENDER_SECONDS)
        except TimeoutError as error:
            self._drop()
            raise TemplateError(
                f"the model's chat template takes longer than {RENDER_SECONDS:g} s to render these messages"
            ) from error
        except OSError:
            self._drop()
            raise
        if reply.get("spent"):
            self._drop()
        return reply

    def _drop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


class _Child:
    """A running child and the connection to it. After an OSError it is of no use any more."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "edgepd_daemon.render_child"],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    start_new_session=True,  # Ctrl-C in the terminal is for the daemon
                )
            except OSError as error:
                self._socket.close()
                raise TemplateError(f"the process that renders chat templates cannot be started: {error}") from error
        try:
            self._receive(time.monotonic() + START_SECONDS)
        except OSError as error:
            self.kill()
            raise TemplateError("the process that renders chat templates does not start; see the log") from error

    def exchange(self, body: bytes, deadline: float) -> dict[str, Any]:
        """Send a request and return the reply."""
        self._wait_until(deadline)
        self._socket.sendall(HEADER.pack(len(body)) + body)
        return self._receive(deadline)

    def kill(self) -> None:
        """End the process at once."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _receive(self, deadline: float) -> dict[str, Any]:
        (length,) = HEADER.unpack(self._exactly(HEADER.size, deadline))
        if length > MAX_REPLY_BYTES:
            raise ConnectionError(f"a reply of {length} bytes")
        reply: dict[str, Any] = json.loads(self._exactly(length, deadline))
        return reply

    def _exactly(self, count: int, deadline: float) -> bytearray:
        got = bytearray()
        while len(got) < count:
            self._wait_until(deadline)
            part = self._socket.recv(min(count - len(got), 1 << 20))
            if not part:
                raise ConnectionError("the other end has closed")
            got += part
        return got

    def _wait_until(self, deadline: float) -> None:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
