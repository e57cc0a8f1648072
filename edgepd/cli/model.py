"""`edgepd model`: the models on this machine. Works without a daemon."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from edgepd.cli.output import columns, connect, json_option, mebibytes, note, progress_console, show
from edgepd.config import paths
from edgepd.errors import DaemonNotRunningError, ModelError
from edgepd.models import Catalog, Installed
from edgepd_quant.reader import GGUFFile


@click.group()
def model() -> None:
    """Add, list, choose and remove models."""


@model.command()
@click.argument("source")
@click.option("--name", help="Name to install it under; derived from the source otherwise.")
@click.option("--accept-terms", is_flag=True, help="Accept the terms of use that some models have.")
@json_option
def add(source: str, name: str | None, accept_terms: bool, as_json: bool) -> None:
    """Install a model.

    SOURCE is default, gemma3-270m, hf:ORG/REPO/FILE.gguf, ollama:NAME[:TAG] or the path of a .gguf file.
    """
    console = progress_console()
    bar = Progress(
        *(TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(f"adding {source}", total=None)
        installed = _catalog().add(
            source,
            lambda done, total: bar.update(task, completed=done, total=total),
            check=_check,
            accept_terms=accept_terms,
            name=name,
        )
    show(
        _as_json(installed),
        f"{installed.name}: {mebibytes(installed.size_bytes)}, {installed.licence} licence",
        as_json,
    )


@model.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """List the installed models; * marks the one that is served."""
    catalog = _catalog()
    found = catalog.list()
    selected = _selected(catalog)
    rows = [("", "name", "size", "licence", "source")]
    for one in found:
        mark = "*" if one.name == selected else ""
        rows.append((mark, one.name, mebibytes(one.size_bytes), one.licence, one.source))
    text = columns(rows) if found else "no model is installed; run: edgepd model add default"
    show({"selected": selected, "models": [_as_json(one) for one in found]}, text, as_json)


@model.command()
@click.argument("name")
@json_option
def use(name: str, as_json: bool) -> None:
    """Choose the model to serve."""
    chosen = _catalog().use(name)
    served = _served()
    restart = served is not None and served != chosen.name
    show({"selected": chosen.name, "restart_needed": restart}, f"{chosen.name} is selected", as_json)
    if restart:
        note(f"the running daemon serves {served} until it is restarted")


@model.command()
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Delete a model from this machine."""
    _catalog().remove(name)
    show({"removed": name}, f"{name} is removed", as_json)


def _catalog() -> Catalog:
    return Catalog(paths().models_dir)


def _check(path: Path) -> None:
    """Refuse a file with a malformed header. Raises FormatError."""
    GGUFFile.open(path).close()


def _selected(catalog: Catalog) -> str | None:
    try:
        return catalog.selected().name
    except ModelError:
        return None  # nothing is installed, or no choice was made; `find` explains it when a model is needed


def _served() -> str | None:
    """Return the model of the running daemon, or None if none runs."""
    with connect() as client:
        try:
            return str(client.health()["model"])
        except DaemonNotRunningError:
            return None


def _as_json(installed: Installed) -> dict[str, Any]:
    return dataclasses.asdict(installed) | {"path": str(installed.path)}
