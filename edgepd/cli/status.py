"""`edgepd status`: what the daemon is doing, on one screen."""

from __future__ import annotations

import click

from edgepd.cli.output import columns, connect, duration, json_option, mebibytes, show
from edgepd.client import Json


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show what the daemon serves, has learned from, and is doing now."""
    with connect() as client:
        found = client.status()
    show(found, _text(found), as_json)


def _text(found: Json) -> str:
    engine, profile, generation = found["engine"], found["profile"], found["generation"]
    feedback = f"{profile['thumb_up']} thumbs up, {profile['thumb_down']} down, {profile['edit']} corrections"
    rows = [
        ("daemon", f"{found['version']}, pid {found['pid']}, up {duration(found['uptime_s'])}, {found['socket']}"),
        ("model", f"{found['model']['name']} ({found['model']['path']})"),
        ("generation", f"{generation['id']} ({generation['kind']})"),
        ("answers", f"{engine['active']} running, {engine['queued']} waiting"),
        ("tokens", f"{engine['tokens_generated']} generated"),
        ("switches", _switches(engine)),
        ("interactions", str(profile["interactions"])),
        ("feedback", f"{feedback}; {profile['examples']} examples to learn from"),
        ("training", _training(found["training"])),
        ("memory", mebibytes(found["memory"]["rss_bytes"])),
    ]
    lines = [columns(rows)]
    lines += [f"Problem: {problem}" for problem in found["problems"]]
    return "\n".join(lines)


def _switches(engine: Json) -> str:
    return f"{engine['switches']}, the last in {engine['last_switch_ms']:.2f} ms" if engine["switches"] else "0"


def _training(training: Json) -> str:
    run, progress = training["run"], training["progress"]
    if run is None:
        return "none yet"
    text = f"run {run['id']} ({run['kind']}) {run['state']}"
    if progress:
        text += f": {progress['stage']} {progress.get('done') or 0}/{progress.get('total') or '?'}"
    elif run.get("reason"):
        text += f": {run['reason']}"
    return text
