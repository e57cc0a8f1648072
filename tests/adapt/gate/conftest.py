"""A tiny base and an adapter for it, for all tests of the gate."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepd_quant.types import GGMLType
from tests.daemon.adapters import random_lora
from tests.tiny_gguf import tiny_llama


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    return tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", qtype=GGMLType.Q4_1, seed=1)


@pytest.fixture(scope="session")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the base says; tests copy it before they change it."""
    return random_lora(tmp_path_factory.mktemp("adapter") / "a.gguf", base, seed=1, deviation=0.3)
