"""The chat loop: read a line, answer it or do what the command says.

The invariant: nothing that happens to one answer (an error, Ctrl-C) changes the turns before it, and on a terminal
none of it ends the loop. When lines come from a pipe, the first error ends the loop, as in a script.
What this does not do: keep what was typed on disk. The line editor's history lives as long as the process.
"""

from __future__ import annotations

import readline
import sys
from collections.abc import Callable
from contextlib import closing

import click

from edgepd.cli.conversation import Conversation, Turn
from edgepd.cli.feedback import edited
from edgepd.cli.output import checked_text, stdin_is_terminal
from edgepd.cli.screen import Screen
from edgepd.client import Client, Json
from edgepd.errors import EdgepdError, RequestError

PROMPT = "> "
HELP = """\
/good         the last answer was good
/bad          the last answer was bad
/fix [TEXT]   replace the last answer by TEXT; without it your editor opens
/retry        ask the last question again
/base         show the base model's answer to the last question beside the last answer
/stats        where the last answer came from and how long it took
/help         this list
/quit         leave, as does Ctrl-D; Ctrl-C stops an answer"""


class Repl:
    """One conversation with the daemon behind `client`, shown on `screen`."""

    def __init__(self, client: Client, conversation: Conversation, screen: Screen) -> None:
        self._client = client
        self._conversation = conversation
        self._screen = screen
        self._interactive = stdin_is_terminal()
        self._commands: dict[str, Callable[[str], None]] = {
            "/good": lambda _: self._thumb(1),
            "/bad": lambda _: self._thumb(-1),
            "/fix": self._fix,
            "/retry": lambda _: self._retry(),
            "/base": lambda _: self._base(),
            "/stats": lambda _: self._stats(),
            "/help": lambda _: self._screen.notice(HELP),
        }

    def run(self) -> None:
        """Read and answer until /quit or the end of the input. Raises EdgepdError if that came from a pipe."""
        if self._interactive:
            readline.set_auto_history(True)
        while True:
            try:
                line = self._read()
                if line is None or line.split()[:1] == ["/quit"]:
                    return
                self._handle(line)
            except KeyboardInterrupt:  # while nothing was being answered
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
                return input(PROMPT)
            return (sys.stdin.readline() or None) if sys.stdin is not None else None
        except EOFError:
            click.echo(err=True)
            return None
        except UnicodeDecodeError as error:
            raise RequestError(f"standard input is not UTF-8 text: byte {error.start} is bad") from error

    def _handle(self, line: str) -> None:
        if not line.strip():
            return
        if not line.startswith("/"):
            self._ask(line.strip(), self._conversation.turns)
            return
        name, _, rest = line.strip().partition(" ")
        command = self._commands.get(name)
        if command is None:
            raise RequestError(
                f"unknown command {name}; /help lists the commands, and a message may begin with a blank and then /"
            )
        command(rest.strip())

    def _ask(self, question: str, before: list[Turn]) -> None:
        """Answer `question` after the turns `before`, which together become the history if there is an answer."""
        conversation = self._conversation
        conversation.failed = (question, before)
        turn = Turn(question)
        stopped = self._stream(conversation.request(question, before), turn)
        if turn.answer or not stopped:
            conversation.turns = [*before, turn]
            conversation.failed = None

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

    def _last(self) -> Turn:
        if not self._conversation.turns:
            raise RequestError("there is no answer yet; ask something first")
        return self._conversation.turns[-1]

    def _last_stored(self) -> tuple[Turn, str]:
        turn = self._last()
        if turn.interaction_id is None:
            raise RequestError("the last answer was not stored, so it cannot be judged")
        return turn, turn.interaction_id

    def _thumb(self, thumb: int) -> None:
        _, interaction_id = self._last_stored()
        self._client.thumb(interaction_id, 1 if thumb > 0 else -1, source="cli")
        self._screen.notice("thumb up" if thumb > 0 else "thumb down")

    def _fix(self, text: str) -> None:
        turn, interaction_id = self._last_stored()
        if not text and not self._interactive:
            raise RequestError("there is no editor to open here; write /fix and the corrected text on one line")
        corrected = checked_text(text or edited(turn.answer), "corrected text")
        self._client.edit(interaction_id, corrected, source="cli")
        turn.answer = corrected
        self._screen.notice("correction kept; edgepd train learns from it")

    def _retry(self) -> None:
        turns = self._conversation.turns
        if self._conversation.failed is not None:
            self._ask(*self._conversation.failed)
        else:
            self._ask(self._last().question, turns[:-1])

    def _base(self) -> None:
        current = self._last()
        base = Turn(current.question)
        with closing(self._client.stream_chat(self._conversation.base_request())) as chunks:
            for chunk in chunks:
                base.take(chunk)
        self._screen.compare(current, base)

    def _stats(self) -> None:
        turn = self._last()
        known = {
            "interaction": turn.interaction_id,
            "model": turn.model,
            "generation": turn.generation,
            "finish_reason": turn.finish_reason,
            "conversation": self._conversation.id,
            "turns": len(self._conversation.turns),
            **turn.timings,
        }
        shown = {name: f"{value:.1f}" if isinstance(value, float) else str(value) for name, value in known.items()}
        self._screen.notice("\n".join(f"{name:<18} {value}" for name, value in shown.items()))
