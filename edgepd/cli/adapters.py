"""`edgepd adapters`: the generations that training has made, and which of them is live."""

from __future__ import annotations

import click

from edgepd.cli.output import columns, connect, json_option, moment, show
from edgepd.client import Json


@click.group()
def adapters() -> None:
    """List the adapter generations, and choose which one is live."""


@adapters.command("list")
@json_option
def list_generations(as_json: bool) -> None:
    """List all generations; * marks the one that is live."""
    with connect() as client:
        found = client.generations()
    show(found, _table(found), as_json)


def _table(found: Json) -> str:
    rows = [("", "id", "parent", "kind", "state", "held-out loss", "examples", "made", "")]
    for generation in found["generations"]:
        parent = generation.get("parent")
        rows.append(
            (
                "*" if generation["id"] == found["active"] else "",
                str(generation["id"]),
                "-" if parent is None else str(parent),
                generation["kind"],
                generation["state"],
                _losses(generation.get("scores") or {}),
                str(len(generation.get("example_ids") or [])),
                moment(generation.get("created_at")),
                generation.get("reason") or "",
            )
        )
    return columns(rows)


def _losses(scores: Json) -> str:
    before, after = scores.get("held_out_before"), scores.get("held_out_after")
    return "-" if before is None or after is None else f"{before:.3f} -> {after:.3f}"


@adapters.command()
@click.option("--to", "target", type=click.IntRange(min=0), metavar="ID", help="Go back to this generation.")
@json_option
def rollback(target: int | None, as_json: bool) -> None:
    """Go back to the generation that was live before, at once and without a restart."""
    with connect() as client:
        switched = client.rollback(target)
    show(switched, _switched(switched), as_json)


@adapters.command()
@click.argument("generation", type=click.IntRange(min=0), metavar="ID")
@json_option
def use(generation: int, as_json: bool) -> None:
    """Make the generation with this ID the live one."""
    with connect() as client:
        switched = client.activate(generation)
    show(switched, _switched(switched), as_json)


def _switched(switched: Json) -> str:
    return (
        f"generation {switched['active']} is live (before: {switched['previous']}), "
        f"prepared in {switched['prepare_ms']:.0f} ms"
    )
