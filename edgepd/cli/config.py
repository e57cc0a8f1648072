"""`edgepd config`: the settings as this shell's environment and config.toml give them. Works without a daemon.

What this does not do: show what a running daemon was started with; `edgepd daemon reload` names what differs.
"""

from __future__ import annotations

import json

import click

from edgepd.cli.output import columns, json_option, show
from edgepd.config import declarations, load, paths

DEFAULT = "default"


@click.group()
def config() -> None:
    """Look at the settings."""


@config.command("show")
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@json_option
def show_settings(origin: bool, as_json: bool) -> None:
    """List every setting and its value."""
    file = paths().config_file
    settings = load(file)
    values = {key: getattr(getattr(settings, key.split(".")[0]), key.split(".")[1]) for key in declarations()}
    origins = {key: settings.origins.get(key, DEFAULT) for key in values}
    found = {"config_file": str(file), "settings": values, "origins": origins}
    rows = [(key, json.dumps(value), *([origins[key]] if origin else [])) for key, value in values.items()]
    show(found, columns(rows), as_json)
