"""What every test gets: an empty home of its own, and on request the real model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepd.errors import EdgepdError
from edgepd.models import Catalog

# Read once, because the fixture below moves the variable for each test.
INSTALLED_MODELS = Path(os.environ.get("EDGEPD_MODELS_DIR") or Path(__file__).parent.parent / "build" / "models")


@pytest.fixture(autouse=True)
def edgepd_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty EDGEPD_HOME. Not below tmp_path: the path of the socket in it may have 107 bytes only."""
    home = Path(tempfile.mkdtemp(prefix="edgepd-", dir="/tmp"))
    monkeypatch.setenv("EDGEPD_HOME", str(home))
    monkeypatch.setenv("EDGEPD_MODELS_DIR", str(home / "models"))
    yield home
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The real SmolLM2-135M-Instruct file, which `make test` installs."""
    try:
        return Catalog(INSTALLED_MODELS).find("smollm2-135m-instruct-q4_1").path
    except EdgepdError as error:
        pytest.fail(f"this test needs the real model; run `make test` or `edgepd model add default` ({error})")
