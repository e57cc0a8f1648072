"""`edgepd doctor --report`: what somebody who helps needs to know, without anything private.

The idea: versions, findings, settings that differ, and numbers of the profile, in text that can be attached to a bug
report. The invariant: all of it passes OwnWords, so no prompt, answer, fact, name of an app or path of the user's is in
it, whatever a column or an error holds; of JSON columns only numbers are taken.
What this does not do: send it anywhere.
"""

from __future__ import annotations

import json
import platform
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edgepd.cli.doctor_checks.machine import versions
from edgepd.cli.doctor_checks.own_words import OwnWords
from edgepd.cli.doctor_checks.records import current
from edgepd.cli.doctor_checks.resources import sizes
from edgepd.cli.doctor_checks.situation import Situation
from edgepd.cli.output import moment
from edgepd.config import declarations
from edgepd.errors import StoreError
from edgepd_profiles.integrity import Finding
from edgepd_profiles.rows import fetch

ROWS = 20  # of runs, generations and decisions
TABLES = (
    *("interactions", "feedback", "facts", "apps", "suggestions", "surveys", "receipts", "similar_pairs"),
    *("events", "intent_map", "intent_students"),
)
# Lists and what is told of each row. No text but words for states and kinds, and edgepd's own reasons.
LISTS = {
    "feedback of each kind": "SELECT kind, count(*) AS count FROM feedback GROUP BY kind ORDER BY kind",
    "generations": f"""
        SELECT id, parent, kind, state, created_at, activated_at, strikes, scores, reason FROM generations
        ORDER BY id DESC LIMIT {ROWS}
    """,  # noqa: S608 - a number of ours
    "runs": f"""
        SELECT id, kind, state, stopped_by, started_at, ended_at, generation, numbers, reason FROM runs
        ORDER BY id DESC LIMIT {ROWS}
    """,  # noqa: S608
    "decisions": f"""
        SELECT at, action, kind, constraint_name AS "constraint", reason FROM decisions ORDER BY id DESC LIMIT {ROWS}
    """,  # noqa: S608
    "training of each day": "SELECT day, at_work_s, cpu_s, asked_s FROM training_days ORDER BY day DESC LIMIT 7",
}
TIMES = ("created_at", "activated_at", "started_at", "ended_at", "at")
JSON_COLUMNS = ("scores", "numbers")


def report(situation: Situation | None, findings: Sequence[Finding], words: OwnWords) -> dict[str, Any]:
    """Return the sections of the report by their titles; without a situation, as far as there is something to tell."""
    told: dict[str, Any] = {
        "system": {"python": platform.python_version(), "platform": platform.platform(), "made": moment(time.time())},
        "packages": versions(),
        "findings": [_row(finding) for finding in findings],
    }
    if situation is not None:
        told["settings"] = settings(situation)
        told["bytes"] = sizes(situation)
        told |= _profile(situation)
    hidden = words.of(told)
    if not isinstance(hidden, dict):
        raise TypeError("a dict stays one")
    return hidden


def text(told: Mapping[str, Any]) -> str:
    """Return the report for people: a title, and a line for each thing below it."""
    lines = ["edgepd doctor --report", "No word in here is yours: what is not edgepd's own was replaced by …"]
    for title, content in told.items():
        lines += ["", f"## {title}"]
        rows = content.items() if isinstance(content, Mapping) else enumerate(content, 1)
        lines += [f"{name}: {_line(value)}" for name, value in rows]
        if not content:
            lines.append("none")
    return "\n".join(lines)


def settings(situation: Situation) -> dict[str, str]:
    """Return the settings that are not at their defaults, with where they come from."""
    found = {}
    for key, declared in declarations().items():
        section, name = key.split(".")
        value, origin = getattr(getattr(situation.settings, section), name), situation.settings.origins.get(key)
        if value != declared.default:
            found[key] = f"{value} ({'file' if origin == str(situation.paths.config_file) else origin})"
    return found


def _row(finding: Finding) -> dict[str, Any]:
    return {"state": "PROBLEM" if finding.problem else "ok"} | asdict(finding)


def _profile(situation: Situation) -> dict[str, Any]:
    """Return what there is to tell of the profile; one that cannot be read is among the findings."""
    try:
        with current(situation.paths.profile) as conn:
            if conn is None:
                return {}
            counts = {name: _count(conn, name) for name in TABLES}
            return {"rows": counts} | {title: [_told(row) for row in fetch(conn, sql)] for title, sql in LISTS.items()}
    except StoreError as error:
        return {"profile": {"problem": str(error)}}


def _count(conn: sqlite3.Connection, table: str) -> int:
    return int(conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - a name of TABLES


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    times = {name: moment(row[name]) for name in TIMES if row.get(name) is not None}
    of_json = {name: _numbers(row[name]) for name in JSON_COLUMNS if name in row}
    return {name: value for name, value in {**row, **times, **of_json}.items() if value not in (None, "", {})}


def _numbers(text_: str) -> dict[str, float]:
    """Return the numbers of a JSON object by name, those in objects within it too."""
    try:
        value = json.loads(text_)
    except ValueError:
        return {}
    return dict(_flat("", value)) if isinstance(value, dict) else {}


def _flat(prefix: str, value: Mapping[str, Any]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, inner in value.items():
        if isinstance(inner, dict):
            found += _flat(f"{prefix}{name}.", inner)
        elif isinstance(inner, bool | int | float):
            found.append((prefix + name, inner))
    return found


def _line(value: object) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    parts = []
    for name, inner in value.items():
        if inner is not None and inner != "":
            parts.append(f"{name} {_brief(inner)}")
    return ", ".join(parts)


def _brief(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + _line(value) + "}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
