"""`edgepd daemon`: start the service in the foreground, let it read its settings again, and stop it."""

from __future__ import annotations

import os
import signal
import sys
import time

import click

from edgepd.cli.output import connect, json_option, show
from edgepd.client import Json
from edgepd.errors import DaemonNotRunningError, EdgepdError

STOP_TIMEOUT_S = 30.0
POLL_S = 0.05


@click.group()
def daemon() -> None:
    """Run, adjust or stop the background service."""


@daemon.command()
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Same as --set log.level.")
def run(overrides: tuple[str, ...], log_level: str | None) -> None:
    """Serve the model in the foreground until SIGTERM or Ctrl-C."""
    options = [word for override in overrides for word in ("--set", override)]
    options += ["--log-level", log_level] if log_level else []
    # Ignored until the daemon has its own handler: without one it would end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # -P: a json.py in the current directory must not be taken for the standard one.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "edgepd_daemon", *options])  # noqa: S606 (no shell)


@daemon.command()
@json_option
def reload(as_json: bool) -> None:
    """Let the running daemon read its settings again, as SIGHUP does.

    What can change while it runs is applied at once, and the rest is named. Settings that make no sense change
    nothing. The daemon keeps the options and the environment that it was started with.
    """
    with connect() as client:
        done = client.reload()
    show(done, _reloaded(done), as_json)


def _reloaded(done: Json) -> str:
    if not done["applied"] and not done["needs_restart"]:
        return "nothing has changed"
    lines = [f"applied: {', '.join(done['applied'])}"] if done["applied"] else []
    lines += [f"needs a restart: {', '.join(done['needs_restart'])}"] if done["needs_restart"] else []
    return "\n".join(lines)


@daemon.command()
@json_option
def stop(as_json: bool) -> None:
    """Stop the running daemon and wait until it is gone."""
    with connect() as client:
        pid = int(client.health()["pid"])
        if pid < 2:
            raise EdgepdError(f"the daemon on {client.socket} says that its process id is {pid}; it was not stopped")
        _terminate(pid)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while client.socket.exists() and _runs(pid):
            if time.monotonic() > deadline:
                raise EdgepdError(f"the daemon (pid {pid}) still runs {STOP_TIMEOUT_S:.0f} s after SIGTERM")
            time.sleep(POLL_S)
    show({"stopped": pid}, f"the daemon (pid {pid}) has stopped", as_json)


def _terminate(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError as error:
        raise DaemonNotRunningError(f"the daemon (pid {pid}) has just stopped, or runs in a container") from error
    except PermissionError as error:
        raise EdgepdError(f"the daemon (pid {pid}) belongs to another user; stop it as that user") from error


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
