"""The real API, exchanges and profile over an engine that says what the test tells it to.

The idea: `scripted(...)` serves the real application on a Unix socket (and, if asked, a loopback port) of its own,
with a `ScriptedEngine` that answers each request with the next text of its queue, token by token on a thread of its
own, and keeps the requests for the test to look at. No model, no llama.cpp.
What this does not do: behave like a model (see scripted_engine.py).
"""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import openai
import uvicorn
from fastapi import FastAPI

from edgepd.config import Paths
from edgepd.errors import NotFoundError
from edgepd.settings import Settings
from edgepd_daemon.api.app import create_app
from edgepd_daemon.engine.types import Version
from edgepd_daemon.exchange import Exchanges
from edgepd_daemon.foresight import Foresight
from edgepd_daemon.personal import Personaliser
from edgepd_daemon.recorder import Recorder
from edgepd_daemon.services import Services
from edgepd_daemon.warming import Warmer
from edgepd_profiles import interactions
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.registry import Generation
from edgepd_profiles.store import Store
from tests.daemon.running import short_directory, wait_for
from tests.daemon.scripted_engine import ScriptedEngine
from tests.daemon.supervised import FakeSupervisor

BASE_SHA256 = "ab" * 32


class ScriptedGenerations:
    """Two generations: 1 is the base, 2 is active."""

    def __init__(self, directory: Path) -> None:
        """`directory` is where the files would be."""
        self.base = SimpleNamespace(name="tiny", path=directory / "tiny.gguf", sha256=BASE_SHA256)
        self.problem: str | None = None
        self.answers: list[int] = []  # the generations whose answers came to their end
        self._versions = {
            1: Version(1, self.base.path, fingerprint="one"),
            2: Version(2, self.base.path, directory / "2.adapter.gguf", fingerprint="two"),
        }

    @property
    def current(self) -> Version:
        """Generation 2."""
        return self._versions[2]

    def named(self, model: str) -> Generation:
        """Understand what the real one does."""
        known = {"": 2, "default": 2, "tiny": 2, "base": 1, "tiny@1": 1, "tiny@2": 2, "default@1": 1, "default@2": 2}
        if model not in known:
            raise NotFoundError(f"model '{model}' is not known; use 'default', 'base', 'tiny' or 'tiny@GENERATION'")
        return self.listing()[known[model] - 1]

    def names(self) -> list[tuple[str, Generation]]:
        """Name both as the real one does."""
        base, active = self.listing()
        return [("default", active), ("base", base), ("tiny@1", base), ("tiny@2", active)]

    def resolve(self, model: str) -> Version:
        """Return the version that a name means."""
        return self._versions[self.named(model).id]

    def answered(self, version: Version) -> None:
        """Count the answers that came to their end."""
        self.answers.append(version.generation)

    def model_id(self, version: Version) -> str:
        """Name a version as the real one does."""
        return f"tiny@{version.generation}"

    def listing(self) -> list[Generation]:
        """Return both."""
        return [self._row(1, None, "base", "retired", 1000.0), self._row(2, 1, "live", "active", 2000.0)]

    def active(self) -> Generation:
        """Return the second."""
        return self.listing()[1]

    def original(self) -> Generation:
        """Return the first."""
        return self.listing()[0]

    def version(self, generation: Generation) -> Version:
        """Return what one of them is computed with."""
        return self._versions[generation.id]

    def get(self, generation_id: int) -> Generation:
        """Return one of them. Raises NotFoundError."""
        for generation in self.listing():
            if generation.id == generation_id:
                return generation
        raise NotFoundError(f"generation {generation_id} is not known")

    def _row(self, number: int, parent: int | None, kind: str, state: str, created_at: float) -> Generation:
        values: dict[str, Any] = {f.name: None for f in dataclasses.fields(Generation)}
        values |= {"id": number, "parent": parent, "kind": kind, "state": state, "base_sha256": BASE_SHA256}
        values |= {"created_at": created_at, "example_ids": [], "data_hash": "", "config": {}, "scores": {}}
        return Generation(**values | {"reason": ""})


@dataclass
class Scripted:
    """The application that is served, and everything behind it."""

    engine: ScriptedEngine
    generations: ScriptedGenerations
    store: Store
    services: Services
    app: FastAPI
    socket: Path
    base_url: str | None  # of the loopback port, if there is one
    client: httpx.Client  # over the Unix socket
    stack: ExitStack  # what ends with it

    def openai(self) -> openai.OpenAI:
        """Return the real client of OpenAI, which speaks to the Unix socket; tries everything once only."""
        transport = httpx2.HTTPTransport(uds=str(self.socket))
        http = self.stack.enter_context(httpx2.Client(transport=transport, timeout=30))
        return openai.OpenAI(base_url="http://edgepd/v1", api_key="-", http_client=http, max_retries=0)

    def rows(self) -> list[Interaction]:
        """Return what the profile holds, the oldest first."""
        with self.store.read() as conn:
            return interactions.recent(conn, 1000)[::-1]

    def wait_until_idle(self) -> None:
        """Wait until every answer has ended and is recorded."""
        wait_for(self.engine.is_idle, 20)
        wait_for(lambda: all(row.state != "streaming" for row in self.rows()), 20)


def sse_events(text: str) -> list[tuple[str | None, Any]]:
    """Return the events of a stream, each with its name if it has one; what is not JSON stays text."""
    found: list[tuple[str | None, Any]] = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        assert set(lines) <= {"event", "data"}, block
        data = lines["data"]
        found.append((lines.get("event"), json.loads(data) if data.startswith("{") else data))
    return found


@contextmanager
def scripted(*, tcp: bool = False, slots: int = 4, context_tokens: int = 2048, **fields: Any) -> Iterator[Scripted]:
    """Serve the API until the block ends. `fields` replace those of Services."""
    with ExitStack() as stack:
        directory = stack.enter_context(short_directory())
        engine = ScriptedEngine(slots=slots, context_tokens=context_tokens)
        generations = ScriptedGenerations(directory)
        store = stack.enter_context(closing(Store.open(directory / "profile.db")))
        stack.callback(engine.close)
        services = _services(directory, engine, generations, store, fields)
        app = create_app(services)
        sockets = [stack.enter_context(_unix_socket(directory / "s"))]
        if tcp:
            sockets.append(stack.enter_context(socket.create_server(("127.0.0.1", 0))))
        stack.enter_context(_served(app, sockets))
        transport = httpx.HTTPTransport(uds=str(directory / "s"))
        client = stack.enter_context(httpx.Client(transport=transport, base_url="http://edgepd", timeout=30))
        base_url = f"http://127.0.0.1:{sockets[1].getsockname()[1]}" if tcp else None
        yield Scripted(engine, generations, store, services, app, directory / "s", base_url, client, stack)


def _services(directory: Path, engine: Any, generations: Any, store: Store, fields: dict[str, Any]) -> Services:
    recorder = Recorder(store, enabled=True)
    settings = fields.get("settings", Settings())
    personaliser = Personaliser(store, engine, generations, lambda: settings)
    foresight = Foresight(store, lambda: settings, directory / "students")
    values: dict[str, Any] = {
        "settings": settings,
        "paths": Paths(directory / "config.toml", directory, directory, directory),
        "store": store,
        "engine": engine,
        "generations": generations,
        "recorder": recorder,
        "exchanges": Exchanges(engine, generations, recorder, personaliser),
        "personaliser": personaliser,
        "supervisor": FakeSupervisor(),
        "foresight": foresight,
        "warmer": Warmer(
            store,
            engine,
            generations,
            personaliser,
            foresight,
            lambda: settings,
            lambda: False,
        ),
        "load_settings": Settings,
    } | fields
    for part in dataclasses.fields(Services):
        if part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING:
            values.setdefault(part.name, SimpleNamespace())  # parts that no test of a dialect needs
    return Services(**values)


@contextmanager
def _unix_socket(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(128)
        yield listener


@contextmanager
def _served(app: FastAPI, sockets: list[socket.socket]) -> Iterator[None]:
    config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=(sockets,), name="server", daemon=True)
    thread.start()
    wait_for(lambda: server.started or not thread.is_alive(), 20)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)
