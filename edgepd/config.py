"""Settings read from file, environment and command line, and the paths of everything.

The idea: each field of the frozen section classes in settings.py is one setting. TOML keys (`serve.threads`),
environment variables (`EDGEPD_SERVE_THREADS`), `--set serve.threads=2` and docs/config.md are derived from the fields.
Order of precedence: command line, environment, config.toml, the preset in `budget.preset`, default. The invariant: a
value that leaves this module has the declared type and lies in the declared range, and its origin is known.
What this does not do: watch the file, or apply changes to a running daemon.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from edgepd.errors import ConfigError
from edgepd.settings import PRESETS, Settings

PRESET_KEY = "budget.preset"
SOCKET_PATH_LIMIT = 107  # sun_path in sockaddr_un holds 108 bytes with the terminating NUL


@dataclass(frozen=True)
class Declaration:
    """One setting as declared: key, type, default, range or choice, and documentation."""

    key: str
    type: type
    default: Any
    doc: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]

    @property
    def env(self) -> str:
        """Name of the environment variable that overrides this setting."""
        return "EDGEPD_" + self.key.replace(".", "_").upper()


def declarations() -> dict[str, Declaration]:
    """Return every setting by its dotted key, in order of declaration."""
    found = {}
    for section in dataclasses.fields(Settings):
        if not dataclasses.is_dataclass(section.default):
            continue
        for f in dataclasses.fields(section.default):
            key = f"{section.name}.{f.name}"
            found[key] = Declaration(
                key,
                type(f.default),
                f.default,
                f.metadata["doc"],
                f.metadata["minimum"],
                f.metadata["maximum"],
                f.metadata["choices"],
            )
    return found


def load(
    config_file: Path, env: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None
) -> Settings:
    """Read the settings from the file, the environment and the command line.

    `overrides` maps dotted keys to text, as given by `--set`. Raises ConfigError naming the source, the key and,
    for an unknown key, the nearest known one.
    """
    known = declarations()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    by_env = {d.env: key for key, d in known.items()}
    environment = os.environ if env is None else env
    layers: list[tuple[str, dict[str, Any]]] = [
        (str(config_file), _read_toml(config_file)),
        ("environment", {by_env[name]: text for name, text in environment.items() if name in by_env}),
        ("command line", dict(overrides or {})),
    ]
    for origin, layer in layers:
        for key, raw in layer.items():
            if key not in known:
                raise ConfigError(f"{origin}: unknown setting '{key}'{_did_you_mean(key, known)}")
            values[key] = _convert(known[key], raw, origin)
            origins[key] = origin
    preset = values.get(PRESET_KEY, known[PRESET_KEY].default)
    for key, value in PRESETS[preset].items():
        if key not in values:
            values[key], origins[key] = value, f"preset {preset}"
    return _settings(values, origins)


def _settings(values: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
    """Put values by dotted key into their sections, over the defaults."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    made = {name: dataclasses.replace(getattr(Settings(), name), **fields) for name, fields in sections.items()}
    return Settings(**made, origins=origins)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    flat: dict[str, Any] = {}
    for section, content in tree.items():
        if isinstance(content, dict):
            flat |= {f"{section}.{name}": value for name, value in content.items()}
        else:
            flat[section] = content
    return flat


def _did_you_mean(key: str, known: Mapping[str, Declaration]) -> str:
    near = difflib.get_close_matches(key, known, n=1) or [k for k in known if k.split(".")[1] == key.split(".")[-1]]
    return f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"


def _convert(declared: Declaration, raw: Any, origin: str) -> Any:
    """Turn TOML values or text into the declared type and check the range."""
    problem = ConfigError(
        f"{origin}: setting '{declared.key}' is {raw!r}, but must be of type {declared.type.__name__}"
    )
    value: Any = raw
    if declared.type is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        value = words.get(raw.lower()) if isinstance(raw, str) else raw
        if not isinstance(value, bool):
            raise problem
        return value
    if isinstance(raw, bool) or (declared.type is str and not isinstance(raw, str)):
        raise problem
    try:
        value = declared.type(raw)
    except (TypeError, ValueError) as error:
        raise problem from error
    if declared.type is int and isinstance(raw, float) and value != raw:
        raise problem
    if declared.choices and value not in declared.choices:
        raise ConfigError(
            f"{origin}: setting '{declared.key}' is '{value}', but must be one of {', '.join(declared.choices)}"
        )
    if isinstance(value, int | float):
        low, high = declared.minimum, declared.maximum
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            raise ConfigError(f"{origin}: setting '{declared.key}' is {value}, but must lie in [{low}, {high}]")
    return value


@dataclass(frozen=True)
class Paths:
    """Where edgepd keeps things. `EDGEPD_HOME` moves everything under one directory."""

    config_file: Path
    data_dir: Path
    runtime_dir: Path
    models_dir: Path

    @property
    def socket(self) -> Path:
        """The Unix socket of the daemon."""
        return self.runtime_dir / "edgepd.sock"

    @property
    def token(self) -> Path:
        """What a client of the TCP port must know, readable by the user alone."""
        return self.runtime_dir / "token"

    @property
    def profile(self) -> Path:
        """The SQLite file with interactions, feedback and generations."""
        return self.data_dir / "profile.db"

    @property
    def generations_dir(self) -> Path:
        """Adapter and baked model files, one directory per generation."""
        return self.data_dir / "generations"

    @property
    def states_dir(self) -> Path:
        """Saved KV caches of conversations; may be deleted at any time."""
        return self.data_dir / "states"

    @property
    def students_dir(self) -> Path:
        """Tuned models of what comes next."""
        return self.data_dir / "students"

    @property
    def runs_dir(self) -> Path:
        """Working directories of training runs."""
        return self.data_dir / "runs"

    @property
    def backups_dir(self) -> Path:
        """Backups of the profile."""
        return self.data_dir / "backups"

    @property
    def lock(self) -> Path:
        """Held (flock) by the one daemon that owns the data directory."""
        return self.data_dir / "daemon.lock"


def paths(env: Mapping[str, str] | None = None) -> Paths:
    """Find the directories from `EDGEPD_HOME`, `EDGEPD_MODELS_DIR` and the XDG base directories."""
    environment = os.environ if env is None else env
    home = environment.get("EDGEPD_HOME")
    if home:
        root = Path(home).expanduser().absolute()
        config_file, data_dir, runtime_dir = root / "config.toml", root / "data", root / "run"
    else:
        dirs = platformdirs.PlatformDirs("edgepd", appauthor=False)
        config_file = Path(dirs.user_config_dir) / "config.toml"
        data_dir = Path(dirs.user_data_dir)
        xdg_runtime = environment.get("XDG_RUNTIME_DIR")
        runtime_dir = Path(xdg_runtime) / "edgepd" if xdg_runtime else data_dir / "run"
    models = environment.get("EDGEPD_MODELS_DIR")
    found = Paths(config_file, data_dir, runtime_dir, Path(models).absolute() if models else data_dir / "models")
    if len(os.fsencode(found.socket)) > SOCKET_PATH_LIMIT:
        raise ConfigError(
            f"socket path {found.socket} is longer than {SOCKET_PATH_LIMIT} bytes, which Unix sockets do not allow; "
            "set EDGEPD_HOME or XDG_RUNTIME_DIR to a shorter directory"
        )
    return found
