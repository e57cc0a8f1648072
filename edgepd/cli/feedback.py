"""`edgepd good`, `bad`, `fix` and `undo`: what the user thinks of an answer."""

from __future__ import annotations

from typing import Literal

import click

from edgepd.cli.output import checked_text, connect, json_option, show, stdin_is_terminal, text_from_stdin
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
@click.argument("interaction", metavar="[ID]", default="last")
@click.option("--kind", type=click.Choice(["thumb", "edit"]), help="Take back only this kind.")
@json_option
def undo(interaction: str, kind: Literal["thumb", "edit"] | None, as_json: bool) -> None:
    """Take back the feedback on an answer. Without an ID it is the last one."""
    with connect() as client:
        if interaction == "last":
            interaction = client.interaction("last")["id"]
        done = client.remove_feedback(interaction, kind)
    count = f"{done['removed']} taken back" if done["removed"] else "there was none"
    show(done, f"feedback on {done['interaction_id']}: {count}", as_json)
