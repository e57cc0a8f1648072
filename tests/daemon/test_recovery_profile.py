"""Damage of the profile, met at the start or while it is open: the daemon serves, and what happened is told."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from edgepd_profiles import rescue
from tests.daemon.hacked import hacked, states
from tests.daemon.running import START_SECONDS, TINY_SETTINGS, running, wait_for

CORRUPT = """
import sqlite3
write = Store.write
def fail(self, job):
    def corrupt(conn):
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
        raise error
    if not os.path.exists("spoilt"):
        return write(self, job)
    os.remove("spoilt")
    return write(self, corrupt)
Store.write = fail
"""


def test_damage_that_is_met_leads_to_a_start_that_mends(edgepd_home: Path, tiny_models: Path) -> None:
    with hacked(edgepd_home, tiny_models, CORRUPT) as daemon:
        daemon.chat("Hi", max_tokens=2)
        (edgepd_home / "spoilt").touch()
        assert daemon.chat("Hi", max_tokens=2)["choices"]  # answered, although it cannot be stored
        wait_for(lambda: daemon.starts() == 2, START_SECONDS)
        daemon.client.close()
        daemon.connect()
        daemon.chat("Hi", max_tokens=2)
        assert "the daemon ends: the profile is damaged" in daemon.log
        assert daemon.stop() == 0
    assert states(edgepd_home).count("done") >= 2


def test_a_spoilt_profile_does_not_keep_the_daemon_from_starting(edgepd_home: Path, tiny_models: Path) -> None:
    profile = edgepd_home / "data" / "profile.db"
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as daemon:
        kept = daemon.chat("Hello", max_tokens=2)["interaction_id"]
        daemon.post("/edgepd/v1/backup", {})
        daemon.stop()
    with profile.open("r+b") as file:
        file.write(b"no database")
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as daemon:
        assert daemon.get(f"/edgepd/v1/interactions/{kept}")
        daemon.chat("Hello", max_tokens=2)
        [problem] = daemon.get("/edgepd/v1/status")["problems"]
        assert "the profile was found damaged" in problem
        for damaged in rescue.damaged_files(profile):
            damaged.unlink()
        assert daemon.get("/edgepd/v1/status")["problems"] == []


def test_the_wal_of_a_killed_daemon_is_read(edgepd_home: Path, tiny_models: Path) -> None:
    with running(edgepd_home, tiny_models, *TINY_SETTINGS) as daemon:
        daemon.chat("Hello", max_tokens=2)
        daemon.kill()
    assert states(edgepd_home) == ["done"]
    with closing(sqlite3.connect(edgepd_home / "data" / "profile.db")) as conn:
        assert conn.execute("PRAGMA quick_check").fetchone() == ("ok",)
