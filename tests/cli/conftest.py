"""A home of its own for each test, a fake daemon in it, and `edgepd` as a function."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from click.testing import CliRunner, Result

from edgepd.cli import main
from tests.cli.fake_daemon import FakeDaemon


class Edgepd(Protocol):
    """Runs a command line and returns its exit code and output."""

    def __call__(self, *args: str, stdin: str | bytes | None = None) -> Result: ...


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="edgepd-"))  # tmp_path can be too long for a socket
    monkeypatch.setenv("EDGEPD_HOME", str(directory))
    monkeypatch.delenv("EDGEPD_MODELS_DIR", raising=False)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def daemon(home: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(home / "run" / "edgepd.sock") as running:
        yield running


@pytest.fixture
def edgepd(home: Path) -> Edgepd:
    def run(*args: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(main, args, input=stdin, catch_exceptions=False)

    return run
