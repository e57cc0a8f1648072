"""`edgepd profile`: what edgepd has observed of the user, to be read, corrected and begun anew.

The idea: the daemon observes and sums up; each command is one question to it and a text for people. With --app a
command sees, and changes, what that app would; without it, the owner asks, who sees everything.
What this does not do: delete exchanges; `edgepd forget` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from edgepd.cli.output import checked_text, columns, connect, json_option, note, show, stdin_is_terminal
from edgepd.cli.profile_text import (
    GROUPS,
    apps_text,
    channels_text,
    described,
    feature_row,
    rules_text,
    selection_text,
)
from edgepd.client import Json
from edgepd.errors import NotFoundError, RequestError

Command = TypeVar("Command", bound=Callable[..., Any])
KIND = click.Choice(list(GROUPS))
POOLS = ("examples", "questions")


def app_option(command: Command) -> Command:
    """Add `--app` to a command, which gets it as `app`."""
    return click.option("--app", metavar="NAME", help="As this app would see it; without it you see everything.")(
        command
    )


@click.group()
def profile() -> None:
    """See what edgepd has observed of you, correct it, and say what apps may do.

    KIND is one of five groups: interest (what you ask about), context (when and where you ask), quality (how you give
    feedback), preference (how you like answers) and history (how much and how long you talk).
    """


@profile.command("show")
@app_option
@json_option
def show_profile(app: str | None, as_json: bool) -> None:
    """Show the profile: what was observed, how much it weighs, and what the model is told of it.

    The alpha of a feature is the sum of its observations, each weighed by how it was made known (you said so, you did
    so) and by its age. What you set yourself stands over it.
    """
    with connect() as client:
        found = client.profile(app)
    show(found, described(found), as_json)


@profile.command()
@click.argument("kind", type=KIND)
@click.argument("name")
@click.argument("value")
@app_option
@json_option
def edit(kind: str, name: str, value: str, app: str | None, as_json: bool) -> None:
    """Set a feature by hand. It stands over what is observed, until you reset it.

    NAME is as `edgepd profile show` tells it.

    \b
    edgepd profile edit preference words 40
    edgepd profile edit preference language:de yes --app mail
    """
    with connect() as client:
        found = client.edit_profile(kind, name, checked_text(value, "value"), app)
    show(found, _feature(found, kind, name), as_json)


@profile.command()
@click.argument("kind", type=KIND)
@click.argument("name")
@app_option
@json_option
def pin(kind: str, name: str, app: str | None, as_json: bool) -> None:
    """Keep a feature as it is now, whatever is observed later."""
    _pin(kind, name, True, app, as_json)


@profile.command()
@click.argument("kind", type=KIND)
@click.argument("name")
@app_option
@json_option
def unpin(kind: str, name: str, app: str | None, as_json: bool) -> None:
    """Let a pinned feature follow what is observed again."""
    _pin(kind, name, False, app, as_json)


def _pin(kind: str, name: str, pinned: bool, app: str | None, as_json: bool) -> None:
    with connect() as client:
        found = client.pin_feature(kind, name, pinned, app)
    show(found, _feature(found, kind, name), as_json)


def _feature(found: Json, kind: str, name: str) -> str:
    """Describe one feature of a profile on one line."""
    for feature in found["groups"].get(kind) or []:
        if feature["name"] == name:
            return columns([(GROUPS[kind], *feature_row(feature))])
    return columns([(GROUPS[kind], name, "nothing is known of it")])


@profile.command()
@click.option("--kind", type=KIND, help="Only this group.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@app_option
@json_option
def reset(kind: str | None, yes: bool, app: str | None, as_json: bool) -> None:
    """Begin the profile anew, or one group of it. Exchanges and feedback stay, but what they showed counts no more.

    Asks first, but not with --yes or --json. To delete exchanges there is edgepd forget.
    """
    what = ("the profile" if kind is None else f"the group {kind}") + ("" if app is None else f" of app {app}")
    if not (yes or as_json):
        if not stdin_is_terminal():
            raise RequestError(f"nobody can be asked whether {what} is to begin anew; add --yes")
        if not click.confirm(f"Begin {what} anew? What was observed until now counts no more.", err=True):
            note("it stays")
            return
    with connect() as client:
        found = client.reset_profile(kind, app)
    show(found, f"{what} begins anew", as_json)


@profile.command()
@click.option("--pool", type=click.Choice(POOLS), help="Only this pool.")
@app_option
@json_option
def selection(pool: str | None, app: str | None, as_json: bool) -> None:
    """Show which exchanges are kept to learn from and to ask you about, and why each of them.

    Entropy, domain score and dissimilarity say how much, how much of your own subjects, and how much that is new an
    exchange has to teach. The policy is the setting select.policy.
    """
    with connect() as client:
        found = client.selection(app)
    if pool is not None:
        found = found | {"pools": {pool: found["pools"].get(pool) or []}}
    show(found, selection_text(found, [pool] if pool else list(POOLS)), as_json)


@profile.command()
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Look back so far (30).")
@app_option
@json_option
def channels(days: float | None, app: str | None, as_json: bool) -> None:
    """Show how often you gave feedback, in each of the five ways, and how content it shows you.

    Engagement is how often it was given of how often it could have been, satisfaction what it says, from 1 to 5.
    """
    with connect() as client:
        found = client.feedback_channels(days, app)
    show(found, channels_text(found), as_json)


@profile.command()
@click.option("--patterns", is_flag=True, help="Show the pattern of each rule too.")
@json_option
def rules(patterns: bool, as_json: bool) -> None:
    """Show the rules by which what you ask next counts as a correction of the answer before it.

    Each has a name and something that it notices.
    """
    with connect() as client:
        found = client.feedback_rules()
    show({"rules": found}, rules_text(found, patterns), as_json)


@profile.command()
@click.argument("name", required=False)
@click.option("--share/--no-share", "shared", default=None, help="Whether other apps may see what comes from it.")
@click.option("--store/--no-store", "stored", default=None, help="Whether its exchanges are stored.")
@click.option("--teach/--no-teach", "teaches", default=None, help="Whether its exchanges are learned from.")
@json_option
def apps(name: str | None, shared: bool | None, stored: bool | None, teaches: bool | None, as_json: bool) -> None:
    """Show what each app may do, or change it for the app NAME. What was stored before stays.

    An app is what a program calls itself; that is no proof of who it is. Apps see their own exchanges, those of
    programs without a name, and those of apps that share.

    \b
    edgepd profile apps
    edgepd profile apps mail --no-teach --share
    """
    given = {"shared": shared, "stored": stored, "teaches": teaches}
    changes = {what: value for what, value in given.items() if value is not None}
    if changes and name is None:
        raise RequestError("name the app that this is for: edgepd profile apps NAME --share")
    with connect() as client:
        if name is not None and changes:
            found: Json = {"app": client.change_app(name, changes)}
        else:
            found = {"apps": client.apps()}
    if name is not None and not changes:
        found = {"app": _named(found["apps"], name)}
    show(found, apps_text([found["app"]] if "app" in found else found["apps"]), as_json)


def _named(known: list[Json], name: str) -> Json:
    for app in known:
        if app["name"] == name:
            return app
    raise NotFoundError(f"app '{name}' is not known; edgepd profile apps lists those that are")
