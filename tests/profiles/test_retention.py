from __future__ import annotations

import sqlite3

import pytest

from edgepd.errors import ConflictError, NotFoundError
from edgepd_profiles import health, registry, runs

BASE = "a" * 64
OTHER = "b" * 64


def live(conn: sqlite3.Connection, name: str, model_file: str | None = None, *, state: str = "candidate") -> int:
    return registry.add(
        conn, parent=None, kind="live", base_sha256=BASE, state=state, adapter_file=name, model_file=model_file
    ).id


def baked(conn: sqlite3.Connection, name: str) -> int:
    return registry.add(conn, parent=None, kind="baked", base_sha256=BASE, state="candidate", model_file=name).id


def switch(conn: sqlite3.Connection, generation_id: int, *, at: float | None = None) -> None:
    registry.activate(conn, BASE, generation_id, registry.active(conn, BASE).id, at=at)


def serve_in_turn(conn: sqlite3.Connection, count: int) -> None:
    """Make 1 the base and let 2, 3, ... be active one after the other; the last one stays active."""
    registry.ensure_base(conn, BASE)
    for number in range(2, count + 2):
        switch(conn, live(conn, f"{number}.gguf"))


def expendable(conn: sqlite3.Connection, keep: int) -> list[int]:
    return [generation.id for generation in registry.expendable(conn, BASE, keep)]


def confirm(conn: sqlite3.Connection, generation_id: int) -> None:
    while health.answered(conn, generation_id):
        pass


def test_a_candidate_can_be_deleted_once(conn: sqlite3.Connection) -> None:
    made = live(conn, "a.gguf")
    assert registry.file_names(conn) == {"a.gguf"}
    assert registry.delete(conn, made).state == "deleted"
    assert registry.file_names(conn) == set()
    with pytest.raises(ConflictError, match=f"generation {made} is deleted already"):
        registry.delete(conn, made)
    with pytest.raises(NotFoundError, match="generation 9 is not known"):
        registry.delete(conn, 9)


def test_neither_the_base_nor_what_serves_can_be_deleted(conn: sqlite3.Connection) -> None:
    serve_in_turn(conn, 1)
    with pytest.raises(ConflictError, match="1 cannot become deleted: it is the base model itself"):
        registry.delete(conn, 1)
    with pytest.raises(ConflictError, match="2 cannot become deleted: it serves now; go to another one"):
        registry.delete(conn, 2)
    switch(conn, 1)
    assert registry.delete(conn, 2).state == "deleted"


def test_a_pinned_one_is_kept_until_it_is_unpinned(conn: sqlite3.Connection) -> None:
    made = live(conn, "a.gguf")
    assert registry.pin(conn, made, True).pinned is True
    with pytest.raises(ConflictError, match=f"it is pinned; unpin it first with `edgepd adapters unpin {made}`"):
        registry.delete(conn, made)
    with pytest.raises(ConflictError, match="it is pinned"):
        registry.set_state(conn, made, "deleted")
    assert registry.pin(conn, made, False).pinned is False
    assert registry.delete(conn, made).state == "deleted"


def test_a_pinned_one_keeps_its_files_when_it_is_rejected_later(conn: sqlite3.Connection) -> None:
    kept, gone = live(conn, "kept.gguf"), live(conn, "gone.gguf")
    registry.pin(conn, kept, True)
    for generation_id in (kept, gone):
        registry.set_state(conn, generation_id, "rejected")
    assert registry.file_names(conn) == {"kept.gguf"}
    with pytest.raises(ConflictError, match=f"generation {gone} is rejected and its files may be gone"):
        registry.pin(conn, gone, True)
    assert registry.pin(conn, kept, False).state == "rejected"
    assert registry.file_names(conn) == set()


def test_a_stale_one_has_no_claim_to_its_files_even_if_it_was_pinned(conn: sqlite3.Connection) -> None:
    made = live(conn, "a.gguf")
    registry.pin(conn, made, True)
    stale = registry.set_state(conn, made, "stale", reason="forgotten")
    assert (stale.state, stale.pinned, stale.adapter_file) == ("stale", False, "a.gguf")
    assert registry.file_names(conn) == set()
    with pytest.raises(ConflictError, match=f"generation {made} is stale and its files may be gone"):
        registry.pin(conn, made, True)
    assert registry.delete(conn, made).state == "deleted"


@pytest.mark.parametrize("state", ["training", "candidate", "active", "retired"])
def test_a_model_file_that_a_live_adapter_stands_on_is_kept(conn: sqlite3.Connection, state: str) -> None:
    registry.ensure_base(conn, BASE)
    model = baked(conn, "m.gguf")
    switch(conn, model)
    adapter = live(conn, "a.gguf", "m.gguf", state="training" if state == "training" else "candidate")
    if state in ("active", "retired"):
        switch(conn, adapter)
    if state != "active":
        switch(conn, 1)
    with pytest.raises(ConflictError, match=f"its model file is needed by generation {adapter}; delete what"):
        registry.delete(conn, model)
    if state != "active":
        registry.delete(conn, adapter)
        registry.delete(conn, model)
        assert registry.file_names(conn) == set()


def test_what_cannot_serve_any_more_needs_no_model_file(conn: sqlite3.Connection) -> None:
    model = baked(conn, "m.gguf")
    registry.set_state(conn, live(conn, "a.gguf", "m.gguf"), "rejected")
    assert registry.delete(conn, model).state == "deleted"


def test_a_rejected_model_leaves_its_file_to_the_adapters_on_it(conn: sqlite3.Connection) -> None:
    model = baked(conn, "m.gguf")
    live(conn, "a.gguf", "m.gguf")
    registry.set_state(conn, model, "rejected")
    assert registry.file_names(conn) == {"a.gguf", "m.gguf"}


def test_what_a_training_run_goes_on_from_is_kept_to_its_end(conn: sqlite3.Connection) -> None:
    serve_in_turn(conn, 1)
    run = runs.start_run(conn, "live", 2)
    switch(conn, 1)
    assert expendable(conn, 0) == []
    with pytest.raises(ConflictError, match="training run 1 goes on from it; wait for its end"):
        registry.delete(conn, 2)
    runs.finish_run(conn, run.id, "failed")
    assert expendable(conn, 0) == [2]


def test_the_oldest_retired_ones_are_expendable_but_the_way_back_is_not(conn: sqlite3.Connection) -> None:
    serve_in_turn(conn, 6)  # 7 is active, 6 what a rollback goes to
    assert expendable(conn, 0) == [2, 3, 4, 5]
    assert expendable(conn, 1) == [2, 3, 4]
    assert expendable(conn, 4) == []
    assert expendable(conn, 100) == []


def test_what_served_last_is_kept_longest_whatever_the_clock_says(conn: sqlite3.Connection) -> None:
    serve_in_turn(conn, 4)  # 5 is active
    switch(conn, 2, at=1.0)
    switch(conn, 1)
    assert expendable(conn, 1) == [3, 4, 5]  # 2 served last
    assert expendable(conn, 2) == [3, 4]


def test_nothing_is_expendable_that_a_fallback_may_go_to(conn: sqlite3.Connection) -> None:
    serve_in_turn(conn, 2)  # 3 is active
    confirm(conn, 3)
    for number in (4, 5, 6):
        switch(conn, live(conn, f"{number}.gguf"))
    assert registry.last_confirmed(conn, registry.get(conn, 6)).id == 3
    assert expendable(conn, 0) == [2, 4]


def test_pinned_needed_and_other_ones_are_not_expendable(conn: sqlite3.Connection) -> None:
    registry.ensure_base(conn, OTHER)
    registry.ensure_base(conn, BASE)  # 2
    model = baked(conn, "m.gguf")  # 3
    switch(conn, model)
    adapter = live(conn, "a.gguf", "m.gguf")  # 4
    for generation_id in (adapter, live(conn, "b.gguf"), live(conn, "c.gguf"), 2):  # 5, 6
        switch(conn, generation_id)
    live(conn, "candidate.gguf")
    registry.pin(conn, 5, True)
    assert expendable(conn, 0) == [4, 6]
    registry.delete(conn, adapter)
    assert expendable(conn, 0) == [3, 6]
    with pytest.raises(ValueError, match="cannot keep -1"):
        registry.expendable(conn, BASE, -1)


def test_before_the_base_is_known_nothing_is_expendable(conn: sqlite3.Connection) -> None:
    assert registry.expendable(conn, BASE, 0) == []
