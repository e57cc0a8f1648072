"""`edgepd train`: learn from the feedback, and say whether the result was good enough to go live.

The idea: the daemon does everything; this starts a run, or asks for its plan, and shows what comes of it. `kind_of`,
`stage_of`, `numbers_of` and `verdict` are how a run is described wherever one is shown.
What this does not do: train, or stop a run when it is interrupted itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from edgepd.cli.output import columns, connect, duration, json_option, note, progress_console, show
from edgepd.client import Client, Json, Kind
from edgepd.errors import RequestError, TrainingError

POLL_S = 0.25
TIMES = ("load_s", "train_s", "write_s", "gate_s")
PREDICTION = "intent"  # the kind of a run that tunes the model of what comes next, and not the language model
# How the known parts of a plan are shown; whatever else the planner says is shown under its own name.
PLAN_PARTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "residency": ("weights in memory as", str),
    "kept_layers": ("layers kept in memory", str),
    "micro_tokens": ("tokens at a time", str),
    "tokens_per_epoch": ("tokens per epoch", str),
    "steps": ("optimiser steps", str),
    "learned_events": ("events to tune on", str),
    "held_out_events": ("newer events to judge by", str),
    "predicted_rss_mb": ("memory", lambda mb: f"{mb:.0f} MiB"),
    "budget_mb": ("memory allowed", lambda mb: f"{mb:.0f} MiB"),
    "predicted_tokens_per_second": ("speed", lambda speed: f"{speed:.0f} tokens/s"),
    "predicted_seconds": ("time", lambda seconds: duration(seconds)),
}


@click.command()
@click.option(
    "--baked",
    is_flag=True,
    help="Take the normal path: train, from the base model, a change that the model file itself can hold, at no cost "
    "in speed. Without this it is the fast path: an adapter on top of what serves now.",
)
@click.option(
    "--intent",
    "prediction",
    is_flag=True,
    help="Tune the small model of what comes next to your events, instead of the language model to your feedback.",
)
@click.option("--plan", "plan_only", is_flag=True, help="Say what the run would do and cost, and train nothing.")
@click.option("--wait/--no-wait", default=True, help="Wait for the verdict (default), or only start the run.")
@json_option
def train(baked: bool, prediction: bool, plan_only: bool, wait: bool, as_json: bool) -> None:
    """Learn from the feedback so far. Ends with 0 if the result went live, and with 7 if it did not."""
    if baked and prediction:
        raise RequestError("--baked and --intent are two kinds of run; start one after the other")
    kind: Kind = "intent" if prediction else "baked" if baked else "live"
    with connect() as client:
        if plan_only:
            plan = client.plan_training(kind)
            show(plan, plan_text(plan), as_json)
            return
        run = client.start_training(kind)
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
            TextColumn("{task.fields[numbers]}", markup=False),
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
        note(f"run {run['id']} goes on in the daemon; edgepd watch shows it")
        raise
    return run


def _draw(bar: Progress, task: TaskID, progress: Json) -> None:
    bar.update(
        task,
        description=str(progress["stage"]),
        total=progress.get("total") or None,
        completed=progress.get("done") or 0,
        numbers=", ".join(numbers_of(progress)),
    )


def kind_of(run: Json) -> str:
    """Name the kind of a run for people."""
    return "tuning what is next" if run["kind"] == PREDICTION else str(run["kind"])


def stage_of(progress: Json) -> str:
    """Say in which stage a run is, and how far it has come there."""
    total = progress.get("total")
    return f"{progress['stage']} {progress.get('done') or 0}/{total}" if total else str(progress["stage"])


def numbers_of(progress: Json) -> list[str]:
    """Return what is known of a run that is going on, each with its unit. Losses are in nats per token."""
    shown: tuple[tuple[str, Callable[[float], str]], ...] = (
        ("loss", lambda nats: f"loss {nats:.3f}"),
        ("held_out_loss", lambda nats: f"held-out {nats:.3f}"),
        ("tokens_per_second", lambda speed: f"{speed:.0f} tokens/s"),
        ("rss_mb", lambda mb: f"{mb:.0f} MiB"),
        ("seconds_left", lambda seconds: f"{duration(seconds)} left"),
        ("paused", lambda reason: f"paused: {reason}"),
    )
    return [write(progress[name]) for name, write in shown if progress.get(name) is not None]


def plan_text(plan: Json) -> str:
    """Describe a plan for people: its parts as a table, then why it is as it is."""
    rows = []
    for name, value in plan.items():
        if name != "reasons":
            label, write = PLAN_PARTS.get(name, (name.replace("_", " "), str))
            rows.append((label, "-" if value is None else write(value)))
    lines = [columns(rows)] if rows else []
    return "\n".join([*lines, *(f"- {reason}" for reason in plan.get("reasons") or [])])


def _divergence(numbers: Json) -> str:
    """Return how far a candidate went from the base, and whether it was weakened to go no further."""
    parts = []
    if (divergence := numbers.get("general_kl")) is not None:
        parts.append(f", divergence from the base {divergence:.3f} nats/token")
    if (strength := numbers.get("strength", 1.0)) < 1:
        parts.append(f", weakened to {strength:.0%} of its strength")
    return "".join(parts)


def verdict(run: Json) -> str:
    """Describe a run for people: its state, the reason, and the numbers that decided."""
    reason, tuning = run.get("reason") or "no reason was given", run["kind"] == PREDICTION
    live = "the tuned model of what is next" if tuning else f"generation {run.get('generation')} ({run['kind']})"
    later = "it begins again later" if tuning else "what was done is kept, and it goes on later"
    heads = {
        "running": f"run {run['id']} has started; edgepd watch shows how it goes",
        "parked": f"parked: {reason}; {later}",
        "promoted": f"promoted: {live} is live",
    }
    lines = [heads.get(run["state"], f"{run['state']}: {reason}")]
    numbers = run.get("numbers") or {}
    if tuning:
        return "\n".join([*lines, *_tuned(numbers), *_times(numbers)])
    before, after = numbers.get("held_out_before"), numbers.get("held_out_after")
    if before is not None and after is not None:
        examples = numbers.get("held_out_examples")
        on = "" if examples is None else f" on {examples} examples that it was not trained on"
        lines.append(f"  held-out loss {before:.3f} -> {after:.3f} nats/token{on}")
    rise = numbers.get("general_perplexity_rise")
    if rise is not None:
        lines.append(f"  perplexity of general text {rise:+.2%}{_divergence(numbers)}")
    return "\n".join([*lines, *_times(numbers)])


def _tuned(numbers: Json) -> list[str]:
    """Return the numbers by which a tuned model of what is next was judged; losses are in nats per event."""
    lines = []
    before, after = numbers.get("nll_before"), numbers.get("nll_after")
    if before is not None and after is not None:
        events = numbers.get("held_out_events")
        on = "" if events is None else f" on {events} events that it was not tuned on"
        lines.append(f"  held-out loss {before:.3f} -> {after:.3f} nats/event{on}")
    before, after = numbers.get("ndcg_3_before"), numbers.get("ndcg_3_after")
    if before is not None and after is not None:
        lines.append(f"  rank of what came, N@3, {before:.3f} -> {after:.3f}; 1 is always first, 0 never among three")
    return lines


def _times(numbers: Json) -> list[str]:
    times = [f"{name.removesuffix('_s')} {numbers[name]:.1f} s" for name in TIMES if numbers.get(name) is not None]
    return ["  " + ", ".join(times)] if times else []
