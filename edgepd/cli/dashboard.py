"""The dashboard of `edgepd watch`: one look at the daemon, laid out to fill a terminal.

The idea: panels with a place in an order of importance; those that the terminal has room for are shown, and what is
left over makes the loss curve taller. The invariants: nothing is drawn outside the terminal, however small; whatever
the daemon says is text, without control characters and never markup.
What this does not do: ask the daemon, draw to the terminal, or keep anything; watch.py does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from edgepd.cli.budget import battery, learning, number, paused, today, trainer
from edgepd.cli.events import hit_rates
from edgepd.cli.output import CONTROLS, duration, mebibytes
from edgepd.cli.plot import BLOCKS, PLAIN, bar, gauge, plot, sparkline
from edgepd.cli.train import kind_of, stage_of, verdict
from edgepd.client import Json

WIDE = 72  # columns from which two panels stand side by side
FRAME = 2  # lines of a panel's border; columns are 4 with the blanks beside the text
LABEL = 9  # columns of the labels within a panel
BAR = 20
TALLEST_PLOT = 8  # lines of the loss curve
LEAST_TABLE, LEAST_TRAINING, LEAST_BUDGET = 2, 4, 4  # lines; a table's are its head and one row
MOST_PROBLEMS = 3
RUN = "training"  # the title of the panel that takes the room which is left over
GOES_ON = ("start", "go on")
HOLDS = ("pause", "park", "shrink")

Rows = list[tuple[str, str | Text]]


@dataclass(frozen=True)
class Box:
    """One panel: its title, what is in it, and how many lines of that are worth showing if there is no room for all."""

    title: str
    body: RenderableType
    least: int


def dashboard(view: Json, speeds: Sequence[float], console: Console, now: float) -> RenderableType:
    """Lay out one look, as `edgepd watch` has it, with the tokens/s of the looks so far; `now` is unix seconds."""
    seen = _cleaned(view)
    levels = PLAIN if console.options.ascii_only else BLOCKS
    width, height = console.size
    problems = _problems(seen["problems"])
    reserved = 1 + (_lines(problems, console, width) + FRAME if problems else 0)
    rows = _rows(seen, speeds, now, width, levels)
    fitting = _fitting(rows, console, width, height - reserved)
    spare = height - reserved - sum(lines for _, lines in fitting)
    more = min(spare, TALLEST_PLOT - 1) if seen.get("curve") else 0
    if more > 0:
        taller = (_run_box(seen, width, levels, 1 + more),)
        fitting = [(taller, lines + more) if boxes[0].title == RUN else (boxes, lines) for boxes, lines in fitting]
    parts = [Layout(_head(seen), size=1)]
    for boxes, lines in fitting:
        row = Layout(size=lines)
        row.split_row(*(Layout(_panel(box)) for box in boxes))
        parts.append(row)
    if problems:
        parts.append(
            Layout(Panel(problems, title="problems", title_align="left", border_style="red"), size=reserved - 1)
        )
    whole = Layout()
    whole.split_column(*parts, Layout(Text(" ")))
    return whole


def unreachable(message: str) -> RenderableType:
    """Return what is shown while the daemon does not answer, with the reason."""
    text = Text("the daemon does not answer; waiting\n", style="bold yellow")
    text.append(message.translate(CONTROLS), style="not bold")
    return Panel(text, title="edgepd", title_align="left", border_style="yellow")


def _rows(view: Json, speeds: Sequence[float], now: float, width: int, levels: str) -> list[tuple[Box, ...]]:
    """Return the panels that stand side by side, the most important ones first."""
    inner = (width // 2 if width >= WIDE else width) - 4 - LABEL - 1
    serving = Box("serving", _grid(list(_serving(view, speeds, inner, levels))), 1)
    training = _run_box(view, width, levels, 1)
    budget = view.get("budget")
    limits = () if budget is None else (Box("budget", _grid(list(_budget(budget, inner))), LEAST_BUDGET),)
    generations = Box("generations", _generations(view.get("generations") or [], now), LEAST_TABLE)
    feedback = Box("feedback", _feedback(view.get("feedback") or [], now), LEAST_TABLE)
    if width >= WIDE:
        return [(serving, *limits), (training,), (generations, feedback)]
    return [(serving,), (training,), *((box,) for box in limits), (feedback,), (generations,)]


def _run_box(view: Json, width: int, levels: str, plot_lines: int) -> Box:
    return Box(RUN, _grid(list(_training(view, width - 4 - LABEL - 1, levels, plot_lines))), LEAST_TRAINING)


def _fitting(
    rows: Sequence[tuple[Box, ...]], console: Console, width: int, room: int
) -> list[tuple[tuple[Box, ...], int]]:
    """Return the rows that there is room for, each with its height. The first one is always among them."""
    found: list[tuple[tuple[Box, ...], int]] = []
    for boxes in rows:
        wanted = FRAME + max(_lines(box.body, console, width // len(boxes)) for box in boxes)
        least = min(wanted, FRAME + max(box.least for box in boxes))
        if least <= room or not found:
            taken = max(1, min(wanted, room))
            found.append((boxes, taken))
            room -= taken
    return found


def _lines(body: RenderableType, console: Console, width: int) -> int:
    """Return how many lines a panel of this width has inside."""
    options = console.options.update(width=max(1, width - 4), height=None)
    return len(console.render_lines(body, options, pad=False))


def _panel(box: Box) -> Panel:
    return Panel(box.body, title=box.title, title_align="left", border_style="dim")


def _grid(rows: Rows) -> Table:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(style="dim", width=LABEL, no_wrap=True)
    grid.add_column(ratio=1, overflow="fold")
    for label, value in rows:
        grid.add_row(label, value if isinstance(value, Text) else Text(value))
    return grid


def _head(view: Json) -> RenderableType:
    generation = view["generation"]
    head = Table.grid(expand=True)
    head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    head.add_column(justify="right", style="dim", no_wrap=True)
    title = Text.assemble(
        ("edgepd", "bold"), f"  {view['model']}, generation {generation['id']} ({generation['kind']})"
    )
    head.add_row(title, "Ctrl-C ends")
    return head


def _problems(problems: Sequence[str]) -> Text | None:
    if not problems:
        return None
    shown = list(problems[:MOST_PROBLEMS])
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more; edgepd status has them all")
    return Text("\n".join(shown), style="red")


def _serving(view: Json, speeds: Sequence[float], width: int, levels: str) -> Iterator[tuple[str, str | Text]]:
    engine, memory = view["engine"], view.get("memory")
    percent = engine["loading_percent"]
    yield "state", engine["state"] if percent is None else f"{engine['state']} {bar(percent / 100, BAR // 2)}"
    yield "answers", f"{engine['active']} of {engine['slots']} running, {engine['queued']} waiting"
    rate = engine["tokens_per_second"]
    yield "speed", "-" if rate is None else f"{rate:.1f} tokens/s"
    yield "", Text(sparkline(list(speeds)[-max(width, 1) :], max(width, 1), low=0.0, levels=levels), style="cyan")
    if memory:
        yield "memory", mebibytes(memory["rss_bytes"])
    if text := hit_rates(view.get("prediction")):
        yield "foreseen", text


def _training(view: Json, width: int, levels: str, plot_lines: int) -> Iterator[tuple[str, str | Text]]:
    training, budget = view["training"], view.get("budget")
    run, progress, last = training["run"], training["progress"], training["last"]
    if run is None:
        yield "run", "none is going on"
    else:
        yield "run", f"{run['id']} ({kind_of(run)}) {stage_of(progress) if progress else 'starting'}"
        if progress:
            yield from _progress(progress, budget)
        yield from _curve(view.get("curve") or [], progress or {}, max(width, 1), levels, plot_lines)
    if last is not None:
        yield "last", f"run {last['id']} ({kind_of(last)}) {verdict(last).splitlines()[0]}"


def _progress(progress: Json, budget: Json | None) -> Iterator[tuple[str, str | Text]]:
    if progress.get("total"):
        left = progress.get("seconds_left")
        until = "" if left is None else f"  {duration(left)} left"
        yield "", bar((progress.get("done") or 0) / progress["total"], BAR) + until
    speed = progress.get("tokens_per_second")
    taken = trainer(budget) if budget else []
    numbers = [] if speed is None else [f"{speed:.0f} tokens/s"]
    if not any(text.startswith("memory") for text in taken) and progress.get("rss_mb") is not None:
        taken = [*taken, f"memory {progress['rss_mb']:.0f} MiB"]
    if numbers or taken:
        yield "takes", ", ".join([*numbers, *taken])
    child = (budget or {}).get("trainer") or {}
    if why := progress.get("paused") or child.get("paused"):
        yield "paused", Text(why, style="yellow")


def _curve(
    curve: Sequence[Sequence[Any]], progress: Json, width: int, levels: str, lines: int
) -> Iterator[tuple[str, str | Text]]:
    """Yield the loss over the steps, and what it was first and is now, in nats per token."""
    held_out = progress.get("held_out_loss")
    beside = "" if held_out is None else f", held-out {held_out:.3f}"
    losses = [loss for _, loss in curve]
    known = [loss for loss in losses if loss is not None]
    if len(known) < 2:
        loss = progress.get("loss")
        if loss is not None:
            yield "loss", f"{loss:.3f}{beside}"
        return
    yield "loss", f"{known[0]:.3f} at step {curve[0][0]}, {known[-1]:.3f} at step {curve[-1][0]}{beside}"
    for line in plot(losses, width, lines, levels=levels):
        yield "", Text(line, style="cyan")


def _budget(budget: Json, width: int) -> Iterator[tuple[str, str | Text]]:
    readings, limits = budget["readings"], budget.get("limits") or {}
    action = budget["decision"]["action"]
    style = "green" if action in GOES_ON else "yellow" if action in HOLDS else ""
    yield action, Text(learning(budget), style=style)
    if text := paused(budget):
        yield "user", Text(text, style="yellow")
    yield "today", _used(budget["today"], width)
    if text := battery(budget):
        yield "power", text
    if text := ", ".join(_machine(readings)):
        yield "machine", text
    if text := ", ".join(_pressure(readings)):
        yield "pressure", text
    if limits.get("quiet_hours"):
        yield "quiet", str(limits["quiet_hours"])


def _used(used: Json, width: int) -> str:
    """Draw how much of the minutes of a day is used, in one line."""
    minutes, limit = used["at_work_s"] / 60, used.get("limit_s")
    if not limit:
        return today(used)
    text = f"{minutes:.0f} of {limit / 60:.0f} min"
    return f"{gauge(minutes * 60 / limit, max(1, min(BAR, width - len(text) - 3)))} {text}"


def _machine(readings: Json) -> Iterator[str]:
    if readings.get("temperature_c") is not None:
        yield f"{readings['temperature_c']:.0f} °C"
    if readings.get("other_cpu_percent") is not None:
        yield f"others {number(readings['other_cpu_percent'])} % CPU"


def _pressure(readings: Json) -> Iterator[str]:
    for label, name in (("memory", "memory_pressure"), ("disk", "io_pressure")):
        if readings.get(name) is not None:
            yield f"{label} {number(readings[name])} %"


def _generations(generations: Sequence[Json], now: float) -> Table:
    table = _table("id", "kind", "state", "held-out", "age")
    for each in generations:
        before, after = each.get("held_out_before"), each.get("held_out_after")
        losses = "-" if before is None or after is None else f"{before:.2f}->{after:.2f}"
        row = (str(each["id"]), each["kind"], each["state"], losses, _age(each["created_at"], now))
        table.add_row(*map(Text, row), style="bold" if each["active"] else "")
    return table


def _feedback(feedback: Sequence[Json], now: float) -> Table:
    table = _table("age", "kind", "value", "app")
    for each in feedback:
        value = "" if each.get("value") is None else str(each["value"])
        table.add_row(*map(Text, (_age(each["at"], now), each["kind"], value, each["app"])))
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for title in titles:
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    return table


def _age(moment: float, now: float) -> str:
    """Write how long ago a moment was, in the largest unit; a clock that was set back makes it new."""
    seconds = now - moment
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return "new"


def _cleaned(value: Any) -> Any:
    """Return what the daemon said with every text on one line and without control characters."""
    if isinstance(value, str):
        return value.translate(CONTROLS).replace("\n", " ").replace("\t", " ")
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return value
