"""`edgepd good`, `bad`, `rate`, `comment`, `fix`, `prefer`, `report` and `undo`: what the user thinks of an answer.

What this does not do: judge by itself, or learn; `edgepd train` and the profile do.
"""

from __future__ import annotations

from typing import Literal, get_args

import click

from edgepd.cli.output import checked_text, connect, json_option, show, stdin_is_terminal, text_from_stdin
from edgepd.client import FeedbackKind
from edgepd.errors import RequestError

KINDS: tuple[str, ...] = get_args(FeedbackKind)
LAST = "last"


@click.command()
@click.argument("interaction", metavar="[ID]", default=LAST)
@json_option
def good(interaction: str, as_json: bool) -> None:
    """Say that an answer was good. Without an ID it is the last one."""
    _thumb(interaction, 1, as_json)


@click.command()
@click.argument("interaction", metavar="[ID]", default=LAST)
@json_option
def bad(interaction: str, as_json: bool) -> None:
    """Say that an answer was bad. Without an ID it is the last one."""
    _thumb(interaction, -1, as_json)


def _thumb(interaction: str, thumb: Literal[1, -1], as_json: bool) -> None:
    with connect() as client:
        kept = client.thumb(interaction, thumb, source="cli")
    show(kept, f"thumb {'up' if thumb > 0 else 'down'} for {kept['interaction_id']}", as_json)


@click.command()
@click.argument("rating", metavar="N", type=click.IntRange(1, 5))
@click.argument("interaction", metavar="[ID]", default=LAST)
@json_option
def rate(rating: int, interaction: str, as_json: bool) -> None:
    """Rate an answer from 1 (bad) to 5 (good). Without an ID it is the last one.

    An answer that you rate 4 or 5 may be shown to the model as an example of what you like.
    """
    with connect() as client:
        kept = client.rate(interaction, rating, source="cli")
    show(kept, f"rated {rating} of 5: {kept['interaction_id']}", as_json)


@click.command()
@click.argument("text")
@click.argument("interaction", metavar="[ID]", default=LAST)
@json_option
def comment(text: str, interaction: str, as_json: bool) -> None:
    """Say in your own words what you think of an answer. Without an ID it is the last one.

    Words such as "too long" or "please in German" go into your profile.
    """
    said = checked_text(text, "comment")
    with connect() as client:
        kept = client.comment(interaction, said, source="cli")
    show(kept, f"comment kept for {kept['interaction_id']}", as_json)


@click.command()
@click.argument("interaction", metavar="[ID]", default=LAST)
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
@click.argument("what", type=click.Choice(["copied", "abandoned", "dwell"]))
@click.argument("interaction", metavar="[ID]", default=LAST)
@click.option("--ms", type=click.IntRange(min=0), help="For how many milliseconds the answer was looked at.")
@json_option
def report(what: str, interaction: str, ms: int | None, as_json: bool) -> None:
    """Report what was observed of the user: an answer was copied, abandoned, or looked at for a while.

    This is for programs that show answers, and for scripts; edgepd chat reports the same by itself. It counts less
    than what you say yourself.

    \b
    edgepd report copied
    edgepd report dwell 0f3a --ms 4200
    """
    if (ms is not None) != (what == "dwell"):
        need = "needs --ms, the time in milliseconds" if what == "dwell" else "takes no --ms; that is for dwell"
        raise RequestError(f"edgepd report {what} {need}")
    with connect() as client:
        if what == "copied":
            kept = client.copied(interaction, source="cli")
        elif what == "abandoned":
            kept = client.abandoned(interaction, source="cli")
        else:
            kept = client.dwelt(interaction, ms or 0, source="cli")
    show(kept, f"{what if ms is None else f'dwell of {ms} ms'} kept for {kept['interaction_id']}", as_json)


@click.command()
@click.argument("interaction", metavar="[ID]", default=LAST)
@click.option("--kind", type=click.Choice(KINDS), help="Take back only this kind.")
@json_option
def undo(interaction: str, kind: FeedbackKind | None, as_json: bool) -> None:
    """Take back the feedback on an answer, also what was observed. Without an ID it is the last one.

    A preference is kept on the answer that was the better one.
    """
    with connect() as client:
        if interaction == LAST:
            interaction = client.interaction(LAST)["id"]
        done = client.remove_feedback(interaction, kind)
    count = f"{done['removed']} taken back" if done["removed"] else "there was none"
    show(done, f"feedback on {done['interaction_id']}: {count}", as_json)
