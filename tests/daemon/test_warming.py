"""When the likely next app's prompt is computed ahead, what of it, and what came of it.

The real personaliser, profile and predictions over a scripted engine, for which a token is a byte.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from edgepd.errors import ModelError, TemplateError
from edgepd.intent.schema import Event
from edgepd.settings import Budget, Intent, Profile, Settings
from edgepd_daemon import warming as module
from edgepd_daemon.engine.types import EngineStatus, Finished, Timings, Version
from edgepd_daemon.foresight import Foresight
from edgepd_daemon.personal import Personaliser
from edgepd_daemon.sensors.power import Power
from edgepd_daemon.warming import LEAST_TOKENS, MOST_UNUSED, Warmer, Warmings
from edgepd_profiles import events, facts, interactions
from edgepd_profiles.events import New
from edgepd_profiles.interactions import Interaction
from edgepd_profiles.store import Store
from tests.daemon.scripted import ScriptedGenerations
from tests.daemon.scripted_engine import ScriptedEngine

T = TypeVar("T")
NOW = 1_700_000_000.0
SYSTEM = "You write mails. " * 10
BEGINNING = f"system: {SYSTEM}\nuser: "
MADE = Finished("length", Timings(100, 0, 0, 0.0, 500.0, 0.0))


class Engine(ScriptedEngine):
    """Also computes ahead: notes the prompt, and answers with what the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.warmed: list[bytes] = []
        self.result: Finished | Exception | None = MADE
        self.now = EngineStatus("ready")

    def warm(self, version: Version, prompt: list[int], read_at: float) -> Future[Finished | None]:
        self.warmed.append(bytes(prompt))
        done: Future[Finished | None] = Future()
        if isinstance(self.result, Exception):
            done.set_exception(self.result)
        else:
            done.set_result(self.result)
        return done

    def status(self) -> EngineStatus:
        return self.now


class Always:
    """A student for whom the last intent is next, with a probability."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def ranked(self, events: Sequence[Event], at: float, utc_offset_s: int) -> list[tuple[str, float]]:
        last = events[-1].intent
        others = sorted({e.intent for e in events} - {last})
        return [(last, self.probability), *((o, (1 - self.probability) / len(others)) for o in others)]


class Warmed:
    """A warmer and everything behind it."""

    def __init__(self, store: Store, directory: Path) -> None:
        self.store = store
        self.settings = Settings()
        self.engine: Any = Engine()
        self.student = Always(0.8)
        self.training = False
        self.supply = Power(None, None)
        generations: Any = ScriptedGenerations(directory)
        self.version = generations.current
        self.foresight = Foresight(
            *(store, lambda: self.settings, directory), load=lambda _path: self.student, wall=lambda: NOW
        )
        self.warmer = Warmer(
            store,
            self.engine,
            generations,
            Personaliser(store, self.engine, generations, lambda: self.settings),
            self.foresight,
            lambda: self.settings,
            lambda: self.training,
            supply=lambda: self.supply,
            wall=lambda: NOW,
        )

    def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        return self.store.write(job).result()

    def chat(self, name: str, app: str, *messages: tuple[str, str], kind: str = "chat", ago_s: float = 60.0) -> None:
        """Add an exchange of an app, and its event with the app's name as the intent."""
        given = [{"role": role, "content": content} for role, content in messages]
        row = Interaction(name, name, NOW - ago_s, app, "tiny", 1, given, kind=kind)
        new = New(at=NOW - ago_s, event="chat:hello", intent=app, context="", utc_offset_s=0, app=app, interaction=name)
        self.write(lambda conn: (interactions.begin(conn, row), events.add(conn, [new])))

    def look(self) -> list[bytes]:
        """Look once and return what the engine computed for it."""
        before = len(self.engine.warmed)
        asyncio.run(self.warmer.look())
        return self.engine.warmed[before:]  # type: ignore[no-any-return]

    def answered(self, app: str, ahead: int, *, completion: int = 5) -> None:
        timings = Timings(200, ahead, completion, 0.0, 100.0, 50.0, ahead)

        async def told() -> None:
            self.warmer.answered(app, timings)

        asyncio.run(told())


@pytest.fixture
def warmed(tmp_path: Path) -> Iterator[Warmed]:
    with Store.open(tmp_path / "profile.db") as store:
        made = Warmed(store, tmp_path)
        made.chat("i_1", "post", ("system", SYSTEM), ("user", "Write to Ann"))
        yield made


def test_what_all_questions_of_the_likely_app_begin_with(warmed: Warmed) -> None:
    assert warmed.look() == [BEGINNING.encode()]
    assert warmed.warmer.warmings == Warmings(made=1, tokens=len(BEGINNING))


def test_the_newest_chat_says_what_the_system_prompt_is(warmed: Warmed) -> None:
    warmed.chat("i_2", "post", ("system", SYSTEM.upper()), ("user", "Hello"), ago_s=50)
    warmed.chat("i_3", "post", ("system", "tools " * 20), ("user", "Hello"), kind="tools", ago_s=40)
    assert warmed.look() == [f"system: {SYSTEM.upper()}\nuser: ".encode()]


def test_what_is_told_to_every_question_is_part_of_it(warmed: Warmed) -> None:
    warmed.settings = replace(warmed.settings, profile=Profile(facts=True))
    warmed.write(lambda conn: facts.remember(conn, "I am vegetarian", ""))
    (prompt,) = warmed.look()
    assert prompt.startswith(b"system: What you know about the user:\n- I am vegetarian\n\nYou write mails.")
    assert prompt.endswith(b"\nuser: ")


def test_a_model_that_takes_nothing_told_gets_the_prompt_of_the_app(
    warmed: Warmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed.settings = replace(warmed.settings, profile=Profile(facts=True))
    warmed.write(lambda conn: facts.remember(conn, "I am vegetarian", ""))
    encode = ScriptedEngine.encode

    def refusing(engine: ScriptedEngine, version: Version, messages: Any, tools: Any = None) -> list[int]:
        if "vegetarian" in str(messages):
            raise TemplateError("no")
        return encode(engine, version, messages, tools)

    monkeypatch.setattr(ScriptedEngine, "encode", refusing)
    assert warmed.look() == [BEGINNING.encode()]


def test_the_budget_of_tokens_cuts_it(warmed: Warmed) -> None:
    warmed.settings = replace(warmed.settings, intent=Intent(warm_tokens=50))
    assert warmed.look() == [BEGINNING[:50].encode()]


def test_a_beginning_that_leaves_no_room_is_left_alone(warmed: Warmed) -> None:
    warmed.engine.context_tokens = 200  # of which the beginning would take more than three quarters
    assert warmed.look() == []


def test_a_short_beginning_is_not_worth_it(warmed: Warmed) -> None:
    short = "x" * (LEAST_TOKENS - len("system: \nuser: ") - 1)
    warmed.chat("i_2", "post", ("system", short), ("user", "Hello"), ago_s=50)
    assert warmed.look() == []
    warmed.chat("i_3", "post", ("system", short + "x"), ("user", "Hello"), ago_s=40)
    assert len(warmed.look()) == 1


@contextmanager
def changed(warmed: Warmed, **fields: Any) -> Iterator[None]:
    before = warmed.settings
    warmed.settings = replace(warmed.settings, **fields)
    yield
    warmed.settings = before


def test_either_switch_turns_it_off(warmed: Warmed) -> None:
    for off in (Intent(enabled=False), Intent(warm=False)):
        with changed(warmed, intent=off):
            assert warmed.look() == []
    assert len(warmed.look()) == 1


def test_only_an_app_that_is_likely_enough(warmed: Warmed) -> None:
    warmed.chat("i_0", "other", ("user", "Hello"), ago_s=900)
    warmed.student.probability = 0.59
    with changed(warmed, intent=Intent(warm_min_probability=0.6)):
        assert warmed.look() == []
    with changed(warmed, intent=Intent(warm_min_probability=0.59)):
        assert len(warmed.look()) == 1


def test_an_app_without_chats_has_no_prompt(warmed: Warmed) -> None:
    warmed.chat("i_2", "ide", ("user", "def f():"), kind="completion", ago_s=10)
    assert warmed.look() == []


@pytest.mark.parametrize(
    "status",
    [
        EngineStatus("unloaded"),
        EngineStatus("loading", 10.0),
        EngineStatus("failed"),
        EngineStatus("ready", active=1),
        EngineStatus("ready", queued=1),
    ],
)
def test_only_a_loaded_engine_that_has_nothing_to_do(warmed: Warmed, status: EngineStatus) -> None:
    warmed.engine.now = status
    assert warmed.look() == []
    assert warmed.foresight.loaded is None


def test_a_version_that_is_not_loaded_is_not_loaded_for_it(warmed: Warmed) -> None:
    warmed.engine.ready = False
    assert warmed.look() == []
    assert warmed.engine.prepared == []


def test_not_while_something_is_trained(warmed: Warmed) -> None:
    warmed.training = True
    assert warmed.look() == []


def test_not_on_a_low_battery(warmed: Warmed) -> None:
    with changed(warmed, budget=Budget(min_battery_percent=40.0)):
        for supply, done in (
            (Power(False, 39.0), 0),
            (Power(None, 39.0), 0),
            (Power(True, 39.0), 1),
            (Power(False, 40.0), 1),
            (Power(False, None), 1),
        ):
            warmed.supply = supply
            warmed.answered("other", 0)  # so that the number of unused ones does not end it
            assert len(warmed.look()) == done, supply


def test_a_hit_saves_what_it_reused(warmed: Warmed) -> None:
    warmed.look()
    tokens = len(BEGINNING)
    warmed.answered("other", 0)
    warmed.answered("post", tokens)
    found = warmed.warmer.warmings
    assert (found.made, found.hits, found.misses) == (1, 1, 0)
    assert found.saved_s == pytest.approx(0.5)  # all of them, which took 500 ms
    warmed.answered("post", tokens)  # the second request is no hit
    assert warmed.warmer.warmings == found


def test_what_was_there_before_was_not_saved(warmed: Warmed) -> None:
    tokens = len(BEGINNING)
    warmed.engine.result = Finished("length", Timings(tokens, tokens // 2, 0, 0.0, 300.0, 0.0))
    warmed.look()
    warmed.answered("post", tokens)
    assert warmed.warmer.warmings.saved_s == pytest.approx(0.3)
    assert warmed.warmer.warmings.tokens == tokens - tokens // 2


def test_little_reuse_is_a_miss(warmed: Warmed) -> None:
    warmed.look()
    warmed.answered("post", int(0.8 * len(BEGINNING)) - 1)
    assert warmed.warmer.warmings == Warmings(made=1, misses=1, tokens=len(BEGINNING))


def test_an_answer_that_never_began_says_nothing(warmed: Warmed) -> None:
    warmed.look()
    warmed.answered("post", 0, completion=0)
    assert warmed.warmer.warmings == Warmings(made=1, tokens=len(BEGINNING))


def test_what_was_cancelled_or_not_begun_waits_for_nobody(warmed: Warmed) -> None:
    warmed.engine.result = Finished("cancelled", Timings(100, 0, 0, 0.0, 5.0, 0.0))
    warmed.look()
    warmed.answered("post", 0)
    assert warmed.warmer.warmings == Warmings(cancelled=1)
    warmed.engine.result = None
    warmed.look()
    warmed.answered("post", 0)
    assert warmed.warmer.warmings == Warmings(cancelled=1)


def test_nobody_asks_so_it_rests(warmed: Warmed) -> None:
    assert [len(warmed.look()) for _ in range(MOST_UNUSED + 2)] == [1] * MOST_UNUSED + [0, 0]
    warmed.answered("other", 0)
    assert len(warmed.look()) == 1


def test_the_student_is_let_go_of_once_the_model_is(warmed: Warmed, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed.look()
    warmed.engine.now = EngineStatus("unloaded")
    warmed.look()
    assert warmed.foresight.loaded == "shipped"
    monkeypatch.setattr(module, "RELEASE_UNLOADED_S", 0.0)
    warmed.look()
    assert warmed.foresight.loaded is None


def running(warmed: Warmed, work: Callable[[], Awaitable[None]]) -> None:
    """Do something while the warmer runs."""

    async def run() -> None:
        task = asyncio.create_task(warmed.warmer.run())
        await asyncio.sleep(0)
        try:
            await asyncio.wait_for(work(), 20)
        finally:
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_it_looks_after_requests_and_events_and_not_by_itself(warmed: Warmed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOKS_S", (0.0, 0.01))
    looks: list[int] = []
    look = Warmer.look

    async def counted(warmer: Warmer) -> None:
        looks.append(1)
        await look(warmer)

    monkeypatch.setattr(Warmer, "look", counted)

    async def work() -> None:
        await asyncio.sleep(0.05)
        assert looks == []
        warmed.warmer.answered("other", Timings(10, 0, 5, 0.0, 1.0, 1.0))
        await until(lambda: len(warmed.engine.warmed) == 2)
        assert len(looks) == 2
        await asyncio.to_thread(warmed.warmer.wake)
        await until(lambda: len(looks) == 4)
        await asyncio.sleep(0.05)
        assert len(looks) == 4

    running(warmed, work)
    warmed.warmer.wake()  # nothing runs any more, and nothing happens


def test_mistakes_do_not_end_it(
    warmed: Warmed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LOOKS_S", (0.0,))
    caplog.set_level("INFO")

    async def work() -> None:
        for error in (ModelError("the engine has stopped"), ZeroDivisionError("oops"), None):
            warmed.engine.result = error
            before = len(warmed.engine.warmed)
            warmed.warmer.wake()
            await until(lambda before=before: len(warmed.engine.warmed) > before)  # type: ignore[misc]

    running(warmed, work)
    assert [r.levelname for r in caplog.records if "computed ahead" in r.message] == ["INFO", "ERROR"]


def test_how_long_it_sleeps(warmed: Warmed) -> None:
    warmer = warmed.warmer
    assert warmer._due_in_s() == 1800 - NOW % 1800  # a model is loaded
    warmed.look()
    assert warmer._due_in_s() == min(600.0, 1800 - NOW % 1800)  # and a student too
    warmed.engine.now = EngineStatus("unloaded")
    assert warmer._due_in_s() == 60.0
    warmed.foresight.look_again()
    assert warmer._due_in_s() is None
