"""`edgepd ask`: one question, one answer, from the arguments, a pipe or both."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import click

from edgepd.cli.conversation import APP, INCOGNITO
from edgepd.cli.output import checked_text, connect, json_option, note, printable, show, text_from_stdin
from edgepd.client import Client, Json


@click.command()
@click.argument("prompt", nargs=-1)
@click.option("--model", default="default", show_default=True, help="default, base or MODEL@GENERATION.")
@click.option("--system", help="System message.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Length limit of the answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 always takes the likeliest token.")
@click.option("--seed", type=int, help="Seed of sampling.")
@click.option("--no-store", is_flag=True, help="Do not keep this exchange in the profile.")
@click.option("--incognito", is_flag=True, help="Keep nothing of it, and use nothing of your profile.")
@json_option
def ask(
    prompt: tuple[str, ...],
    model: str,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    no_store: bool,
    incognito: bool,
    as_json: bool,
) -> None:
    """Ask one question. What is piped in follows the PROMPT: cat letter.txt | edgepd ask "summarise"."""
    question = checked_text("\n\n".join(filter(None, [" ".join(prompt), text_from_stdin().strip()])), "prompt")
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    request: Json = {"model": model, "messages": messages, "app": APP}
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "store": False if no_store else None}
    request |= {name: value for name, value in given.items() if value is not None} | (INCOGNITO if incognito else {})
    with connect() as client:
        if as_json:
            show(client.chat(request), "", as_json)
        else:
            _stream(client, request)


def _stream(client: Client, request: Json) -> None:
    warnings: list[Any] = []
    begun = ended_line = False
    try:
        with closing(client.stream_chat(request)) as events:
            for event in events:
                piece = event["choices"][0]["delta"].get("content") or ""
                click.echo(printable(piece), nl=False)
                begun = begun or bool(piece)
                ended_line = piece.endswith("\n") if piece else ended_line
                warnings = event.get("warnings") or warnings
    finally:
        if begun and not ended_line:
            click.echo()
    for warning in warnings:
        note(f"Warning: {warning}")
