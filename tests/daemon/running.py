"""Real daemons for tests: started as a user would, spoken to over the socket, and always gone afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from edgepd.config import Paths, paths
from edgepd.models import Catalog
from edgepd_quant.types import GGMLType
from tests.tiny_gguf import tiny_llama

T = TypeVar("T")
Json = dict[str, Any]

START_SECONDS = 60.0
STOP_SECONDS = 40.0
# A context far longer than the tiny model's own, so that an answer lasts long enough to be interfered with.
TINY_SETTINGS = ("serve.slots=2", "serve.context_tokens=512", "serve.batch_tokens=64", "serve.threads=1")


@contextmanager
def short_directory() -> Iterator[Path]:
    """A fresh directory whose path leaves room for a socket below it."""
    directory = Path(tempfile.mkdtemp(prefix="edgepd-", dir="/tmp"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def install_tiny(models_dir: Path, *, seed: int = 3) -> Path:
    """Install a random model under the name `tiny` and return `models_dir`."""
    models_dir.mkdir(parents=True, exist_ok=True)
    file = tiny_llama(models_dir.parent / "tiny.gguf", qtype=GGMLType.Q4_1, seed=seed)
    Catalog(models_dir).add(str(file))
    return models_dir


def environment(home: Path, models_dir: Path) -> dict[str, str]:
    """What a program needs to find this home and these models, and none of the caller's settings."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EDGEPD_")}
    return {**kept, "EDGEPD_HOME": str(home), "EDGEPD_MODELS_DIR": str(models_dir)}


def arguments(settings: tuple[str, ...]) -> list[str]:
    """The command line of a daemon with these settings (`key=value`)."""
    return [sys.executable, "-m", "edgepd_daemon", *(part for s in settings for part in ("--set", s))]


def run_to_end(home: Path, models_dir: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """Start a daemon that is expected to end by itself."""
    return subprocess.run(
        arguments(settings), env=environment(home, models_dir), capture_output=True, text=True, timeout=START_SECONDS
    )


def wait_for(condition: Callable[[], T], seconds: float = 60.0) -> T:
    """Return the first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.02)
    return value


class Daemon:
    """A daemon in a process of its own."""

    def __init__(self, home: Path, models_dir: Path, *settings: str) -> None:
        """Start it and wait until it answers."""
        self.paths: Paths = paths(environment(home, models_dir))
        self.log_file = home / "daemon.log"
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                arguments(settings), env=environment(home, models_dir), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        transport = httpx.HTTPTransport(uds=str(self.paths.socket))
        self.client = httpx.Client(transport=transport, base_url="http://edgepd", timeout=120)
        try:
            wait_for(self._answers, START_SECONDS)
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.log_file.read_text(errors="replace")

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"the daemon ended with exit code {self.process.returncode}:\n{self.log}")
        # Tried by hand first, because httpx leaves its socket open when a connection is refused.
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.paths.socket)) != 0:
                return False
        return self.client.get("/healthz").is_success

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_SECONDS)
        self.client.close()
        return code

    def kill(self) -> None:
        """Send SIGKILL, to this process alone."""
        self.process.kill()
        self.process.wait()
        self.client.close()

    def close(self) -> None:
        """End it in whatever state it is."""
        if self.process.poll() is None:
            self.kill()
        self.client.close()

    def get(self, path: str, **options: Any) -> Json:
        """GET and expect success."""
        return self._ok(self.client.get(path, **options))

    def post(self, path: str, body: Json) -> Json:
        """POST and expect success."""
        return self._ok(self.client.post(path, json=body))

    def refused(self, path: str, body: Json) -> tuple[int, str, str]:
        """POST, expect OpenAI's error object, and return (status, code, message)."""
        return error_of(self.client.post(path, json=body))

    def chat(self, text: str, **fields: Any) -> Json:
        """Ask one question and return the whole answer."""
        return self.post("/v1/chat/completions", question(text, **fields))

    def answer(self, text: str, **fields: Any) -> str:
        """Ask one question and return the text of the answer."""
        return text_of(self.chat(text, **fields))

    def stream(self, text: str, **fields: Any) -> Generator[Json, None, None]:
        """Ask one question and yield the events of the answer; closing the iterator hangs up."""
        body = question(text, **fields) | {"stream": True}
        with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            done = False
            for line in response.iter_lines():
                if line:
                    assert not done and line.startswith("data: "), line
                    done = line == "data: [DONE]"
                    if not done:
                        yield json.loads(line.removeprefix("data: "))
            assert done, "the stream ended without [DONE]"

    def edit(self, prompt: str, text: str) -> None:
        """Ask and correct the answer: one training example."""
        asked = self.chat(prompt, max_tokens=2)
        self.post("/edgepd/v1/feedback", {"interaction_id": asked["interaction_id"], "edit": text})

    def train(self, kind: str = "live") -> Json:
        """Train to the end and return the run."""
        started = self.post("/edgepd/v1/training", {"kind": kind})["run"]
        return self.finished(started["id"])

    def finished(self, run_id: int) -> Json:
        """Wait for the end of a run and return it."""
        wait_for(lambda: self.get(f"/edgepd/v1/training/{run_id}")["run"]["state"] != "running", 120)
        run: Json = self.get(f"/edgepd/v1/training/{run_id}")["run"]
        return run

    @staticmethod
    def _ok(response: httpx.Response) -> Json:
        assert response.is_success, f"{response.status_code}: {response.text}"
        body: Json = response.json()
        return body


@contextmanager
def running(home: Path, models_dir: Path, *settings: str) -> Iterator[Daemon]:
    """A daemon that is gone after the block."""
    daemon = Daemon(home, models_dir, *settings)
    try:
        yield daemon
    finally:
        daemon.close()


class Background:
    """A stream that is read on a thread while the test does something else."""

    def __init__(self, events: Iterator[Json]) -> None:
        """Start reading."""
        self.events: list[Json] = []
        self.error: BaseException | None = None
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(events,), daemon=True)
        self._thread.start()

    def _read(self, events: Iterator[Json]) -> None:
        try:
            for event in events:
                self.events.append(event)
                self._first.set()
        except (httpx.HTTPError, AssertionError) as error:
            self.error = error
        finally:
            self._first.set()

    def wait_for_first(self) -> Json:
        """Return the first event."""
        assert self._first.wait(60), "no event arrived"
        assert self.events, self.error
        return self.events[0]

    @property
    def going_on(self) -> bool:
        """Whether more events can come."""
        return self._thread.is_alive()

    def join(self) -> list[Json]:
        """Wait for the end and return all events."""
        self._thread.join(120)
        assert not self._thread.is_alive(), "the stream does not end"
        return self.events


def question(text: str, **fields: Any) -> Json:
    """The body of a greedy chat request."""
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def text_of(answer: Json) -> str:
    """The text of a whole answer."""
    text: str = answer["choices"][0]["message"]["content"]
    return text


def joined(events: list[Json]) -> str:
    """The text of a streamed answer."""
    return "".join(c["delta"].get("content", "") for e in events for c in e["choices"])


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    """Return (status, code, message) of an answer that must be OpenAI's error object."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if response.status_code < 500 else "server_error")
    return response.status_code, error["code"], error["message"]
