"""The chat loop: read a line, answer it or do what the command says.

The invariant: nothing that happens to one answer (an error, Ctrl-C) changes the turns before it, and on a terminal
none of it ends the loop. When lines come from a pipe, the first error ends the loop, as in a script.
What this does not do: keep what was typed on disk. The line editor's history lives as long as the process.
"""

from __future__ import annotations

import readline
import sys
from contextlib import closing

import click

from edgepd.cli.conversation import Conversation, Turn
from edgepd.cli.observation import Observer
from edgepd.cli.output import stdin_is_terminal
from edgepd.cli.repl_commands import Commands
from edgepd.cli.screen import Screen
from edgepd.client import Client, Json
from edgepd.errors import EdgepdError, RequestError

PROMPT = "> "
INCOGNITO_PROMPT = "incognito> "


class Repl:
    """One conversation with the daemon behind `client`, shown on `screen`."""

    def __init__(self, client: Client, conversation: Conversation, screen: Screen) -> None:
        self._client = client
        self._conversation = conversation
        self._screen = screen
        self._interactive = stdin_is_terminal()
        self._observer = Observer(client) if self._interactive else None
        self._commands = Commands(client, conversation, screen, self._ask, interactive=self._interactive)

    def run(self) -> None:
        """Read and answer until /quit or the end of the input. Raises EdgepdError if that came from a pipe."""
        if self._interactive:
            readline.set_auto_history(True)
        while True:
            try:
                line = self._read()
                if self._observer is not None and (line is None or line.strip()):
                    self._observer.went_on()
                if line is None or line.split()[:1] == ["/quit"]:
                    return
                self._handle(line)
            except (KeyboardInterrupt, click.Abort):  # while nothing was being answered
                if not self._interactive:
                    raise
                click.echo(err=True)
            except (EdgepdError, click.ClickException) as error:
                explained = error if isinstance(error, EdgepdError) else RequestError(error.format_message())
                if not self._interactive:
                    raise explained from error
                self._screen.problem(explained)

    def _read(self) -> str | None:
        """Return the next line, or None at the end of the input."""
        try:
            if self._interactive:
                return input(INCOGNITO_PROMPT if self._conversation.incognito else PROMPT)
            return (sys.stdin.readline() or None) if sys.stdin is not None else None
        except EOFError:
            click.echo(err=True)
            return None
        except UnicodeDecodeError as error:
            raise RequestError(f"standard input is not UTF-8 text: byte {error.start} is bad") from error

    def _handle(self, line: str) -> None:
        if line.startswith("/"):
            self._commands.run(line)
        elif line.strip():
            self._commands.say(line.strip())

    def _ask(self, question: str, before: list[Turn]) -> None:
        """Answer `question` after the turns `before`, which together become the history if there is an answer."""
        conversation = self._conversation
        conversation.failed = (question, before)
        turn = conversation.turn(question)
        stopped = self._stream(conversation.request(question, before), turn)
        if turn.answer or not stopped:
            conversation.turns = [*before, turn]
            conversation.failed = None
        if self._observer is not None:
            self._observer.answered(turn, stopped=stopped)

    def _stream(self, request: Json, turn: Turn) -> bool:
        """Show an answer while it arrives. Return whether the user stopped it."""
        stopped = False
        ended = False
        try:
            with closing(self._client.stream_chat(request)) as chunks:
                for chunk in chunks:
                    self._screen.piece(turn.take(chunk))
            ended = True
        except KeyboardInterrupt:
            stopped = ended = True
        finally:
            if ended or turn.answer:
                self._screen.end(turn, stopped=stopped)
        return stopped
