"""Prompts that the engine computes ahead: where they go, what ends them, and that they count as no use of the model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from edgepd.errors import ContextOverflowError, ModelError
from edgepd.llama import Context, Entry
from edgepd_daemon.engine import slots
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.host import ModelHost
from edgepd_daemon.engine.slots import Slot, place, place_ahead
from edgepd_daemon.engine.types import Finished, Request, Version
from tests.daemon.generating import ask, running_engine
from tests.daemon.running import wait_for

BASE = Version(1, Path("model.gguf"))
PROMPT = [1, *(3 + i % 250 for i in range(199))]
OTHER = [1, *(200 - i % 150 for i in range(99))]


def request(prompt: list[int]) -> Request:
    return Request(prompt, BASE, 1, lambda _event: None, background=True)


def slot(index: int, tokens: list[int], used_at: float = 0.0, *, ahead: bool = False) -> Slot:
    return Slot(index, BASE, list(tokens), used_at=used_at, ahead=ahead)


def chosen(given: list[Slot], prompt: list[int], now: float) -> tuple[int, int, int | None] | None:
    """Index of the slot, cached tokens, and index of the slot to copy from."""
    found = place_ahead(given, request(prompt), now)
    return None if found is None else (found.slot.index, found.cached, found.source.index if found.source else None)


def test_an_empty_slot_is_used() -> None:
    assert chosen([slot(0, OTHER, 99), slot(1, [])], PROMPT, now=100) == (1, 0, None)


def test_the_slot_that_was_used_so_before_comes_first() -> None:
    given = [slot(0, []), slot(1, OTHER, 5, ahead=True), slot(2, OTHER, 1)]
    assert chosen(given, PROMPT, now=1000) == (1, 1, None)


def test_the_oldest_conversation_is_given_up_once_nobody_goes_on_with_it() -> None:
    given = [slot(0, OTHER, 90), slot(1, OTHER, 40)]
    assert chosen(given, PROMPT, now=40 + slots.SPARE_S) is None
    assert chosen(given, PROMPT, now=41 + slots.SPARE_S) == (1, 1, None)


def test_the_newest_conversation_stays_much_longer() -> None:
    only = [slot(0, OTHER, 10)]
    assert chosen(only, PROMPT, now=10 + slots.SPARE_NEWEST_S) is None
    assert chosen(only, PROMPT, now=11 + slots.SPARE_NEWEST_S) == (0, 1, None)


def test_what_is_there_is_not_computed_again() -> None:
    assert chosen([slot(0, [*PROMPT, 7, 8], 5), slot(1, [])], PROMPT, now=9) is None
    assert chosen([slot(0, PROMPT, 0, ahead=True), slot(1, [])], PROMPT, now=9) is None


def test_a_beginning_that_is_there_is_copied() -> None:
    assert chosen([slot(0, [*PROMPT[:100], 7], 5), slot(1, [])], PROMPT, now=9) == (1, 100, 0)


def test_the_next_new_conversation_takes_the_place_that_it_would_have_taken() -> None:
    """Computing ahead gives the oldest conversation up; a wrong guess costs no other one."""
    given = [slot(0, OTHER, 90), slot(1, OTHER, 40), slot(2, OTHER, 60)]
    found = place_ahead(given, request(PROMPT), now=200)
    assert found is not None and found.slot.index == 1
    given[1].tokens, given[1].ahead = list(PROMPT), True
    assert place(given, Request([9] * 50, BASE, 1, lambda _event: None)).slot.index == 1
    assert place(given, Request([*PROMPT, 9, 9], BASE, 1, lambda _event: None)).slot.index == 1


@pytest.fixture
def version(tiny_model: Path) -> Version:
    return Version(1, tiny_model)


@pytest.fixture
def engine(version: Version) -> Iterator[Engine]:
    with running_engine() as started:
        started.prepare(version)
        started.keep(version)
        yield started


def warmed(engine: Engine, version: Version, prompt: list[int]) -> Finished:
    ended = engine.warm(version, prompt, time.monotonic()).result(60)
    assert ended is not None
    return ended


def test_the_answer_to_a_prompt_computed_ahead_is_that_of_a_fresh_one(engine: Engine, version: Version) -> None:
    ended = warmed(engine, version, PROMPT)
    assert (ended.reason, ended.timings.prompt_tokens, ended.timings.cached_tokens) == ("length", 200, 0)
    assert ended.timings.prefill_ms > 0
    first = ask(engine, [*PROMPT, 7, 8, 9], version, 12)
    assert (first.timings.cached_tokens, first.timings.ahead_tokens) == (200, 200)
    assert first.text == ask(engine, [*PROMPT, 7, 8, 9], version, 12, reuse_cache=False).text
    again = ask(engine, [*PROMPT, 7, 8, 9], version, 12)
    assert (again.timings.cached_tokens, again.timings.ahead_tokens) == (202, 0)  # somebody had asked by then


def test_it_is_done_once(engine: Engine, version: Version) -> None:
    warmed(engine, version, PROMPT)
    assert engine.warm(version, PROMPT, time.monotonic()).result(60) is None
    assert ask(engine, [*PROMPT, 7], version, 2).timings.ahead_tokens == 200
    assert engine.warm(version, PROMPT, time.monotonic()).result(60) is None


def test_another_prompt_takes_its_place_and_not_a_conversation(engine: Engine, version: Version) -> None:
    conversation = ask(engine, OTHER, version, 2)
    assert conversation.finished
    warmed(engine, version, PROMPT)
    warmed(engine, version, [1, *PROMPT[:0:-1]])
    assert ask(engine, [*OTHER, 5], version, 2).timings.cached_tokens == len(OTHER)
    assert ask(engine, [*PROMPT, 7], version, 2).timings.ahead_tokens <= 1


def test_it_counts_as_no_use(engine: Engine, version: Version) -> None:
    asked = []
    engine.on_submit = lambda: asked.append(1)
    assert ask(engine, OTHER, version, 2).finished
    before = asdict(engine.status())
    used_at = [host.used_at for host in engine._hosts.all()]
    warmed(engine, version, PROMPT)
    assert asdict(engine.status()) == before
    assert [host.used_at for host in engine._hosts.all()] == used_at
    assert asked == [1]


def test_while_it_is_computed_nobody_is_being_answered(
    engine: Engine, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    decode = Context.decode

    def watched(context: Context, entries: list[Entry]) -> bool:
        status = engine.status()
        seen.append((status.active, status.queued, len(entries), any(e.wants_output for e in entries)))
        return decode(context, entries)

    monkeypatch.setattr(Context, "decode", watched)
    warmed(engine, version, PROMPT)
    assert set(seen) == {(0, 0, 4, False)}  # a quarter of the 16 tokens of a batch


def test_a_request_ends_it_and_keeps_what_is_there(
    engine: Engine, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ModelHost.step

    def slow(host: ModelHost, stepped: Version) -> None:
        time.sleep(0.01)
        step(host, stepped)

    monkeypatch.setattr(ModelHost, "step", slow)
    done = engine.warm(version, PROMPT, time.monotonic())
    host = engine._hosts.get(version.model)
    assert host is not None
    wait_for(lambda: any(len(s.tokens) >= 40 for s in host.slots))
    answer = ask(engine, [*PROMPT, 7], version, 2)
    ended = done.result(60)
    assert ended is not None and ended.reason == "cancelled"
    assert 40 <= answer.timings.ahead_tokens < 200
    assert answer.timings.cached_tokens == answer.timings.ahead_tokens
    assert engine.status().cancelled == 0


def test_nothing_is_begun_while_somebody_is_answered(engine: Engine, version: Version) -> None:
    running = ask(engine, OTHER, version, 300)
    running.wait_for_first()
    assert engine.warm(version, PROMPT, time.monotonic()).result(60) is None
    engine.cancel(running.request)
    assert running.finished.reason == "cancelled"


def test_nothing_is_loaded_for_it(version: Version) -> None:
    with running_engine() as engine:
        assert engine.warm(version, PROMPT, time.monotonic()).result(60) is None
        assert engine.status().loads == 0
    with pytest.raises(ModelError):
        engine.warm(version, PROMPT, time.monotonic())


def test_a_prompt_without_room_for_an_answer_is_refused(engine: Engine, version: Version) -> None:
    with pytest.raises(ContextOverflowError):
        engine.warm(version, [1] * 512, time.monotonic())


def test_it_is_gone_when_conversations_are_forgotten(engine: Engine, version: Version) -> None:
    warmed(engine, version, PROMPT)
    engine.forget_conversations()
    assert ask(engine, [*PROMPT, 7], version, 2).timings.cached_tokens == 0


def test_what_was_read_before_something_was_forgotten_is_not_computed(engine: Engine, version: Version) -> None:
    read_at = time.monotonic()
    engine.forget_conversations()
    assert engine.warm(version, PROMPT, read_at).result(60) is None
    assert warmed(engine, version, PROMPT).reason == "length"


def test_it_is_not_saved(version: Version, tmp_path: Path) -> None:
    named = Version(1, version.model, fingerprint="x")
    with running_engine(saved_in=tmp_path) as engine:
        engine.prepare(named)
        warmed(engine, named, PROMPT)
    assert list(tmp_path.iterdir()) == []


def test_whoever_stops_waiting_for_it_does_not_disturb_the_engine(engine: Engine, version: Version) -> None:
    done = engine.warm(version, PROMPT, time.monotonic())
    assert not done.cancel()
    assert done.result(60) is not None
    assert engine.alive


def test_the_tokenizer_alone_does_not_keep_a_model(version: Version) -> None:
    with running_engine(keep_alive=100.0) as engine:
        engine.prepare(version)
        host = engine._hosts.get(version.model)
        assert host is not None
        host.used_at -= 95
        engine.tokenize(version, "a")  # for a request that may follow within some seconds, and no longer
        left = engine.status().models[0].expires_in_s
        assert left is not None and 20 < left <= 30
