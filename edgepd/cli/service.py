"""`edgepd service`: the daemon as a service of the user's systemd. Needs no root.

The idea: units are made for this Python and this environment, written into the user's systemd directory, and handled
with systemctl. The invariant: nothing that the user wrote or changed is overwritten or removed without --force, and
asking how the service is never starts it.
What this does not do: install anything for the whole machine, or keep it running after logout; it says how.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from edgepd.cli import service_manager as manager
from edgepd.cli import service_units as units
from edgepd.cli.output import connect, json_option, note, show
from edgepd.cli.service_text import installed_text, status_text
from edgepd.cli.service_units import SERVICE, SLICES, SOCKET
from edgepd.client import Json
from edgepd.config import load, paths
from edgepd.errors import ConflictError, DaemonNotRunningError, EdgepdError, ModelError, NotFoundError, RequestError
from edgepd.models import Catalog

ACTIVE = ("active", "reloading")
NOTHING_LOGGED = ("", "-- No entries --")


@click.group()
def service() -> None:
    """Install and handle the daemon as a service of your systemd, without root."""


@service.command()
@click.option("--now", is_flag=True, help="Start it at once; start it again if its units have changed.")
@click.option("--no-socket", is_flag=True, help="Do without socket activation.")
@click.option("--autostart", is_flag=True, help="Without systemd: let the desktop start the daemon at login.")
@click.option("--print", "only_print", is_flag=True, help="Print the files instead of writing them.")
@click.option("--force", is_flag=True, help="Replace files that you have changed or written.")
@json_option
def install(now: bool, no_socket: bool, autostart: bool, only_print: bool, force: bool, as_json: bool) -> None:
    """Write the units for this Python and this environment, and let them start with your session.

    EDGEPD_HOME, EDGEPD_MODELS_DIR, XDG_CONFIG_HOME and XDG_DATA_HOME are carried into the service. Settings are not
    (EDGEPD_SERVE_SLOTS and the like): a service has them from config.toml. Your own changes belong into
    `systemctl --user edit edgepd`. Run it again after edgepd has moved, or after serve.tcp_port has changed.
    """
    if os.geteuid() == 0 and os.environ.get("SUDO_USER"):
        raise RequestError("run it without sudo: the service is yours, not that of root, and needs no rights")
    if autostart and (now or no_socket):
        raise click.UsageError("--autostart makes a file for the desktop; --now and --no-socket are about systemd")
    if autostart:
        wanted = {units.autostart_file(): units.autostart_entry()}
    else:
        made = units.wanted_units(_version(only_print), socket=not no_socket)
        wanted = {units.units_dir() / name: text for name, text in made.items()}
    if only_print:
        files = {str(path): text for path, text in wanted.items()}
        show({"files": files}, "\n".join(f"# {path}\n{text}" for path, text in files.items()), as_json)
        return
    _refuse_foreign([*wanted, *([units.units_dir() / SOCKET] if no_socket else [])], force)
    if now:
        _refuse_second_daemon()
    done = _write(wanted)
    if not autostart:
        done |= _enable(no_socket=no_socket, now=now, changed=bool(done["written"]))
    show(done, installed_text(done, autostart=autostart), as_json)
    _warn_without_model()


def _version(only_print: bool) -> int:
    """Return the version of systemd. What is only printed may be for another machine: then any one will do."""
    try:
        return manager.version()
    except NotFoundError:
        if only_print:
            return units.OLDEST
        raise


def _refuse_foreign(files: list[Path], force: bool) -> None:
    theirs = [path for path in files if units.state_of(path) in (units.EDITED, units.FOREIGN)]
    if theirs and not force:
        raise ConflictError(
            f"{', '.join(map(str, theirs))}: changed or written by you; move your changes to `systemctl --user edit` "
            "and give --force, which replaces or removes the file"
        )


def _write(wanted: dict[Path, str]) -> dict[str, Any]:
    """Write what is not yet as wanted; return what was done, and the lines that have changed."""
    stale = [path for path, text in wanted.items() if not units.up_to_date(path, text)]
    changes = {path.name: lines for path in stale if (lines := units.difference(path, wanted[path]))}
    for path in stale:
        units.write(path, wanted[path])
    unchanged = [path.name for path in wanted if path not in stale]
    directory = str(next(iter(wanted)).parent)
    return {"directory": directory, "written": [p.name for p in stale], "unchanged": unchanged, "changes": changes}


def _enable(*, no_socket: bool, now: bool, changed: bool) -> dict[str, Any]:
    """Make systemd read the units and start them with the session, and now if asked for."""
    manager.systemctl("daemon-reload")
    found = manager.units(SERVICE)[SERVICE]
    file = units.units_dir() / SERVICE
    if Path(found["FragmentPath"] or "/").resolve() != file.resolve():
        raise ConflictError(
            f"systemd reads {SERVICE} from {found['FragmentPath'] or 'nowhere'}, not from {file}; set XDG_CONFIG_HOME "
            "for the whole session, or remove what it reads"
        )
    running = found["ActiveState"] in ACTIVE
    if no_socket and (units.units_dir() / SOCKET).exists():
        # The service too: it has the socket that goes, and could not be reached any more.
        manager.systemctl("disable", "--now", SOCKET, SERVICE)
        units.remove(units.units_dir() / SOCKET)
        manager.systemctl("daemon-reload")
        now, running = now or running, False
    names = [SERVICE] if no_socket else [SOCKET, SERVICE]
    manager.systemctl("enable", *names)
    if now:
        if running and changed:
            manager.systemctl("stop", *names)
        _start(names)
    stale = running and changed and not now
    return {"running": running or now, "restart_needed": stale, "lingers": manager.lingers()}


def _warn_without_model() -> None:
    try:
        Catalog(paths().models_dir).selected()
    except ModelError as error:
        note(f"it cannot start yet: {error}")


@service.command()
@click.option("--force", is_flag=True, help="Remove files that you have changed or written, too.")
@json_option
def uninstall(force: bool, as_json: bool) -> None:
    """Stop the service and remove its units. Profile, models and settings stay."""
    files = [path for name in units.UNITS if (path := units.units_dir() / name).exists()]
    desktop = [path for path in (units.autostart_file(),) if path.exists()]
    _refuse_foreign([*files, *desktop], force)
    reachable = bool(files) and _manager_answers()
    enabled = [path.name for path in files if path.name in (SOCKET, SERVICE)]
    if reachable and enabled:
        manager.systemctl("disable", "--now", *enabled)
    for path in [*files, *desktop]:
        units.remove(path)
    if reachable:
        manager.systemctl("daemon-reload")
    removed = [path.name for path in [*files, *desktop]]
    text = f"removed: {', '.join(removed)}" if removed else "nothing of edgepd is installed"
    show({"removed": removed}, text, as_json)


def _manager_answers() -> bool:
    try:
        manager.version()
    except NotFoundError as error:
        note(f"only the files are removed: {error}")
        return False
    return True


@service.command()
@json_option
def start(as_json: bool) -> None:
    """Start the service, and count its failures anew."""
    names = _names()
    _start(names)
    _show_running(as_json)


@service.command()
@json_option
def stop(as_json: bool) -> None:
    """Stop the service and its socket until the next login or `edgepd service start`.

    `edgepd daemon stop` stops the daemon alone: where the socket unit is installed, the next question starts it again.
    """
    names = _names()
    manager.systemctl("stop", *names)
    show({"stopped": names}, "the service has stopped", as_json)


@service.command()
@json_option
def restart(as_json: bool) -> None:
    """Start the service again. What is asked meanwhile waits in the socket."""
    names = _names()
    load(paths().config_file, {})  # a daemon that runs is not ended for one that cannot start
    _refuse_second_daemon()
    manager.call("systemctl", "--user", "reset-failed", *names)
    if SOCKET in names and manager.units(SOCKET)[SOCKET]["ActiveState"] not in ACTIVE:
        manager.systemctl("stop", SERVICE)  # systemd starts no socket for a service that has one of its own
        manager.systemctl("start", SOCKET)
    manager.systemctl("restart", SERVICE)
    _show_running(as_json)


def _names() -> list[str]:
    """Return the units to start and stop. Raises NotFoundError if the service is not installed."""
    manager.version()
    found = manager.units(SOCKET, SERVICE)
    if found[SERVICE]["LoadState"] != "loaded":
        raise NotFoundError(f"{SERVICE} is not installed; run: edgepd service install --now")
    return [name for name in (SOCKET, SERVICE) if found[name]["LoadState"] == "loaded"]


def _start(names: list[str]) -> None:
    load(paths().config_file, {})  # so that what is wrong with it is said here, and not in the journal
    _refuse_second_daemon()
    # Otherwise a service that has failed too often would stay failed. It fails for units that are not loaded.
    manager.call("systemctl", "--user", "reset-failed", *names)
    manager.systemctl("start", *names)


def _refuse_second_daemon() -> None:
    """Raise ConflictError if a daemon runs that systemd did not start: its socket would be taken from it."""
    found = manager.units(SOCKET, SERVICE)
    if any(each["ActiveState"] in (*ACTIVE, "activating") for each in found.values()):
        return  # whoever asks at the socket would start the service
    health = _health()
    if health is not None:
        raise ConflictError(
            f"a daemon that systemd did not start runs already (pid {health['pid']}); stop it: edgepd daemon stop"
        )


def _health() -> Json | None:
    with connect() as client:
        try:
            return client.health()
        except DaemonNotRunningError:
            return None


def _show_running(as_json: bool) -> None:
    found = manager.units(SERVICE)[SERVICE]
    pid = int(found["MainPID"])
    show({"pid": pid, "state": found["ActiveState"]}, f"the service is {found['ActiveState']}, pid {pid}", as_json)


@service.command()
@json_option
def status(as_json: bool) -> None:
    """Show how the service is. Ends with 3 if it does not run; it is not started by the question."""
    systemd = manager.version()
    found = manager.units(SERVICE, SOCKET, *SLICES)
    active = found[SERVICE]["ActiveState"] in ACTIVE
    told: dict[str, Any] = {"active": active, "units": found, "files": {}, "health": None, "problems": []}
    try:
        told["files"] = units.file_states(systemd, socket=found[SOCKET]["LoadState"] == "loaded")
        told["health"] = _health() if active else None
    except EdgepdError as error:
        told["problems"] = [str(error)]
    told["lingers"] = manager.lingers()
    show(told, status_text(told), as_json)
    if not active:
        click.get_current_context().exit(DaemonNotRunningError.exit_code)


@service.command()
@click.option("--follow", "-f", "following", is_flag=True, help="Go on as more is logged, until Ctrl-C.")
@click.option("--lines", "-n", type=click.IntRange(min=1), default=50, show_default=True, help="How many lines.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per entry, as journalctl does.")
def logs(following: bool, lines: int, as_json: bool) -> None:
    """Print what the service has logged. It holds no text of yours, unless log.level is debug."""
    options = [f"--user-unit={SERVICE}", f"--lines={lines}", "--no-pager", *(["--output=json"] if as_json else [])]
    if following:
        click.get_current_context().exit(manager.follow("journalctl", *options, "--follow"))
    done = manager.call("journalctl", *options)
    if done.returncode != 0 or done.stdout.strip() in NOTHING_LOGGED:
        said = " ".join(done.stderr.split())
        raise NotFoundError(
            f"the journal holds nothing of {SERVICE}{f' ({said})' if said else ''}; it was never started, or this "
            "machine keeps no journal for users: then see `edgepd daemon run`"
        )
    click.echo(done.stdout, nl=False)
