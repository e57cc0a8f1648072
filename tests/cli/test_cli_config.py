"""`edgepd config`: the settings, and where they come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgepd.config import declarations
from tests.cli.conftest import Edgepd


def test_show_lists_every_setting(edgepd: Edgepd) -> None:
    result = edgepd("config", "show")
    assert result.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert list(lines) == list(declarations())
    assert (lines["serve.max_queue"], lines["serve.keep_alive"], lines["serve.preload"]) == ("32", '"5m"', "false")


def test_show_origin(edgepd: Edgepd, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "config.toml").write_text("[serve]\nmax_queue = 5\nthreads = 3\n")
    monkeypatch.setenv("EDGEPD_SERVE_THREADS", "1")
    rows = [line.split(maxsplit=2) for line in edgepd("config", "show", "--origin").stdout.splitlines()]
    assert ["serve.max_queue", "5", str(home / "config.toml")] in rows
    assert ["serve.threads", "1", "environment"] in rows
    assert ["serve.slots", "4", "default"] in rows
    found = json.loads(edgepd("config", "show", "--json").stdout)
    assert found["config_file"] == str(home / "config.toml")
    assert (found["settings"]["serve.threads"], found["origins"]["serve.threads"]) == (1, "environment")


def test_show_refuses_an_unknown_setting(edgepd: Edgepd, home: Path) -> None:
    (home / "config.toml").write_text("[serve]\nthreds = 3\n")
    result = edgepd("config", "show")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean 'serve.threads'?" in result.stderr
