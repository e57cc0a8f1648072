"""The unit files of edgepd: from the templates in systemd/ to what lies in the user's systemd directory.

The idea: a template becomes a unit by filling in what stands between @ signs: the Python that runs this, the paths that
the caller's environment sets, the socket. The first line of what is written holds a checksum of the rest. The
invariant: a file without that line, or with other contents, belongs to the user and is neither replaced nor removed
unless that is asked for.
What this does not do: talk to systemd (see service_manager.py), or carry settings: `EDGEPD_SERVE_SLOTS` and the like in
a shell are tried out there, while a service reads config.toml. Drop-ins (`systemctl --user edit`) are left alone.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import edgepd
from edgepd.atomic import replacing
from edgepd.config import load, paths
from edgepd.errors import ConfigError, NotFoundError, StoreError

SERVICE = "edgepd.service"
SOCKET = "edgepd.socket"
SLICES = ("edgepd.slice", "edgepd-trainer.slice")
UNITS = (SERVICE, SOCKET, *SLICES)
AUTOSTART = "edgepd.desktop"

# Where `systemctl enable` puts its links, for the case that there is nobody to disable them.
WANTED_BY = {SERVICE: "default.target.wants", SOCKET: "sockets.target.wants"}
# What edgepd.config.paths looks at, but XDG_RUNTIME_DIR, which the service has from its manager.
CARRIED = ("EDGEPD_HOME", "EDGEPD_MODELS_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME")

HEADER = re.compile(r"\A# Written by `edgepd service install`; sha256 of the rest: ([0-9a-f]{64})\n")
SINCE = re.compile(r"^# since (\d+): (.*)\n", re.MULTILINE)  # directives that an older systemd would complain about
PLAIN = re.compile(r"[\w@+=:,./-]+", re.ASCII)

# States of a file: ours as we wrote it, ours but not what would be written now, ours but changed by the user, not ours.
MISSING, OURS, OUTDATED, EDITED, FOREIGN = "missing", "ours", "outdated", "edited", "foreign"

OLDEST = 252  # the systemd of Debian 12, the oldest one that the units were tried with


def templates() -> Path:
    """Return the directory of the templates: in the installed package, or in the checkout. Raises NotFoundError."""
    package = Path(edgepd.__file__).parent
    for directory in (package / "systemd_units", package.parent / "systemd"):
        if (directory / SERVICE).is_file():
            return directory
    raise NotFoundError(f"the templates of the systemd units are not in {package}; install edgepd again")


def units_dir(env: Mapping[str, str] | None = None) -> Path:
    """Return where a user keeps units: systemd.unit(5), "User Unit Search Path"."""
    return _config_home(os.environ if env is None else env) / "systemd" / "user"


def autostart_file(env: Mapping[str, str] | None = None) -> Path:
    """Return the file that desktops start at login: the Desktop Application Autostart Specification."""
    return _config_home(os.environ if env is None else env) / "autostart" / AUTOSTART


def wanted_units(systemd: int, *, socket: bool = True, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the name and text of every unit for this version of systemd and this environment.

    Raises ConfigError if a path cannot stand in a unit, or the settings cannot be read.
    """
    environment = os.environ if env is None else env
    found = paths(environment)
    at = str(found.socket).replace("%", "%%") if environment.get("EDGEPD_HOME") else "%t/edgepd/edgepd.sock"
    port = load(found.config_file, {}).serve.tcp_port
    lines = [f"Environment={_quoted(f'{name}={path}')}" for name, path in carried(environment).items()]
    values = {
        "@PYTHON@": _quoted(_printable("the Python interpreter", sys.executable)),
        "@SOCKET@": _printable("the socket", at),
        "@ENVIRONMENT@\n": "".join(f"{line}\n" for line in lines),
        "@ADDRESS_FAMILIES@": "AF_UNIX AF_INET" if port else "AF_UNIX",
    }
    names = UNITS if socket else (SERVICE, *SLICES)
    return {name: signed(_filled((templates() / name).read_text("utf-8"), values, systemd)) for name in names}


def autostart_entry(env: Mapping[str, str] | None = None) -> str:
    """Return a desktop entry that starts the daemon at login, for where there is no systemd. Raises ConfigError."""
    words = [f"{name}={path}" for name, path in carried(os.environ if env is None else env).items()]
    python = _printable("the Python interpreter", sys.executable)
    command = [*(["env", *words] if words else []), python, "-P", "-m", "edgepd_daemon"]
    lines = ["[Desktop Entry]", "Type=Application", "Name=edgepd", "Comment=A personal language model"]
    lines += [f"Exec={' '.join(map(_desktop_quoted, command))}", "Terminal=false", "NoDisplay=true"]
    return signed("\n".join(lines) + "\n")


def carried(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the caller that decide where edgepd keeps things, with absolute paths."""
    given = {name: env[name] for name in CARRIED if env.get(name)}
    return {name: _printable(name, str(Path(text).expanduser().absolute())) for name, text in given.items()}


def signed(text: str) -> str:
    """Put the line before it that says that it is ours."""
    return f"# Written by `edgepd service install`; sha256 of the rest: {_digest(text)}\n{text}"


def state_of(path: Path) -> str:
    """Return whether a file is MISSING, OURS, EDITED since we wrote it, or FOREIGN. Raises StoreError."""
    text = _read(path)
    if text is None:
        return MISSING
    header = HEADER.match(text)
    if header is None:
        return FOREIGN
    return OURS if header[1] == _digest(text[header.end() :]) else EDITED


def file_states(systemd: int, *, socket: bool = True) -> dict[str, str]:
    """Return the state of every unit file by name. Raises ConfigError as `wanted_units` does, and StoreError."""
    states = {}
    for name, text in wanted_units(systemd, socket=socket).items():
        path = units_dir() / name
        state = state_of(path)
        states[name] = OUTDATED if state == OURS and not up_to_date(path, text) else state
    return states


def difference(path: Path, wanted: str) -> list[str]:
    """Return the lines by which a file differs from what is wanted, each with + or -; none if it does not exist."""
    before = _read(path)
    if before is None:
        return []
    old, new = (HEADER.sub("", text).splitlines() for text in (before, wanted))
    return [
        line for line in difflib.unified_diff(old, new, n=0, lineterm="") if not line.startswith(("---", "+++", "@@"))
    ]


def up_to_date(path: Path, wanted: str) -> bool:
    """Return whether a file is what would be written now. Raises StoreError if it cannot be read."""
    return _read(path) == wanted


def write(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one. Raises StoreError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent}: cannot be made: {error.strerror}; check the rights of its folder") from error
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def remove(path: Path) -> None:
    """Remove a file and what `systemctl enable` linked to it. Raises StoreError."""
    links = [path.parent / WANTED_BY[path.name] / path.name] if path.name in WANTED_BY else []
    try:
        for each in (*links, path):
            each.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot be removed: {error.strerror}; check the rights of its folder") from error


def _filled(template: str, values: Mapping[str, str], systemd: int) -> str:
    text = template
    for name, value in values.items():
        text = text.replace(name, value)
    return SINCE.sub(lambda found: f"{found[2]}\n" if systemd >= int(found[1]) else "", text)


def _config_home(env: Mapping[str, str]) -> Path:
    given = env.get("XDG_CONFIG_HOME", "")
    return Path(given).absolute() if given else Path.home() / ".config"


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read: {error}; move it away") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _printable(what: str, path: str) -> str:
    if not path.isprintable() or path != path.strip() or path.endswith("\\"):
        raise ConfigError(
            f"{what} is at {path!r}, which cannot be written in a unit file; use a path without such signs"
        )
    return path


def _quoted(word: str) -> str:
    """Write one word as systemd.syntax(7) and systemd.unit(5), "Specifiers", want it."""
    text = word.replace("%", "%%")
    if PLAIN.fullmatch(word):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _desktop_quoted(word: str) -> str:
    """Write one word as the Desktop Entry Specification, "The Exec key", wants it: quoted, and then escaped again."""
    text = word.replace("%", "%%")
    if PLAIN.fullmatch(word):
        return text
    return '"' + re.sub(r'(["`$\\])', r"\\\1", text).replace("\\", "\\\\") + '"'
