"""Which generation serves, what becomes of the others, and which files stay: everything but the engine is real."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgepd.errors import AdapterError, ConflictError, ModelError, NotFoundError
from edgepd_daemon import describing
from edgepd_daemon.generations import Base
from edgepd_profiles import health
from edgepd_quant.reader import GGUFFile
from tests.daemon.adapters import random_lora
from tests.daemon.kept import Kept, kept


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Kept]:
    with kept(tmp_path) as made:
        yield made


@pytest.fixture
def real(tmp_path: Path, tiny_model: Path) -> Iterator[Kept]:
    """The same with a real base, whose files are checked."""
    with GGUFFile.open(tiny_model) as model:
        base = Base("tiny", tiny_model, model.sha256())
    with kept(tmp_path, base, checks=True) as made:
        yield made


def lora(parts: Kept, name: str = "a.gguf", seed: int = 1) -> int:
    path = random_lora(parts.generations.directory / name, parts.generations.base.path, seed=seed, deviation=0.1)
    return parts.add("live", path).id


# Probes


def test_a_candidate_over_which_the_child_crashes_is_rejected(real: Kept) -> None:
    number = lora(real)
    real.prober.bad[number] = "llama.cpp crashed on it (SIGSEGV)"
    with pytest.raises(AdapterError, match=rf"generation {number} was rejected: llama.cpp crashed on it \(SIGSEGV\)"):
        real.generations.activate(number)
    found = real.generations.get(number)
    assert (found.state, found.reason) == ("rejected", "llama.cpp crashed on it (SIGSEGV)")
    assert (real.generations.active().id, real.engine.loaded, real.files()) == (1, [], [])
    with pytest.raises(ConflictError, match=f"generation {number} is rejected and cannot serve"):
        real.generations.activate(number)


def test_one_that_has_served_is_not_rejected_for_a_new_build_of_llama_cpp(real: Kept) -> None:
    number = lora(real)
    real.generations.activate(number)
    real.generations.rollback()
    real.engine.loaded.clear()
    real.prober.bad[number] = "llama.cpp crashed on it (SIGABRT)"
    with pytest.raises(ModelError, match="go to another generation with `edgepd adapters use`"):
        real.generations.activate(number)
    assert real.states()[number] == "retired"
    assert real.files() == ["a.gguf"]


def test_when_the_active_one_cannot_be_opened_the_base_serves_and_when_that_cannot_the_reason_is_told(
    real: Kept,
) -> None:
    number = lora(real)
    real.generations.activate(number)
    real.engine.loaded.clear()
    real.prober.bad[number] = "no"
    assert real.generations.loaded().generation == 1
    assert real.generations.problem is not None
    assert real.generations.problem.startswith(f"generation {number} cannot be served, the base serves instead: ")
    assert real.generations.active().id == number
    real.engine.loaded.clear()
    real.prober.bad[1] = "too new"
    with pytest.raises(ModelError, match="cannot be served: too new; install it again or choose another one"):
        real.generations.loaded()


def test_what_is_loaded_is_not_probed_and_what_the_trainer_opened_is_noted(real: Kept) -> None:
    number = lora(real)
    real.generations.note_probed(real.generations.get(number))
    [noted] = real.prober.noted
    assert noted == real.generations.version(real.generations.get(number))
    real.generations.activate(number)
    real.generations.loaded()
    assert real.prober.asked == [number]


# Withdrawing


def test_the_active_one_is_withdrawn_to_the_one_before(parts: Kept) -> None:
    first, second = parts.live("a.gguf"), parts.live("b.gguf")
    parts.generations.activate(first)
    parts.generations.activate(second)
    switched = parts.generations.withdraw(second, "it has forgotten too much")
    assert switched is not None
    assert (switched.active, switched.previous) == (first, second)
    assert parts.generations.current.generation == first
    assert parts.engine.kept == parts.generations.current
    found = parts.generations.get(second)
    assert (found.state, found.reason) == ("rejected", "it has forgotten too much")
    assert parts.files() == ["a.gguf"]


@pytest.mark.parametrize("state", ["candidate", "retired"])
def test_one_that_is_not_active_any_more_is_only_rejected(parts: Kept, state: str) -> None:
    number = parts.live()
    if state == "retired":
        parts.generations.activate(number)
        parts.generations.rollback()
    assert parts.generations.withdraw(number, "late") is None
    assert parts.states() == {1: "active", number: "rejected"}
    assert parts.files() == []


def test_one_that_is_deleted_stays_so(parts: Kept) -> None:
    number = parts.live()
    parts.generations.delete(number)
    assert parts.generations.withdraw(number, "late") is None
    assert parts.states()[number] == "deleted"


def test_the_base_cannot_be_withdrawn(parts: Kept) -> None:
    with pytest.raises(ConflictError):
        parts.generations.withdraw(1, "too plain")
    assert parts.states() == {1: "active"}


def test_if_the_one_before_cannot_be_loaded_the_base_serves(real: Kept) -> None:
    first, second = lora(real, "a.gguf"), lora(real, "b.gguf", seed=2)
    real.generations.activate(first)
    real.generations.activate(second)
    real.engine.loaded.clear()
    (real.generations.directory / "a.gguf").unlink()
    switched = real.generations.withdraw(second, "worse")
    assert switched is not None
    assert switched.active == 1
    assert real.states() == {1: "active", first: "retired", second: "rejected"}


def test_a_model_file_that_a_live_one_stands_on_outlives_its_own_generation(parts: Kept) -> None:
    baked = parts.baked("m.gguf")
    parts.generations.activate(baked)
    upon = parts.live("a.gguf", model_file="m.gguf")
    parts.generations.withdraw(baked, "worse")
    assert parts.files() == ["a.gguf", "m.gguf"]
    parts.generations.delete(upon)
    assert parts.files() == []


# Switching


def test_a_switch_only_if_the_expected_one_is_active(parts: Kept) -> None:
    first, second = parts.live("a.gguf"), parts.live("b.gguf")
    parts.generations.activate(first, expected=1)
    with pytest.raises(ConflictError, match=f"generation {first} is active, not 1 as expected"):
        parts.generations.activate(second, expected=1)
    assert (parts.generations.current.generation, parts.engine.kept) == (first, parts.generations.current)
    parts.generations.activate(second, expected=first)
    assert parts.generations.active().id == second


def test_scores_that_come_late_are_added(parts: Kept) -> None:
    number = parts.live(scores={"held_out_after": 2.0})
    parts.generations.note_scores(number, {"arms": {"base": 3.0}}, reason="measured")
    found = parts.generations.get(number)
    assert found.scores == {"held_out_after": 2.0, "arms": {"base": 3.0}}
    assert found.reason == "measured"


# Keeping and deleting


def test_deleting_frees_the_file(parts: Kept) -> None:
    number = parts.live()
    removed = parts.generations.delete(number)
    assert (removed.generation.state, removed.freed_bytes) == ("deleted", 5)
    assert parts.files() == []


@pytest.mark.parametrize(
    ("what", "reason"), [("base", "base model itself"), ("active", "serves now"), ("pin", "pinned")]
)
def test_what_cannot_be_deleted(parts: Kept, what: str, reason: str) -> None:
    number = parts.live()
    if what == "active":
        parts.generations.activate(number)
    if what == "pin":
        assert parts.generations.pin(number, True).pinned
    with pytest.raises(ConflictError, match=reason):
        parts.generations.delete(1 if what == "base" else number)
    assert parts.files() == ["a.gguf"]
    with pytest.raises(NotFoundError):
        parts.generations.delete(99)
    with pytest.raises(NotFoundError):
        parts.generations.pin(99, True)


def test_a_pin_keeps_the_file_of_one_that_is_rejected_until_it_is_unpinned(parts: Kept) -> None:
    number = parts.live()
    parts.generations.pin(number, True)
    parts.generations.withdraw(number, "worse")
    assert (parts.states()[number], parts.files()) == ("rejected", ["a.gguf"])
    parts.generations.pin(number, False)
    assert parts.files() == []


def test_old_generations_go_when_another_one_becomes_active(parts: Kept) -> None:
    parts.generations.keep_retired = 1
    made = [parts.live(f"{n}.gguf") for n in range(5)]
    parts.generations.pin(made[0], True)
    for number in made:
        parts.generations.activate(number)
    # Kept are the pinned one, the way back, and the newest retired one besides.
    assert [parts.states()[n] for n in made] == ["retired", "deleted", "retired", "retired", "active"]
    assert parts.files() == ["0.gguf", "2.gguf", "3.gguf", "4.gguf"]


def test_a_baked_model_goes_with_the_last_adapter_upon_it(parts: Kept) -> None:
    parts.generations.keep_retired = 1
    baked = parts.baked("m.gguf")
    parts.generations.activate(baked)
    upon = parts.live("a.gguf", model_file="m.gguf")
    parts.generations.activate(upon)
    later = [parts.live(f"{n}.gguf") for n in range(4)]
    for number in later:
        parts.generations.activate(number)
    assert (parts.states()[baked], parts.states()[upon]) == ("deleted", "deleted")
    assert "m.gguf" not in parts.files()


def test_a_switch_succeeds_even_if_tidying_up_fails(
    parts: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ModelError("the disk is gone")

    monkeypatch.setattr(parts.generations.shelf, "tidy", fail)
    number = parts.live()
    with caplog.at_level(logging.WARNING):
        assert parts.generations.activate(number).active == number
    assert "old generations were not deleted: the disk is gone" in caplog.text


def test_what_nobody_has_is_removed_at_the_start_and_what_is_kept_is_not(tmp_path: Path) -> None:
    with kept(tmp_path) as parts:
        parts.live("a.gguf")
        parts.file("leftover.gguf")
        parts.file(".b.gguf.x.tmp")
        parts.set_state(parts.live("rejected.gguf"), "rejected")
    with kept(tmp_path) as parts:
        assert parts.files() == ["a.gguf"]


# Runs of the daemon


def test_two_unclean_exits_withdraw_a_pending_generation(tmp_path: Path) -> None:
    with kept(tmp_path, recorded=True, crash=True) as parts:
        number = parts.live()
        parts.generations.activate(number)
    with kept(tmp_path, recorded=True, crash=True) as parts:
        assert (parts.generations.current.generation, parts.generations.problem) == (number, None)
        assert parts.run is not None
        parts.run.loading()
    with kept(tmp_path, recorded=True) as parts:
        assert parts.generations.current.generation == 1
        assert parts.generations.problem == (
            f"generation {number} was withdrawn after two unclean exits; generation 1 serves; "
            f"`edgepd adapters use {number}` tries again"
        )
        assert parts.states() == {1: "active", number: "retired"}
        parts.generations.activate(number)
        assert parts.generations.problem is None


def test_clean_ends_withdraw_nothing(tmp_path: Path) -> None:
    with kept(tmp_path, recorded=True) as parts:
        number = parts.live()
        parts.generations.activate(number)
    for _ in range(3):
        with kept(tmp_path, recorded=True) as parts:
            assert parts.generations.current.generation == number


def test_a_start_that_fails_is_no_crash(tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(ModelError), kept(tmp_path, recorded=True) as parts:
            if 2 not in parts.states():
                parts.generations.activate(parts.live())
            assert parts.generations.current.generation == 2
            raise ModelError("the port is taken")


def test_answers_confirm_a_generation_and_are_then_not_written_any_more(
    parts: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    answered = health.answered
    monkeypatch.setattr(health, "answered", lambda conn, number: (written.append(number), answered(conn, number))[1])

    def answer(times: int) -> None:
        for _ in range(times):
            parts.generations.answered(parts.generations.current)
            parts.store.write(lambda conn: None).result()  # what was queued before is done by now

    number = parts.live()
    parts.generations.activate(number)
    answer(2)
    assert parts.generations.active().pending
    answer(4)
    assert not parts.generations.active().pending
    assert written == [number] * health.HEALTHY_ANSWERS
    parts.generations.rollback()
    answer(3)
    assert written == [number] * health.HEALTHY_ANSWERS + [1]  # the base says only once that it does not matter
    parts.generations.activate(number)
    answer(2)
    assert written[-1:] == [number]  # asked anew, once: it was confirmed before
    assert len(written) == health.HEALTHY_ANSWERS + 2


def test_answers_of_a_generation_that_is_gone_do_no_harm(parts: Kept) -> None:
    parts.generations.answered(replace(parts.generations.current, generation=99))
    assert parts.store.write(lambda conn: 1).result() == 1


# Descriptions


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("candidate", "it waits to be used: better"),
        ("active", "it serves and is pending until it has answered in good health: better"),
        ("retired", "it has served before and can serve again: better"),
        ("rejected", "it was rejected and does not serve: better"),
        ("deleted", "it was deleted, its files are gone: better"),
    ],
)
def test_the_verdict_on_a_generation(parts: Kept, state: str, sentence: str) -> None:
    number = parts.live(reason="better")
    if state in ("active", "retired"):
        parts.generations.activate(number)
    if state == "retired":
        parts.generations.rollback()
    if state in ("rejected", "deleted"):
        parts.set_state(number, state)
    shown = describing.shown(parts.generations, parts.generations.get(number))
    assert shown["verdict"] == sentence
    assert shown["generation"]["pending"] == (state == "active")


def test_a_generation_with_its_family_and_files(parts: Kept) -> None:
    parts.generations.base.path.write_bytes(b"model")
    baked = parts.baked("m.gguf")
    parts.generations.activate(baked)
    upon = parts.live("a.gguf", model_file="m.gguf", example_ids=["i1", "i2"])
    shown = describing.shown(parts.generations, parts.generations.get(upon))
    where = parts.generations.directory
    sha256 = parts.generations.get(baked).file_sha256
    assert (shown["lineage"], shown["children"], shown["example_count"]) == ([baked, 1], [], 2)
    assert shown["model"] == {"path": str(where / "m.gguf"), "sha256": sha256}
    assert shown["adapter"] == {"path": str(where / "a.gguf"), "sha256": parts.generations.get(upon).file_sha256}
    assert (shown["generation"]["bytes"], shown["generation"]["file"]) == (5, str(where / "a.gguf"))
    shown = describing.shown(parts.generations, parts.generations.get(1))
    assert (shown["lineage"], shown["children"], shown["adapter"]) == ([], [baked], None)
    assert shown["model"]["sha256"] == parts.generations.base.sha256
    assert shown["verdict"] == "the base model itself, which has learned nothing; it can serve again"
    parts.generations.delete(upon)
    gone = describing.described(parts.generations, parts.generations.get(upon))
    assert (gone["state"], gone["bytes"], gone["file"]) == ("deleted", None, None)
