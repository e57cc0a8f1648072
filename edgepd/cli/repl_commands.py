"""What can be done in `edgepd chat` besides asking: the commands that begin with a slash.

The invariant: a command that cannot be done raises an EdgepdError and has changed nothing.
What this does not do: read input, or catch errors; the loop in repl.py does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import click

from edgepd.cli.conversation import APP, Conversation, Turn
from edgepd.cli.feedback import edited
from edgepd.cli.observation import quietly
from edgepd.cli.output import checked_text
from edgepd.cli.screen import Screen, copy_to_clipboard
from edgepd.client import Client, Json
from edgepd.errors import RequestError

SUGGESTIONS = 5
HELP = """\
/good           the last answer was good
/bad            the last answer was bad
/rate N         rate the last answer from 1 (bad) to 5 (good)
/comment TEXT   say in your own words what you think of the last answer
/fix [TEXT]     replace the last answer by TEXT; without it your editor opens
/copy           put the last answer on the clipboard, if your terminal allows it
/retry          ask the last question again
/base           show beside the last answer what the base model says without your profile
/remember TEXT  remember a fact about you, to be told to the model when it fits a question
/suggest        show what you may want to ask next; typing its number asks it
/forget         forget the last exchange for good, and what was learned from it
/incognito      begin or end to talk without a trace: nothing is stored, nothing of your profile is used
/stats          where the last answer came from and how long it took
/help           this list
/quit           leave, as does Ctrl-D; Ctrl-C stops an answer"""


class Commands:
    """The commands of one chat. `ask(question, turns)` lets the loop ask `question` after these turns."""

    def __init__(
        self,
        client: Client,
        conversation: Conversation,
        screen: Screen,
        ask: Callable[[str, list[Turn]], None],
        *,
        interactive: bool,
    ) -> None:
        self._client = client
        self._conversation = conversation
        self._screen = screen
        self._ask = ask
        self._interactive = interactive
        self._suggested: list[Json] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/good": lambda _: self._thumb(1),
            "/bad": lambda _: self._thumb(-1),
            "/rate": self._rate,
            "/comment": self._comment,
            "/fix": self._fix,
            "/copy": lambda _: self._copy(),
            "/retry": lambda _: self._retry(),
            "/base": lambda _: self._base(),
            "/remember": self._remember,
            "/suggest": lambda _: self._suggest(),
            "/forget": lambda _: self._forget(),
            "/incognito": lambda _: self._incognito(),
            "/stats": lambda _: self._stats(),
            "/help": lambda _: self._screen.notice(HELP),
        }

    def run(self, line: str) -> None:
        """Do what a line that begins with a slash says. Raises RequestError for an unknown command."""
        name, _, rest = line.strip().partition(" ")
        command = self._commands.get(name)
        if command is None:
            raise RequestError(
                f"unknown command {name}; /help lists the commands, and a message may begin with a blank and then /"
            )
        command(rest.strip())

    def say(self, text: str) -> None:
        """Ask a question, or the suggestion whose number was typed right after they were shown."""
        suggested, self._suggested = self._suggested, []
        number = int(text) if text.isdecimal() else 0
        if not 1 <= number <= len(suggested):
            self._ask(text, self._conversation.turns)
            return
        chosen = suggested[number - 1]
        if self._interactive:
            self._screen.notice(chosen["text"])
        self._ask(chosen["text"], self._conversation.turns)
        # The daemon knows by itself if the question came unchanged; if this fails, little is lost.
        quietly(lambda: self._client.settle_suggestion(chosen["id"], "taken"))

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
        self._client.thumb(interaction_id, 1 if thumb > 0 else -1, source=APP)
        self._screen.notice("thumb up" if thumb > 0 else "thumb down")

    def _rate(self, number: str) -> None:
        _, interaction_id = self._last_stored()
        if number not in ("1", "2", "3", "4", "5"):
            raise RequestError(f"/rate takes a number from 1 (bad) to 5 (good), not '{number}'")
        self._client.rate(interaction_id, int(number), source=APP)
        self._screen.notice(f"rated {number} of 5")

    def _comment(self, text: str) -> None:
        _, interaction_id = self._last_stored()
        if not text:
            raise RequestError("write /comment and what you think of the answer on one line")
        self._client.comment(interaction_id, text, source=APP)
        self._screen.notice("comment kept")

    def _fix(self, text: str) -> None:
        turn, interaction_id = self._last_stored()
        if not text and not self._interactive:
            raise RequestError("there is no editor to open here; write /fix and the corrected text on one line")
        corrected = checked_text(text or edited(turn.answer), "corrected text")
        self._client.edit(interaction_id, corrected, source=APP)
        turn.answer = corrected
        self._screen.notice("correction kept; edgepd train learns from it")

    def _copy(self) -> None:
        turn = self._last()
        copy_to_clipboard(turn.answer)
        self._screen.notice("copied, if your terminal allows programs to")
        interaction_id = turn.interaction_id
        if interaction_id is not None:
            quietly(lambda: self._client.copied(interaction_id, source=APP))

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

    def _remember(self, text: str) -> None:
        self._not_incognito("remembers nothing")
        if not text:
            raise RequestError("write /remember and what is to be remembered on one line")
        fact = self._client.remember(text)
        self._screen.notice(f"remembered as fact {fact['id']}")

    def _suggest(self) -> None:
        self._not_incognito("knows nothing of you to suggest from")
        self._suggested = self._client.suggestions(SUGGESTIONS, app=APP)
        if self._suggested:
            self._screen.suggest(self._suggested)
        else:
            self._screen.notice("there is nothing to suggest yet; suggestions come from what you have asked before")

    def _forget(self) -> None:
        turn = self._last()
        if not self._interactive:
            raise RequestError("nobody can be asked whether the exchange is to go; use edgepd forget and its ID")
        if turn.interaction_id is None and not turn.incognito:
            raise RequestError("it is not known under which ID this exchange was stored; edgepd forget can search it")
        if not click.confirm("Forget the last exchange for good, and what was learned from it?", err=True):
            self._screen.notice("it stays")
            return
        if turn.interaction_id is None:
            text = "it was not stored; it is out of the conversation"
        else:
            text = _forgotten(self._client.forget({"ids": [turn.interaction_id]})["receipt"])
        self._conversation.drop(turn)
        self._screen.notice(text)

    def _incognito(self) -> None:
        self._suggested = []
        if self._conversation.toggle_incognito():
            self._screen.notice("incognito: nothing is stored and nothing of your profile is used; /incognito ends it")
        else:
            self._screen.notice("stored again; what was said incognito is out of the conversation")

    def _not_incognito(self, why: str) -> None:
        if self._conversation.incognito:
            raise RequestError(f"an incognito chat {why}; end it with /incognito")

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


def _forgotten(receipt: Json) -> str:
    retired = ", ".join(str(each) for each in receipt.get("generations") or [])
    text = f"forgotten; receipt {receipt['id']}"
    if retired:
        text += f"; retired, because they had learned from it: {retired}; generation {receipt['active']} answers now"
    return text
