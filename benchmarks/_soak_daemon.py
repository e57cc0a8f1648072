"""A daemon that may die: started, killed and started again in one home, with its trainer, its disk and its memory.

The idea: whoever measures what happens when things break needs a daemon that is nobody's fixture: a process, a
directory and a socket. `ask` tells apart what the daemon refused (a status) and what was cut short (Lost).
What this does not do: know what was asked of it (see _soak_ledger.py).
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from _http import Connect, unix

from edgepd.config import Paths, paths

START_SECONDS = 60.0
ANSWER_SECONDS = 60.0  # after which an answer is taken for lost
WORKER = "edgepd.adapt.worker"


class Lost(Exception):  # noqa: N818 - what happened, not a mistake
    """The daemon went away before it had answered."""


@dataclass(frozen=True)
class Resident:
    """Memory of one incarnation of the daemon at one moment."""

    incarnation: int
    age_s: float
    rss_mb: float


def ask(
    connect: Connect, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: float = ANSWER_SECONDS
) -> tuple[int, dict[str, Any]]:
    """Send one request; return status and JSON of the answer. Raises Lost if there is none."""
    http_connection = http.client.HTTPConnection("localhost")
    try:
        http_connection.sock = connect()
        http_connection.sock.settimeout(timeout)
        data = None if body is None else json.dumps(body)
        http_connection.request(method, path, data, {"Content-Type": "application/json", "Connection": "close"})
        response = http_connection.getresponse()
        return response.status, dict(json.loads(response.read()))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Lost(f"{method} {path}: {error!r}") from error
    finally:
        http_connection.close()


class Mortal:
    """A daemon in a home of its own, below `folder`, with settings by dotted key. It is started by `start`."""

    def __init__(self, settings: Mapping[str, object], folder: Path | None = None) -> None:
        """Make the home. A socket's path must be short, so must be the folder's."""
        self.home = Path(tempfile.mkdtemp(prefix="edgepd-", dir=folder or "/tmp"))  # noqa: S108 - see above
        self.home.chmod(0o700)
        keep_out = ("NOTIFY_SOCKET", "INVOCATION_ID", "WATCHDOG_USEC", "LISTEN_FDS")  # nobody else starts it again
        environment = {name: value for name, value in os.environ.items() if name not in keep_out}
        models = paths(environment).models_dir
        self.environment = environment | {"EDGEPD_HOME": str(self.home), "EDGEPD_MODELS_DIR": str(models)}
        self.paths: Paths = paths(self.environment)
        self.connect: Connect = unix(str(self.paths.socket))
        self.settings = dict(settings)
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0  # monotonic
        self.incarnation = 0
        self.endings = 0  # how often it was killed or stopped, counted before that happens
        self.down = True  # from before it is killed or stopped until it answers again
        self.memory: list[Resident] = []
        self._over = threading.Event()

    def start(self) -> None:
        """Start it, without waiting for anything."""
        given = [part for key, value in self.settings.items() for part in ("--set", f"{key}={text(value)}")]
        self.incarnation += 1
        with (self.home / "log").open("ab") as log:
            self.started_at = time.monotonic()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgepd_daemon", *given], env=self.environment, stdout=log, stderr=log
            )

    def wait_healthy(self) -> float:
        """Wait until it says that it would take requests; return the seconds since its start. Raises RuntimeError."""
        while True:
            self.check_alive()
            try:
                if ask(self.connect, "GET", "/healthz")[0] == 200:
                    self.down = False
                    return time.monotonic() - self.started_at
            except Lost:
                if time.monotonic() - self.started_at > START_SECONDS:
                    raise RuntimeError(f"the daemon does not answer after {START_SECONDS:.0f} s") from None
                time.sleep(0.01)

    def check_alive(self) -> None:
        """Raise RuntimeError with the end of the log if it has ended."""
        if self.ended():
            tail = (self.home / "log").read_text(errors="replace").splitlines()[-15:]
            code = None if self.process is None else self.process.returncode
            raise RuntimeError(f"the daemon has ended with {code}:\n" + "\n".join(tail))

    def ended(self) -> bool:
        """Return whether it is not running."""
        return self.process is None or self.process.poll() is not None

    def pid(self) -> int:
        """Return its process id. Raises RuntimeError before the first start."""
        if self.process is None:
            raise RuntimeError("the daemon was not started")
        return self.process.pid

    def end(self, number: signal.Signals = signal.SIGKILL, patience: float = 30.0) -> float:
        """Send a signal, wait for its end, and return the seconds that took."""
        self.endings += 1
        self.down = True
        began = time.monotonic()
        if self.process is not None:
            self.process.send_signal(number)
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise RuntimeError(f"the daemon did not end within {patience:.0f} s of {number.name}") from None
        return time.monotonic() - began

    def trainer(self) -> psutil.Process | None:
        """Return the training child, if there is one."""
        try:
            children = psutil.Process(self.pid()).children(recursive=True)
        except psutil.Error:
            return None
        for child in children:
            try:
                if WORKER in child.cmdline():
                    return child
            except psutil.Error:
                continue
        return None

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON of a route. Raises Lost, or RuntimeError if it is refused."""
        return self.must("GET", path)

    def mark(self) -> tuple[int, bool]:
        """Return what is different after, or is true of, a time at which it may have been away."""
        return self.endings, self.down

    def away_since(self, mark: tuple[int, bool]) -> bool:
        """Return whether it was killed or stopped since, or was away already."""
        return mark[1] or self.down or self.endings != mark[0]

    def must(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The same with any method."""
        status, found = ask(self.connect, method, path, body)
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {found}")
        return found

    def watch_memory(self) -> None:
        """Note its resident memory once a second until `close`."""
        threading.Thread(target=self._watch_memory, daemon=True).start()

    def _watch_memory(self) -> None:
        while not self._over.wait(1.0):
            incarnation, age = self.incarnation, time.monotonic() - self.started_at
            try:
                rss = psutil.Process(self.pid()).memory_info().rss / 1e6
            except psutil.Error:
                continue
            if not self.ended():
                self.memory.append(Resident(incarnation, age, rss))

    def close(self) -> None:
        """Kill it if it still runs, and remove its home."""
        self._over.set()
        if not self.ended():
            self.end()
        shutil.rmtree(self.home, ignore_errors=True)  # a process that was killed may still be leaving

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def text(value: object) -> str:
    """Return a setting's value as `--set` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
