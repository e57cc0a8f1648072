"""What is stored when storing fails: the answer comes all the same, and everyone is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from edgepd import config
from edgepd.errors import StoreError
from edgepd.settings import Settings
from edgepd_daemon.api.app import create_app
from edgepd_daemon.engine.host import ModelHost
from edgepd_daemon.exchange import Exchanges
from edgepd_daemon.foresight import Foresight
from edgepd_daemon.forgetter import Forgetter
from edgepd_daemon.generations import Base, Generations
from edgepd_daemon.personal import Personaliser
from edgepd_daemon.recorder import Recorder
from edgepd_daemon.services import Services
from edgepd_daemon.throttle import Throttle
from edgepd_daemon.trainer import Trainer
from edgepd_daemon.warming import Warmer
from edgepd_profiles import interactions
from edgepd_profiles.store import Store
from edgepd_quant.reader import GGUFFile
from tests.daemon.generating import running_engine
from tests.daemon.running import Json, question, text_of
from tests.daemon.supervised import FakeSupervisor

T = TypeVar("T")


class InProcess:
    """The parts of a daemon in the process of the test, and a client that calls its routes directly."""

    def __init__(self, services: Services) -> None:
        """Use `with_services`."""
        self.services = services
        transport = httpx.ASGITransport(create_app(services), raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://edgepd", timeout=60)

    async def get(self, path: str) -> Json:
        response = await self._client.get(path)
        assert response.is_success, response.text
        body: Json = response.json()
        return body

    async def status_of(self, path: str) -> tuple[int, str]:
        response = await self._client.get(path)
        return response.status_code, response.json()["status"]

    async def chat(self, text: str, **fields: Any) -> Json:
        response = await self._client.post("/v1/chat/completions", json=question(text, max_tokens=8, **fields))
        assert response.is_success, response.text
        body: Json = response.json()
        return body

    async def refused(self, text: str) -> tuple[int, Json]:
        response = await self._client.post("/v1/chat/completions", json=question(text))
        return response.status_code, response.json()["error"]


def with_services(model: Path, work: Callable[[InProcess], Awaitable[T]]) -> T:
    """Run `work` against the parts, built as the service builds them."""
    paths, settings = config.paths(), Settings()

    async def run() -> T:
        with GGUFFile.open(model) as file:
            base = Base("tiny", model, file.sha256())
        with Store.open(paths.profile) as store, running_engine(batch_tokens=64) as engine:
            generations = Generations(store, engine, base, paths.generations_dir)
            await asyncio.to_thread(generations.boot)
            recorder = Recorder(store, enabled=settings.log.interactions)
            trainer = Trainer(store, generations, settings, paths.runs_dir, Throttle(lambda: False))
            supervisor: Any = FakeSupervisor()
            personaliser = Personaliser(store, engine, generations, lambda: settings)
            exchanges = Exchanges(engine, generations, recorder, personaliser)
            foresight = Foresight(store, lambda: settings, paths.students_dir)
            warmer = Warmer(store, engine, generations, personaliser, foresight, lambda: settings, lambda: False)
            forgetter = Forgetter(store, generations, trainer, engine, personaliser, paths)
            return await work(
                InProcess(
                    Services(
                        settings=settings,
                        paths=paths,
                        store=store,
                        engine=engine,
                        generations=generations,
                        recorder=recorder,
                        trainer=trainer,
                        exchanges=exchanges,
                        personaliser=personaliser,
                        forgetter=forgetter,
                        supervisor=supervisor,
                        foresight=foresight,
                        warmer=warmer,
                        load_settings=lambda: settings,
                    )
                )
            )

    return asyncio.run(run())


def limit_pages(store: Store, pages: int | None) -> None:
    """Let the profile have no more pages than it has now, or as many as SQLite can count."""

    def limit(conn: Any) -> None:
        now = conn.execute("PRAGMA page_count").fetchone()[0] if pages is None else pages
        conn.execute(f"PRAGMA max_page_count = {now}")

    store.write(limit).result()


def test_a_full_disk_stops_no_answer(tiny_model: Path) -> None:
    long = "x" * 400

    async def work(daemon: InProcess) -> None:
        before = await daemon.chat("Hello", cache_prompt=False)
        assert (before["logged"], before["warnings"]) == (True, [])
        limit_pages(daemon.services.store, None)
        full = await daemon.chat("Hello", cache_prompt=False, conversation="c" * 190)
        for _ in range(30):
            if not full["logged"]:
                break
            full = await daemon.chat("Hello", cache_prompt=False, conversation="c" * 190)
        assert text_of(full) == text_of(before)
        assert (full["logged"], full["interaction_id"]) == (False, None)
        [warning] = full["warnings"]
        assert "answers are not being stored" in warning
        assert "the disk is full, so this was not stored; free some space and try again" in warning
        assert (await daemon.get("/edgepd/v1/status"))["problems"] == [warning]
        limit_pages(daemon.services.store, 100_000)
        after = await daemon.chat(long)
        assert (after["logged"], after["warnings"]) == (True, [])
        assert (await daemon.get("/edgepd/v1/status"))["problems"] == []
        kept = await daemon.get(f"/edgepd/v1/interactions/{after['interaction_id']}")
        assert (kept["state"], kept["response"]) == ("done", text_of(after))

    with_services(tiny_model, work)


def test_a_disk_that_fills_up_during_an_answer(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    async def work(daemon: InProcess) -> None:
        monkeypatch.setattr(interactions, "finish", full)
        answer = await daemon.chat("Hello")
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["logged"]  # it can be judged: its row is there, without the end
        assert answer["warnings"] == ["answers are not being stored: the disk is full"]
        assert (await daemon.get("/edgepd/v1/status"))["problems"] == answer["warnings"]
        monkeypatch.undo()
        assert (await daemon.chat("Hello"))["warnings"] == []
        assert (await daemon.get("/edgepd/v1/status"))["problems"] == []

    with_services(tiny_model, work)


def test_a_client_that_goes_while_the_row_is_written_leaves_no_open_row(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(daemon: InProcess) -> None:
        store = daemon.services.store
        blocked = asyncio.Event()
        loop = asyncio.get_running_loop()
        begin = Recorder.begin

        async def slow_begin(recorder: Recorder, interaction: Any) -> str | None:
            def hold(_: Any) -> None:
                loop.call_soon_threadsafe(blocked.set)
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0.2), loop).result()

            store.write(hold)
            return await begin(recorder, interaction)

        monkeypatch.setattr(Recorder, "begin", slow_begin)
        client = asyncio.create_task(daemon.chat("Hello"))
        await blocked.wait()
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        monkeypatch.undo()
        await asyncio.to_thread(store.write(lambda _: None).result)
        [row] = (await daemon.get("/edgepd/v1/interactions"))["interactions"]
        assert row["state"] == "cancelled"

    with_services(tiny_model, work)


def test_a_client_that_goes_while_the_end_is_written_changes_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(daemon: InProcess) -> None:
        store = daemon.services.store
        blocked = asyncio.Event()
        loop = asyncio.get_running_loop()
        finish = Recorder.finish

        async def slow_finish(recorder: Recorder, row: str, ending: Any) -> str | None:
            def hold(_: Any) -> None:
                loop.call_soon_threadsafe(blocked.set)
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0.2), loop).result()

            store.write(hold)
            return await finish(recorder, row, ending)

        monkeypatch.setattr(Recorder, "finish", slow_finish)
        client = asyncio.create_task(daemon.chat("Hello"))
        await blocked.wait()
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        monkeypatch.undo()
        await asyncio.to_thread(store.write(lambda _: None).result)
        [row] = (await daemon.get("/edgepd/v1/interactions"))["interactions"]
        assert (row["state"], row["finish_reason"]) == ("done", "length")

    with_services(tiny_model, work)


def test_what_clients_see_when_the_engine_dies(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(daemon: InProcess) -> None:
        def die(*_: object) -> int:
            raise RuntimeError("a bug")

        monkeypatch.setattr(ModelHost, "step", die)
        status, error = await daemon.refused("Hello")
        assert (status, error["code"]) == (503, "model_unavailable")
        assert (await daemon.status_of("/healthz")) == (503, "failed")
        status, error = await daemon.refused("Hello again")
        assert (status, error["message"]) == (503, "the engine has stopped; restart the daemon")
        rows = (await daemon.get("/edgepd/v1/interactions"))["interactions"]
        assert [(r["messages"][0]["content"], r["state"]) for r in rows] == [("Hello", "failed")]

    with_services(tiny_model, work)
