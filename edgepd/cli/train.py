"""`edgepd train`: learn from the feedback, and say whether the result was good enough to go live."""

from __future__ import annotations

import time

import click
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from edgepd.cli.output import connect, json_option, note, progress_console, show
from edgepd.client import Client, Json
from edgepd.errors import TrainingError

POLL_S = 0.25
TIMES = ("load_s", "train_s", "write_s", "gate_s")


@click.command()
@click.option("--baked", is_flag=True, help="Train a change that the model file itself can hold, at no cost in speed.")
@click.option("--wait/--no-wait", default=True, help="Wait for the verdict (default), or only start the run.")
@json_option
def train(baked: bool, wait: bool, as_json: bool) -> None:
    """Learn from the feedback so far. Ends with 0 if the result went live, and with 7 if it did not."""
    with connect() as client:
        run = client.start_training("baked" if baked else "live")
        if wait:
            run = _follow(client, run)
    show({"run": run}, verdict(run), as_json)
    if run["state"] not in ("running", "promoted"):
        click.get_current_context().exit(TrainingError.exit_code)


def _follow(client: Client, run: Json) -> Json:
    """Wait until the run has ended and return it, drawing its progress."""
    console = progress_console()
    bar = Progress(
        *(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
        ),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    try:
        with bar:
            task = bar.add_task("starting", total=None, numbers="")
            while run["state"] == "running":
                time.sleep(POLL_S)
                seen = client.training(run["id"])
                run = seen["run"]
                if seen["progress"]:
                    _draw(bar, task, seen["progress"])
    except KeyboardInterrupt:
        note(f"run {run['id']} goes on in the daemon; edgepd status shows it")
        raise
    return run


def _draw(bar: Progress, task: TaskID, progress: Json) -> None:
    numbers = []
    if progress.get("loss") is not None:
        numbers.append(f"loss {progress['loss']:.3f}")
    if progress.get("tokens_per_second"):
        numbers.append(f"{progress['tokens_per_second']:.0f} tokens/s")
    bar.update(
        task,
        description=str(progress["stage"]),
        total=progress.get("total"),
        completed=progress.get("done") or 0,
        numbers=", ".join(numbers),
    )


def verdict(run: Json) -> str:
    """Describe a run for people: its state, the reason, and the numbers that decided."""
    heads = {
        "running": f"run {run['id']} has started; edgepd status shows how it goes",
        "promoted": f"promoted: generation {run.get('generation')} ({run['kind']}) is live",
    }
    lines = [heads.get(run["state"], f"{run['state']}: {run.get('reason') or 'no reason was given'}")]
    numbers = run.get("numbers") or {}
    before, after = numbers.get("held_out_before"), numbers.get("held_out_after")
    if before is not None and after is not None:
        examples = numbers.get("held_out_examples")
        on = "" if examples is None else f" on {examples} examples that it was not trained on"
        lines.append(f"  held-out loss {before:.3f} -> {after:.3f} nats/token{on}")
    rise = numbers.get("general_perplexity_rise")
    if rise is not None:
        lines.append(f"  perplexity of general text {rise:+.2%}")
    times = [f"{name.removesuffix('_s')} {numbers[name]:.1f} s" for name in TIMES if numbers.get(name) is not None]
    if times:
        lines.append("  " + ", ".join(times))
    return "\n".join(lines)
