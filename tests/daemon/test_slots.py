"""Which slot a request goes to, and what it finds there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.slots import Answer, Place, Slot, place
from edgepd_daemon.engine.types import Request, Version
from tests.daemon.generating import ask, prepared, running_engine

BASE = Version(1, Path("model.gguf"))
SYSTEM = list(range(100, 200))


def request(prompt: list[int], **fields: Any) -> Request:
    return Request(prompt, BASE, 1, lambda _event: None, **fields)


def slot(index: int, tokens: list[int], used_at: float = 0.0, *, busy: bool = False, version: Version = BASE) -> Slot:
    made = Slot(index, version, tokens, used_at=used_at)
    if busy:
        made.answer = Answer(request(tokens), None, None, 0, 0, 0, list(tokens), first_token=1.0)  # type: ignore[arg-type]
    return made


def where(slots: list[Slot], prompt: list[int], **fields: Any) -> tuple[int, int, int | None]:
    """Index of the slot, cached tokens, and index of the slot to copy from."""
    found: Place = place(slots, request(prompt, **fields))
    return found.slot.index, found.cached, found.source.index if found.source else None


def test_an_empty_slot_is_taken_before_a_conversation_is_given_up() -> None:
    slots = [slot(0, [1, 2, 3], used_at=1), slot(1, [])]
    assert where(slots, [7, 8, 9]) == (1, 0, None)


def test_a_conversation_goes_on_in_its_slot() -> None:
    slots = [slot(0, [1, 2, 3, 4], used_at=9), slot(1, [])]
    assert where(slots, [1, 2, 3, 4, 5, 6]) == (0, 4, None)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    assert where([slot(0, [1, 2, 3])], [1, 2, 3]) == (0, 2, None)


def test_a_shared_beginning_is_copied_and_the_conversation_stays() -> None:
    slots = [slot(0, SYSTEM + list(range(300, 500)), used_at=5), slot(1, [])]
    assert where(slots, [*SYSTEM, 7, 8]) == (1, 100, 0)


def test_a_busy_slot_can_be_copied_from() -> None:
    slots = [slot(0, [*SYSTEM, 1], busy=True), slot(1, [5])]
    assert where(slots, [*SYSTEM, 7, 8]) == (1, 100, 0)


def test_a_short_beginning_is_not_worth_a_copy() -> None:
    slots = [slot(0, SYSTEM[:20] + list(range(300, 500)), used_at=5), slot(1, [])]
    assert where(slots, [*SYSTEM[:20], 7, 8]) == (1, 0, None)


def test_the_conversation_that_was_idle_longest_is_given_up() -> None:
    slots = [slot(0, [1, 2], used_at=5), slot(1, [3, 4], used_at=2), slot(2, [5, 6], used_at=9)]
    assert where(slots, [7, 8]) == (1, 0, None)


def test_another_version_and_a_refusal_to_reuse_share_nothing() -> None:
    other = slot(0, list(SYSTEM), version=Version(2, Path("model.gguf")))
    assert where([other], [*SYSTEM, 1]) == (0, 0, None)
    assert where([slot(0, list(SYSTEM))], [*SYSTEM, 1], reuse_cache=False) == (0, 0, None)


def test_a_request_waits_for_a_neighbour_with_the_same_prompt() -> None:
    neighbour = slot(0, [], busy=True)
    assert neighbour.answer is not None
    neighbour.answer = Answer(request([*SYSTEM, 1, 2]), None, None, 0, 0, 0, [*SYSTEM, 1, 2])  # type: ignore[arg-type]
    found = place([neighbour, slot(1, [])], request([*SYSTEM, 3, 4]))
    assert found.awaits is not None and found.awaits.tokens == 100
    assert not found.awaits.done
    neighbour.tokens = list(SYSTEM)
    assert found.awaits.done
    neighbour.tokens, neighbour.answer = [], None
    assert found.awaits.done  # it was cancelled; there is nothing to wait for


@pytest.fixture
def version(tiny_model: Path) -> Version:
    return Version(1, tiny_model)


def started(engine: Engine, version: Version) -> None:
    engine.prepare(version)
    engine.keep(version)


def prompt_with(tail: list[int]) -> list[int]:
    return [1, *(3 + i % 250 for i in range(127)), *tail]


def test_equal_prompts_at_once_are_prefilled_once(version: Version) -> None:
    prompt = prompt_with([7, 8])
    with running_engine(slots=4) as engine:
        started(engine, version)
        answers = [prepared(engine, prompt, version, 8) for _ in range(4)]
        engine.submit([a.request for a in answers])
        assert len({a.text for a in answers}) == 1
        cached = sorted(a.timings.cached_tokens for a in answers)
        assert cached == [0, 129, 129, 129]


def test_a_copied_beginning_gives_the_text_of_a_fresh_prefill(version: Version) -> None:
    with running_engine(slots=3) as engine:
        started(engine, version)
        first = ask(engine, prompt_with([7] * 200), version, 8)
        other = ask(engine, prompt_with([9, 9, 9]), version, 12)
        assert (first.finished.reason, other.timings.cached_tokens) == ("length", 128)
        fresh = ask(engine, prompt_with([9, 9, 9]), version, 12, reuse_cache=False)
        assert other.text == fresh.text
        # The first conversation is still there.
        again = ask(engine, prompt_with([7] * 200), version, 8)
        assert (again.text, again.timings.cached_tokens) == (first.text, 327)


def test_who_waited_for_a_neighbour_that_is_cancelled_goes_on_alone(version: Version) -> None:
    prompt = [1, *(3 + i % 250 for i in range(400))]
    with running_engine(slots=2, batch_tokens=4) as engine:
        started(engine, version)
        first, second = prepared(engine, prompt, version, 4), prepared(engine, prompt, version, 4)
        engine.submit([first.request, second.request])
        time.sleep(0.01)
        engine.cancel(first.request)
        assert first.finished.reason == "cancelled"
        assert second.text == ask(engine, prompt, version, 4, reuse_cache=False).text
