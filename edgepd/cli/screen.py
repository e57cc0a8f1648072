"""How the REPL shows what happens: as text for people, or as one JSON object per line.

What this does not do: decide anything, or read input.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepd.cli.conversation import Turn, as_json
from edgepd.cli.output import error_body, note, printable
from edgepd.errors import EdgepdError


class Screen(Protocol):
    """Where a conversation is shown."""

    def piece(self, text: str) -> None:
        """Show the next piece of an answer."""

    def end(self, turn: Turn, *, stopped: bool) -> None:
        """End an answer; `stopped` by the user or not."""

    def compare(self, current: Turn, base: Turn) -> None:
        """Show two answers to one question side by side."""

    def notice(self, text: str) -> None:
        """Show something that is not an answer."""

    def problem(self, error: EdgepdError) -> None:
        """Show why something failed."""


class TextScreen:
    """Answers to stdout as they come; everything else to stderr, so that a pipe gets the answers alone."""

    def piece(self, text: str) -> None:
        click.echo(printable(text), nl=False)

    def end(self, turn: Turn, *, stopped: bool) -> None:
        if turn.answer and not turn.answer.endswith("\n"):
            click.echo()
        if stopped:
            note("(stopped)")
        for warning in turn.warnings:
            note(f"Warning: {warning}")

    def compare(self, current: Turn, base: Turn) -> None:
        title = f"generation {current.generation}"
        if not sys.stdout.isatty():
            click.echo(f"--- {title}\n{current.answer}\n--- base\n{base.answer}")
            return
        table = Table(expand=True)
        table.add_column(title, ratio=1)
        table.add_column("base", ratio=1)
        table.add_row(Text(printable(current.answer)), Text(printable(base.answer)))
        Console().print(table)

    def notice(self, text: str) -> None:
        note(text)

    def problem(self, error: EdgepdError) -> None:
        note(f"Error: {error}")


class JsonScreen:
    """Everything to stdout, one object per line, told apart by "event"."""

    def piece(self, text: str) -> None:
        del text  # the whole answer comes with `end`

    def end(self, turn: Turn, *, stopped: bool) -> None:
        _line(as_json(turn) | {"stopped": stopped})

    def compare(self, current: Turn, base: Turn) -> None:
        _line({"event": "comparison", "current": current.answer, "base": base.answer})

    def notice(self, text: str) -> None:
        _line({"event": "notice", "text": text})

    def problem(self, error: EdgepdError) -> None:
        _line({"event": "error", **error_body(error)})


def _line(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))
