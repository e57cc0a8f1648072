"""How the REPL shows what happens: as text for people, or as one JSON object per line.

What this does not do: decide anything, or read input.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepd.cli.conversation import Turn, as_json
from edgepd.cli.output import error_body, note, printable
from edgepd.client import Json
from edgepd.errors import EdgepdError, RequestError

OSC_52_LIMIT = 74_994  # characters of base64: xterm reads 100,000 bytes, others less; 74,994 works nearly everywhere


class Screen(Protocol):
    """Where a conversation is shown."""

    def piece(self, text: str) -> None:
        """Show the next piece of an answer."""

    def end(self, turn: Turn, *, stopped: bool) -> None:
        """End an answer; `stopped` by the user or not."""

    def compare(self, current: Turn, base: Turn) -> None:
        """Show two answers to one question side by side."""

    def suggest(self, suggestions: Sequence[Json]) -> None:
        """Show what the user may want to ask next, numbered from 1."""

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

    def suggest(self, suggestions: Sequence[Json]) -> None:
        for number, each in enumerate(suggestions, 1):
            note(f"{number}  {each['text']}  ({each['reason']})")
        note("type a number to ask it")

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

    def suggest(self, suggestions: Sequence[Json]) -> None:
        _line({"event": "suggestions", "suggestions": list(suggestions)})

    def notice(self, text: str) -> None:
        _line({"event": "notice", "text": text})

    def problem(self, error: EdgepdError) -> None:
        _line({"event": "error", **error_body(error)})


def copy_to_clipboard(text: str) -> None:
    """Ask the terminal to put a text on the clipboard, by the escape sequence OSC 52; it does not tell whether it did.

    Raises RequestError if there is no terminal, or the text is longer than terminals take.
    """
    if not sys.stdout.isatty():
        raise RequestError("there is no terminal here whose clipboard could be used; pipe edgepd ask into a program")
    encoded = base64.b64encode(text.encode("utf-8", errors="replace")).decode("ascii")
    if len(encoded) > OSC_52_LIMIT:
        raise RequestError(f"the answer has {len(text)} characters, more than terminals copy; mark it with the mouse")
    sys.stdout.write(f"\x1b]52;c;{encoded}\x07")
    sys.stdout.flush()


def _line(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))
