"""`edgepd doctor`: whether everything is in order, with the command that mends what is not.

The idea: each check is a function from the situation to findings, listed in CHECKS; they are run in that order and
printed alike. The invariant: without --repair nothing is changed, and no check ends the others.
What this does not do: mend anything while a daemon has the profile open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

import click

from edgepd.cli.output import columns, json_option, show
from edgepd.client import NOT_SERVING, Client
from edgepd.config import Paths, load, paths
from edgepd.errors import ConfigError, ConflictError, DaemonNotRunningError, EdgepdError, StoreError
from edgepd_daemon.listener import hold_lock
from edgepd_profiles.integrity import Finding, examine, repair

UNHEALTHY = 1  # exit code


@dataclass(frozen=True)
class Situation:
    """What the checks look at. `locked` says that a daemon, or another command, owns the data directory."""

    paths: Paths
    locked: bool
    backup_days: float


@click.command()
@click.option("--repair", "mend", is_flag=True, help="Mend what can be made anew; the daemon must be stopped.")
@json_option
def doctor(mend: bool, as_json: bool) -> None:
    """Check that everything is in order, and name the command that mends what is not.

    It works with and without the daemon. --repair makes the search index anew, takes rights on your files from others,
    and moves what waits in the WAL into the profile. Ends with 1 if something is wrong.
    """
    where = paths()
    repaired: list[str] = []
    if mend:
        with hold_lock(where.lock):
            repaired = repair(where.profile)
    with _undisturbed(where) as locked:
        situation = Situation(where, locked, _backup_days(where))
        findings = [finding for check in CHECKS for finding in check(situation)]
    well = not any(finding.problem for finding in findings)
    found = {"ok": well, "repaired": repaired, "findings": [asdict(finding) for finding in findings]}
    show(found, _text(findings, repaired), as_json)
    if not well:
        click.get_current_context().exit(UNHEALTHY)


@contextmanager
def _undisturbed(where: Paths) -> Iterator[bool]:
    """Keep a daemon from starting meanwhile; yields True if one runs, which does not disturb."""
    if not where.data_dir.is_dir():
        yield False
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(where.lock))
            locked = False
        except ConflictError:
            locked = True
        except StoreError:
            locked = False  # the directory is read-only, so no daemon can start either; the checks tell
        yield locked


def _backup_days(where: Paths) -> float:
    try:
        return load(where.config_file).keep.backup_days
    except ConfigError:
        return 1.0  # the default; `_settings` tells what is wrong


def _settings(situation: Situation) -> list[Finding]:
    file = situation.paths.config_file
    try:
        load(file)
    except ConfigError as error:
        return [Finding("settings", str(error), f"change {file} or the environment; docs/config.md lists the settings")]
    return [Finding("settings", detail=str(file) if file.exists() else "all at their defaults")]


def _daemon(situation: Situation) -> list[Finding]:
    try:
        with Client(situation.paths.socket, timeout=10.0) as client:
            health = client.health()
    except DaemonNotRunningError:
        lock = situation.paths.lock
        if situation.locked:
            problem = f"a process holds {lock}, but no daemon answers on {situation.paths.socket}"
            return [Finding("daemon", problem, f"wait a moment, else: kill $(cat {lock})")]
        return [Finding("daemon", detail="not running; start it with: edgepd daemon run")]
    except EdgepdError as error:
        return [Finding("daemon", str(error), "edgepd daemon stop, then start it again and read its log")]
    told = f"{health['status']}, version {health['version']}, pid {health['pid']}"
    if health["status"] in NOT_SERVING:
        return [Finding("daemon", f"the daemon does not serve: {told}", "start it again and read its log")]
    return [Finding("daemon", detail=told)]


def _profile(situation: Situation) -> list[Finding]:
    return examine(situation.paths.profile, backup_days=situation.backup_days)


CHECKS: list[Callable[[Situation], list[Finding]]] = [_settings, _daemon, _profile]


def _text(findings: list[Finding], repaired: list[str]) -> str:
    rows = []
    for finding in findings:
        rows.append((finding.what, "PROBLEM" if finding.problem else "ok", finding.problem or finding.detail))
        if finding.advice:
            rows.append(("", "", f"-> {finding.advice}"))
    return "\n".join([*(f"repaired: {each}" for each in repaired), columns(rows)])
