from __future__ import annotations

import sqlite3

from edgepd_profiles import decisions
from edgepd_profiles.decisions import Noted


def test_only_changes_are_kept(conn: sqlite3.Connection) -> None:
    assert decisions.newest(conn, 5) == []
    assert decisions.note(conn, 1.0, "wait", None, "idle", "the last question was 10 s ago")
    assert not decisions.note(conn, 2.0, "wait", None, "idle", "the last question was 11 s ago")
    assert decisions.note(conn, 3.0, "wait", None, "battery", "the battery is at 20 %")
    assert decisions.note(conn, 4.0, "wait", "live", "battery", "the battery is at 20 %")
    assert decisions.note(conn, 5.0, "start", "live", "", "3 corrections are new")
    assert decisions.note(conn, 6.0, "wait", "live", "battery", "the battery is at 19 %")
    assert decisions.newest(conn, 3) == [
        Noted(5, 6.0, "wait", "live", "battery", "the battery is at 19 %"),
        Noted(4, 5.0, "start", "live", "", "3 corrections are new"),
        Noted(3, 4.0, "wait", "live", "battery", "the battery is at 20 %"),
    ]
    assert [noted.reason for noted in decisions.newest(conn, 9)][-1] == "the last question was 10 s ago"


def test_a_clock_that_is_set_back_does_not_change_the_order(conn: sqlite3.Connection) -> None:
    decisions.note(conn, 900.0, "wait", None, "idle", "first")
    decisions.note(conn, 5.0, "start", None, "", "second")
    assert not decisions.note(conn, 6.0, "start", None, "", "third")
    assert [noted.reason for noted in decisions.newest(conn, 9)] == ["second", "first"]


def test_the_newest_thousand_are_kept(conn: sqlite3.Connection) -> None:
    for n in range(1500):
        decisions.note(conn, float(n), "pause" if n % 2 else "go on", "live", "", str(n))
    kept = decisions.newest(conn, 9999)
    assert [noted.reason for noted in kept] == [str(n) for n in range(1499, 499, -1)]
