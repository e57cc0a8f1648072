"""The command line beside a real daemon, with a tiny model: from the first question to the stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Edgepd
from tests.daemon.running import TINY_SETTINGS, Daemon, install_tiny, wait_for


@pytest.fixture
def started(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    models = install_tiny(tmp_path / "models")
    monkeypatch.setenv("EDGEPD_MODELS_DIR", str(models))
    daemon = Daemon(home, models, *TINY_SETTINGS)
    yield daemon
    daemon.close()


def lines(text: str) -> dict[str, str]:
    return dict(line.split("  ", 1) for line in text.splitlines() if "  " in line)


def test_a_session(started: Daemon, edgepd: Edgepd, home: Path) -> None:
    before = lines(edgepd("status").stdout)
    assert before["engine"].strip() == "no model loaded; the next request loads it; threads: 1, slots: 2"
    assert "in memory" not in before

    answer = edgepd("ask", "--max-tokens", "4", "hello")
    assert (answer.exit_code, answer.stderr) == (0, "")
    after = lines(edgepd("status").stdout)
    assert after["engine"].strip() == "ready; threads: 1, slots: 2"
    assert after["in memory"].strip().startswith("tiny.gguf, 0 MiB, for ")
    assert after["tokens"].strip().startswith("4 generated")
    assert edgepd("chat", stdin="/stats\n").exit_code == 2  # asked nothing yet, but the daemon was found

    (home / "config.toml").write_text("[serve]\nmax_queue = 7\n[log]\ninteractions = false\n[train]\nrank = 4\n")
    assert edgepd("daemon", "reload").stdout == "applied: serve.max_queue, train.rank, log.interactions\n"
    assert edgepd("daemon", "reload").stdout == "nothing has changed\n"
    (home / "config.toml").write_text("[serve]\nmax_queue = 7\nkv_type = 'q8_0'\n")
    done = json.loads(edgepd("daemon", "reload", "--json").stdout)
    assert done == {"applied": ["train.rank", "log.interactions"], "needs_restart": ["serve.kv_type"]}
    assert edgepd("status").stdout.splitlines()[-1] == (
        "Problem: changed in the settings, but not in effect until the daemon is restarted: serve.kv_type"
    )
    (home / "config.toml").write_text("[serve]\nmax_queue = 0\n")
    refused = edgepd("daemon", "reload")
    assert refused.exit_code == 2
    assert "serve.max_queue" in refused.stderr
    assert started.get("/edgepd/v1/status")["needs_restart"] == ["serve.kv_type"]

    assert edgepd("daemon", "stop").stdout == f"the daemon (pid {started.process.pid}) has stopped\n"
    assert wait_for(lambda: started.process.poll() is not None)
    assert started.process.returncode == 0
    assert edgepd("status").exit_code == 3
