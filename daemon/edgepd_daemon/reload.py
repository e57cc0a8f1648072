"""Settings that change while the daemon runs.

The idea: read everything again from where it came from, compare, apply what can be applied, and name the rest. The
invariant: `Services.settings` are the ones in effect; settings that cannot be read or make no sense change nothing.
What this does not do: watch the file. SIGHUP and POST /edgepd/v1/reload ask for it.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

from edgepd.config import declarations
from edgepd.errors import ConfigError, RequestError
from edgepd.settings import Settings
from edgepd_daemon.api.durations import parse_keep_alive
from edgepd_daemon.cores import physical_cores
from edgepd_daemon.scheduler.quiet_hours import QuietHours
from edgepd_daemon.services import Services

log = logging.getLogger(__name__)

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# All other settings shape what is built at start: the sockets, the context, the caches.
CHANGEABLE_SECTIONS = ("train", "gate", "profile", "select", "budget", "intent", "keep", "log")
CHANGEABLE = {
    "serve.threads",
    "serve.max_tokens",
    "serve.max_queue",
    "serve.keep_alive",
    "serve.max_body_bytes",
    "serve.request_timeout_s",
    "serve.write_timeout_s",
}


@dataclass(frozen=True)
class Reloaded:
    """What a reload did: the keys that were applied, and those that wait for a restart."""

    applied: list[str]
    needs_restart: list[str]


def reload(services: Services) -> Reloaded:
    """Apply what has changed in the settings. Raises ConfigError, with nothing changed. Blocks shortly."""
    before, wanted = services.settings, checked(services.load_settings())
    changed = [key for key in declarations() if _value(before, key) != _value(wanted, key)]
    applied = [key for key in changed if changeable(key)]
    rest = [key for key in changed if not changeable(key)]
    settings = _combined(before, wanted, applied)
    if applied:
        _apply(services, settings, set(applied))
    services.settings = settings
    services.needs_restart = tuple(rest)
    services.supervisor.look_soon()
    log.info("settings read again; applied: %s", ", ".join(applied) or "nothing, because nothing has changed")
    if rest:
        log.warning("these settings take effect when the daemon is restarted: %s", ", ".join(rest))
    return Reloaded(applied, rest)


def checked(settings: Settings) -> Settings:
    """Return settings whose texts have a form of their own and can be read. Raises ConfigError."""
    keep_alive_seconds(settings)
    QuietHours.parse(settings.budget.quiet_hours)
    return settings


def changeable(key: str) -> bool:
    """Say whether a setting can change while the daemon runs."""
    return key in CHANGEABLE or key.partition(".")[0] in CHANGEABLE_SECTIONS


def keep_alive_seconds(settings: Settings) -> float:
    """Return serve.keep_alive in seconds, inf for a model that stays. Raises ConfigError."""
    try:
        seconds = parse_keep_alive(settings.serve.keep_alive)
    except RequestError as error:
        raise ConfigError(f"setting 'serve.keep_alive': {error}") from error
    if seconds is None:
        raise ConfigError("setting 'serve.keep_alive' is empty; write a duration such as '5m'")
    return seconds


def engine_threads(settings: Settings) -> int:
    """Return how many threads the engine computes with."""
    return settings.serve.threads or physical_cores()


def _value(settings: Settings, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section), name)


def _combined(before: Settings, wanted: Settings, applied: list[str]) -> Settings:
    """Return the settings before with the applied ones of the wanted."""
    sections = {f.name: getattr(before, f.name) for f in dataclasses.fields(Settings) if f.name != "origins"}
    for key in applied:
        section, _, name = key.partition(".")
        sections[section] = dataclasses.replace(sections[section], **{name: _value(wanted, key)})
    origins = dict(before.origins)
    for key in applied:
        origins.pop(key, None)
        if key in wanted.origins:
            origins[key] = wanted.origins[key]
    return Settings(**sections, origins=origins)


def _apply(services: Services, settings: Settings, changed: set[str]) -> None:
    if "serve.threads" in changed:
        services.engine.set_threads(engine_threads(settings))
    if "serve.keep_alive" in changed:
        services.engine.set_keep_alive(keep_alive_seconds(settings))
    if "serve.max_queue" in changed:
        services.engine.max_queue = settings.serve.max_queue
    if "log.level" in changed:
        logging.getLogger().setLevel(LEVELS[settings.log.level])
    services.recorder.enabled = settings.log.interactions
    services.recorder.events = settings.intent.enabled
    services.generations.keep_retired = settings.keep.retired
    services.trainer.settings = settings
    services.forgetter.backups = settings.keep.backups
