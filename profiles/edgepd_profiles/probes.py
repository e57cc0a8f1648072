"""What a throw-away child process found when it opened a model or an adapter.

The idea: files are opened by a child first, so that a crash there costs no running answer; the result is kept under a
fingerprint of the files and of the program that opened them, so that nothing is tried twice. The invariant: one
result per fingerprint, the last one.
What this does not do: start the child (the daemon does), or make fingerprints.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass

from edgepd_profiles.rows import fetch


@dataclass(frozen=True)
class Probe:
    """One result. `reason` is empty if it passed; `at` is in unix seconds."""

    fingerprint: str
    passed: bool
    reason: str
    at: float


def record(
    conn: sqlite3.Connection, fingerprint: str, passed: bool, reason: str = "", *, at: float | None = None
) -> Probe:
    """Store a result in place of any earlier one of the same fingerprint."""
    probe = Probe(fingerprint, passed, reason, time.time() if at is None else at)
    conn.execute(
        """
        INSERT INTO probes (fingerprint, passed, reason, at) VALUES (?, ?, ?, ?)
        ON CONFLICT (fingerprint) DO UPDATE SET passed = excluded.passed, reason = excluded.reason, at = excluded.at
        """,
        (probe.fingerprint, int(probe.passed), probe.reason, probe.at),
    )
    return probe


def find(conn: sqlite3.Connection, fingerprint: str) -> Probe | None:
    """Return the result for a fingerprint, or None if it was never probed."""
    rows = fetch(conn, "SELECT * FROM probes WHERE fingerprint = ?", (fingerprint,))
    return Probe(**rows[0] | {"passed": bool(rows[0]["passed"])}) if rows else None
