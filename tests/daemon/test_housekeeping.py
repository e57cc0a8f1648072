"""The passes that the daemon makes over the profile while nobody asks anything: each step, and that none is in the way.

The real profile and exchanges over a scripted engine.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from edgepd.errors import StoreError
from edgepd.settings import Intent, Keep, Select, Settings
from edgepd_daemon import housekeeping
from edgepd_daemon.embedding import Embedding
from edgepd_daemon.housekeeping import Housekeeper
from edgepd_daemon.pairing import Pairing
from edgepd_profiles import backup, events, feedback, interactions, profile, similar_pairs
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.selection import bins
from tests.daemon.scripted import Scripted, scripted

T = TypeVar("T")
DAY = 86_400.0
NO_BACKUPS = Keep(backup_days=0)
PAIR = "Question: When do otters sleep in winter?\nAnswer: Otters sleep at night in winter."


class House:
    """A housekeeper over the parts of a scripted daemon."""

    def __init__(self, served: Scripted) -> None:
        self.served = served
        self.finished = 0
        self.backups = served.store.path.parent / "backups"
        services, parts = served.services, (served.store, served.services.engine)
        settings = lambda: services.settings  # noqa: E731
        self.housekeeper = Housekeeper(
            *parts,
            Embedding(*parts, services.generations),
            Pairing(*parts, services.generations, services.exchanges, settings),
            self.backups,
            settings,
            self.finish_left,
        )

    async def finish_left(self) -> None:
        """Count how often it was asked for."""
        self.finished += 1

    def once(self) -> None:
        """Make one pass."""
        asyncio.run(self.housekeeper.once())

    def written(self, job: Callable[[sqlite3.Connection], T]) -> T:
        return self.served.store.write(job).result()

    def put(self, name: str, question: str, *, at: float | None = None, edit: str | None = None) -> None:
        """Store an exchange, corrected or not."""
        asked = [{"role": "user", "content": question}]
        when = time.time() if at is None else at
        row = Interaction(name, name, when, "cli", "tiny", 1, asked, response="Hm, a guess.", state="done")

        def write(conn: sqlite3.Connection) -> None:
            interactions.begin(conn, row)
            if edit is not None:
                feedback.set_edit(conn, name, edit)

        self.written(write)

    def ids(self) -> list[str]:
        return [row.id for row in self.served.rows()]

    def count(self, table: str) -> int:
        with self.served.store.read() as conn:
            return int(conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def house(**sections: Any) -> Any:
    """Return the context of a scripted daemon with these settings."""
    return scripted(settings=Settings(**{"keep": NO_BACKUPS} | sections))


def test_new_exchanges_are_folded_embedded_and_selected() -> None:
    with house() as served:
        made = House(served)
        made.put("a", "When do otters sleep?", edit="At night.")
        made.put("b", "What do herons eat?")
        made.once()
        with served.store.read() as conn:
            observed = profile.read(conn, None, {"active": 1.0, "unjudged": 1.0}, time.time())
            assert observed.exchanges == 2
            assert bins.ids(conn, "examples") == {"a"}
            assert "a" not in bins.ids(conn, "questions")  # it is judged already
            ((entropy,),) = conn.execute("SELECT entropy FROM embeddings WHERE interaction = 'a'").fetchall()
            assert entropy > 0
        assert made.count("embeddings") == 2
        embedded = len(served.engine.embedded)
        made.once()
        assert (made.count("embeddings"), len(served.engine.embedded)) == (2, embedded)  # nothing is done twice
        assert {version.generation for version in served.engine.prepared} == {1}  # the base, although 2 serves


def test_no_step_loads_a_model() -> None:
    with house(select=Select(similar_pairs=2)) as served:
        made = House(served)
        served.engine.ready = False
        made.put("a", "When do otters sleep?", edit="At night.")
        made.once()
        assert (served.engine.prepared, served.engine.embedded, served.engine.requests) == ([], [], [])
        assert (made.count("embeddings"), made.count("similar_pairs")) == (0, 0)
        with served.store.read() as conn:
            assert bins.ids(conn, "examples") == {"a"}  # recency needs no vectors


def test_a_daemon_that_has_no_model_in_memory_selects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with house() as served:
        made = House(served)
        made.put("a", "When do otters sleep?", edit="At night.")
        status = served.engine.status()
        monkeypatch.setattr(served.engine, "status", lambda: replace(status, state="unloaded"))
        made.once()
        assert made.count("bins") == 0  # it would have loaded numpy for it
        monkeypatch.undo()
        made.once()
        assert made.count("bins") == 1


@pytest.mark.parametrize("error", [StoreError("the disk is full"), ValueError("a mistake of ours")])
def test_a_step_that_fails_keeps_none_of_the_others_from_running(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def failing(*_: object) -> int:
        raise error

    with house(keep=Keep(days=1.0)) as served:
        made = House(served)
        made.put("old", "When do otters sleep?", at=1000.0)
        monkeypatch.setattr(profile, "catch_up", failing)
        monkeypatch.setattr(Embedding, "make_missing", failing)
        with caplog.at_level(logging.WARNING):
            made.once()
        assert (made.ids(), len(backup.listing(made.backups))) == ([], 1)
        assert ["fold" in caplog.text, "embed" in caplog.text, str(error) in caplog.text] == [True] * 3
        assert "otters" not in caplog.text


def test_a_backup_is_made_when_it_is_time() -> None:
    with house(keep=Keep(backup_days=2.0, backups=2)) as served:
        made = House(served)
        made.once()
        (first,) = backup.listing(made.backups)
        assert abs(first.at - time.time()) < 60
        made.once()
        assert backup.listing(made.backups) == [first]
        first.path.unlink()
        for age in (2.1, 3.0):
            backup.make(served.store, made.backups, 9, time.time() - age * DAY)
        made.once()
        newest, second = backup.listing(made.backups)
        assert abs(newest.at - time.time()) < 60
        assert abs(time.time() - 2.1 * DAY - second.at) < 60  # of three, the oldest went
    with house(keep=Keep(backup_days=0)) as served:
        made = House(served)
        made.once()
        assert not made.backups.exists()


def test_old_exchanges_go_unless_something_was_said_about_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "EXPIRED", 2)
    with house(keep=Keep(days=10.0, backup_days=0)) as served:
        made = House(served)
        now = time.time()
        for n in range(5):
            made.put(f"old{n}", f"Old question {n}", at=now - 11 * DAY)
        made.put("judged", "When do otters sleep?", at=now - 11 * DAY, edit="At night.")
        made.put("new", "What do herons eat?", at=now - 9 * DAY)
        busy = SimpleNamespace(active=1)
        with monkeypatch.context() as patch:
            patch.setattr(served.engine, "status", lambda: busy)
            made.once()
        assert len(made.ids()) == 5  # one batch, because somebody asks something
        made.once()
        assert made.ids() == ["judged", "new"]


def test_pairs_are_made_like_what_was_corrected() -> None:
    with house(select=Select(similar_pairs=1)) as served:
        made = House(served)
        made.put("a", "When do otters sleep in summer?", edit="Otters sleep at noon in summer.")
        served.engine.enqueue(PAIR)
        made.once()
        with served.store.read() as conn:
            (pair,) = similar_pairs.of(conn, ["a"])
        assert (pair.id, pair.prompt, pair.response) == (
            "a#1",
            "When do otters sleep in winter?",
            "Otters sleep at night in winter.",
        )
        (request,) = served.engine.requests
        assert "Otters sleep at noon" in bytes(request.prompt).decode()
        assert (request.persist, made.ids()) == (False, ["a"])  # the question is none of the user's
        made.once()
        assert len(served.engine.requests) == 1  # there are as many as were wanted


@pytest.mark.parametrize(
    "said",
    [
        "I would rather not.",
        "Question: How tall are trees?\nAnswer: Very.",  # about something else
        "Question: When do otters sleep in summer?\nAnswer: Otters sleep at noon in summer.",  # a copy
    ],
)
def test_what_is_no_similar_pair_is_not_kept_nor_asked_for_again(said: str) -> None:
    with house(select=Select(similar_pairs=1)) as served:
        made = House(served)
        made.put("a", "When do otters sleep in summer?", edit="Otters sleep at noon in summer.")
        served.engine.enqueue(said)
        made.once()
        made.once()
        assert (made.count("similar_pairs"), len(served.engine.requests)) == (0, 1)


def test_without_the_setting_no_pair_is_asked_for() -> None:
    with house() as served:
        made = House(served)
        made.put("a", "When do otters sleep?", edit="At night.")
        made.once()
        assert served.engine.requests == []


def test_an_example_that_is_forgotten_meanwhile_gets_no_pair(caplog: pytest.LogCaptureFixture) -> None:
    with house(select=Select(similar_pairs=1)) as served:
        made = House(served)
        made.put("a", "When do otters sleep in summer?", edit="Otters sleep at noon in summer.")
        served.engine.enqueue(PAIR)
        submit = served.engine.submit

        def forgetful(requests: Any) -> None:
            made.written(lambda conn: conn.execute("DELETE FROM interactions"))
            submit(requests)

        served.engine.submit = forgetful
        made.once()
        assert made.count("similar_pairs") == 0
        assert "otters" not in caplog.text.lower()


def test_the_ends_of_answers_that_could_not_be_stored_are_stored_first() -> None:
    with house() as served:
        made = House(served)
        made.once()
        assert made.finished == 1


@pytest.mark.parametrize(("alive", "active", "passes"), [(True, 0, True), (True, 1, False), (False, 0, False)])
def test_passes_are_made_only_while_the_engine_lives_and_is_idle(
    monkeypatch: pytest.MonkeyPatch, alive: bool, active: int, passes: bool
) -> None:
    monkeypatch.setattr(housekeeping, "PAUSE_SECONDS", 0.01)
    with house() as served:
        made = House(served)
        made.put("a", "When do otters sleep?")
        served.engine.alive = alive
        monkeypatch.setattr(served.engine, "status", lambda: SimpleNamespace(active=active, state="ready"))
        counted: list[int] = []
        once = made.housekeeper.once

        async def counting() -> None:
            counted.append(1)
            await once()

        monkeypatch.setattr(made.housekeeper, "once", counting)

        async def work() -> None:
            task = asyncio.create_task(made.housekeeper.run())
            await asyncio.sleep(0.3)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()  # it goes on until then

        asyncio.run(work())
        assert bool(counted) is passes


def test_a_pass_that_had_nothing_to_do_is_not_repeated_until_something_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(housekeeping, "PAUSE_SECONDS", 0.01)
    with house() as served:
        made = House(served)
        passes: list[int] = []
        once = made.housekeeper.once

        async def counted() -> None:
            passes.append(1)
            await once()

        monkeypatch.setattr(made.housekeeper, "once", counted)

        async def grown(within_s: float) -> bool:
            before = len(passes)
            await asyncio.sleep(within_s)
            return len(passes) > before

        async def work() -> None:
            task = asyncio.create_task(made.housekeeper.run())
            assert await grown(1.0)  # the first one, and those that find something
            assert not await grown(0.5)
            made.put("i1", "What is new?")
            assert await grown(1.0)
            monkeypatch.setattr(housekeeping, "QUIET_SECONDS", 0.0)  # the last one is long ago
            assert await grown(0.5)
            task.cancel()

        asyncio.run(work())


def test_chats_of_before_become_events_unless_prediction_is_off() -> None:
    every = 2 * housekeeping.TAKEN + 1
    with house() as served:
        at_home, services = House(served), served.services
        for n in range(every):
            at_home.put(f"i_{n}", f"Zeppelin number {n}?")
        waiting = "INSERT INTO chats_to_take SELECT 1, min(seq), max(seq) FROM interactions"
        at_home.written(lambda c: c.execute(waiting).close())
        found: list[int] = []
        for enabled in (False, True, True):
            services.settings = replace(services.settings, intent=Intent(enabled=enabled))
            at_home.once()
            found.append(at_home.written(lambda c: events.count_after(c, 0)))
        assert found == [0, every, every]
