"""What the tests of the daemon share: the tiny model, and one daemon for each module that only asks it things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.running import TINY_SETTINGS, Daemon, install_tiny, running, short_directory


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with nothing but `tiny`."""
    return install_tiny(tmp_path_factory.mktemp("tiny") / "models")


@pytest.fixture(scope="session")
def tiny_model(tiny_models: Path) -> Path:
    """The file of the tiny model."""
    return tiny_models / "tiny.gguf"


@pytest.fixture(scope="module")
def daemon(tiny_models: Path) -> Iterator[Daemon]:
    """A daemon with the tiny model, shared by the tests of a module."""
    with short_directory() as home, running(home, tiny_models, *TINY_SETTINGS) as started:
        yield started
