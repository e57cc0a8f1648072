"""`edgepd events`: tell what you did, import a log of it, and say which event is for what.

The idea: the daemon keeps events and predicts; each command is one question to it. An import sends a file in parts,
each of which is stored as a whole; as what is known is not stored twice, an import that broke off is simply repeated.
The invariant: nothing is sent before the whole file was read and found in order.
What this does not do: predict (`edgepd suggest` shows it), or forget (`edgepd forget`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from edgepd.cli.output import checked_text, columns, connect, json_option, moment, note, progress_console, show
from edgepd.cli.privacy import AGO, time_of
from edgepd.client import MOST_EVENTS, Client, Json
from edgepd.errors import NotFoundError, RequestError
from edgepd.intent.data import Columns, read_events, read_intents
from edgepd.intent.schema import Event

SWITCHED_OFF = "prediction is switched off (intent.enabled)"
USERS_SHOWN = 5


@click.group()
def events() -> None:
    """Tell edgepd what you did, so that it learns what you do next.

    Chats are events by themselves. `edgepd suggest` shows what is likely next, `edgepd forget` forgets events, and
    intent.enabled = false in config.toml switches all of it off.
    """


@events.command()
@click.argument("event")
@click.option(
    "--intent", metavar="NAME", help="What it was for, else EVENT itself; `edgepd events map` stands above both."
)
@click.option("--context", metavar="WORD", help="Where it was, or any other word about the circumstances.")
@click.option("--at", metavar="T", help="When: 2026-01-31T18:00, with +01:00 if that is not this zone, or 30m, 2h ago.")
@click.option("--app", metavar="NAME", help="The app that it belongs to.")
@json_option
def add(event: str, intent: str | None, context: str | None, at: str | None, app: str | None, as_json: bool) -> None:
    """Tell that EVENT has happened, now or --at another time.

    \b
    edgepd events add mail:open --context office
    edgepd events add cafe --intent food --at 2h
    """
    given = {"event": checked_text(event, "event"), "intent": intent, "context": context, "at": _at(at)}
    with connect() as client:
        done = client.add_events([{name: value for name, value in given.items() if value is not None}], app)
    known = "" if done["new"] else "; it was known"
    show(done, f"event {done['seqs'][0]}{known}", as_json)


def _at(text: str | None) -> float | str | None:
    """Return a time as the daemon takes it; it reads all but how long ago, and keeps the zone that is given."""
    if text is None or not AGO.fullmatch(text.strip().lower()):
        return text
    return time_of(text, time.time())


@events.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--map", "map_file", type=click.Path(path_type=Path), help="A CSV or JSON file: event to intent.")
@click.option("--user", metavar="NAME", help="Take the events of this user; needed if FILE has several.")
@click.option("--no-user", "one_user", is_flag=True, help="FILE has no column of users, because all of it is yours.")
@click.option("--tz", metavar="NAME", help="The zone of times without one, such as Europe/Berlin; else this machine's.")
@click.option("--app", metavar="NAME", help="The app that they belong to.")
@click.option("--dry-run", is_flag=True, help="Only read FILE, and say what is in it.")
@json_option
def import_events(
    file: Path,
    map_file: Path | None,
    user: str | None,
    one_user: bool,
    tz: str | None,
    app: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take in a log of events from a file: .csv or .tsv with a header, or .jsonl.

    It has user, time and event, and may have context, intent and utc_offset_s. A line that cannot be used ends the
    import before anything is stored. What is known is not stored twice.

    \b
    edgepd events import log.csv --map intents.csv --dry-run
    edgepd events import log.csv --map intents.csv
    """
    if user is not None and one_user:
        raise RequestError("--user and --no-user exclude each other; a file without users has nobody's name in it")
    intents = None if map_file is None else read_intents(map_file)
    users = read_events(file, Columns(user=None) if one_user else Columns(), tz or machine_zone(), intents)
    found = _chosen(users, user, file)
    told: Json = {
        "events": len(found),
        "intents": len({event.intent for event in found}),
        "contexts": len({event.context for event in found if event.context}),
        "first": found[0].at,
        "last": found[-1].at,
    }
    if dry_run:
        show(told | {"dry_run": True}, _told(told), as_json)
        return
    with connect() as client:
        new = _send(client, found, app)
    known = "" if new == len(found) else f", {len(found) - new:,} known already"
    show(told | {"dry_run": False, "new": new}, f"new events: {new:,}{known}", as_json)


def _chosen(users: Mapping[str, Sequence[Event]], user: str | None, file: Path) -> Sequence[Event]:
    """Return the events of one user. Raises NotFoundError or RequestError if it is not clear whose."""
    names = [name for name, found in users.items() if found]
    if not names:
        raise RequestError(f"{file}: there is no event in it")
    shown = ", ".join(repr(name) for name in names[:USERS_SHOWN]) + (", ..." if len(names) > USERS_SHOWN else "")
    if user is not None and user not in names:
        raise NotFoundError(f"{file}: there is no user '{user}' in it, but {shown}")
    if user is None and len(names) > 1:
        raise RequestError(f"{file}: it has the events of {len(names)} users; take one with --user: {shown}")
    return users[names[0] if user is None else user]


def machine_zone(root: Path = Path("/")) -> str:
    """Return the name of this machine's time zone: that of TZ (tzset(3)), or else of /etc/localtime (localtime(5)).

    Without either it is UTC, as localtime(5) has it. Where the link does not name a zone, it is UTC too, and said.
    """
    if name := os.environ.get("TZ", "").removeprefix(":"):
        return name
    file = root / "etc/localtime"
    if not file.exists():
        return "UTC"
    _, found, name = os.path.realpath(file).partition("/zoneinfo/")
    if not found:
        note("times without a zone are read as UTC, because this machine's zone has no name here; --tz gives one")
        return "UTC"
    return name


def _told(told: Json) -> str:
    contexts = f", {told['contexts']:,} contexts" if told["contexts"] else ""
    span = f"from {moment(told['first'])} to {moment(told['last'])}"
    return f"{told['events']:,} events, {told['intents']:,} intents{contexts}, {span}"


def _send(client: Client, found: Sequence[Event], app: str | None) -> int:
    """Send events in parts, the oldest first, and return how many were new. Says how far it came if that breaks off."""
    console = progress_console()
    bar = Progress(
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    new = sent = 0
    try:
        with bar:
            task = bar.add_task("importing", total=len(found))
            for start in range(0, len(found), MOST_EVENTS):
                part = found[start : start + MOST_EVENTS]
                new += client.add_events([_sent(event) for event in part], app)["new"]
                sent += len(part)
                bar.update(task, completed=sent)
    finally:
        if 0 < sent < len(found):
            note(f"{sent:,} of {len(found):,} events are stored; the same command goes on with the rest")
    return int(new)


def _sent(event: Event) -> dict[str, Any]:
    """Return an event as the daemon takes it."""
    return {
        "event": event.event,
        "intent": event.intent,
        "context": event.context,
        "at": event.at,
        "utc_offset_s": event.utc_offset_s,
    }


@events.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many at most.")
@click.option("--app", metavar="NAME", help="Only what this app may see.")
@json_option
def list_events(limit: int, app: str | None, as_json: bool) -> None:
    """List the newest events, the newest first, each with the local time at which it happened."""
    with connect() as client:
        found = client.events(limit, app)
    rows = [(_local(e["at"], e["utc_offset_s"]), e["event"], e["intent"], e["context"], e["app"]) for e in found]
    empty = "no events yet; tell one with: edgepd events add EVENT"
    text = columns([("at", "event", "intent", "context", "app"), *rows]) if rows else empty
    show({"events": found}, text, as_json)


def _local(at: float, utc_offset_s: int) -> str:
    """Write the local time of an event, wherever it is read."""
    local = datetime.fromtimestamp(0, UTC) + timedelta(seconds=at + utc_offset_s)
    return local.strftime("%Y-%m-%d %H:%M")


@events.command("map")
@click.argument("event", required=False)
@click.argument("intent", required=False)
@click.option("--remove", is_flag=True, help="Take EVENT off the map.")
@json_option
def map_events(event: str | None, intent: str | None, remove: bool, as_json: bool) -> None:
    """Say that EVENT is for INTENT, whatever its sender says, also where it is stored already; or list what you said.

    \b
    edgepd events map cafe food
    edgepd events map cafe --remove
    """
    if remove != (event is not None and intent is None):
        raise RequestError("give EVENT and INTENT, EVENT and --remove, or nothing to list the map")
    with connect() as client:
        if event is None:
            found = client.event_map()
            text = columns([("event", "intent"), *found.items()]) if found else "no event has been given an intent yet"
            show({"map": found}, text, as_json)
        elif intent is None:
            show(client.unmap_event(event), f"{event} is off the map", as_json)
        else:
            given = (checked_text(event, "event"), checked_text(intent, "intent"))
            show(client.map_event(*given), f"{given[0]} is for {given[1]}", as_json)


def prediction(found: Json | None) -> str:
    """Say how well it is foreseen what is next; "" if the daemon does not tell."""
    if found is None:
        return ""
    if not found["enabled"]:
        return SWITCHED_OFF
    tuned = found["tuned_at"]
    parts = ["shipped model" if tuned is None else f"model tuned {moment(tuned)}", f"{found['events']:,} events"]
    if predicted := found["predicted"]:
        parts.append(f"of {predicted:,} foreseen {hit_rates(found)}")
    if warmed := found["warmed"]:
        parts.append(f"{found['warmed_used']:,} of {warmed:,} prompts computed ahead were used")
    return ", ".join(parts)


def hit_rates(found: Json | None) -> str:
    """Say how often what came was foreseen, in few words; "" if the daemon does not tell."""
    if found is None:
        return ""
    if not found["enabled"]:
        return "switched off"
    predicted = found["predicted"]
    if not predicted:
        return "nothing yet"
    return f"{found['first'] / predicted:.0%} first, {found['among_three'] / predicted:.0%} in three"
