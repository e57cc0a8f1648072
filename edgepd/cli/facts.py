"""`edgepd remember`, `recall`, `facts` and `suggest`: what the user told, what fits a question, and what is next.

The idea: the daemon keeps, finds and scores; each command is one question to it and a text for people.
What this does not do: put any of it into a prompt; the daemon does that when it answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from edgepd.cli.events import SWITCHED_OFF
from edgepd.cli.output import checked_text, columns, connect, json_option, moment, note, show, text_from_stdin
from edgepd.cli.privacy import receipt_text
from edgepd.client import Client, Json
from edgepd.errors import NotFoundError

SHOWN_CHARACTERS = 60


@click.command()
@click.argument("text", required=False)
@click.option("--app", metavar="NAME", help="Only this app gets to know it; else all do.")
@json_option
def remember(text: str | None, app: str | None, as_json: bool) -> None:
    """Keep a fact about you, such as "I am allergic to nuts".

    Without TEXT it is read from standard input. A fact is put before questions that it fits; the model is not trained
    on it. What looks like a password or a key is refused.

    \b
    edgepd remember "My sister is called Ada"
    edgepd facts --forget 3
    """
    given = checked_text(text_from_stdin() if text is None else text, "fact")
    with connect() as client:
        fact = client.remember(given, app)
    show({"fact": fact}, f"remembered as fact {fact['id']}", as_json)


@click.command()
@click.argument("query")
@click.option("--limit", type=click.IntRange(1, 100), default=5, show_default=True, help="How many at most.")
@json_option
def recall(query: str, limit: int, as_json: bool) -> None:
    """Find the facts and the answers you accepted that fit QUERY, best first.

    It is what the model is given when it is asked the same.
    """
    with connect() as client:
        found = client.recall(query, limit)
    text = "\n".join(_recalled(each) for each in found) if found else "nothing that is kept fits this"
    show({"found": found}, text, as_json)


def _recalled(each: Json) -> str:
    if each["kind"] == "fact":
        return f"fact {each['id']}: {each['text']}"
    return f"answer {each['id']} of {moment(each['at'])}\n  {_line(each.get('prompt') or '')}\n  {_line(each['text'])}"


def _line(text: str) -> str:
    """Return a text on one line, shortened."""
    joined = " ".join(text.split())
    return joined if len(joined) <= SHOWN_CHARACTERS else f"{joined[: SHOWN_CHARACTERS - 1]}…"


@click.command()
@click.option("--forget", "fact_id", type=click.IntRange(min=1), metavar="ID", help="Forget this one for good.")
@json_option
def facts(fact_id: int | None, as_json: bool) -> None:
    """List what you told with `edgepd remember`, or forget one of it."""
    with connect() as client:
        if fact_id is not None:
            done = client.forget_fact(fact_id)
            show(done, receipt_text(done["receipt"]), as_json)
            return
        found = client.facts()
    rows = [(str(fact["id"]), fact["app"] or "all apps", moment(fact["at"]), _flat(fact["text"])) for fact in found]
    text = columns([("id", "for", "since", "fact"), *rows]) if rows else "no facts; tell one with: edgepd remember TEXT"
    show({"facts": found}, text, as_json)


def _flat(text: str) -> str:
    return " ".join(text.split())


@click.command()
@click.option("--take", type=click.IntRange(min=1), metavar="N", help="Print the Nth question alone, as yours.")
@click.option("--limit", type=click.IntRange(1, 20), default=3, show_default=True, help="How many of each at most.")
@json_option
def suggest(take: int | None, limit: int, as_json: bool) -> None:
    """Show what you are likely to do next, and suggest what to ask, from what you did and asked before.

    Whether you take a question is remembered, so that suggestions get better. `edgepd events` tells what you did.

    \b
    edgepd suggest
    edgepd ask "$(edgepd suggest --take 1)"
    """
    with connect() as client:
        if take is not None:
            _take(client, take, limit, as_json)
            return
        found = client.foresee(limit)
    # Absent: a daemon that does not know of prediction yet.
    if not found.get("predicting", True) and not as_json:
        note(SWITCHED_OFF)
    text = _suggested(found["suggestions"], found.get("next") or [])
    if not text and not as_json:
        note("no suggestions yet; they come from what you ask")
        return
    show(found, text, as_json)


def _take(client: Client, take: int, limit: int, as_json: bool) -> None:
    """Print one question and say that it was taken. Raises NotFoundError if there are not so many."""
    found = client.suggestions(max(take, limit))
    if take > len(found):
        raise NotFoundError(f"there is no suggestion {take}, only {len(found)}; list them with: edgepd suggest")
    chosen = found[take - 1]
    settled = client.settle_suggestion(chosen["id"], "taken")
    show({"suggestion": settled}, chosen["text"], as_json)


def _suggested(questions: Sequence[Json], likely: Sequence[Json]) -> str:
    """Return the intents that are likely next, and then the questions, which keep the numbers for --take."""
    asked = [(f"{n}.", _flat(each["text"]), f"({each['reason']})") for n, each in enumerate(questions, start=1)]
    if not likely:
        return columns(asked) if asked else ""
    done = [(_flat(each["intent"]), f"{each['probability']:.0%}", f"({each['reason']})") for each in likely]
    parts = ["likely next:", columns(done)]
    return "\n".join([*parts, "to ask:", columns(asked)] if asked else parts)
