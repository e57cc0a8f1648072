from __future__ import annotations

import sqlite3

import pytest

from edgepd.errors import NotFoundError
from edgepd_profiles import health, registry
from edgepd_profiles.health import Fallback

BASE = "a" * 64
OTHER = "b" * 64


def candidate(conn: sqlite3.Connection, base: str = BASE) -> int:
    return registry.add(
        conn, parent=None, kind="live", base_sha256=base, state="candidate", adapter_file="adapter.gguf"
    ).id


def switch(conn: sqlite3.Connection, generation_id: int, base: str = BASE) -> int:
    return registry.activate(conn, base, generation_id, registry.active(conn, base).id).id


def boot(conn: sqlite3.Connection, base: str = BASE) -> tuple[Fallback | None, int]:
    """Start as the daemon does, and load what is active; a boot before it that was not ended has been unclean."""
    registry.ensure_base(conn, base)
    fallback = health.at_boot(conn, base)
    number = health.booted(conn, base, registry.active(conn, base).id)
    health.loading(conn, number)
    return fallback, number


def test_a_boot_in_which_nothing_was_loaded_is_nobodys_fault(conn: sqlite3.Connection, live: int) -> None:
    for _ in range(5):
        assert health.at_boot(conn, BASE) is None
        health.booted(conn, BASE, live)
    assert strikes(conn, live) == 0


def answer(conn: sqlite3.Connection, generation_id: int, times: int = 1) -> list[bool]:
    return [health.answered(conn, generation_id) for _ in range(times)]


def strikes(conn: sqlite3.Connection, generation_id: int) -> int:
    return registry.get(conn, generation_id).strikes


@pytest.fixture
def live(conn: sqlite3.Connection) -> int:
    """The base is generation 1; generation 2 has just gone live, and no daemon runs."""
    registry.ensure_base(conn, BASE)
    return switch(conn, candidate(conn))


def test_a_new_generation_is_pending_until_three_answers_came_to_their_end(conn: sqlite3.Connection, live: int) -> None:
    assert registry.get(conn, live).pending
    assert [health.answered(conn, live, at=at) for at in (1.0, 2.0, 3.0)] == [True, True, False]
    confirmed = registry.get(conn, live)
    assert (confirmed.healthy, confirmed.confirmed_at, confirmed.pending) == (3, 3.0, False)
    assert not health.answered(conn, live, at=4.0)
    assert registry.get(conn, live) == confirmed


def test_what_was_confirmed_once_stays_so_and_the_rest_begins_anew(conn: sqlite3.Connection, live: int) -> None:
    answer(conn, live, 2)
    second = switch(conn, candidate(conn))
    answer(conn, second, 3)
    switch(conn, live)
    again = registry.get(conn, live)
    assert (again.pending, again.healthy) == (True, 0)
    switch(conn, second)
    again = registry.get(conn, second)
    assert (again.pending, again.healthy) == (False, 3)


def test_only_what_serves_is_pending(conn: sqlite3.Connection, live: int) -> None:
    switch(conn, 1)
    assert [g.pending for g in (*registry.listing(conn, BASE), registry.get(conn, candidate(conn)))] == [False] * 3


def test_answers_of_what_does_not_serve_confirm_nothing(conn: sqlite3.Connection, live: int) -> None:
    other = candidate(conn)
    assert answer(conn, other, 3) == [True] * 3
    answer(conn, live, 3)
    switch(conn, 1)
    assert registry.get(conn, other).healthy == 0
    assert answer(conn, live) == [False]
    assert answer(conn, 1) == [False]
    with pytest.raises(NotFoundError, match="generation 9 is not known"):
        health.answered(conn, 9)


def test_the_first_boot_and_one_after_a_clean_stop_strike_nobody(conn: sqlite3.Connection, live: int) -> None:
    fallback, boot_id = boot(conn)
    assert fallback is None
    health.ended(conn, boot_id, at=5.0)
    assert conn.execute("SELECT state, ended_at FROM boots").fetchall() == [("ended", 5.0)]
    assert boot(conn)[0] is None
    assert strikes(conn, live) == 0


def test_the_second_unclean_exit_makes_the_base_active(conn: sqlite3.Connection, live: int) -> None:
    boot(conn)
    assert boot(conn)[0] is None
    assert strikes(conn, live) == 1
    reason = "withdrawn after 2 unclean exits of edgepd in which it had not finished an answer"
    assert boot(conn)[0] == Fallback(live, 1, reason)
    struck = registry.get(conn, live)
    assert (struck.state, struck.reason) == ("retired", reason)
    assert registry.active(conn, BASE).id == 1
    for _ in range(3):  # there is nothing below the base
        assert boot(conn)[0] is None
    assert strikes(conn, 1) == 0


def test_an_unclean_exit_is_counted_once(conn: sqlite3.Connection, live: int) -> None:
    """The daemon may die again between at_boot and booted, or be asked twice."""
    boot(conn)
    for _ in range(3):
        assert health.at_boot(conn, BASE) is None
    assert strikes(conn, live) == 1


def test_the_fallback_goes_to_the_last_confirmed_one(conn: sqlite3.Connection, live: int) -> None:
    answer(conn, live, 3)
    unproven = switch(conn, candidate(conn))
    newest = switch(conn, candidate(conn))
    for _ in range(2):
        assert boot(conn)[0] is None
    fallback, _ = boot(conn)
    assert fallback is not None
    assert (fallback.from_id, fallback.to_id) == (newest, live)
    assert registry.get(conn, unproven).state == "retired"
    assert registry.previous(conn, BASE).id == 1  # not the one that was withdrawn


@pytest.mark.parametrize("gone", ["rejected", "stale", "deleted"])
def test_the_fallback_passes_over_what_cannot_serve(conn: sqlite3.Connection, live: int, gone: str) -> None:
    answer(conn, live, 3)
    better = switch(conn, candidate(conn))
    answer(conn, better, 3)
    switch(conn, candidate(conn))
    registry.set_state(conn, better, gone)
    fallbacks = [boot(conn)[0] for _ in range(3)]
    assert [f.to_id for f in fallbacks if f] == [live]
    registry.set_state(conn, 4, "stale")
    fallbacks = [boot(conn)[0] for _ in range(2)]  # the third boot above runs on
    assert [f.to_id for f in fallbacks if f] == [1]


def test_a_confirmed_one_falls_back_too_when_it_answers_nothing_any_more(conn: sqlite3.Connection, live: int) -> None:
    answer(conn, live, 3)
    fallbacks = [boot(conn)[0] for _ in range(3)]
    assert [f.to_id for f in fallbacks if f] == [1]
    assert registry.get(conn, live).confirmed_at is not None


@pytest.mark.parametrize("proven", [0, 3])
def test_a_finished_answer_wipes_out_the_strikes(conn: sqlite3.Connection, live: int, proven: int) -> None:
    answer(conn, live, proven)
    boot(conn)
    boot(conn)
    assert strikes(conn, live) == 1
    answer(conn, live)
    assert strikes(conn, live) == 0


def test_a_power_cut_after_an_answer_is_not_counted(conn: sqlite3.Connection, live: int) -> None:
    for _ in range(5):
        fallback, _ = boot(conn)
        assert fallback is None
        answer(conn, live)
    assert boot(conn)[0] is None
    assert strikes(conn, live) == 0
    assert boot(conn)[0] is None  # the sixth boot had no answer
    assert strikes(conn, live) == 1


def test_three_answers_with_an_unclean_exit_in_between_confirm_nothing(conn: sqlite3.Connection, live: int) -> None:
    for _ in range(3):
        boot(conn)
        answer(conn, live)
    assert registry.get(conn, live).pending
    assert answer(conn, live, 2) == [True, False]


def test_the_strike_is_for_what_was_active_at_the_end(conn: sqlite3.Connection, live: int) -> None:
    boot(conn)
    boot(conn)
    newer = switch(conn, candidate(conn))  # goes live while the daemon runs
    assert boot(conn)[0] is None
    assert (strikes(conn, live), strikes(conn, newer)) == (1, 1)
    fallback, _ = boot(conn)
    assert fallback is not None
    assert (fallback.from_id, fallback.to_id) == (newer, 1)  # `live` was never confirmed


def test_the_answers_of_another_one_excuse_nobody(conn: sqlite3.Connection, live: int) -> None:
    boot(conn)
    answer(conn, live)
    newer = switch(conn, candidate(conn))
    answer(conn, live)  # one that was running
    boot(conn)
    assert strikes(conn, newer) == 1


def test_a_choice_between_two_unclean_exits_begins_anew(conn: sqlite3.Connection, live: int) -> None:
    boot(conn)
    boot(conn)
    switch(conn, 1)
    switch(conn, live)
    assert strikes(conn, live) == 0
    assert boot(conn)[0] is None
    assert strikes(conn, live) == 1


def test_a_switch_made_while_no_daemon_ran_keeps_the_strike_off_the_new_one(
    conn: sqlite3.Connection, live: int
) -> None:
    boot(conn)
    boot(conn)
    conn.execute("UPDATE generations SET state = 'retired' WHERE id = ?", (live,))
    conn.execute("UPDATE generations SET state = 'active' WHERE id = 1")
    assert boot(conn)[0] is None
    assert (strikes(conn, live), strikes(conn, 1)) == (2, 0)
    assert registry.active(conn, BASE).id == 1


def test_each_base_model_has_boots_of_its_own(conn: sqlite3.Connection, live: int) -> None:
    boot(conn)
    registry.ensure_base(conn, OTHER)
    other = switch(conn, candidate(conn, OTHER), OTHER)
    for _ in range(2):
        assert boot(conn, OTHER)[0] is None
    assert (strikes(conn, live), strikes(conn, other)) == (0, 1)
    assert boot(conn)[0] is None  # now the boot of the first base is looked at
    assert (strikes(conn, live), strikes(conn, other)) == (1, 1)


def test_a_clock_that_was_set_back_changes_nothing(conn: sqlite3.Connection, live: int) -> None:
    for at in (100.0, 50.0):
        assert health.at_boot(conn, BASE, at=at) is None
        health.loading(conn, health.booted(conn, BASE, live, at=at))
    fallback = health.at_boot(conn, BASE, at=10.0)
    assert fallback is not None
    assert fallback.to_id == 1
    assert registry.active(conn, BASE).activated_at == 10.0


def test_the_last_hundred_boots_are_kept_and_one_that_is_not_settled(conn: sqlite3.Connection, live: int) -> None:
    boot(conn)
    for _ in range(150):
        health.ended(conn, boot(conn, OTHER)[1])
    ids = [boot_id for (boot_id,) in conn.execute("SELECT id FROM boots ORDER BY id")]
    assert ids == [1, *range(52, 152)]
    assert boot(conn)[0] is None
    assert strikes(conn, live) == 1
    assert [boot_id for (boot_id,) in conn.execute("SELECT id FROM boots ORDER BY id")] == list(range(53, 153))


def test_a_boot_ends_once(conn: sqlite3.Connection, live: int) -> None:
    _, boot_id = boot(conn)
    health.at_boot(conn, BASE)
    health.ended(conn, boot_id)
    assert conn.execute("SELECT state, ended_at FROM boots").fetchall() == [("crashed", None)]
