"""`edgepd remember`, `recall`, `facts` and `suggest`: what the user told, what fits a question, and what may be next.

The idea: the daemon keeps, finds and scores; each command is one question to it and a text for people.
What this does not do: put any of it into a prompt; the daemon does that when it answers.
"""

from __future__ import annotations

import click

from edgepd.cli.output import checked_text, columns, connect, json_option, moment, note, show, text_from_stdin
from edgepd.cli.privacy import receipt_text
from edgepd.client import Json
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
@click.option("--take", type=click.IntRange(min=1), metavar="N", help="Print the Nth one alone, as the one you chose.")
@click.option("--limit", type=click.IntRange(1, 20), default=3, show_default=True, help="How many at most.")
@json_option
def suggest(take: int | None, limit: int, as_json: bool) -> None:
    """Suggest what you may want to ask next, from what you asked before.

    Whether you take one is remembered, so that suggestions get better.

    \b
    edgepd suggest
    edgepd ask "$(edgepd suggest --take 1)"
    """
    with connect() as client:
        found = client.suggestions(limit if take is None else max(take, limit))
        if take is not None:
            if take > len(found):
                raise NotFoundError(f"there is no suggestion {take}, only {len(found)}; list them with: edgepd suggest")
            chosen = found[take - 1]
            settled = client.settle_suggestion(chosen["id"], "taken")
            show({"suggestion": settled}, chosen["text"], as_json)
            return
    rows = [(f"{n}.", _flat(each["text"]), f"({each['reason']})") for n, each in enumerate(found, start=1)]
    if not rows and not as_json:
        note("no suggestions yet; they come from what you ask")
        return
    show({"suggestions": found}, columns(rows) if rows else "", as_json)
