"""docs/clients.md: every example in it runs as it stands, against a daemon with a tiny model.

Only the port is another one, so that tests can run beside a daemon.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.running import TINY_SETTINGS, Daemon, install_tiny, running, short_directory

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
EXAMPLES = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
PORT = "11500"


def examples(*languages: str) -> list[object]:
    found = [(language, text) for language, text in EXAMPLES if language in languages]
    return [pytest.param(*example, id=f"{example[0]}{number}") for number, example in enumerate(found, 1)]


@pytest.fixture(scope="module")
def port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def daemon(port: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    models = install_tiny(tmp_path_factory.mktemp("models") / "models")
    with short_directory() as home, running(home, models, *TINY_SETTINGS, f"serve.tcp_port={port}") as started:
        yield started


@pytest.fixture
def environment(daemon: Daemon, tmp_path: Path) -> dict[str, str]:
    """What a user's programs find: the runtime directory, and the commands of this virtual environment."""
    (tmp_path / "edgepd").symlink_to(daemon.paths.runtime_dir)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"XDG_RUNTIME_DIR": str(tmp_path), "PATH": path, "HOME": str(tmp_path), "LLM_USER_PATH": str(tmp_path)}


@pytest.mark.parametrize(("language", "text"), examples("python", "sh"))
def test_example(daemon: Daemon, port: str, environment: dict[str, str], language: str, text: str) -> None:
    interpreter = [sys.executable, "-c"] if language == "python" else ["bash", "-euc"]
    command = [*interpreter, text.replace(PORT, port)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert '"error"' not in done.stdout


@pytest.mark.parametrize(("language", "text"), examples("toml"))
def test_settings(language: str, text: str) -> None:
    assert tomllib.loads(text) == {"serve": {"tcp_port": int(PORT)}}


def test_every_example_is_run() -> None:
    assert {language for language, _ in EXAMPLES} == {"python", "sh", "toml"}
    assert PAGE.read_text(encoding="utf-8").count("\n```\n") == len(EXAMPLES)


def test_feedback_was_kept(daemon: Daemon, port: str, environment: dict[str, str]) -> None:
    (text,) = [text for _, text in EXAMPLES if "/edgepd/v1/feedback" in text]
    before = daemon.get("/edgepd/v1/status")["profile"]["edit"]
    subprocess.run([sys.executable, "-c", text], env=environment, check=True, capture_output=True, timeout=120)
    assert daemon.get("/edgepd/v1/status")["profile"]["edit"] == before + 1
