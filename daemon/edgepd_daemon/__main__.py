"""`python -m edgepd_daemon`: read the settings, run the service, turn errors into exit codes.

What kills the process from inside (SIGSEGV, or SIGBUS when a model file is cut off) leaves the stacks of all threads in
the log, and so does the service manager's watchdog, which sends SIGABRT.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys

import click

from edgepd import config
from edgepd.errors import ConfigError, EdgepdError
from edgepd.settings import Settings
from edgepd_daemon import service
from edgepd_daemon.reload import LEVELS
from edgepd_daemon.restarting import Restart, Restarts


@click.command()
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting.")
@click.option("--log-level", type=click.Choice(list(LEVELS)), help="Override log.level.")
def main(overrides: tuple[str, ...], log_level: str | None) -> None:
    """Run the edgepd daemon in the foreground."""
    faulthandler.enable()
    # Until the daemon is ready, there is nothing to reload, and by itself the signal would end the process. A function
    # and not SIG_IGN, which children would inherit.
    signal.signal(signal.SIGHUP, lambda _number, _frame: None)
    restarts = Restarts.from_environment(os.environ)
    try:
        given = dict(_split(o) for o in overrides)
        if log_level:
            given["log.level"] = log_level
        paths = config.paths()

        def load() -> Settings:
            return config.load(paths.config_file, overrides=given)

        _start_logging(load().log.level)
        asyncio.run(service.run(load, paths, restarts))
    except Restart as error:
        if restarts.possible:
            click.echo(f"{error}; it starts again by itself", err=True)
            restarts.again()
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except EdgepdError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)


def _split(override: str) -> tuple[str, str]:
    key, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override}: write it as KEY=VALUE, for example --set serve.threads=2")
    return key, value


def _start_logging(level: str) -> None:
    logging.basicConfig(level=LEVELS[level], format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


if __name__ == "__main__":
    main()
