"""Where things are: directories, the socket, the token, and the units of systemd.

The idea: what stat says of each path is compared with what the daemon makes of it. The invariant: nothing is connected
to but the daemon's own socket, and asking systemd starts nothing.
What this does not do: look into the profile; edgepd_profiles.integrity does.
"""

from __future__ import annotations

import os
import shlex
import socket as sockets
import stat
from pathlib import Path

from edgepd.cli import service_manager as manager
from edgepd.cli import service_units as units
from edgepd.cli.doctor_checks.situation import Situation
from edgepd.config import SOCKET_PATH_LIMIT
from edgepd.errors import NotFoundError
from edgepd_daemon.listener import fallback_of, find_socket
from edgepd_profiles.integrity import Finding

NO_AUTOSTART = "to have it start with your session: edgepd service install --now"
SECONDS = 2.0  # to wait for somebody who listens


def directories(situation: Situation) -> list[Finding]:
    """Check that what must be written can be written."""
    for folder in (situation.paths.data_dir, situation.paths.models_dir):
        place = next(each for each in (folder, *folder.parents) if each.exists())
        if not os.access(place, os.W_OK | os.X_OK):
            problem = f"{place} cannot be written by you, so nothing can be stored"
            return [Finding("directories", problem, _writable_again(place))]
    return [Finding("directories", detail=f"{situation.paths.data_dir} can be written")]


def runtime_directory(situation: Situation) -> list[Finding]:
    """Say where the socket is when there is no place for it in the session."""
    what, fallback = "runtime directory", fallback_of(situation.paths)
    folder = situation.paths.runtime_dir
    session = os.environ.get("XDG_RUNTIME_DIR")
    if os.environ.get("EDGEPD_HOME"):
        return [Finding(what, detail=f"{folder}, because of EDGEPD_HOME")]
    if not session:
        return [Finding(what, detail=f"XDG_RUNTIME_DIR is not set, so the socket is in {folder}")]
    if not Path(session).is_dir():
        detail = f"XDG_RUNTIME_DIR is {session}, which is not there, so the socket is {fallback}"
        return [Finding(what, advice="log in anew; to keep it after logout: loginctl enable-linger", detail=detail)]
    return [Finding(what, detail=str(folder))]


def socket(situation: Situation) -> list[Finding]:
    """Check the socket and what keeps others from it."""
    path = find_socket(situation.paths)
    told = f"{path}, {len(os.fsencode(path))} of {SOCKET_PATH_LIMIT} bytes"
    if not os.path.lexists(path):
        return [Finding("socket", detail=f"{told}; not there, as no daemon runs")]
    quoted = shlex.quote(str(path))
    found = path.lstat()
    if not stat.S_ISSOCK(found.st_mode):
        return [
            Finding("socket", f"{path} is not a socket, so no daemon can listen there", f"mv {quoted} {quoted}.old")
        ]
    if found.st_uid != os.geteuid():
        return [Finding("socket", f"{path} belongs to another user", "set EDGEPD_HOME to a directory of your own")]
    findings = [_closed(path.parent, 0o700), _closed(path, 0o600)]
    token = situation.paths.token
    if token.exists():
        findings.append(_closed(token, 0o600))
    open_to_others = [finding for finding in findings if finding is not None]
    if open_to_others:
        return open_to_others
    if not _answered(path) and not situation.locked:
        return [Finding("socket", detail=f"{told}; left by a daemon that was killed, the next one takes its place")]
    return [Finding("socket", detail=told)]


def service(_situation: Situation) -> list[Finding]:
    """Check the units of systemd, if there are any."""
    installed = units.state_of(units.units_dir() / units.SERVICE) != units.MISSING
    try:
        systemd = manager.version()
    except NotFoundError:
        detail = "installed, but systemd runs no manager for this user" if installed else "there is no systemd for you"
        return [Finding("service", advice="start it by hand: edgepd daemon run", detail=detail)]
    if not installed:
        return [Finding("service", advice=NO_AUTOSTART, detail="not installed")]
    found = manager.units(units.SERVICE, units.SOCKET)
    unit, with_socket = found[units.SERVICE], found[units.SOCKET]["LoadState"] == "loaded"
    files = units.file_states(systemd, socket=with_socket)
    stale = [name for name, state in files.items() if state in (units.OUTDATED, units.MISSING)]
    edited = [name for name, state in files.items() if state in (units.EDITED, units.FOREIGN)]
    if unit["ActiveState"] == "failed":
        problem = f"{units.SERVICE} has failed ({unit['Result']}, {unit['NRestarts']} restarts)"
        return [Finding("service", problem, "edgepd service logs; then: edgepd service start")]
    if stale:
        problem = f"not as edgepd would write it from this shell: {', '.join(stale)}"
        return [Finding("service", problem, "edgepd service install; then: edgepd service restart")]
    if unit["NeedDaemonReload"] == "yes":
        return [Finding("service", "systemd has not read the units as they are now", "systemctl --user daemon-reload")]
    if unit["UnitFileState"] != "enabled":
        problem = f"{units.SERVICE} is {unit['UnitFileState'] or 'not enabled'}, so it does not start by itself"
        return [Finding("service", problem, "edgepd service install")]
    told = [f"installed and {unit['ActiveState']}"]
    told += [f"changed or written by you: {', '.join(edited)}"] if edited else []
    if manager.lingers() is False:
        told.append("it ends when you log out")
        return [Finding("service", advice="to keep it running: loginctl enable-linger", detail="; ".join(told))]
    return [Finding("service", detail="; ".join(told))]


def _closed(path: Path, mode: int) -> Finding | None:
    """Return what is wrong if others than its owner have rights on a path."""
    if not path.stat().st_mode & 0o077:
        return None
    advice = f"chmod {mode:o} {shlex.quote(str(path))}"
    return Finding("socket", f"other users of this machine have rights on {path}", advice)


def _writable_again(place: Path) -> str:
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return f"mount its file system for writing, or set EDGEPD_HOME to a directory elsewhere ({place} is read-only)"
    if place.stat().st_uid != os.geteuid():
        return "set EDGEPD_HOME to a directory of your own"
    return f"chmod u+rwx {shlex.quote(str(place))}"


def _answered(path: Path) -> bool:
    with sockets.socket(sockets.AF_UNIX) as probe:
        probe.settimeout(SECONDS)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # its queue is full
    return True
