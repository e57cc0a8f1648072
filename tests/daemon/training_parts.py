"""A trainer whose child follows a script: no model, no torch, but the real profile, registry and API around it.

The idea: `with_parts(directory, work)` builds the parts of a daemon in the process of the test; `child_says` sets what
the next child says and does. What this does not do: train (see test_training.py).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from edgepd.adapt.job import Event, write_event
from edgepd.config import Paths
from edgepd.settings import Settings, Train
from edgepd_daemon.api.app import create_app
from edgepd_daemon.engine.types import EngineStatus, Version
from edgepd_daemon.foresight import Foresight
from edgepd_daemon.forgetter import Forgetter
from edgepd_daemon.generations import Base, Generations
from edgepd_daemon.personal import Personaliser
from edgepd_daemon.services import Services
from edgepd_daemon.throttle import Throttle
from edgepd_daemon.trainer import Trainer
from edgepd_daemon.warming import Warmer
from edgepd_profiles import feedback, interactions, runs
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.store import Store
from tests.daemon.supervised import FakeSupervisor

CHILD = """
import json, os, sys, time
from pathlib import Path
here = Path(sys.argv[1])
(here / "job.json").write_text(sys.stdin.read())
(here / "environment.json").write_text(json.dumps(dict(os.environ)))
for step in json.loads((here / "steps.json").read_text()):
    if step.startswith("wait "):
        while not (here / step.removeprefix("wait ")).exists():
            time.sleep(0.005)
    elif step.startswith("exit "):
        sys.exit(int(step.removeprefix("exit ")))
    elif step == "write":
        Path(json.loads((here / "job.json").read_text())["output"]).write_text("what was learned")
    else:
        print(step, flush=True)
"""
BASE_SHA256 = "ab" * 32
ENGINE = EngineStatus("ready", queued=3, active=1, slots=4, tokens_generated=70)


class PartsEngine:
    """Has everything loaded, and as many saved conversations as `saved` says."""

    alive = True
    context_tokens = 2048

    def __init__(self) -> None:
        self.saved = 0
        self.kept: Version | None = None

    def status(self) -> EngineStatus:
        return ENGINE

    def is_prepared(self, version: Version) -> bool:
        return True

    def prepare(self, version: Version) -> None:
        pass

    def keep(self, version: Version) -> None:
        self.kept = version

    def forget_conversations(self) -> int:
        saved, self.saved = self.saved, 0
        return saved


class Parts:
    """A trainer with twelve corrected answers to learn from, its child's script, and the API over it."""

    def __init__(self, directory: Path, store: Store) -> None:
        """Start nothing."""
        self.directory = directory
        self.store = store
        self.paths = data_below(directory)
        self.engine = PartsEngine()
        engine: Any = self.engine
        self.generations = Generations(
            store, engine, Base("tiny", directory / "tiny.gguf", BASE_SHA256), self.paths.generations_dir
        )
        self.generations.boot()
        (directory / "child.py").write_text(CHILD)
        child = (sys.executable, str(directory / "child.py"), str(directory))
        settings = Settings(train=Train(rank=4))
        # Nobody asks anything here: what the engine says of itself is for the status.
        self.trainer = Trainer(
            store, self.generations, settings, self.paths.runs_dir, Throttle(lambda: False), lambda _kind: child
        )
        unused: Any = SimpleNamespace(problem=None)
        supervisor: Any = FakeSupervisor()
        personaliser = Personaliser(store, engine, self.generations, lambda: settings)
        foresight = Foresight(store, lambda: settings, self.paths.students_dir)
        self.forgetter = Forgetter(store, self.generations, self.trainer, engine, personaliser, self.paths)
        services = Services(
            *(settings, self.paths, store, engine, self.generations, unused, self.trainer, unused),
            personaliser=personaliser,
            forgetter=self.forgetter,
            supervisor=supervisor,
            foresight=foresight,
            warmer=Warmer(store, engine, self.generations, personaliser, foresight, lambda: settings, lambda: False),
            load_settings=lambda: settings,
        )
        transport = httpx.ASGITransport(create_app(services), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://edgepd")

    def child_says(self, *steps: Event | str) -> None:
        """Set what the next child does: say an event, or a word that CHILD knows."""
        lines = [step if isinstance(step, str) else write_event(step) for step in steps]
        (self.directory / "steps.json").write_text(json.dumps(lines))

    def let_go(self, name: str = "go") -> None:
        """Let a child go on that waits."""
        (self.directory / name).touch()

    def read(self, name: str) -> dict[str, Any]:
        """Return what the last child wrote down."""
        found: dict[str, Any] = json.loads((self.directory / name).read_text())
        return found

    def files(self) -> list[str]:
        """The names of what lies in the directory of the generations."""
        return sorted(file.name for file in self.generations.directory.iterdir())

    async def get(self, path: str) -> dict[str, Any]:
        response = await self.client.get(path)
        assert response.is_success, response.text
        body: dict[str, Any] = response.json()
        return body

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true."""
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)

    async def ended(self, kind: Any = "live") -> runs.Run:
        """Start a run and return it when it, and the review of what it made, has ended."""
        run = await self.trainer.start(kind)
        await self.until(lambda: self.trainer.run is None)
        return self.stored(run.id)

    async def reviewing(self, kind: Any = "live") -> runs.Run:
        """Start a run and return it when its child, which must come to that, reviews what it has made."""
        run = await self.trainer.start(kind)
        await self.until(lambda: self.trainer.progress and self.trainer.progress.stage == "review")
        return self.stored(run.id)

    def stored(self, run_id: int) -> runs.Run:
        """Return a run as the profile has it."""
        with self.store.read() as conn:
            return runs.get_run(conn, run_id)


def data_below(directory: Path) -> Paths:
    """Return the paths of a daemon whose data, and nothing else, is in `data` below a directory."""
    return Paths(directory / "config.toml", directory / "data", directory, directory / "data" / "models")


def correct(store: Store, numbers: range, since: float = 1000.0) -> None:
    """Correct answers, one for each number, a second apart from this unix time on.

    Too short to be near-duplicates, although each has one word in common with the others.
    """
    for number in numbers:
        asked = [{"role": "user", "content": f"Question {number}"}]
        row = Interaction(f"i{number}", f"c{number}", 1.0, "cli", "tiny", 1, asked, response="Hm", state="done")
        store.write(lambda conn, row=row: interactions.begin(conn, row)).result()
        store.write(lambda conn, n=number: feedback.set_edit(conn, f"i{n}", f"Answer {n}", at=since + n)).result()


@asynccontextmanager
async def parts(directory: Path, *, taught: bool = True) -> AsyncIterator[Parts]:
    with Store.open(data_below(directory).profile) as store:
        if taught:
            correct(store, range(12))
        made = Parts(directory, store)
        try:
            yield made
        finally:
            await made.trainer.stop()
            await made.client.aclose()


def with_parts(directory: Path, work: Callable[[Parts], Awaitable[None]], *, taught: bool = True) -> None:
    """Run `work` on the parts; without `taught`, the profile is taken as it is."""

    async def run() -> None:
        async with parts(directory, taught=taught) as made:
            await work(made)

    asyncio.run(run())
