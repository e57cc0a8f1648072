"""The boot of the daemon, in the order in which its parts start, and its end.

The idea: `run` reads as a list; each part is entered on an exit stack, so whatever happens every part that was
started is stopped, the last one first. The model is not among the parts: it is loaded by the first request, or
after the boot if serve.preload says so. The invariant: the socket exists only while requests can be answered.
What this does not do: fork, or restart itself; a daemon whose engine has died ends with `Restart`, and what comes of
that is decided in restarting.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial

from edgepd.config import Paths
from edgepd.errors import EdgepdError
from edgepd.models import Catalog
from edgepd.settings import Settings
from edgepd_daemon import listener
from edgepd_daemon.api.app import create_app
from edgepd_daemon.booting import Boot
from edgepd_daemon.embedding import Embedding
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.saved import SavedStates
from edgepd_daemon.engine.types import EngineSizes
from edgepd_daemon.exchange import Exchanges
from edgepd_daemon.foresight import Foresight
from edgepd_daemon.forgetter import Forgetter
from edgepd_daemon.generations import Base, Generations
from edgepd_daemon.housekeeping import Housekeeper
from edgepd_daemon.learning import make_supervisor, start_trainer
from edgepd_daemon.metrics import Metrics
from edgepd_daemon.modelfile import ModelFile
from edgepd_daemon.notify import Notifier
from edgepd_daemon.pairing import Pairing
from edgepd_daemon.personal import Personaliser
from edgepd_daemon.protocol import Config
from edgepd_daemon.rebinding import serve_on
from edgepd_daemon.recorder import Recorder
from edgepd_daemon.recovery import Recovery
from edgepd_daemon.reload import checked, engine_threads, keep_alive_seconds, reload
from edgepd_daemon.renderer import Renderer
from edgepd_daemon.restarting import Restart, Restarts
from edgepd_daemon.server import Server
from edgepd_daemon.services import Services
from edgepd_daemon.warming import Warmer
from edgepd_daemon.watching import SocketGuard, keep_token
from edgepd_profiles import interactions, rescue, runs
from edgepd_profiles.store import Store
from edgepd_quant.header import opened_header

log = logging.getLogger(__name__)

DRAIN_SECONDS = 10  # what running answers get to finish when the daemon is told to stop
WATCH_SECONDS = 2.0  # how often the engine is looked after
MAX_SIGNS_PER_WATCHDOG = 4  # signs of life in the time after which the service manager loses patience


async def run(load_settings: Callable[[], Settings], paths: Paths, restarts: Restarts | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises EdgepdError if a part cannot start, Restart if a new process is needed.

    Without `restarts` this process is never replaced.
    """
    os.umask(0o077)
    notifier = Notifier.from_environment(os.environ)
    settings = checked(load_settings())
    async with AsyncExitStack() as stack:
        stack.enter_context(listener.hold_lock(paths.lock))
        base = await asyncio.to_thread(find_base, settings, paths)
        opened = await asyncio.to_thread(rescue.open_profile, paths.profile)
        store = stack.enter_context(opened.store)
        close_what_was_interrupted(store)
        # So early that whatever else ends before it: only then was the end a clean one.
        boot = stack.enter_context(Boot(store, base.sha256))
        renderer = stack.enter_context(closing(Renderer()))
        model = ModelFile(base, paths.data_dir / "model-checked.json")
        engine = stack.enter_context(start_engine(settings, paths, renderer, model))
        generations = Generations(store, engine, base, paths.generations_dir, run=boot)
        generations.keep_retired = settings.keep.retired
        stack.callback(generations.close)
        await asyncio.to_thread(generations.boot)
        trainer = await stack.enter_async_context(start_trainer(store, engine, generations, settings, paths))
        recorder = Recorder(store, enabled=settings.log.interactions)
        recorder.events = settings.intent.enabled
        metrics = Metrics()
        personaliser = Personaliser(store, engine, generations, lambda: services.settings)
        foresight = Foresight(store, lambda: services.settings, paths.students_dir)
        warmer = Warmer(
            store,
            engine,
            generations,
            personaliser,
            foresight,
            lambda: services.settings,
            lambda: trainer.run is not None,
        )
        forgetter = Forgetter(store, generations, trainer, engine, personaliser, paths)
        forgetter.backups = settings.keep.backups
        trainer.students.changed = forgetter.students.changed = foresight.look_again
        services = Services(
            settings=settings,
            paths=paths,
            store=store,
            engine=engine,
            generations=generations,
            recorder=recorder,
            trainer=trainer,
            exchanges=Exchanges(
                engine, generations, recorder, personaliser, metrics.exchange_ended, answered=warmer.answered
            ),
            personaliser=personaliser,
            forgetter=forgetter,
            supervisor=make_supervisor(store, engine, trainer, paths, lambda: services.settings),
            foresight=foresight,
            warmer=warmer,
            load_settings=load_settings,
            metrics=metrics,
            token=listener.token(paths.token) if settings.serve.tcp_port else None,
        )
        recovery = Recovery(opened.store, engine, model, restarts or Restarts(managed=True), unchecked=opened.unchecked)
        services.recovery = recovery
        activated = os.environ.get("LISTEN_PID") == str(os.getpid())
        sockets = stack.enter_context(
            listener.open_sockets(paths.socket, settings.serve.tcp_port, os.environ, listener.fallback_of(paths))
        )
        listener.note_socket(paths.lock, sockets[0].getsockname())
        await serve(services, sockets, notifier, recovery, activated=activated)
        log.info("stopping")
        if not engine.alive:
            boot.clean = False
            raise Restart("the engine has died; the log says why; start the daemon again")
        if recovery.restart is not None:
            raise Restart(recovery.restart)


def find_base(settings: Settings, paths: Paths) -> Base:
    """Find the model to serve and read its header. Raises ModelError or FormatError."""
    catalog = Catalog(paths.models_dir)
    name = settings.serve.model
    installed = catalog.selected() if name == "default" else catalog.find(name)
    with opened_header(installed.path):
        return Base(installed.name, installed.path, installed.sha256)


def close_what_was_interrupted(store: Store) -> None:
    """Mark what a daemon that was killed left open."""
    answers = store.write(interactions.mark_interrupted).result()
    training = store.write(runs.mark_interrupted_runs).result()
    if answers or training:
        log.warning("an earlier daemon was interrupted: %d answers and %d training runs", answers, training)


@contextlib.contextmanager
def start_engine(settings: Settings, paths: Paths, renderer: Renderer, model: ModelFile) -> Iterator[Engine]:
    """Start the engine thread, without a model; stop it at the end."""
    serve = settings.serve
    sizes = EngineSizes(
        slots=serve.slots,
        context_tokens=serve.context_tokens,
        batch_tokens=serve.batch_tokens,
        threads=engine_threads(settings),
        kv_type=serve.kv_type,
        adapt_threads=serve.adapt_threads,
    )
    build = importlib.metadata.version("llama-cpp-python")
    engine = Engine(
        sizes,
        max_queue=serve.max_queue,
        make_template=lambda source, bos, eos: renderer.template(source, bos=bos, eos=eos),
        keep_alive=keep_alive_seconds(settings),
        saved=SavedStates(paths.states_dir, serve.saved_state_mb * 2**20, sizes, build),
        check_model=model.check,
    )
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


async def serve(
    services: Services,
    sockets: list[socket.socket],
    notifier: Notifier,
    recovery: Recovery,
    *,
    activated: bool = False,
) -> None:
    """Answer requests until a signal says stop, the engine dies or a new process is needed; then let running ones end.

    `activated`: the first socket is the service manager's, which keeps it, whatever becomes of its path.
    """

    def started() -> None:
        notifier.ready()
        log.info("ready: %s, generation %d", services.generations.base.name, services.generations.current.generation)

    def stop() -> None:
        services.draining = True
        notifier.stopping()
        server.stop()

    def hang_up() -> None:
        reloads.add(task := asyncio.ensure_future(reload_on_signal(services, notifier)))
        task.add_done_callback(reloads.discard)

    app = create_app(services)
    server = Server(Config(app, lambda: services.settings.serve, DRAIN_SECONDS), started)
    reloads: set[asyncio.Future[None]] = set()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    recovery.socket = SocketGuard(services.paths, partial(serve_on, server), sockets[0], keep=activated)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(recovery.close)
        await stack.enter_async_context(beside(watch(services, notifier, stop, recovery)))
        await stack.enter_async_context(beside(keep_house(services)))
        await stack.enter_async_context(beside(services.supervisor.run()))
        await stack.enter_async_context(beside(services.warmer.run()))
        if services.settings.serve.preload:
            await stack.enter_async_context(beside(preload(services)))
        await server.serve(sockets=sockets)


@asynccontextmanager
async def beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run `work` as a task for as long as the block runs."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def keep_house(services: Services) -> None:
    """Finish what was being forgotten when an earlier daemon ended; then do what there is to do now and then."""
    try:
        await services.forgetter.finish()
    except EdgepdError as error:
        log.error("what was to be forgotten is not all gone yet; the next start tries again: %s", error)
    await housekeeper(services).run()


def housekeeper(services: Services) -> Housekeeper:
    """Return the one for these parts."""
    store, engine, paths = services.store, services.engine, services.paths
    embedding = Embedding(store, engine, services.generations)
    pairing = Pairing(store, engine, services.generations, services.exchanges, lambda: services.settings)
    return Housekeeper(
        *(store, engine, embedding, pairing, paths.backups_dir, lambda: services.settings),
        finish_left=services.recorder.finish_left,
    )


async def preload(services: Services) -> None:
    """Load the active generation. A failure is a problem to report, not a reason to end: requests get it told too."""
    try:
        await asyncio.to_thread(services.generations.resolve, "default")
    except EdgepdError as error:
        services.preload_problem = f"the model could not be loaded at start: {error}"
        log.error("%s", services.preload_problem)


async def watch(
    services: Services, notifier: Notifier, stop: Callable[[], None], recovery: Recovery | None = None
) -> None:
    """Give the service manager signs of life while the engine turns; stop the daemon if only a new one can help."""
    patience = notifier.watchdog_s
    pause = min(WATCH_SECONDS, patience / MAX_SIGNS_PER_WATCHDOG) if patience else WATCH_SECONDS
    looked_at = -WATCH_SECONDS
    while services.engine.alive:
        now = time.monotonic()
        if recovery is not None and now - looked_at >= WATCH_SECONDS - pause / 2:
            looked_at = now
            if (reason := await looked(recovery, services)) is not None:
                log.error("the daemon ends: %s", reason)
                stop()
                return
        slow = recovery is not None and recovery.pulse.works
        if patience and (slow or time.monotonic() - services.engine.beat() < patience):
            notifier.watchdog()
        status = services.engine.status()
        name = services.generations.base.name
        notifier.status(f"{name} {status.state}, {status.active} running, {status.queued} waiting")
        await asyncio.sleep(pause)
    log.critical("the engine has died; the daemon ends, because it cannot answer any more")
    stop()


async def looked(recovery: Recovery, services: Services) -> str | None:
    """Look after what can go wrong; return why a new process is needed."""
    try:
        if services.token is not None:
            keep_token(services.paths.token, services.token)
        return await recovery.look()
    except Exception:  # noqa: BLE001 - the edge of the task: a mistake here must not end the watch over the engine
        log.exception("the daemon could not look after itself")
        return None


async def reload_on_signal(services: Services, notifier: Notifier) -> None:
    """Read the settings again. What is wrong with them is logged, and nothing changes."""
    notifier.reloading()
    try:
        await asyncio.to_thread(reload, services)
    except EdgepdError as error:
        log.error("the settings were not reloaded, the old ones stay in effect: %s", error)
    notifier.ready()
