"""`edgepd status`: what the daemon is doing, on one screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from edgepd.cli.budget import learning, usage
from edgepd.cli.events import prediction
from edgepd.cli.output import columns, connect, duration, json_option, mebibytes, show
from edgepd.cli.train import kind_of, numbers_of, stage_of
from edgepd.client import Json

SAID = {"rating": "ratings", "comment": "comments", "preferred": "preferences", "survey": "about surveys"}
OBSERVED = {
    "dwell": "looked at",
    "copied": "copied",
    "abandoned": "abandoned",
    "regenerated": "asked again",
    "corrected": "corrected by what was asked next",
    "taken": "suggestions taken",
}


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show what the daemon serves, has learned from, and is doing now."""
    with connect() as client:
        found = client.status()
    show(found, _text(found), as_json)


def _text(found: Json) -> str:
    engine, profile, generation = found["engine"], found["profile"], found["generation"]
    port = f" and 127.0.0.1:{found['tcp_port']}" if found["tcp_port"] else ""
    rows = [
        ("daemon", f"{found['version']}, pid {found['pid']}, up {duration(found['uptime_s'])}"),
        ("listens on", f"{found['socket']}{port}"),
        ("model", f"{found['model']['name']} ({found['model']['path']})"),
        ("generation", f"{generation['id']} ({generation['kind']})"),
        ("engine", _engine(engine, draining=found["draining"])),
        *(("in memory", _loaded(model)) for model in engine["models"]),
        ("answers", f"{engine['active']} running, {engine['queued']} waiting"),
        ("tokens", _tokens(engine)),
        ("switches", _switches(engine)),
        ("interactions", str(profile["interactions"])),
        ("feedback", f"{_feedback(profile)}; {profile['examples']} examples to learn from"),
        *(("observed", text) for text in (_counted(profile, OBSERVED),) if text),
        *(("prediction", text) for text in (prediction(found.get("prediction")),) if text),
        ("training", _training(found["training"])),
        *_budget(found.get("budget")),
        ("memory", mebibytes(found["memory"]["rss_bytes"])),
    ]
    lines = [columns(rows)]
    lines += [f"Problem: {problem}" for problem in found["problems"]]
    return "\n".join(lines)


def _feedback(profile: Json) -> str:
    counted = f"{profile['thumb_up']} thumbs up, {profile['thumb_down']} down, {profile['edit']} corrections"
    return ", ".join(filter(None, (counted, _counted(profile, SAID))))


def _counted(profile: Json, kinds: Mapping[str, str]) -> str:
    """Return how often there was each of these kinds of feedback, without those that there were none of."""
    return ", ".join(f"{profile[kind]} {what}" for kind, what in kinds.items() if profile.get(kind))


def _engine(engine: Json, *, draining: bool) -> str:
    percent = engine["loading_percent"]
    states = {
        "unloaded": "no model loaded; the next request loads it",
        "loading": "loading the model" if percent is None else f"loading the model, {percent:.0f} %",
        "failed": "failed; the log of the daemon says why",
    }
    state = "stopping" if draining else states.get(engine["state"], engine["state"])
    return f"{state}; threads: {engine['threads']}, slots: {engine['slots']}"


def _loaded(model: Json) -> str:
    left = model["expires_in_s"]
    until = "stays" if left is None else f"for {duration(max(0.0, left))} more if nobody asks"
    return f"{Path(model['path']).name}, {mebibytes(model['size_bytes'])}, {until}"


def _tokens(engine: Json) -> str:
    cached = f", of which {engine['cached_tokens']} came from the cache" if engine["cached_tokens"] else ""
    return f"{engine['tokens_generated']} generated, {engine['prompt_tokens']} in prompts{cached}"


def _switches(engine: Json) -> str:
    return f"{engine['switches']}, the last in {engine['last_switch_ms']:.2f} ms" if engine["switches"] else "0"


def _budget(budget: Json | None) -> list[tuple[str, str]]:
    """Return what there is to say of the budget; an older daemon says nothing of it."""
    return [("learning", learning(budget)), ("budget", usage(budget))] if budget else []


def _training(training: Json) -> str:
    run, progress = training["run"], training["progress"]
    if run is None:
        return "none yet"
    text = f"run {run['id']} ({kind_of(run)}) {run['state']}"
    if progress:
        text += ": " + ", ".join([stage_of(progress), *numbers_of(progress)])
    elif run.get("reason"):
        text += f": {run['reason']}"
    return text
