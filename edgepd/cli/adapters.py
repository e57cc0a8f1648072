"""`edgepd adapters`: the generations that training has made, and which of them is live.

The idea: the daemon keeps and checks generations; each command is one question to it and a text for people.
What this does not do: read or write their files; that is adapter_files.py.
"""

from __future__ import annotations

import click

from edgepd.cli.adapter_files import bake, export, import_file
from edgepd.cli.adapter_text import details, differences, marks, size, table
from edgepd.cli.output import connect, json_option, note, show, stdin_is_terminal
from edgepd.client import Client, Json
from edgepd.errors import RequestError

ID = click.IntRange(min=0)


@click.group()
def adapters() -> None:
    """List the adapter generations, choose which one is live, and move them in and out.

    A generation is a model file and at most one adapter on top of it. Its ID is the number in `edgepd adapters list`.
    """


@adapters.command("list")
@json_option
def list_generations(as_json: bool) -> None:
    """List all generations; * marks the one that is live.

    A generation that has just gone live is pending until it has answered a few times; if the daemon crashes before
    that, it falls back to the last confirmed one by itself. The files of pinned ones are never cleaned up.
    """
    with connect() as client:
        found = client.generations()
    show(found, table(found), as_json)


@adapters.command("show")
@click.argument("generation", type=ID, metavar="ID")
@json_option
def show_generation(generation: int, as_json: bool) -> None:
    """Show one generation: the verdict on it and why, its numbers, lineage and files.

    The arms are ways to answer the same held-out questions, in nats per token: the base model, with the user's profile
    or similar answers in the prompt, with the adapter, and together. Less is better.
    """
    with connect() as client:
        shown = client.generation(generation)
    show(shown, details(shown), as_json)


@adapters.command()
@click.argument("a", type=ID)
@click.argument("b", type=ID)
@json_option
def diff(a: int, b: int, as_json: bool) -> None:
    """Show what is different in generation B from generation A.

    That is the examples it was trained on, the settings, the scores, and the tensors that changed most.
    """
    with connect() as client:
        found = client.diff_generations(a, b)
    show(found, differences(found), as_json)


@adapters.command()
@click.argument("generation", type=ID, metavar="ID")
@click.option("--expected", type=ID, metavar="ID", help="Only if this generation is live now; else ends with 6.")
@json_option
def use(generation: int, expected: int | None, as_json: bool) -> None:
    """Make the generation with this ID the live one, at once and without a restart.

    Answers that are under way end with the generation that they began with.
    """
    with connect() as client:
        switched = client.activate(generation, expected)
    show(switched, _switched(switched), as_json)


@adapters.command()
@click.option("--to", "target", type=ID, metavar="ID", help="Go back to this generation.")
@json_option
def rollback(target: int | None, as_json: bool) -> None:
    """Go back to the generation that was live before, at once and without a restart."""
    with connect() as client:
        switched = client.rollback(target)
    show(switched, _switched(switched), as_json)


def _switched(switched: Json) -> str:
    return (
        f"generation {switched['active']} is live (before: {switched['previous']}), "
        f"prepared in {switched['prepare_ms']:.0f} ms"
    )


@adapters.command()
@click.argument("generation", type=ID, metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@json_option
def delete(generation: int, yes: bool, as_json: bool) -> None:
    """Delete a generation's files for good. The list still shows that it was there.

    The base, the live generation, pinned ones, and a baked one that others stand on cannot be deleted. Asks first,
    but not with --yes or --json.
    """
    with connect() as client:
        if not (yes or as_json or _confirmed(client, generation)):
            note(f"generation {generation} stays")
            return
        deleted = client.delete_generation(generation)
    show(deleted, f"generation {generation} is deleted, {size(deleted['freed_bytes'])} are free again", as_json)


def _confirmed(client: Client, generation: int) -> bool:
    """Ask the user. Raises RequestError if nobody can answer, NotFoundError if there is no such generation."""
    if not stdin_is_terminal():
        raise RequestError(f"nobody can be asked whether generation {generation} is to go; add --yes to delete it")
    found = client.generation(generation)["generation"]
    what = ", ".join([found["kind"], found["state"], *marks(found), size(found.get("bytes"))])
    return click.confirm(f"Delete generation {generation} ({what}) for good?", err=True)


@adapters.command()
@click.argument("generation", type=ID, metavar="ID")
@json_option
def pin(generation: int, as_json: bool) -> None:
    """Keep a generation, however old it gets and however many come after it."""
    _pin(generation, True, as_json)


@adapters.command()
@click.argument("generation", type=ID, metavar="ID")
@json_option
def unpin(generation: int, as_json: bool) -> None:
    """Let a pinned generation be cleaned up again when it is old."""
    _pin(generation, False, as_json)


def _pin(generation: int, pinned: bool, as_json: bool) -> None:
    with connect() as client:
        found = client.pin_generation(generation, pinned)
    text = f"generation {found['id']} is {'pinned' if found['pinned'] else 'not pinned any more'}"
    show({"generation": found}, text, as_json)


@adapters.command()
@click.argument("generations", type=ID, nargs=-1, required=True, metavar="ID ID...")
@click.option(
    "--weight",
    "weights",
    type=float,
    multiple=True,
    help="How much of a generation goes in; give one for each ID, in the same order. Without it they count alike.",
)
@click.option("--rank", type=click.IntRange(min=1), help="Compress the result to this rank; else it is exact.")
@json_option
def merge(generations: tuple[int, ...], weights: tuple[float, ...], rank: int | None, as_json: bool) -> None:
    """Merge several live generations into a new one, which does not go live by itself.

    All must be made for the same model file. The exact result has the sum of their ranks, and costs time at each token
    accordingly; --rank bounds that by dropping what matters least.

    \b
    edgepd adapters merge 4 6
    edgepd adapters merge 4 6 --weight 0.7 --weight 0.3 --rank 8
    """
    if len(generations) < 2 or len(set(generations)) < len(generations):
        raise RequestError(f"a merge takes at least two different generations, not {_joined(generations)}")
    if weights and len(weights) != len(generations):
        raise RequestError(
            f"there are {len(generations)} generations but {len(weights)} weights; give one --weight for each, or none"
        )
    with connect() as client:
        made = client.merge_generations(generations, weights or None, rank)
    text = (
        f"generation {made['id']} is a {made['state']}, merged from {_joined(generations)}\n"
        f'see how it answers: edgepd compare -b {made["id"]} "a question"\n'
        f"make it live:       edgepd adapters use {made['id']}"
    )
    show({"generation": made}, text, as_json)


def _joined(generations: tuple[int, ...]) -> str:
    return " and ".join(str(each) for each in generations)


for command in (bake, import_file, export):
    adapters.add_command(command)
