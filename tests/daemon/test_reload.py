"""Settings that are read again: what is applied at once, what waits, and what changes nothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgepd import config
from edgepd.config import declarations
from edgepd.errors import ConfigError
from edgepd.settings import Settings
from edgepd_daemon.cores import physical_cores
from edgepd_daemon.reload import CHANGEABLE, Reloaded, changeable, keep_alive_seconds, reload


class Engine:
    """What a reload changes in the engine."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        self.max_queue = 32

    def set_threads(self, threads: int) -> None:
        self.calls.append(("threads", threads))

    def set_keep_alive(self, seconds: float) -> None:
        self.calls.append(("keep_alive", seconds))


class Running:
    """A daemon as far as a reload sees it, and its config.toml."""

    def __init__(self, directory: Path, **overrides: str) -> None:
        self.file = directory / "config.toml"
        self.services: Any = SimpleNamespace(
            settings=Settings(),
            load_settings=lambda: config.load(self.file, {}, overrides),
            engine=Engine(),
            recorder=SimpleNamespace(enabled=True),
            generations=SimpleNamespace(keep_retired=0),
            trainer=SimpleNamespace(settings=Settings()),
            forgetter=SimpleNamespace(backups=2),
            needs_restart=(),
            supervisor=SimpleNamespace(look_soon=lambda: self.told.append(self.services.settings)),
        )
        self.told: list[Settings] = []  # the settings in effect when the supervisor was told of others

    def reload(self, text: str) -> Reloaded:
        self.file.write_text(text)
        return reload(self.services)


@pytest.fixture
def daemon(tmp_path: Path) -> Running:
    return Running(tmp_path)


@pytest.fixture(autouse=True)
def root_level() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


def test_nothing_has_changed(daemon: Running) -> None:
    assert daemon.reload("") == Reloaded([], [])
    assert daemon.services.engine.calls == []


def test_what_can_change_is_applied(daemon: Running) -> None:
    done = daemon.reload(
        '[serve]\nthreads = 3\nmax_tokens = 7\nmax_queue = 5\nkeep_alive = "1h"\nmax_body_bytes = 2048\n'
        '[train]\nrank = 4\n[gate]\nmin_kept_gain = 0.5\n[log]\nlevel = "error"\ninteractions = false\n'
        "[keep]\nbackups = 4\n"
    )
    assert set(done.applied) == {
        *("serve.threads", "serve.max_tokens", "serve.max_queue", "serve.keep_alive", "serve.max_body_bytes"),
        *("train.rank", "gate.min_kept_gain", "log.level", "log.interactions"),
        "keep.backups",
    }
    assert done.needs_restart == []
    services = daemon.services
    assert services.engine.calls == [("threads", 3), ("keep_alive", 3600.0)]
    assert services.engine.max_queue == 5
    assert services.settings.serve.max_tokens == 7
    assert services.settings.origins["serve.max_tokens"] == str(daemon.file)
    assert services.trainer.settings.train.rank == 4
    assert services.trainer.settings.gate.min_kept_gain == 0.5
    assert services.recorder.enabled is False
    assert services.forgetter.backups == 4
    assert logging.getLogger().level == logging.ERROR


def test_going_back_to_a_default_is_a_change(daemon: Running) -> None:
    daemon.reload("[serve]\nthreads = 3\nmax_tokens = 7\n")
    assert daemon.reload("").applied == ["serve.threads", "serve.max_tokens"]
    assert daemon.services.engine.calls == [("threads", 3), ("threads", physical_cores())]
    assert daemon.services.settings == Settings()


def test_what_needs_a_restart_is_named_and_stays_as_it_was(daemon: Running) -> None:
    text = "[serve]\nslots = 8\ntcp_port = 4000\nmax_tokens = 7\n"
    for _ in range(2):  # it is still so at the second time
        done = daemon.reload(text)
        assert done.needs_restart == ["serve.slots", "serve.tcp_port"]
        assert daemon.services.needs_restart == ("serve.slots", "serve.tcp_port")
    assert done.applied == []
    assert (daemon.services.settings.serve.slots, daemon.services.settings.serve.tcp_port) == (4, 0)
    assert daemon.services.settings.serve.max_tokens == 7
    assert daemon.reload("").needs_restart == []
    assert daemon.services.needs_restart == ()


@pytest.mark.parametrize(
    "text",
    [
        "[serve\n",
        "[serve]\nmax_tokens = 7\nthreds = 2\n",
        "[serve]\nmax_tokens = 7\nthreads = -1\n",
        '[serve]\nmax_tokens = 7\nkeep_alive = "soon"\n',
        '[serve]\nmax_tokens = 7\n[log]\nlevel = "loud"\n',
    ],
)
def test_settings_that_make_no_sense_change_nothing(daemon: Running, text: str) -> None:
    with pytest.raises(ConfigError):
        daemon.reload(text)
    assert daemon.services.settings == Settings()
    assert daemon.services.engine.calls == []


def test_the_command_line_still_wins(tmp_path: Path) -> None:
    daemon = Running(tmp_path, **{"serve.max_tokens": "9"})
    daemon.services.settings = daemon.services.load_settings()
    assert daemon.reload("[serve]\nmax_tokens = 7\n") == Reloaded([], [])


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300.0), ("90", 90.0), ("0", 0.0), ("-1", math.inf), ("-5m", math.inf)]
)
def test_keep_alive_is_written_as_ollama_writes_it(text: str, seconds: float) -> None:
    settings = config.load(Path("/nonexistent"), {}, {"serve.keep_alive": text})
    assert keep_alive_seconds(settings) == seconds


def test_every_setting_that_can_change_exists() -> None:
    assert set(declarations()) >= CHANGEABLE
    assert changeable("train.seed")
    assert not changeable("serve.model")


def test_quiet_hours_that_cannot_be_read_change_nothing(daemon: Running) -> None:
    before = daemon.services.settings
    with pytest.raises(ConfigError, match="'25:00-26:00' goes beyond the day"):
        daemon.reload('[budget]\nquiet_hours = "25:00-26:00"\ncpu_percent = 20\n')
    assert (daemon.services.settings, daemon.services.trainer.settings, daemon.told) == (before, before, [])


def test_the_supervisor_looks_again_with_the_new_settings(daemon: Running) -> None:
    daemon.reload('[budget]\nquiet_hours = "22:00-07:00"\n')
    (seen,) = daemon.told
    assert seen.budget.quiet_hours == "22:00-07:00"
