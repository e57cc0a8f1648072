"""`edgepd budget`: what training may take of this machine, what it takes, why it waits; and a pause of one's own.

The idea: the daemon decides and says why; this shows it. `learning`, `usage` and `sensors` are how a budget is
described wherever one is shown. The invariant: a sensor that the machine does not have is said to be unknown or left
out, and never shown as 0.
What this does not do: change a limit; `[budget]` in config.toml does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click

from edgepd.cli.output import columns, connect, json_option, moment, show
from edgepd.client import Json
from edgepd.errors import RequestError

DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?")
MINUTES = (24 * 60, 60, 1)  # of a day, an hour and a minute
UNKNOWN = "not known"


@click.group()
def budget() -> None:
    """Look at what training may take of the machine, and pause it."""


@budget.command("show")
@json_option
def show_budget(as_json: bool) -> None:
    """Show the limits, what the machine says, what was used today, and what was decided and why."""
    with connect() as client:
        found = client.budget()
    show(found, _text(found), as_json)


@budget.command()
@click.argument("duration", required=False)
@json_option
def pause(duration: str | None, as_json: bool) -> None:
    """Train nothing for a time, such as 30m or 2h, or without one until `edgepd budget resume`."""
    minutes = None if duration is None else minutes_in(duration)
    with connect() as client:
        found = client.pause_training(minutes)
    show(found, f"training is {paused(found)}; edgepd budget resume ends that", as_json)


@budget.command()
@json_option
def resume(as_json: bool) -> None:
    """Let training start again."""
    with connect() as client:
        found = client.resume_training()
    show(found, f"training is no longer paused: {found['decision']['reason']}", as_json)


def minutes_in(text: str) -> float:
    """Return the minutes in a duration such as 30m, 2h, 1h30m or 1d. Raises RequestError for anything else."""
    found = DURATION.fullmatch(text.strip().lower())
    minutes = (
        0.0 if found is None else sum(float(n) * unit for n, unit in zip(found.groups(), MINUTES, strict=True) if n)
    )
    if minutes <= 0:
        raise RequestError(f"{text[:80]!r} is not a duration; write it as 30m, 2h, 1h30m or 1d")
    return minutes


def learning(found: Json) -> str:
    """Say what is done about training now, and why."""
    return str(found["decision"]["reason"])


def usage(found: Json) -> str:
    """Say what was used today, how the machine is powered, and whether the user has paused training."""
    return ", ".join(filter(None, (today(found["today"]), battery(found), paused(found))))


def today(used: Json) -> str:
    """Say how much of the minutes of a day is used."""
    minutes = f"{used['at_work_s'] / 60:.1f}"
    limit = used.get("limit_s")
    return f"{minutes} minutes used today" if limit is None else f"{minutes} of {limit / 60:g} minutes used today"


def battery(found: Json) -> str:
    """Say how the machine is powered, from the status or from the readings; "" if it does not tell."""
    power = found.get("battery") or {
        "percent": found["readings"].get("battery_percent"),
        "on_ac": found["readings"].get("on_ac"),
    }
    percent, on_ac = power["percent"], power["on_ac"]
    if percent is None:
        return {None: "", True: "on mains", False: "on battery"}[on_ac]
    return {None: f"battery {percent:.0f} %", True: f"battery {percent:.0f} %, on mains"}.get(
        on_ac, f"on battery at {percent:.0f} %"
    )


def paused(found: Json) -> str:
    """Say until when the user has paused training; "" if it is not paused."""
    if not found["paused"]:
        return ""
    until = found["paused_until"]
    return "paused until you resume it" if until is None else f"paused until {moment(until)}"


def trainer(found: Json) -> list[str]:
    """Say what the trainer takes of what it may take; nothing if there is none."""
    child = found["trainer"]
    if child is None:
        return []
    shown = (
        _of("CPU", child.get("cpu_percent"), child.get("cpu_limit_percent"), "%"),
        _of("memory", child.get("rss_mb"), child.get("planned_mb"), "MiB"),
    )
    return [text for text in shown if text]


def sensors(readings: Json) -> Iterator[tuple[str, str]]:
    """Yield what the machine says, with a name for people; what it does not say is not known."""
    on_ac = readings.get("on_ac")
    yield "mains power", UNKNOWN if on_ac is None else "yes" if on_ac else "no"
    for label, name, unit in (
        ("battery", "battery_percent", "%"),
        ("temperature", "temperature_c", "°C"),
        ("CPU used by others", "other_cpu_percent", "%"),
        ("memory available", "available_mb", "MiB"),
        ("memory pressure", "memory_pressure", "%"),
        ("disk pressure", "io_pressure", "%"),
        ("disk free", "free_disk_mb", "MiB"),
    ):
        value = readings.get(name)
        yield label, UNKNOWN if value is None else f"{number(value)} {unit}"


def number(value: float) -> str:
    """Write a number of the machine as precisely as it is worth."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _of(what: str, value: float | None, limit: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{what} {value:.0f} {unit}" + ("" if limit is None else f" of {limit:.0f} {unit}")


def _text(found: Json) -> str:
    parts = [
        columns(list(_now(found))),
        _titled("limits", _limits(found)),
        _titled("machine", list(sensors(found["readings"]))),
        _titled("decisions", list(_decisions(found["decisions"]))),
    ]
    return "\n\n".join(part for part in parts if part)


def _now(found: Json) -> Iterator[tuple[str, str]]:
    demand, used = found["demand"], found["today"]
    yield "learning", learning(found)
    yield "budget", usage(found)
    if used.get("cpu_s"):
        yield "CPU time", f"{used['cpu_s'] / 60:.1f} minutes today"
    yield (
        "to learn",
        f"weight {demand['live_weight']:.1f} since the last run, {demand['baked_weight']:.1f} since the last "
        f"consolidation; {demand['examples']} examples in all",
    )
    if demand.get("forgotten"):
        yield "to unlearn", f"a {demand['forgotten']} run, because of what was forgotten"
    if child := found["trainer"]:
        waits = [f"paused: {child['paused']}"] if child.get("paused") else []
        yield "trainer", ", ".join([f"pid {child['pid']}", *trainer(found), *waits])
    yield "preset", found["preset"] + ("" if found["automatic"] else ", training starts only when it is asked for")


def _limits(found: Json) -> list[tuple[str, str, str]]:
    shown = {"preset", "automatic"}  # above
    return [(n, _value(v), found["origins"].get(n, "")) for n, v in found["limits"].items() if n not in shown]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else str(value) or "-"


def _decisions(decisions: list[Json]) -> Iterator[tuple[str, str, str]]:
    for decision in decisions:
        yield moment(decision["at"]), str(decision["action"]), str(decision["reason"])


def _titled(title: str, rows: list[Any]) -> str:
    return f"{title}\n" + "\n".join(f"  {line}" for line in columns(rows).splitlines()) if rows else ""
