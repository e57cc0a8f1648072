"""`edgepd watch`: what the daemon is doing, as it changes.

The idea: look twice a second, add the speed that several looks give, and show the same frame in place on a terminal,
as text below each other elsewhere, or as JSON. The invariant: without a change nothing is written.
What this does not do: keep what it saw, or change anything in the daemon.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from edgepd.cli.output import columns, connect, json_option, printable
from edgepd.cli.train import numbers_of, stage_of, verdict
from edgepd.client import Client, Json

LOOK_S = 0.5
SPEED_LOOKS = 5  # the speed is that between now and so many looks ago; over one look it would only flicker
BAR_WIDTH = 30


@click.command()
@click.option("--once", is_flag=True, help="Show one frame and end.")
@json_option
def watch(once: bool, as_json: bool) -> None:
    """Show what the daemon is doing as it changes: answers, and the training run. Ends with Ctrl-C.

    With --json: one line for each change.
    """
    with connect() as client:
        looks = _looks(client)
        try:
            if once:
                view = next(looks)
                # The speed of what is being answered takes a second look.
                view = next(looks) if view["engine"]["active"] else view
                click.echo(_line(view) if as_json else printable(frame(view)))
            else:
                _show(looks, as_json)
        except KeyboardInterrupt:
            return  # how watching ends


def _looks(client: Client) -> Iterator[Json]:
    """Yield what the daemon is doing, with the engine's `tokens_per_second`, as often as it is worth looking."""
    seen: deque[tuple[float, int]] = deque(maxlen=SPEED_LOOKS)
    while True:
        view = client.activity()
        engine = view["engine"]
        seen.append((time.monotonic(), engine["tokens_generated"]))
        engine["tokens_per_second"] = speed(seen) if engine["active"] else 0.0
        yield view
        time.sleep(LOOK_S)


def speed(seen: deque[tuple[float, int]]) -> float | None:
    """Return tokens per second from (time in seconds, tokens so far); None if that cannot be known yet."""
    (first, before), (last, after) = seen[0], seen[-1]
    if last <= first or after < before:  # one look only, or another daemon that has begun to count anew
        return None
    return round((after - before) / (last - first), 1)


def _show(looks: Iterator[Json], as_json: bool) -> None:
    """Show each look that differs from the one before."""
    console = Console()
    if as_json or not console.is_terminal:
        shown = None
        for view in looks:
            text = _line(view) if as_json else frame(view) + "\n"
            if text != shown:
                click.echo(text)
                shown = text
        return
    with Live(console=console, auto_refresh=False) as live:
        for view in looks:
            live.update(Text(printable(frame(view))), refresh=True)


def _line(view: Json) -> str:
    return json.dumps(view, ensure_ascii=False)


def frame(view: Json) -> str:
    """Describe one look for people."""
    generation = view["generation"]
    rows = [
        ("model", f"{view['model']}, generation {generation['id']} ({generation['kind']})"),
        ("engine", _engine(view["engine"])),
        *_training(view["training"]),
    ]
    return "\n".join([columns(rows), *(f"Problem: {problem}" for problem in view["problems"])])


def _engine(engine: Json) -> str:
    percent = engine["loading_percent"]
    parts = [
        engine["state"] if percent is None else f"{engine['state']} {percent:.0f} %",
        f"{engine['active']} of {engine['slots']} answers running",
        f"{engine['queued']} waiting",
    ]
    if engine["active"] and engine["tokens_per_second"] is not None:
        parts.append(f"{engine['tokens_per_second']:.1f} tokens/s")
    return ", ".join(parts)


def _training(training: Json) -> Iterator[tuple[str, str]]:
    """Yield the rows about the run that is going on, and about the one that ended last."""
    run, progress, last = training["run"], training["progress"], training["last"]
    if run is None:
        yield "training", "none is going on"
    else:
        yield "training", f"run {run['id']} ({run['kind']}) {stage_of(progress) if progress else 'starting'}"
    if run is not None and progress:
        if progress.get("total"):
            yield "", bar((progress.get("done") or 0) / progress["total"])
        numbers = numbers_of({**progress, "paused": None})
        if numbers:
            yield "", ", ".join(numbers)
        if progress.get("paused"):
            yield "paused", progress["paused"]
    if last is not None:
        head, *lines = verdict(last).splitlines()
        yield "last", f"run {last['id']} ({last['kind']}) {head}"
        yield from (("", line.strip()) for line in lines)


def bar(share: float) -> str:
    """Draw a share from 0 to 1 in plain characters, which every terminal and log can show."""
    share = min(max(share, 0.0), 1.0)
    full = round(share * BAR_WIDTH)
    return f"[{'#' * full}{'.' * (BAR_WIDTH - full)}] {share:.0%}"
