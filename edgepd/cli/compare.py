"""`edgepd compare`: two generations answer the same question, and the user's choice is kept as a preference.

The idea: which answer is better is the one thing that only the user knows, and it is known best without knowing whose
answer is whose. So the answers come in random order under the labels 1 and 2, and are named after the choice. The
invariants: both get the same messages, sampling and seed; nothing is recorded unless one of two different answers was
chosen. What this does not do: judge, or train; `edgepd train` learns from the preference.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import uuid
from dataclasses import asdict, dataclass
from typing import Literal

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepd.cli.output import (
    checked_text,
    connect,
    json_option,
    note,
    printable,
    progress_console,
    show,
    stdin_is_terminal,
    text_from_stdin,
)
from edgepd.client import Client, Json
from edgepd.errors import NotFoundError, RequestError

Choice = Literal["1", "2", "="]
LABELS = ("1", "2")
CHOICES = (*LABELS, "=")
QUIT = "q"
SEEDS = 2**31


@dataclass(frozen=True)
class Contestant:
    """One generation's answer. `interaction_id` is None if the daemon did not store it."""

    label: str
    generation: int
    kind: str
    answer: str
    interaction_id: str | None
    finish_reason: str | None

    @property
    def name(self) -> str:
        """How it is called when it is no secret any more."""
        return f"generation {self.generation} ({self.kind})"


@click.command()
@click.argument("question", nargs=-1)
@click.option("-a", "a", metavar="GEN", help="A generation: its number, or base.")
@click.option("-b", "b", metavar="GEN", help="The generation to compare it with.")
@click.option("--system", help="System message.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Length limit of each answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 always takes the likeliest token.")
@click.option("--seed", type=int, help="Seed of sampling, the same for both; random by default.")
@click.option("--blind/--no-blind", default=True, help="Hide which answer is whose until you have chosen (default).")
@click.option("--choose", type=click.Choice(CHOICES), help="Choose without being asked: 1 is A's answer, 2 is B's.")
@json_option
def compare(
    question: tuple[str, ...],
    a: str | None,
    b: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    blind: bool,
    choose: Choice | None,
    as_json: bool,
) -> None:
    """Ask two generations the same QUESTION, and say which answer is better.

    Without -a and -b these are the live generation and the one before it; with one of them, that one and the live
    one. Your choice is kept as a preference that `edgepd train` learns from; edgepd undo takes it back.

    \b
    edgepd compare "Decline the invitation to dinner."
    edgepd compare -b base --no-blind "Who are you?"
    edgepd compare -a 5 -b 7 --json "Who are you?"      # asks nothing, records nothing
    """
    asks = choose is None and not as_json
    if asks and not stdin_is_terminal():
        raise RequestError("there is no terminal to ask at; use --choose 1, 2 or =, or --json to see the answers only")
    text = checked_text(" ".join(question) or text_from_stdin(), "question")
    given = {"max_tokens": max_tokens, "temperature": temperature}
    seed = secrets.randbelow(SEEDS) if seed is None else seed
    request: Json = {"app": "cli", "conversation": uuid.uuid4().hex, "messages": _messages(text, system), "seed": seed}
    request |= {name: value for name, value in given.items() if value is not None}
    with connect() as client:
        pair = _pair(client.generations(), a, b)
        if asks and blind:
            pair = pair[:: secrets.choice((1, -1))]
        answers = _answers(client, request, pair)
        found: Json = {"question": text, "seed": seed, "answers": [asdict(each) for each in answers]}
        if not as_json:
            _side_by_side(answers, named=not (asks and blind))
        _settle(client, answers, found, choose, asks=asks, as_json=as_json)


def _messages(question: str, system: str | None) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": question}]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def _pair(found: Json, a: str | None, b: str | None) -> list[Json]:
    """Return the two generations that are meant. Raises NotFoundError, and RequestError if they are one."""
    known = {generation["id"]: generation for generation in found["generations"]}
    active = known[found["active"]]
    base = next(generation for generation in known.values() if generation["kind"] == "base")
    before = known.get(found.get("previous"), base)
    named = [None if name is None else _named(known, base, name) for name in (a, b)]
    if named == [None, None]:
        pair = [active, before]
    else:
        other = before if active in named else active
        pair = [other if generation is None else generation for generation in named]
    if pair[0]["id"] == pair[1]["id"]:
        raise RequestError(
            f"generation {pair[0]['id']} would be compared with itself; name two different ones with -a and -b, "
            "edgepd adapters list shows all"
        )
    return pair


def _named(known: dict[int, Json], base: Json, name: str) -> Json:
    if name == "base":
        return base
    if not name.isdecimal() or int(name) not in known:
        raise NotFoundError(f"generation '{name}' is not known; give a number from edgepd adapters list, or base")
    return known[int(name)]


def _answers(client: Client, request: Json, pair: list[Json]) -> list[Contestant]:
    """Let both answer, in the order in which they are shown."""
    console = progress_console()
    waiting = console.status("both generations answer") if console.is_terminal else contextlib.nullcontext()
    answers = []
    with waiting:
        for label, generation in zip(LABELS, pair, strict=True):
            answer = client.chat(request | {"model": f"default@{generation['id']}"})
            choice = answer["choices"][0]
            answers.append(
                Contestant(
                    label,
                    generation["id"],
                    generation["kind"],
                    choice["message"].get("content") or "",
                    answer.get("interaction_id"),
                    choice.get("finish_reason"),
                )
            )
    return answers


def _side_by_side(answers: list[Contestant], *, named: bool) -> None:
    titles = [f"{each.label}: {each.name}" if named else each.label for each in answers]
    if not sys.stdout.isatty():
        for title, each in zip(titles, answers, strict=True):
            click.echo(f"--- {title}\n{each.answer}")
        return
    table = Table(expand=True)
    for title in titles:
        table.add_column(title, ratio=1)
    table.add_row(*(Text(printable(each.answer)) for each in answers))
    Console().print(table)


def _settle(
    client: Client, answers: list[Contestant], found: Json, choose: Choice | None, *, asks: bool, as_json: bool
) -> None:
    """Let the user choose, record the choice, and tell what came of it."""
    equal = answers[0].answer.strip() == answers[1].answer.strip()
    wanted: str | None = choose
    if asks and not equal:
        wanted = click.prompt("Which is better", type=click.Choice([*CHOICES, QUIT]), err=True)
    names = ", ".join(f"{each.label} was {each.name}" for each in answers)
    kept: Json = {"equal": equal, "choice": wanted, "preferred": None, "over": None, "undo": None}
    if equal:
        text = f"both answers are the same, so nothing was recorded: {names}"
    elif wanted in LABELS:
        winner, loser = answers if wanted == "1" else reversed(answers)
        undo = _record(client, winner, loser)
        kept |= {"preferred": winner.interaction_id, "over": loser.interaction_id, "undo": undo}
        text = f"{names}\npreference kept: {winner.name} over {loser.name}; take it back with: {undo}"
    else:
        text = f"nothing was recorded: {names}"
    if as_json:
        show(found | kept, "", as_json)
    else:
        note(text)


def _record(client: Client, winner: Contestant, loser: Contestant) -> str:
    """Keep the preference and return the command that takes it back. Raises RequestError if that is impossible."""
    if winner.interaction_id is None or loser.interaction_id is None:
        raise RequestError("the daemon does not store answers, so a preference between them cannot be kept")
    kept = client.prefer(winner.interaction_id, loser.interaction_id, source="cli")
    return f"edgepd undo {kept['interaction_id']} --kind preferred"
