from __future__ import annotations

import math
import sqlite3
from typing import Any

import pytest

from edgepd.errors import ConflictError, NotFoundError, RequestError
from edgepd_profiles import registry, runs
from edgepd_profiles.registry import Generation

BASE = "a" * 64
OTHER = "b" * 64


def candidate(conn: sqlite3.Connection, parent: int | None = None) -> int:
    return registry.add(
        conn, parent=parent, kind="live", base_sha256=BASE, state="candidate", adapter_file="adapter.gguf"
    ).id


def switch(conn: sqlite3.Connection, generation_id: int) -> None:
    registry.activate(conn, BASE, generation_id, registry.active(conn, BASE).id)


def states(conn: sqlite3.Connection) -> list[str]:
    return [generation.state for generation in registry.listing(conn, BASE)]


def test_the_base_is_one_active_generation_per_base_model(conn: sqlite3.Connection) -> None:
    base = registry.ensure_base(conn, BASE, at=5.0)
    assert base == Generation(
        1, None, "base", "active", BASE, None, None, None, 5.0, 5.0, [], "", {}, {}, "",
        pinned=False, confirmed_at=5.0, healthy=0, strikes=0,
    )  # fmt: skip
    assert not base.pending
    assert registry.ensure_base(conn, BASE) == base
    other = registry.ensure_base(conn, OTHER)
    assert other.id == 2
    assert registry.active(conn, BASE) == base
    assert registry.active(conn, OTHER) == other
    assert registry.listing(conn, BASE) == [base]


def test_ensure_base_leaves_an_active_adapter_alone(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)
    switch(conn, candidate(conn))
    assert registry.ensure_base(conn, BASE).state == "retired"
    assert states(conn) == ["retired", "active"]


def test_a_generation_comes_back_as_it_was_added(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)
    added = registry.add(
        conn, parent=1, kind="live", base_sha256=BASE, state="candidate", adapter_file="adapter.gguf",
        model_file="model-7.gguf", file_sha256="f" * 64, example_ids=["i_2", "i_1"], data_hash="d" * 64,
        config={"rank": 8}, scores={"held_out": 2.5, "bad": math.nan}, reason="why", at=7.0,
    )  # fmt: skip
    assert added == Generation(
        2, 1, "live", "candidate", BASE, "f" * 64, "adapter.gguf", "model-7.gguf", 7.0, None,
        ["i_2", "i_1"], "d" * 64, {"rank": 8}, {"held_out": 2.5, "bad": None}, "why",
    )  # fmt: skip
    assert registry.get(conn, 2) == added


@pytest.mark.parametrize(
    "name", ["../x.gguf", "/etc/passwd", "a/b", "..", ".hidden", "", "a\0b", "a\n", "x" * 129, "a\\b"]
)
def test_file_names_cannot_leave_their_directory(conn: sqlite3.Connection, name: str) -> None:
    with pytest.raises(RequestError, match="is not allowed"):
        registry.add(conn, parent=None, kind="live", base_sha256=BASE, adapter_file=name)
    with pytest.raises(RequestError, match="is not allowed"):
        registry.add(conn, parent=None, kind="baked", base_sha256=BASE, model_file=name)
    assert registry.listing(conn, BASE) == []


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("live", {}),
        ("live", {"model_file": "m.gguf"}),
        ("baked", {}),
        ("baked", {"adapter_file": "a.gguf", "model_file": "m.gguf"}),
        ("base", {"model_file": "m.gguf"}),
    ],
)
def test_a_candidate_has_exactly_the_files_of_its_kind(
    conn: sqlite3.Connection, kind: str, files: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match="cannot be a candidate"):
        registry.add(conn, parent=None, kind=kind, base_sha256=BASE, state="candidate", **files)


def test_the_files_of_a_trained_generation_are_named_before_it_is_a_candidate(conn: sqlite3.Connection) -> None:
    generation = registry.add(conn, parent=None, kind="baked", base_sha256=BASE)
    assert generation.state == "training"
    with pytest.raises(RequestError, match="cannot be a candidate"):
        registry.set_state(conn, generation.id, "candidate")
    registry.set_files(conn, generation.id, model_file="m.gguf", file_sha256="e" * 64)
    done = registry.set_state(conn, generation.id, "candidate", scores={"held_out": 2.0})
    assert (done.state, done.model_file, done.file_sha256) == ("candidate", "m.gguf", "e" * 64)
    assert done.scores == {"held_out": 2.0}
    with pytest.raises(ConflictError, match="is candidate; its files cannot change"):
        registry.set_files(conn, generation.id, model_file="n.gguf", file_sha256="e" * 64)


def test_a_parent_must_exist_and_have_the_same_base(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, OTHER)
    with pytest.raises(NotFoundError, match="generation 9 is not known"):
        registry.add(conn, parent=9, kind="live", base_sha256=BASE)
    with pytest.raises(ConflictError, match="another base model"):
        registry.add(conn, parent=1, kind="live", base_sha256=BASE)


def test_a_rejection_keeps_its_numbers_and_leaves_the_active_one(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)
    bad = candidate(conn)
    registry.set_state(conn, bad, "rejected", {"held_out": math.inf, "parts": [1.0, math.nan]}, "loss rose")
    rejected = registry.get(conn, bad)
    assert (rejected.state, rejected.reason) == ("rejected", "loss rose")
    assert rejected.scores == {"held_out": None, "parts": [1.0, None]}
    assert registry.active(conn, BASE).id == 1
    with pytest.raises(ConflictError, match="is rejected and cannot become active"):
        registry.activate(conn, BASE, bad, 1)
    assert states(conn) == ["active", "rejected"]


@pytest.mark.parametrize(
    ("path", "forbidden"),
    [
        ([], "active"),
        ([], "retired"),
        ([], "training"),
        (["rejected"], "candidate"),
        (["deleted"], "candidate"),
        (["stale"], "candidate"),
    ],
)
def test_forbidden_steps(conn: sqlite3.Connection, path: list[str], forbidden: str) -> None:
    generation_id = candidate(conn)
    for state in path:
        registry.set_state(conn, generation_id, state)
    with pytest.raises(ConflictError, match=f"cannot become {forbidden}"):
        registry.set_state(conn, generation_id, forbidden)


def test_what_serves_cannot_be_deleted_and_the_base_never(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)
    live = candidate(conn)
    switch(conn, live)
    for generation_id in (1, live):
        with pytest.raises(ConflictError, match="cannot become deleted"):
            registry.set_state(conn, generation_id, "deleted")


def test_what_failed_after_it_went_live_is_rejected_once_another_one_serves(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)
    live = candidate(conn)
    switch(conn, live)
    with pytest.raises(ConflictError, match="is active and cannot become rejected"):
        registry.set_state(conn, live, "rejected")
    switch(conn, 1)
    registry.set_state(conn, live, "rejected", reason="it repeats itself")
    assert registry.get(conn, live).reason == "it repeats itself"
    with pytest.raises(ConflictError, match="is rejected and cannot become active"):
        switch(conn, live)


def test_scores_are_merged_in_any_state(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)
    live = registry.add(
        conn, parent=1, kind="live", base_sha256=BASE, state="rejected", scores={"gain": 0.25, "kl": 0.5}, reason="far"
    )
    merged = registry.merge_scores(conn, live.id, {"kl": math.inf, "arms": {"base": 2.0}})
    assert (merged.scores, merged.reason) == ({"gain": 0.25, "kl": None, "arms": {"base": 2.0}}, "far")
    registry.delete(conn, live.id)
    assert registry.merge_scores(conn, live.id, {}, "forgotten").reason == "forgotten"
    with pytest.raises(NotFoundError, match="generation 9 is not known"):
        registry.merge_scores(conn, 9, {})


def test_scores_can_be_added_without_a_step(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)
    assert registry.set_state(conn, 1, "active", scores={"tokens_per_s": 97.0}).scores == {"tokens_per_s": 97.0}
    assert registry.set_state(conn, 1, "active", reason="healthy").scores == {"tokens_per_s": 97.0}


def test_activation_retires_the_one_before(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)
    live = candidate(conn)
    assert registry.activate(conn, BASE, live, 1, at=9.0).activated_at == 9.0
    assert states(conn) == ["retired", "active"]


def test_activation_is_a_compare_and_swap(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)
    first, second = candidate(conn), candidate(conn)
    registry.activate(conn, BASE, first, 1)
    with pytest.raises(ConflictError, match=f"generation {first} is active, not 1 as expected"):
        registry.activate(conn, BASE, second, 1)
    with pytest.raises(ConflictError, match=f"generation {first} is active, not none as expected"):
        registry.activate(conn, BASE, second, None)
    assert states(conn) == ["retired", "active", "candidate"]


def test_activating_the_active_one_changes_nothing(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE, at=1.0)
    first = candidate(conn)
    registry.activate(conn, BASE, first, 1, at=2.0)
    assert registry.activate(conn, BASE, first, first, at=3.0).activated_at == 2.0
    assert registry.previous(conn, BASE).id == 1


def test_only_generations_of_this_base_model_can_be_activated(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)
    registry.ensure_base(conn, OTHER)
    with pytest.raises(ConflictError, match="generation 2 belongs to another base model"):
        registry.activate(conn, BASE, 2, 1)
    with pytest.raises(NotFoundError, match="generation 3 is not known"):
        registry.activate(conn, BASE, 3, 1)


def test_the_schema_itself_allows_one_active_generation(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)
    second = candidate(conn)
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        conn.execute("UPDATE generations SET state = 'active' WHERE id = ?", (second,))


def test_rolling_back_twice_goes_two_steps_back(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)  # 1
    for parent in (1, 2):
        switch(conn, candidate(conn, parent))  # 2, 3
    assert registry.previous(conn, BASE).id == 2
    switch(conn, 2)
    assert registry.previous(conn, BASE).id == 1  # not 3
    switch(conn, 1)
    with pytest.raises(ConflictError, match="nothing to roll back to"):
        registry.previous(conn, BASE)
    assert states(conn) == ["active", "retired", "retired"]


def test_going_forward_again_after_a_rollback(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)  # 1
    for parent in (1, 2):
        switch(conn, candidate(conn, parent))  # 2, 3
    switch(conn, 2)
    switch(conn, 3)
    assert registry.previous(conn, BASE).id == 2
    switch(conn, 1)
    switch(conn, 3)  # straight from the base: that is now the step before
    assert registry.previous(conn, BASE).id == 1
    switch(conn, 2)  # not on the way back from 3, so a new step
    assert registry.previous(conn, BASE).id == 3
    switch(conn, candidate(conn, 2))
    assert [registry.previous(conn, BASE).id] == [2]


def test_rollback_passes_over_what_is_gone(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)  # 1
    for parent in (1, 2, 3):
        switch(conn, candidate(conn, parent))  # 2, 3, 4
    registry.set_state(conn, 3, "stale")
    assert registry.previous(conn, BASE).id == 2
    registry.set_state(conn, 2, "rejected")
    assert registry.previous(conn, BASE).id == 1
    registry.delete(conn, 2)
    assert registry.previous(conn, BASE).id == 1


def test_nothing_is_active_before_the_base_is_known(conn: sqlite3.Connection) -> None:
    with pytest.raises(NotFoundError, match="no generation is active for base model aaaaaaaaaaaa"):
        registry.active(conn, BASE)


def test_a_run_from_start_to_end(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, BASE)
    live = candidate(conn)
    run = runs.start_run(conn, "live", 1, at=1.0)
    assert run == runs.Run(1, "live", "running", 1.0, None, 1, None, "", {})
    ended = runs.finish_run(
        conn, run.id, "promoted", generation=live, reason="loss fell", numbers={"loss": 2.0, "x": math.nan}, at=4.0
    )
    assert ended == runs.Run(1, "live", "promoted", 1.0, 4.0, 1, live, "loss fell", {"loss": 2.0, "x": None})
    with pytest.raises(ConflictError, match="training run 1 is already promoted and cannot become failed"):
        runs.finish_run(conn, run.id, "failed")
    assert runs.runs(conn, 10) == [ended]


def test_one_run_at_a_time(conn: sqlite3.Connection) -> None:
    runs.start_run(conn, "live", None)
    with pytest.raises(ConflictError, match="training run 1 is going on"):
        runs.start_run(conn, "baked", None)
    runs.finish_run(conn, 1, "failed")
    assert runs.start_run(conn, "baked", None).id == 2
    assert [run.id for run in runs.runs(conn, 1)] == [2]


def test_unknown_runs_kinds_and_states(conn: sqlite3.Connection) -> None:
    with pytest.raises(NotFoundError, match="training run 7 is not known"):
        runs.finish_run(conn, 7, "failed")
    with pytest.raises(ValueError, match="kind 'base'"):
        runs.start_run(conn, "base", None)
    with pytest.raises(ValueError, match="'running' is not final"):
        runs.finish_run(conn, 7, "running")


def test_what_an_earlier_process_left_running_is_interrupted(conn: sqlite3.Connection) -> None:
    left = registry.add(conn, parent=None, kind="live", base_sha256=BASE)
    kept = candidate(conn)
    runs.start_run(conn, "live", None, at=1.0)
    assert runs.mark_interrupted_runs(conn, at=2.0) == 1
    assert runs.runs(conn, 1) == [runs.Run(1, "live", "interrupted", 1.0, 2.0, None, None, "edgepd stopped", {})]
    assert registry.get(conn, left.id).state == "rejected"
    assert registry.get(conn, kept).state == "candidate"
    assert runs.mark_interrupted_runs(conn) == 0
