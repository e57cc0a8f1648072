from __future__ import annotations

import sqlite3

import pytest

from edgepd_profiles import probes
from edgepd_profiles.probes import Probe


def test_what_was_never_probed_is_not_found(conn: sqlite3.Connection) -> None:
    probes.record(conn, "ab+cd 0.3.36", True)
    assert probes.find(conn, "ab+cd 0.3.37") is None


@pytest.mark.parametrize(("passed", "reason"), [(True, ""), (False, "SIGSEGV")])
def test_a_result_comes_back_as_it_was_recorded(conn: sqlite3.Connection, passed: bool, reason: str) -> None:
    recorded = probes.record(conn, "ab", passed, reason, at=5.0)
    assert recorded == Probe("ab", passed, reason, 5.0)
    found = probes.find(conn, "ab")
    assert found == recorded
    assert found is not None
    assert found.passed is passed  # not 0 or 1, which would be written as a number into JSON


def test_the_last_result_counts_even_after_the_clock_was_set_back(conn: sqlite3.Connection) -> None:
    probes.record(conn, "ab", True, at=9.0)
    probes.record(conn, "ab", False, "no memory", at=3.0)
    assert probes.find(conn, "ab") == Probe("ab", False, "no memory", 3.0)
    assert conn.execute("SELECT count(*) FROM probes").fetchone() == (1,)
