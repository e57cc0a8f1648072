"""The engine with a tiny random model: order, cancelling, refusing, switching between steps, and dying."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgepd.errors import AdapterError, BusyError, ContextOverflowError, ModelError
from edgepd.llama import Context, Entry
from edgepd_daemon.engine import loop
from edgepd_daemon.engine.engine import Engine
from edgepd_daemon.engine.host import ModelHost
from edgepd_daemon.engine.types import Sampling, Version
from tests.daemon.adapters import random_lora
from tests.daemon.generating import GREEDY, ask, prepared, running_engine
from tests.daemon.running import wait_for

PROMPT = [1, 50, 60, 70, 80, 90]
LONG = [1, *(3 + i % 250 for i in range(399))]


@pytest.fixture
def base(tiny_model: Path) -> Version:
    return Version(1, tiny_model)


@pytest.fixture
def adapted(tiny_model: Path, tmp_path: Path) -> Version:
    return Version(2, tiny_model, random_lora(tmp_path / "a.gguf", tiny_model, seed=1, deviation=0.5))


@pytest.fixture
def engine(base: Version) -> Iterator[Engine]:
    with running_engine() as started:
        started.prepare(base)
        started.keep(base)
        yield started


def models(engine: Engine) -> list[str]:
    """The names of the files that are loaded."""
    return [Path(m.path).name for m in engine.status().models]


def test_greedy_answers_repeat_and_report_what_they_cost(engine: Engine, base: Version) -> None:
    first = ask(engine, PROMPT, base, 12, reuse_cache=False)
    second = ask(engine, PROMPT, base, 12, reuse_cache=False)
    assert first.text == second.text != ""
    assert first.finished.reason == "length"
    assert (first.timings.prompt_tokens, first.timings.cached_tokens, first.timings.completion_tokens) == (6, 0, 12)
    assert 0 <= first.timings.queue_ms <= first.timings.ttft_ms
    assert engine.status().tokens_generated == 24


def test_a_stop_string_ends_the_answer_before_it(engine: Engine, base: Version) -> None:
    whole = ask(engine, PROMPT, base, 40).text
    stop = whole[10:12]
    answer = ask(engine, PROMPT, base, 40, stop=(stop,))
    assert answer.text == whole[: whole.find(stop)]
    assert answer.finished.reason == "stop"


def test_the_end_of_turn_ends_an_answer(
    engine: Engine, base: Version, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.setattr("edgepd.llama.Model.is_end", lambda _self, _token: True)
    answer = ask(engine, PROMPT, base, 40, ignore_end=False)
    assert (answer.text, answer.finished.reason, answer.timings.completion_tokens) == ("", "stop", 0)


def test_requests_beyond_the_slots_wait_and_all_end(engine: Engine, base: Version) -> None:
    answers = [ask(engine, [1, 50 + n, 60], base, 20 + n) for n in range(6)]
    assert [a.timings.completion_tokens for a in answers] == [20, 21, 22, 23, 24, 25]
    waited = [a.timings.queue_ms for a in answers]
    assert waited[2:] == sorted(waited[2:])  # there are two slots, and the oldest go first
    assert waited[4] > max(waited[:2])
    assert (engine.status().active, engine.status().queued) == (0, 0)


def test_who_waits_goes_on_as_soon_as_a_slot_is_free(base: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread once went to sleep when the last answer ended, although others were waiting."""
    monkeypatch.setattr(loop, "IDLE_CLOSE_SECONDS", 1000.0)  # how long it sleeps depends on this
    with running_engine(slots=1) as engine:
        engine.prepare(base)
        answers = [ask(engine, PROMPT, base, 2) for _ in range(5)]
        assert [a.finished.reason for a in answers] == ["length"] * 5


def test_cancelled_while_it_waits(base: Version) -> None:
    with running_engine(slots=1) as engine:
        engine.prepare(base)
        first = ask(engine, PROMPT, base, 300)
        first.wait_for_first()
        second = ask(engine, PROMPT, base, 300)
        engine.cancel(second.request)
        assert (second.finished.reason, second.text, second.timings.completion_tokens) == ("cancelled", "", 0)
        assert first.finished.reason == "length"
        engine.cancel(first.request)  # too late, and without effect
        assert engine.status().queued == 0
        assert ask(engine, PROMPT, base, 3).finished.reason == "length"


def test_cancelled_while_its_prompt_is_computed(engine: Engine, base: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = prepared(engine, LONG, base)
    steps = []
    step = ModelHost.step

    def cancel_in_the_third_step(host: ModelHost, version: Version) -> None:
        steps.append(version)
        if len(steps) == 3:
            engine.cancel(answer.request)
        step(host, version)

    monkeypatch.setattr(ModelHost, "step", cancel_in_the_third_step)
    answer.submit()
    assert (answer.finished.reason, answer.text, answer.timings.completion_tokens) == ("cancelled", "", 0)
    assert engine.status().active == 0
    # What was computed serves the next one: two batches of 16 tokens, and not the one that was interrupted.
    assert ask(engine, LONG, base, 1).timings.cached_tokens == 32


def test_cancelled_while_it_answers(engine: Engine, base: Version) -> None:
    whole = ask(engine, PROMPT, base, 200).text
    answer = prepared(engine, PROMPT, base, 200)
    answer.on_text = lambda count: engine.cancel(answer.request) if count == 5 else None
    answer.submit()
    assert answer.finished.reason == "cancelled"
    assert 0 < len(answer.text) < len(whole)
    assert whole.startswith(answer.text)
    assert ask(engine, PROMPT, base, 200, reuse_cache=False).text == whole


def test_a_full_queue_refuses(base: Version) -> None:
    with running_engine(slots=1, max_queue=2) as engine:
        engine.prepare(base)
        running = ask(engine, PROMPT, base, 400)
        running.wait_for_first()
        waiting = [ask(engine, PROMPT, base, 2) for _ in range(2)]
        with pytest.raises(BusyError, match="2 requests are waiting already"):
            ask(engine, PROMPT, base, 2)
        engine.cancel(running.request)
        assert [w.finished.reason for w in waiting] == ["length", "length"]
        assert ask(engine, PROMPT, base, 2).finished.reason == "length"


def test_a_prompt_as_long_as_the_context_is_refused(engine: Engine, base: Version) -> None:
    with pytest.raises(ContextOverflowError, match="the prompt has 512 tokens, but the context window holds 512"):
        ask(engine, [1] * 512, base)
    answer = ask(engine, [1] * 511, base, 100)
    assert (answer.finished.reason, answer.timings.completion_tokens) == ("length", 1)


def test_an_answer_ends_where_the_context_does(engine: Engine, base: Version) -> None:
    answer = ask(engine, LONG, base, 1000)
    assert (answer.finished.reason, answer.timings.completion_tokens) == ("length", 112)


def test_versions_side_by_side_answer_as_each_does_alone(
    engine: Engine, base: Version, adapted: Version, tiny_model: Path, tmp_path: Path
) -> None:
    other = Version(3, tiny_model, random_lora(tmp_path / "b.gguf", tiny_model, seed=2, deviation=0.5))
    versions = [base, adapted, other]
    for version in versions:
        engine.prepare(version)
    alone = [ask(engine, LONG[:60], v, 60, reuse_cache=False).text for v in versions]
    assert len(set(alone)) == 3
    for pair in ([0, 1], [1, 2], [2, 0]):
        before = engine.status().switches
        together = [ask(engine, LONG[:60], versions[n], 60, reuse_cache=False) for n in pair]
        assert [a.text for a in together] == [alone[n] for n in pair]
        assert engine.status().switches - before > 60  # they took turns, token by token


def test_no_batch_mixes_versions(
    engine: Engine, base: Version, adapted: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.prepare(adapted)
    batches: list[tuple[bool, set[int]]] = []
    decode = Context.decode

    def watched(context: Context, entries: list[Entry]) -> bool:
        batches.append((context.adapter is not None, {e.sequence for e in entries}))
        return decode(context, entries)

    monkeypatch.setattr(Context, "decode", watched)
    answers = [ask(engine, PROMPT, v, 30) for v in (base, adapted)]
    assert all(a.finished.reason == "length" for a in answers)
    plain, with_adapter = (set().union(*(s for a, s in batches if a is wanted)) for wanted in (False, True))
    assert plain and with_adapter and not plain & with_adapter


def test_what_is_idle_is_closed_and_what_is_kept_is_not(
    engine: Engine, base: Version, adapted: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Version(3, Path(shutil.copy(base.model, tmp_path / "second.gguf")))
    for version in (adapted, second):
        engine.prepare(version)
    assert sorted(models(engine)) == ["second.gguf", "tiny.gguf"]
    assert all(engine.is_prepared(v) for v in (base, adapted, second))
    monkeypatch.setattr(loop, "IDLE_CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(loop, "GRACE_SECONDS", 0.05)
    engine.set_keep_alive(math.inf)  # wakes the thread, which would sleep on for some seconds
    wait_for(lambda: models(engine) == ["tiny.gguf"] and not engine.is_prepared(adapted))
    assert engine.is_prepared(base)
    with pytest.raises(BusyError, match="was unloaded"):
        engine.encode(second, [{"role": "user", "content": "hello"}])
    assert isinstance(ask(engine, PROMPT, second).failed.error, BusyError)
    assert isinstance(ask(engine, PROMPT, adapted).failed.error, BusyError)
    assert ask(engine, PROMPT, base).finished.reason == "length"


def test_what_cannot_be_loaded_changes_nothing(engine: Engine, base: Version, adapted: Version, tmp_path: Path) -> None:
    before = ask(engine, PROMPT, base, reuse_cache=False).text
    state = replace(engine.status(), models=[])
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(base.model.read_bytes()[:5000])
    with pytest.raises(ModelError, match="does not exist"):
        engine.prepare(Version(7, tmp_path / "missing.gguf"))
    with pytest.raises(ModelError, match="cannot load"):
        engine.prepare(Version(7, broken))
    for adapter in (tmp_path / "missing.gguf", broken, base.model):
        with pytest.raises(AdapterError, match="refuses the adapter"):
            engine.prepare(Version(7, base.model, adapter))
        assert not engine.is_prepared(Version(7, base.model, adapter))
    assert replace(engine.status(), models=[]) == state
    assert ask(engine, PROMPT, base, reuse_cache=False).text == before


def test_a_model_loaded_for_an_adapter_that_is_refused_goes_again(
    engine: Engine, base: Version, tmp_path: Path
) -> None:
    second = Path(shutil.copy(base.model, tmp_path / "second.gguf"))
    with pytest.raises(AdapterError):
        engine.prepare(Version(7, second, tmp_path / "missing.gguf"))
    assert models(engine) == ["tiny.gguf"]


def test_a_version_that_fails_takes_no_other_with_it(
    engine: Engine, base: Version, adapted: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.prepare(adapted)
    decode = Context.decode

    def failing(context: Context, entries: list[Entry]) -> bool:
        if context.adapter is not None and entries[0].position > 20:
            raise ModelError("llama.cpp failed to decode")
        return decode(context, entries)

    monkeypatch.setattr(Context, "decode", failing)
    good, bad = ask(engine, PROMPT, base, 60), ask(engine, PROMPT, adapted, 60)
    assert str(bad.failed.error) == "llama.cpp failed to decode"
    assert good.finished.reason == "length"
    monkeypatch.undo()
    again = ask(engine, PROMPT, adapted, 60)
    assert (again.finished.reason, again.timings.cached_tokens) == ("length", 0)  # that cache cannot be trusted


@pytest.mark.parametrize("where", ["step", "admit"])
def test_when_the_thread_dies_everyone_is_told(
    engine: Engine, base: Version, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    started = [ask(engine, PROMPT, base, 500) for _ in range(2)]
    for answer in started:
        answer.wait_for_first()

    def die(*_: object) -> None:
        raise RuntimeError("a bug")

    queued = [ask(engine, PROMPT, base, 500) for _ in range(3)]
    monkeypatch.setattr(ModelHost, where, die)
    if where == "admit":
        engine.cancel(started[0].request)
    for answer in [*started[1:], *queued]:
        assert isinstance(answer.failed.error, ModelError)
        assert "see the daemon's log" in str(answer.failed.error)
    wait_for(lambda: not engine.alive)
    assert engine.status().state == "failed"
    for call in (lambda: ask(engine, PROMPT, base), lambda: engine.prepare(base)):
        with pytest.raises(ModelError, match="the engine has stopped; restart the daemon"):
            call()
    engine.stop()  # nothing is left to stop


def test_a_command_that_fails_reaches_its_caller_and_nobody_else(
    engine: Engine, base: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: ModelHost, _path: Path) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ModelHost, "load_adapter", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        engine.prepare(Version(2, base.model, base.model))
    assert ask(engine, PROMPT, base).finished.reason == "length"


def test_stopping_ends_all_answers(base: Version) -> None:
    with running_engine(slots=1) as engine:
        engine.prepare(base)
        running = ask(engine, PROMPT, base, 500)
        running.wait_for_first()
        waiting = ask(engine, PROMPT, base, 500)
    assert running.finished.reason == "cancelled"
    assert running.text != ""
    assert isinstance(waiting.failed.error, BusyError)
    assert not engine.alive
    with pytest.raises(ModelError):
        ask(engine, PROMPT, base)


def test_an_engine_that_failed_while_it_is_stopped(engine: Engine, base: Version) -> None:
    engine.stop()
    engine.stop()
    assert not engine.alive


def test_sampling(engine: Engine, base: Version) -> None:
    def text(**sampling: float) -> str:
        return ask(engine, PROMPT, base, 40, sampling=Sampling(**sampling), reuse_cache=False).text  # type: ignore[arg-type]

    greedy = ask(engine, PROMPT, base, 40, sampling=GREEDY, reuse_cache=False).text
    assert text(temperature=1.0, top_k=1, seed=5) == greedy
    drawn = text(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=5)
    assert drawn == text(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=5)
    assert drawn != text(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=6)
    assert drawn != greedy
    assert text(temperature=1.5, top_k=0, top_p=1.0, min_p=1.0, seed=5) == greedy  # only the most likely is left
    assert text(temperature=1.5, top_k=0, top_p=1e-6, min_p=0.0, seed=5) == greedy
    unseeded = {text(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0) for _ in range(3)}
    assert len(unseeded) == 3


@pytest.mark.parametrize("penalty", [{"repeat_penalty": 5.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}])
def test_penalties_make_greedy_answers_repeat_less(engine: Engine, base: Version, penalty: dict[str, float]) -> None:
    def tokens(**more: float) -> int:
        sampling = Sampling(temperature=0, **more)  # type: ignore[arg-type]
        return len(set(ask(engine, PROMPT, base, 60, sampling=sampling, reuse_cache=False).text))

    assert tokens(**penalty) > tokens()
