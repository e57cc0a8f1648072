"""The `edgepd` command: its subcommands, and the one place where an error becomes a message and an exit code.

The idea: a command raises EdgepdError (or lets one pass) and knows nothing of exit codes. The invariant: results
go to stdout, everything else to stderr; with `--json` both are JSON.
What this does not do: catch programming errors. Those end with a traceback and exit code 1.
"""

from __future__ import annotations

import json
from itertools import takewhile
from typing import Any

import click

import edgepd
from edgepd.cli.adapters import adapters
from edgepd.cli.ask import ask
from edgepd.cli.backup import backup, backups, export, import_file, restore
from edgepd.cli.budget import budget
from edgepd.cli.chat import chat
from edgepd.cli.compare import compare
from edgepd.cli.config import config
from edgepd.cli.daemon import daemon
from edgepd.cli.demo import demo
from edgepd.cli.doctor import doctor
from edgepd.cli.events import events
from edgepd.cli.facts import facts, recall, remember, suggest
from edgepd.cli.feedback import bad, comment, fix, good, prefer, rate, report, undo
from edgepd.cli.model import model
from edgepd.cli.output import error_body
from edgepd.cli.privacy import forget, receipts
from edgepd.cli.profile import profile
from edgepd.cli.service import service
from edgepd.cli.status import status
from edgepd.cli.survey import review, survey
from edgepd.cli.train import train
from edgepd.cli.watch import watch
from edgepd.errors import EdgepdError, RequestError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Main(click.Group):
    """A group that explains errors, and numbers them as edgepd.errors says."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Looked for by hand, because the errors of parsing itself must be JSON too.
        ctx.obj = {"json": "--json" in takewhile(lambda arg: arg != "--", args)}
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EdgepdError as error:
            _explain(error, ctx.obj["json"])
            ctx.exit(error.exit_code)
        except click.ClickException as error:
            if not ctx.obj["json"]:
                raise
            _explain(RequestError(error.format_message()), as_json=True)
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)  # so that the shell's prompt does not stand behind ^C
            ctx.exit(INTERRUPTED)


def _explain(error: EdgepdError, as_json: bool) -> None:
    text = json.dumps(error_body(error), ensure_ascii=False) if as_json else f"Error: {error}"
    click.echo(text, err=True)


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(edgepd.__version__, message="edgepd %(version)s")
def main() -> None:
    """A personal language model that learns from its user, on the user's own machine.

    Start the daemon with `edgepd service install --now` or `edgepd daemon run`, talk to it with `edgepd chat`, and
    correct it with `edgepd fix`; it learns by itself, or at once with `edgepd train`.
    """


for command in (
    *(demo, chat, ask, good, bad, fix, rate, comment, prefer, report, undo, compare, review, survey),
    *(train, watch, status, budget, adapters, profile, remember, recall, facts, suggest, events),
    *(forget, receipts, export, import_file, backup, backups, restore, doctor, model, config, daemon, service),
):
    main.add_command(command)
