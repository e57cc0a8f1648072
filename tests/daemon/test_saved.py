"""Models that are unloaded and come back, and the conversations that come back with them."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgepd_daemon.engine import loop
from edgepd_daemon.engine.saved import SavedStates
from edgepd_daemon.engine.types import EngineSizes, Version
from tests.daemon.adapters import random_lora
from tests.daemon.generating import ask, running_engine
from tests.daemon.running import wait_for

SIZES = EngineSizes(slots=2, context_tokens=512, batch_tokens=16, threads=1)
PROMPT = [1, *(3 + i % 250 for i in range(63))]


@pytest.fixture
def version(tiny_model: Path) -> Version:
    return Version(1, tiny_model, fingerprint="model-a")


@pytest.fixture
def saved(tmp_path: Path) -> SavedStates:
    return SavedStates(tmp_path / "kv", 10_000, SIZES, "build 1")


def test_what_is_saved_comes_back(saved: SavedStates, version: Version) -> None:
    saved.save(version, [1, 2, 70_000], b"cells")
    saved.save(version, [4], b"")
    assert list(saved.load(version, 1)) == [([4], b"")]
    assert list(saved.load(version, 5)) == [([1, 2, 70_000], b"cells")]
    assert list(saved.load(version, 5)) == []  # what was loaded is in memory now


def test_files_are_private(saved: SavedStates, version: Version, tmp_path: Path) -> None:
    saved.save(version, [1], b"cells")
    (file,) = (tmp_path / "kv").iterdir()
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_anything_that_the_cells_depend_on_makes_another_key(
    saved: SavedStates, version: Version, tmp_path: Path
) -> None:
    saved.save(version, [1], b"cells")
    others = [
        saved.load(replace(version, fingerprint="model-b"), 5),
        saved.load(replace(version, scale=0.5), 5),
        *(
            SavedStates(tmp_path / "kv", 10_000, sizes, build).load(version, 5)
            for sizes, build in [
                (replace(SIZES, context_tokens=1024), "build 1"),
                (replace(SIZES, kv_type="q8_0"), "build 1"),
                (replace(SIZES, slots=3), "build 1"),
                (SIZES, "build 2"),
            ]
        ),
    ]
    assert [list(found) for found in others] == [[]] * 6
    # The number of the generation and the place of the files do not matter.
    assert list(saved.load(replace(version, generation=7, model=Path("elsewhere.gguf")), 5)) == [([1], b"cells")]


def test_without_a_fingerprint_nothing_is_kept(saved: SavedStates, version: Version, tmp_path: Path) -> None:
    unknown = replace(version, fingerprint="")
    saved.save(unknown, [1], b"cells")
    assert list(saved.load(unknown, 5)) == []
    assert not (tmp_path / "kv").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:10],
        lambda data: b"",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"X" + data[1:],
        lambda data: data[:12] + b"\xff" * 8 + data[20:],  # a huge size
    ],
)
def test_a_damaged_file_is_removed(saved: SavedStates, version: Version, tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    saved.save(version, [1, 2], b"cells")
    (file,) = (tmp_path / "kv").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert list(saved.load(version, 5)) == []
    assert not file.exists()


def test_the_oldest_go_when_there_are_too_many(version: Version, tmp_path: Path) -> None:
    saved = SavedStates(tmp_path, 3000, SIZES, "build")
    for n in range(5):
        saved.save(version, [n], bytes([n]) * 900)
        newest = max(tmp_path.iterdir(), key=lambda p: p.stat().st_mtime_ns)
        os.utime(newest, ns=(n, n))  # the clock of a file system may be coarse
    saved.save(version, [9], b"x" * 3000)  # larger than all that may be kept
    assert [tokens for tokens, _ in saved.load(version, 9)] == [[4], [3], [2]]


def test_a_directory_that_cannot_be_written_is_no_error(version: Version, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    SavedStates(tmp_path / "file", 10_000, SIZES, "build").save(version, [1], b"cells")


def test_an_idle_model_is_unloaded_and_continues_where_it_was(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "GRACE_SECONDS", 0.05)
    with running_engine(saved_in=tmp_path, keep_alive=0.05) as engine:
        engine.prepare(version)
        engine.keep(version)
        assert engine.status().state == "ready"
        first = ask(engine, PROMPT, version, 8)
        assert first.finished.reason == "length"
        wait_for(lambda: engine.status().state == "unloaded")
        assert not engine.is_prepared(version)
        engine.set_keep_alive(math.inf)
        engine.prepare(version)
        again = ask(engine, PROMPT, version, 8)
        assert (again.text, again.timings.cached_tokens) == (first.text, 63)
        status = engine.status()
        assert (status.loads, status.unloads, status.cached_tokens) == (2, 1, 63)


def test_a_restart_continues_where_it_was(version: Version, tmp_path: Path) -> None:
    with running_engine(saved_in=tmp_path) as engine:
        engine.prepare(version)
        text = ask(engine, PROMPT, version, 8).text
        private = ask(engine, [5, *PROMPT], version, 8, persist=False)
        assert private.finished.reason == "length"
    with running_engine(saved_in=tmp_path) as engine:
        engine.prepare(version)
        again = ask(engine, PROMPT, version, 8)
        assert (again.text, again.timings.cached_tokens) == (text, 63)
        assert ask(engine, [5, *PROMPT], version, 8).timings.cached_tokens == 0


def test_another_adapter_does_not_get_the_cells(version: Version, tiny_model: Path, tmp_path: Path) -> None:
    """llama.cpp itself would accept them."""
    adapter = random_lora(tmp_path / "a.gguf", tiny_model, seed=1, deviation=0.5)
    adapted = Version(1, tiny_model, adapter, fingerprint="model-a+adapter")
    with running_engine(saved_in=tmp_path / "kv") as engine:
        engine.prepare(version)
        assert ask(engine, PROMPT, version, 8).text
    with running_engine(saved_in=tmp_path / "kv") as engine:
        engine.prepare(adapted)
        answer = ask(engine, PROMPT, adapted, 8)
        assert answer.timings.cached_tokens == 0
        assert answer.text == ask(engine, PROMPT, adapted, 8, reuse_cache=False).text


def test_a_request_says_how_long_the_model_stays(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "GRACE_SECONDS", 0.05)
    with running_engine(keep_alive=0.05) as engine:
        engine.prepare(version)
        assert ask(engine, PROMPT, version, 2, keep_alive=100.0).text
        time.sleep(0.3)
        (model,) = engine.status().models
        assert model.expires_in_s is not None and 90 < model.expires_in_s <= 100
        assert ask(engine, PROMPT, version, 2, keep_alive=math.inf).text
        wait_for(lambda: engine.status().models[0].expires_in_s is None)
        engine.unload()
        wait_for(lambda: engine.status().state == "unloaded")


def saved_files(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.glob("*"))


def test_what_is_forgotten_is_neither_in_memory_nor_on_disk(version: Version, tmp_path: Path) -> None:
    with running_engine(saved_in=tmp_path) as engine:
        engine.prepare(version)
        text = ask(engine, PROMPT, version, 8).text
        assert engine.forget_conversations() == 0  # nothing was on disk yet
        again = ask(engine, PROMPT, version, 8)
        assert (again.text, again.timings.cached_tokens) == (text, 0)
    assert len(saved_files(tmp_path)) == 1
    with running_engine(saved_in=tmp_path) as engine:  # which has no model yet
        assert engine.forget_conversations() == 1
        assert saved_files(tmp_path) == []
        engine.prepare(version)
        assert ask(engine, PROMPT, version, 8).timings.cached_tokens == 0


def test_what_is_being_answered_goes_on_and_is_not_saved(version: Version, tmp_path: Path) -> None:
    with running_engine(saved_in=tmp_path, slots=1) as engine:
        engine.prepare(version)
        undisturbed = ask(engine, PROMPT, version, 200, reuse_cache=False).text
        running = ask(engine, PROMPT, version, 200, reuse_cache=False)
        waiting = ask(engine, [7, *PROMPT], version, 8)  # for the only slot
        running.wait_for_first()
        engine.forget_conversations()
        assert (running.text, waiting.finished.reason) == (undisturbed, "length")
    assert saved_files(tmp_path) == []
    with running_engine(saved_in=tmp_path, slots=1) as engine:
        engine.prepare(version)
        engine.forget_conversations()
        assert ask(engine, PROMPT, version, 8).finished.reason == "length"
    assert len(saved_files(tmp_path)) == 1  # what comes afterwards is


def test_an_engine_that_saves_nothing_has_nothing_to_forget(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.kv").write_text("a file of somebody else")
    with running_engine() as engine:
        assert engine.forget_conversations() == 0
    assert saved_files(tmp_path) == ["mine.kv"]


def test_clearing_removes_torn_files_too(saved: SavedStates, version: Version, tmp_path: Path) -> None:
    saved.save(version, [1], b"cells")
    (tmp_path / "kv" / ".torn.kv.tmp").write_bytes(b"cel")
    assert saved.clear() == 2
    assert (saved_files(tmp_path / "kv"), saved.clear()) == ([], 0)
