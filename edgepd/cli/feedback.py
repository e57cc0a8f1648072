"""`edgepd good`, `bad`, `fix`, `prefer` and `undo`: what the user thinks of an answer."""

from __future__ import annotations

from typing import Literal

import click

from edgepd.cli.output import checked_text, connect, json_option, show, stdin_is_terminal, text_from_stdin
from edgepd.client import FeedbackKind
from edgepd.errors import RequestError


@click.command()
@click.argument("interaction", metavar="[ID]", default="last")
@json_option
def good(interaction: str, as_json: bool) -> None:
    """Say that an answer was good. Without an ID it is the last one."""
    _thumb(interaction, 1, as_json)


@click.command()
@click.argument("interaction", metavar="[ID]", default="last")
@json_option
def bad(interaction: str, as_json: bool) -> None:
    """Say that an answer was bad. Without an ID it is the last one."""
    _thumb(interaction, -1, as_json)


def _thumb(interaction: str, thumb: Literal[1, -1], as_json: bool) -> None:
    with connect() as client:
        kept = client.thumb(interaction, thumb, source="cli")
    show(kept, f"thumb {'up' if thumb > 0 else 'down'} for {kept['interaction_id']}", as_json)


@click.command()
@click.argument("interaction", metavar="[ID]", default="last")
@click.option("--text", help="The corrected text. Without it: what is piped in, else your editor opens.")
@json_option
def fix(interaction: str, text: str | None, as_json: bool) -> None:
    """Correct an answer. Without an ID it is the last one."""
    with connect() as client:
        if text is None and stdin_is_terminal():
            shown = client.interaction(interaction)
            interaction = shown["id"]  # "last" may mean another one when the editor is closed
            text = edited(shown["response"])
        elif text is None:
            text = text_from_stdin()
        kept = client.edit(interaction, checked_text(text, "corrected text"), source="cli")
    show(kept, f"correction kept for {kept['interaction_id']}", as_json)


def edited(answer: str) -> str:
    """Let the user change the answer in $EDITOR and return the result. Raises RequestError if nothing changed."""
    text = click.edit(answer)
    if text is None or text.strip() == answer.strip():
        raise RequestError("the answer was not changed, so no correction was kept")
    return text


@click.command()
@click.argument("winner")
@click.argument("loser")
@json_option
def prefer(winner: str, loser: str, as_json: bool) -> None:
    """Say that the answer WINNER is better than the answer LOSER, both given by their interaction IDs.

    They should answer the same question. `edgepd ask --json` and /stats in `edgepd chat` tell the IDs; edgepd compare
    does all of this at once.

    \b
    edgepd prefer 0f3a 91bc
    edgepd undo 0f3a --kind preferred
    """
    if winner == loser:
        raise RequestError(f"answer '{winner}' cannot be better than itself; give the IDs of two answers")
    with connect() as client:
        kept = client.prefer(winner, loser, source="cli")
    show(kept, f"{kept['interaction_id']} is preferred over {loser}", as_json)


@click.command()
@click.argument("interaction", metavar="[ID]", default="last")
@click.option("--kind", type=click.Choice(["thumb", "edit", "preferred"]), help="Take back only this kind.")
@json_option
def undo(interaction: str, kind: FeedbackKind | None, as_json: bool) -> None:
    """Take back the feedback on an answer. Without an ID it is the last one.

    A preference is kept on the answer that was the better one.
    """
    with connect() as client:
        if interaction == "last":
            interaction = client.interaction("last")["id"]
        done = client.remove_feedback(interaction, kind)
    count = f"{done['removed']} taken back" if done["removed"] else "there was none"
    show(done, f"feedback on {done['interaction_id']}: {count}", as_json)
