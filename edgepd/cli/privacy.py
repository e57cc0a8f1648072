"""`edgepd forget` and `edgepd receipts`: what goes for good, shown before and told after.

The idea: a dry run says what would go, the user says yes, and the receipt says what has gone; both are written in the
same sentences. The invariant: nothing is forgotten that was not shown first, and nobody is asked who cannot answer.
What this does not do: delete anything itself, or search the files; the daemon does.
"""

from __future__ import annotations

import re
import time
from datetime import date, datetime, timedelta

import click

from edgepd.cli.output import columns, connect, json_option, moment, note, show, stdin_is_terminal
from edgepd.client import Client, Json
from edgepd.errors import EdgepdError, RequestError

UNITS = {"m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
AGO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(m|min|h|d|w)")
THINGS = {
    "interactions": ("exchange", "exchanges"),
    "carried_along": ("later exchange that repeats them", "later exchanges that repeat them"),
    "facts": ("fact", "facts"),
    "suggestions": ("suggestion", "suggestions"),
    "surveys": ("survey answer", "survey answers"),
    "edits": ("edit of the profile", "edits of the profile"),
    "events": ("event", "events"),
    "mapped_events": ("event on the map", "events on the map"),
}
TOLD_APART = ("generations", "students", "backups", "saved_conversations")  # each has a sentence of its own


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--search", metavar="TEXT", help="Whatever contains this text.")
@click.option("--since", metavar="T", help="Whatever came at this time or later.")
@click.option("--until", metavar="T", help="Whatever came up to this time.")
@click.option("--app", metavar="NAME", help="Whatever came from this app.")
@click.option("--all", "everything", is_flag=True, help="Everything.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@json_option
def forget(
    ids: tuple[str, ...],
    search: str | None,
    since: str | None,
    until: str | None,
    app: str | None,
    everything: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Forget exchanges for good: their text, what was derived from it, and every generation that learned from it.

    Name them by ID ("last" is the newest), by --search, by time, by --app, or take --all. A time is 2026-01-31,
    2026-01-31T18:00, today, yesterday, or how long ago: 30m, 2h, 3d, 1w. A day is meant from its beginning with --since
    and to its end with --until.

    What will go is shown first. If the model in use has learned from it, an older generation that has not takes over
    at once, and training without it is queued. Backups are replaced. It cannot be taken back.

    \b
    edgepd forget last
    edgepd forget --search "Lake Street 5"
    edgepd forget --since yesterday --dry-run
    """
    chosen = selector(ids, search, since, until, app, everything=everything, now=time.time())
    with connect() as client:
        chosen = _resolved(client, chosen)
        planned = client.forget(chosen, dry_run=True)
        if dry_run:
            show(planned, plan_text(planned["receipt"]), as_json)
            return
        note(plan_text(planned["receipt"]))
        if not _anything(planned["receipt"]):
            show(planned, "nothing was forgotten", as_json)
            return
        if not (yes or _confirmed()):
            note("nothing was forgotten")
            return
        done = client.forget(chosen)
    show(done, receipt_text(done["receipt"]), as_json)
    left = (done["receipt"].get("verified") or {}).get("found", 0)
    if left:
        raise EdgepdError(
            f"the text is still in {_number(left, 'place', 'places')} of the data directory; restart the daemon and "
            "run the same command again"
        )


def _confirmed() -> bool:
    """Ask the user. Raises RequestError if nobody can answer."""
    if not stdin_is_terminal():
        raise RequestError(
            "nobody can be asked whether this is to go, so nothing was forgotten; add --yes to forget it"
        )
    return click.confirm("Forget this for good?", err=True)


def _resolved(client: Client, chosen: Json) -> Json:
    """Put an id in the place of "last", which may mean another exchange a moment later."""
    if "last" not in chosen.get("ids", ()):
        return chosen
    newest = client.interaction("last")["id"]
    return {"ids": [newest if each == "last" else each for each in chosen["ids"]]}


def selector(
    ids: tuple[str, ...],
    search: str | None,
    since: str | None,
    until: str | None,
    app: str | None,
    *,
    everything: bool,
    now: float,
) -> Json:
    """Return what the API is told to forget. Raises RequestError unless it is named in exactly one way."""
    times = since is not None or until is not None
    ways = [bool(ids), search is not None, times, app is not None, everything]
    if sum(ways) != 1:
        raise RequestError("say what to forget in one way: by ID, --search, --since and --until, --app, or --all")
    if ids:
        return {"ids": [*dict.fromkeys(ids)]}
    if search is not None:
        return {"search": search}
    if app is not None:
        return {"app_name": app}
    if everything:
        return {"all": True}
    limits = {} if since is None else {"since": time_of(since, now)}
    if until is not None:
        limits["until"] = time_of(until, now, end=True)
    if since is not None and until is not None and limits["since"] > limits["until"]:
        raise RequestError(f"--since {since} is later than --until {until}; nothing can lie between them")
    return dict(limits)


def time_of(text: str, now: float, *, end: bool = False) -> float:
    """Return a time in seconds since 1970; a day is its beginning, or with `end` its end. Without a zone it is local.

    Raises RequestError for what is no time.
    """
    given = text.strip().lower()
    if match := AGO.fullmatch(given):
        return max(0.0, now - float(match[1]) * UNITS[match[2]])
    try:
        day = _day(given, date.fromtimestamp(now))
        if day is None:
            return max(0.0, datetime.fromisoformat(text.strip()).timestamp())
        return datetime.combine(day + timedelta(days=1 if end else 0), datetime.min.time()).timestamp()
    except (ValueError, OverflowError) as error:
        raise RequestError(
            f"'{text}' is no time; write 2026-01-31, 2026-01-31T18:00, today, yesterday, or 30m, 2h, 3d, 1w for how "
            "long ago"
        ) from error


def _day(text: str, today: date) -> date | None:
    if text in ("today", "yesterday"):
        return today - timedelta(days=text == "yesterday")
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None  # perhaps a day and a time


@click.command()
@json_option
def receipts(as_json: bool) -> None:
    """List what was forgotten and when, in numbers; the text itself is nowhere."""
    with connect() as client:
        found = client.receipts()
    rows = [(str(each["id"]), moment(each["at"]), _state(each), _listed(each["counts"]) or "nothing") for each in found]
    text = columns([("id", "at", "state", "forgotten"), *rows]) if rows else "nothing was forgotten yet"
    show({"receipts": found}, text, as_json)


def _state(receipt: Json) -> str:
    """One that is not done was interrupted; the daemon goes on with it at its next start."""
    return str(receipt.get("state", "done"))


def plan_text(receipt: Json) -> str:
    """Say what would go, from the receipt of a dry run."""
    if not _anything(receipt):
        return "nothing that is kept matches this"
    counts = receipt["counts"]
    lines = [f"this goes for good: {_listed(counts)}"]
    if touched := _generations(receipt):
        lines.append(f"{touched} learned from it and will be retired{_serving(receipt, 'will serve')}")
    else:
        lines.append("no generation has learned from it")
    if counts.get("students"):
        lines.append(f"{_tuned(counts)} will be deleted")
    if counts.get("backups"):
        lines.append(f"{_number(counts['backups'], 'backup', 'backups')} will be replaced by a new one")
    if counts.get("saved_conversations"):
        lines.append(f"{_saved(counts)} will be removed")
    return "\n".join(lines)


def receipt_text(receipt: Json) -> str:
    """Say what has gone, in plain sentences."""
    counts = receipt["counts"]
    lines = [f"forgotten: {_listed(counts) or 'nothing'}"]
    if touched := _generations(receipt):
        verb = "is" if touched.startswith("generation ") else "are"
        lines.append(f"{touched} had learned from it and {verb} retired{_serving(receipt, 'serves now')}")
    else:
        lines.append("no generation had learned from it")
    if n := counts.get("students"):
        lines.append(f"{_tuned(counts)} {'was' if n == 1 else 'were'} deleted")
    if n := counts.get("backups"):
        lines.append(f"{_number(n, 'backup was', 'backups were')} replaced by a new one")
    if n := counts.get("saved_conversations"):
        lines.append(f"{_saved(counts)} {'was' if n == 1 else 'were'} removed")
    lines += _search_text(receipt.get("verified") or {})
    if receipt.get("retraining"):
        lines.append("training without it is queued")
    return "\n".join([*lines, f"receipt {receipt['id']}"])


def _search_text(verified: Json) -> list[str]:
    """Say what the search of all files for the bytes of the text has found."""
    if not verified:
        return []
    where = f"a search of {_number(verified['files'], 'file', 'files')} ({verified['bytes'] / 2**20:.1f} MiB)"
    n, kept = verified["found"], verified.get("kept_elsewhere", 0)
    found = f"STILL found the text in {_number(n, 'place', 'places')}" if n else "found the text nowhere"
    lines = [f"{where} {found}"]
    if kept:
        lines.append(f"the same words stay in {_number(kept, 'place', 'places')} that you keep")
    return lines


def _anything(receipt: Json) -> bool:
    return any(n for name, n in receipt["counts"].items() if name not in ("backups", "saved_conversations"))


def _listed(counts: Json) -> str:
    """Return "2 exchanges, 1 fact"; what has no name here is called as the daemon calls it."""
    parts = []
    for name, n in counts.items():
        if n and name not in TOLD_APART:
            one, many = THINGS.get(name, (name.replace("_", " "), name.replace("_", " ")))
            parts.append(_number(n, one, many))
    return ", ".join(parts)


def _generations(receipt: Json) -> str:
    ids = [str(each) for each in receipt.get("generations", ())]
    if not ids:
        return ""
    return f"generation {ids[0]}" if len(ids) == 1 else f"generations {', '.join(ids[:-1])} and {ids[-1]}"


def _serving(receipt: Json, verb: str) -> str:
    active = receipt.get("active")
    return "" if active is None else f"; generation {active} {verb}"


def _saved(counts: Json) -> str:
    return _number(counts["saved_conversations"], "saved conversation", "saved conversations")


def _tuned(counts: Json) -> str:
    return _number(counts["students"], "tuned model of what comes next", "tuned models of what comes next")


def _number(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"
