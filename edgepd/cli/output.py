"""What all commands share: the client, the `--json` option, and how results, errors and times are written.

The idea: a command builds one JSON value and, next to it, the text for people; `show` prints the one asked for.
What this does not do: draw progress bars; the commands that have progress do that with rich.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console

from edgepd.client import Client
from edgepd.config import paths
from edgepd.errors import EdgepdError, RequestError
from edgepd_daemon.listener import find_socket

Command = TypeVar("Command", bound=Callable[..., Any])

# C0 and C1 controls but tab and newline: what a model writes must not move the cursor or retitle the window.
CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def json_option(command: Command) -> Command:
    """Add `--json` to a command, which gets it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, errors too.")(command)


def connect() -> Client:
    """Return a client of this user's daemon. Raises ConfigError if the socket's path is impossible."""
    return Client(find_socket(paths()))


def show(value: Any, text: str, as_json: bool) -> None:
    """Print a result: `value` as one line of JSON, or `text`."""
    click.echo(json.dumps(value, ensure_ascii=False) if as_json else printable(text))


def note(text: str) -> None:
    """Print something that is not the result: to stderr."""
    click.echo(printable(text, err=True), err=True)


def error_body(error: EdgepdError) -> dict[str, Any]:
    """Return an error in the form of the HTTP API."""
    kind = "invalid_request_error" if error.http_status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": None, "code": error.code}}


def printable(text: str, err: bool = False) -> str:
    """Return the text without control characters if it goes to a terminal, else as it is."""
    stream = sys.stderr if err else sys.stdout
    return text.translate(CONTROLS) if stream.isatty() else text


def progress_console() -> Console:
    """Return where progress bars go: stderr, so that stdout holds the result alone."""
    return Console(stderr=True)


def stdin_is_terminal() -> bool:
    """Return whether somebody can type. With `<&-` there is no stdin at all."""
    return sys.stdin is not None and sys.stdin.isatty()


def text_from_stdin() -> str:
    """Return what was piped in, or nothing if stdin is a terminal. Raises RequestError if it is not UTF-8."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    piped = sys.stdin.buffer.read()
    try:
        return piped.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8 text: byte {error.start} is bad") from error


def checked_text(text: str, what: str) -> str:
    """Return `text` without blanks at its ends. Raises RequestError if nothing is left."""
    stripped = text.strip()
    if not stripped:
        raise RequestError(f"the {what} is empty; give it as an argument or through a pipe")
    return stripped


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of equal length; the last column is not padded."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def moment(seconds: float | None) -> str:
    """Write a time, in seconds since 1970, in the local time zone."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def duration(seconds: float) -> str:
    """Write a duration as hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def mebibytes(size_bytes: float) -> str:
    """Write a size in MiB."""
    return f"{size_bytes / 2**20:.0f} MiB"
