"""Real daemons in which one part is replaced, found alive although they restart."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from edgepd.config import paths
from edgepd_profiles import rescue
from tests.daemon.running import START_SECONDS, TINY_SETTINGS, Daemon, arguments, environment, wait_for

# Daemons with one part replaced; what stands in {} does it.
PROGRAM = """
import os, sys, time
from edgepd_daemon import watching
from edgepd_daemon.__main__ import main
from edgepd_daemon.engine.host import ModelHost
from edgepd_daemon.engine.loop import EngineLoop
from edgepd_profiles.store import Store
{}
main(sys.argv[1:])
"""


class Hacked(Daemon):
    """A daemon whose program is given, in the home as its working directory; found alive although it restarts."""

    def __init__(self, home: Path, models: Path, body: str, **more: str) -> None:
        """Start it and wait until it answers."""
        self.paths = paths(environment(home, models))
        self.log_file = home / "daemon.log"
        command = [sys.executable, "-c", PROGRAM.format(body), *arguments(TINY_SETTINGS)[3:]]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=home,
                env=environment(home, models) | more,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.connect()

    def connect(self) -> None:
        """Wait until it answers."""
        self.client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.paths.socket)), base_url="http://edgepd", timeout=120
        )
        wait_for(self._serves, START_SECONDS)

    def _serves(self) -> bool:
        try:
            return self._answers()
        except httpx.TransportError:
            return False

    def starts(self) -> int:
        """How often it was ready to serve."""
        return self.log.count("edgepd_daemon.service: ready")


@contextmanager
def hacked(home: Path, models: Path, body: str, **more: str) -> Iterator[Hacked]:
    """A daemon with `body` run before its start; `more` goes into its environment. It is gone after the block."""
    daemon = Hacked(home, models, body, **more)
    try:
        yield daemon
    finally:
        daemon.close()


def states(home: Path) -> list[str]:
    """The states of all exchanges in the profile."""
    with rescue.open_profile(home / "data" / "profile.db").store as store, store.read() as conn:
        return [row[0] for row in conn.execute("SELECT state FROM interactions ORDER BY seq")]
