"""`edgepd watch`: what the daemon is doing, as it changes.

The idea: look twice a second, add the speed that several looks give, and show it: on a terminal as a dashboard that
fills it (see dashboard.py), elsewhere as text below each other, or as JSON. The invariants: without a change nothing
is written, and except on a terminal a sensor that moves is no change; a terminal is left as it was found, however
watching ends.
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

from edgepd.cli.budget import learning, usage
from edgepd.cli.dashboard import dashboard, unreachable
from edgepd.cli.events import prediction
from edgepd.cli.output import columns, connect, json_option, printable
from edgepd.cli.plot import bar
from edgepd.cli.train import kind_of, numbers_of, stage_of, verdict
from edgepd.client import Client, Json
from edgepd.errors import EdgepdError

LOOK_S = 0.5
SPEED_LOOKS = 5  # the speed is that between now and so many looks ago; over one look it would only flicker
SPEEDS_KEPT = 240  # of the last two minutes


@click.command()
@click.option("--once", is_flag=True, help="Show one frame and end.")
@json_option
def watch(once: bool, as_json: bool) -> None:
    """Show what the daemon is doing as it changes: answers, training, the budget, feedback. Ends with Ctrl-C.

    With --json: one line for each change.
    """
    console = Console()
    with connect() as client:
        looks = Looks(client)
        try:
            if once:
                view = looks.look()
                if view["engine"]["active"]:  # the speed of what is being answered takes a second look
                    time.sleep(LOOK_S)
                    view = looks.look()
                click.echo(_line(view) if as_json else printable(frame(view)))
            elif as_json or not console.is_terminal or console.is_dumb_terminal:
                _write(looks, as_json)
            else:
                _show(looks, console)
        except KeyboardInterrupt:
            return  # how watching ends


class Looks:
    """Looks at what the daemon is doing, and remembers how fast it was."""

    def __init__(self, client: Client) -> None:
        self.speeds: deque[float] = deque(maxlen=SPEEDS_KEPT)
        self._client = client
        self._seen: deque[tuple[float, int]] = deque(maxlen=SPEED_LOOKS)

    def look(self) -> Json:
        """Return what the daemon is doing, with the engine's `tokens_per_second`. Raises what the client does."""
        try:
            view = self._client.activity()
        except EdgepdError:
            self._seen.clear()  # the next one may be another daemon
            raise
        engine = view["engine"]
        self._seen.append((time.monotonic(), engine["tokens_generated"]))
        engine["tokens_per_second"] = speed(self._seen) if engine["active"] else 0.0
        self.speeds.append(engine["tokens_per_second"] or 0.0)
        return view


def speed(seen: deque[tuple[float, int]]) -> float | None:
    """Return tokens per second from (time in seconds, tokens so far); None if that cannot be known yet."""
    (first, before), (last, after) = seen[0], seen[-1]
    if last <= first or after < before:  # one look only, or another daemon that has begun to count anew
        return None
    return round((after - before) / (last - first), 1)


def _show(looks: Looks, console: Console) -> None:
    """Fill the terminal with each look. A daemon that is restarted is waited for, one that is not there is an error."""
    view: Json | None = looks.look()
    drawn: object = None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            now = time.time()
            seen = (view and view | {"memory": None}, console.size, now // 60)  # the minute, because of the ages
            if view is not None and (seen != drawn or any(looks.speeds)):
                live.update(dashboard(view, looks.speeds, console, now), refresh=True)
            drawn = seen
            time.sleep(LOOK_S)
            try:
                view = looks.look()
            except EdgepdError as error:
                view = None
                live.update(unreachable(str(error)), refresh=True)


def _write(looks: Looks, as_json: bool) -> None:
    """Write each look that differs from the one before. Raises what the client does."""
    written = None
    while True:
        view = looks.look()
        steady = _steady(view)
        if (change := _line(steady) if as_json else frame(steady)) != written:
            click.echo(_line(view) if as_json else printable(frame(view)) + "\n")
            written = change
        time.sleep(LOOK_S)


def _steady(view: Json) -> Json:
    """Return a look without what moves all the time, such as a temperature or the seconds of a wait."""
    if "budget" not in view:
        return view
    budget = view["budget"]
    decision = budget["decision"] | {"at": 0.0, "reason": ""}
    used = {name: value and value // 60 * 60 for name, value in budget["today"].items()}
    readings = {name: None for name in budget["readings"]}
    demand = budget["demand"]
    still = {"decision": decision, "today": used, "readings": readings, "demand": demand, "trainer": None}
    return view | {"budget": budget | still, "memory": None}


def _line(view: Json) -> str:
    return json.dumps(view, ensure_ascii=False)


def frame(view: Json) -> str:
    """Describe one look for people."""
    generation, budget = view["generation"], view.get("budget")
    rows = [
        ("model", f"{view['model']}, generation {generation['id']} ({generation['kind']})"),
        ("engine", _engine(view["engine"])),
        *_training(view["training"]),
        *(("prediction", text) for text in (prediction(view.get("prediction")),) if text),
        *((("learning", learning(budget)), ("budget", usage(budget))) if budget else ()),
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
        yield "training", f"run {run['id']} ({kind_of(run)}) {stage_of(progress) if progress else 'starting'}"
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
        yield "last", f"run {last['id']} ({kind_of(last)}) {head}"
        yield from (("", line.strip()) for line in lines)
