"""docs/intent.md: its commands and requests run as they stand, in order, against a daemon with a tiny model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepd.config import declarations
from tests.daemon.running import TINY_SETTINGS, Daemon, install_tiny, running, short_directory

TEXT = (Path(__file__).parents[2] / "docs" / "intent.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    models = install_tiny(tmp_path_factory.mktemp("models") / "models")
    with short_directory() as home, running(home, models, *TINY_SETTINGS) as started:
        yield started


def test_examples(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "edgepd").symlink_to(daemon.paths.runtime_dir)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "PATH": path, "HOME": str(tmp_path)}
    environment |= {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
    assert len(EXAMPLES) == 3
    for example in EXAMPLES:
        command = ["bash", "-euc", example]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr if "curl" not in example else "") == (0, ""), done.stderr
        assert '"error"' not in done.stdout
    stored = {(event["event"], event["intent"]) for event in daemon.get("/edgepd/v1/events")["events"]}
    assert stored == {("cafe", "food"), ("train", "train")}
    for path in ("/edgepd/v1/status", "/edgepd/v1/activity"):
        told = daemon.get(path)["prediction"]
        assert (told["enabled"], told["tuned_at"], told["events"]) == (True, None, 3)


def test_settings_that_are_named_exist() -> None:
    named = set(re.findall(r"`(intent\.\w+|keep\.\w+)", TEXT))
    assert {"intent.enabled", "intent.warm", "intent.window_hours"} <= named <= set(declarations())
