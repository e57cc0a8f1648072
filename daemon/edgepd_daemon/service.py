"""The boot of the daemon, in the order in which its parts start, and its end.

The idea: `run` reads as a list; each part is entered on an exit stack, so whatever happens every part that was
started is stopped, the last one first. The invariant: the socket exists only while requests can be answered.
What this does not do: fork, write a pid file, or restart itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import uvicorn

from edgepd.config import Paths, Settings
from edgepd.models import Catalog
from edgepd_daemon.api.app import create_app
from edgepd_daemon.cores import physical_cores
from edgepd_daemon.engine.loop import Engine
from edgepd_daemon.exchange import Recorder
from edgepd_daemon.generations import Base, Generations
from edgepd_daemon.listener import hold_lock, listening
from edgepd_daemon.services import Services
from edgepd_daemon.trainer import Trainer
from edgepd_profiles import interactions, runs
from edgepd_profiles.store import Store
from edgepd_quant.reader import GGUFFile

log = logging.getLogger(__name__)

END_SECONDS = 2  # what answers that were cut off then get to be recorded
DRAIN_SECONDS = 10  # what running answers get to finish when the daemon is told to stop


async def run(settings: Settings, paths: Paths) -> None:
    """Serve until SIGTERM or SIGINT. Raises EdgepdError if a part cannot start."""
    os.umask(0o077)
    async with AsyncExitStack() as stack:
        stack.enter_context(hold_lock(paths.lock))
        base = find_base(settings, paths)
        store = stack.enter_context(Store.open(paths.profile))
        close_what_was_interrupted(store)
        engine = stack.enter_context(start_engine(settings))
        generations = Generations(store, engine, base, paths.generations_dir)
        await asyncio.to_thread(generations.boot)
        trainer = await stack.enter_async_context(start_trainer(store, generations, settings, paths))
        recorder = Recorder(store, enabled=settings.log.interactions)
        services = Services(settings, paths, store, engine, generations, recorder, trainer)
        listener = stack.enter_context(listening(paths.socket))
        log.info("ready: %s, generation %d, on %s", base.name, generations.current.generation, paths.socket)
        await serve(services, listener)
        log.info("stopping")


def find_base(settings: Settings, paths: Paths) -> Base:
    """Find the model to serve and read its header. Raises ModelError or FormatError."""
    catalog = Catalog(paths.models_dir)
    name = settings.serve.model
    installed = catalog.selected() if name == "default" else catalog.find(name)
    with GGUFFile.open(installed.path):
        return Base(installed.name, installed.path, installed.sha256)


def close_what_was_interrupted(store: Store) -> None:
    """Mark what a daemon that was killed left open."""
    answers = store.write(interactions.mark_interrupted).result()
    training = store.write(runs.mark_interrupted_runs).result()
    if answers or training:
        log.warning("an earlier daemon was interrupted: %d answers and %d training runs", answers, training)


@contextlib.contextmanager
def start_engine(settings: Settings) -> Iterator[Engine]:
    """Start the engine thread; stop it at the end."""
    engine = Engine(
        slots=settings.serve.slots,
        context_tokens=settings.serve.context_tokens,
        batch_tokens=settings.serve.batch_tokens,
        threads=settings.serve.threads or physical_cores(),
        max_queue=settings.serve.max_queue,
    )
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@asynccontextmanager
async def start_trainer(
    store: Store, generations: Generations, settings: Settings, paths: Paths
) -> AsyncIterator[Trainer]:
    """Make training possible; stop a run that is going on at the end."""
    trainer = Trainer(store, generations, settings, paths.runs_dir)
    try:
        yield trainer
    finally:
        await trainer.stop()


async def serve(services: Services, listener: socket.socket) -> None:
    """Answer requests until a signal says stop, then let the running ones finish."""
    config = uvicorn.Config(
        create_app(services),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop_soon)
    await server.serve(sockets=[listener])
    # uvicorn cancels what is left after that time, but does not wait for the ends, which are still to be recorded.
    if left := list(server.server_state.tasks):
        await asyncio.wait(left, timeout=END_SECONDS)


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which would end the process before the other parts are stopped."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop_soon(self) -> None:
        """Stop accepting and end when the running requests have."""
        self.should_exit = True
